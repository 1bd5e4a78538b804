"""Continuous batching on a paged cache: requests join and leave between two tokens of the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig
from shunter.generate.engine import Completion, check_prompts
from shunter.generate.recorder import CudaRecorder
from shunter.generate.sampling import check, pick, uniforms
from shunter.models.adapter import AdaptedLinear
from shunter.models.decoder import Decoder
from shunter.models.footprint import FILL_TOKENS
from shunter.models.paged import OutOfBlocks, PagedCache, PagedStepper, Pass, block_size
from shunter.models.replays import Recorder, Replays

Event = Literal["join", "resume", "preempt", "finish", "weights", "turn"]
Reply = Callable[["Rollout"], "list[int] | None"]  # tokens to go on after, when a turn has ended
TICK = 16  # steps between two calls of `tick`


@dataclass
class Rollout(Completion):
    """A completion with all that a trainer must know of it. Its tokens are never encoded anew.

    number:   of the request, from 0 in the order of submission.
    versions: of the weights that wrote each token.
    wrote:    of each token, whether the model wrote it; others were put between two of its turns, and have
              the log-probability 0.
    preempted: times that it was put aside and read anew.
    """

    number: int = 0
    prompt: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    wrote: list[bool] = field(default_factory=list)
    preempted: int = 0

    @property
    def turns(self) -> int:
        """Of the model: one, and one more after each time that something was put in."""
        return 1 + sum(a and not b for a, b in zip(self.wrote, self.wrote[1:], strict=False))

    @property
    def count(self) -> int:
        """Tokens that the model wrote."""
        return sum(self.wrote)

    def write(self, ids: Sequence[int], logprobs: Sequence[float], version: int) -> None:
        """Add tokens of the model."""
        self.ids += ids
        self.logprobs += logprobs
        self.versions += [version] * len(ids)
        self.wrote += [True] * len(ids)

    def add(self, token: int, logprob: float, version: int) -> None:
        """Add one token of the model."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        self.wrote.append(True)

    def tell(self, ids: Sequence[int], version: int) -> None:
        """Put in what the model is told between two of its turns."""
        self.ids += ids
        self.logprobs += [0.0] * len(ids)
        self.versions += [version] * len(ids)
        self.wrote += [False] * len(ids)


class Engine(Protocol):
    """What reinforcement learning asks of whoever writes: `RolloutEngine`, or a server
    (`shunter.generate.served.ServedEngine`)."""

    seed: int
    version: int
    finished: list[Rollout]
    trace: list[tuple[int, Event, int]]

    @property
    def busy(self) -> bool:
        """Whether anything waits or is written."""

    def submit(
        self, prompt: Sequence[int], stream: int | None = None, *, max_new_tokens: int | None = None
    ) -> int:
        """Queue a prompt; returns its number. stream: of random numbers, that it draws from."""

    def step(self) -> None:
        """Write on; what is finished then stands in `finished`."""

    def new_weights(self, version: int) -> None:
        """The model's weights have changed."""


@dataclass
class _Request:
    rollout: Rollout
    uniforms: list[float] | None  # the stream that this request draws from
    limit: int  # tokens that the model writes at most
    written: int = 0  # those that it has written

    @property
    def text(self) -> list[int]:
        return [*self.rollout.prompt, *self.rollout.ids]


class RolloutEngine:
    """Writes after prompts with one model, many at a time.

    Prompts may be submitted at any moment; each `step` writes one token of every request that runs or joins.
    When no block is free, the request that came last is put aside and later read anew: what it has written
    stays, and what it writes next is the same, but for rounding. The same holds when the weights change: keys
    and values of older ones are never used with newer ones.

    A prompt is read once while a text that begins with it runs.

    Each request draws from the stream (seed, stream), so what it writes depends neither on its neighbours nor
    on when it was submitted; with the same streams it is what `generate` writes.

    trace: (step, event, number) of all that happened.  most_used: the largest share of the blocks in use.
    """

    def __init__(
        self,
        model: Decoder,
        config: SamplingConfig,
        stop_ids: Iterable[int] = (),
        seed: int = 0,
        *,
        tokens: int = 0,
        size: int = 0,
        version: int = 0,
        tempered: bool = False,
        reply: Reply | None = None,
        rounded: torch.dtype | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """tokens: that the cache holds (0: of `config.batch` requests that fill the context). size: tokens a
        block (0: 16). tempered: log-probabilities are those at the temperature drawn with; else the model's
        own. reply: sees a text whose model has ended its turn, and may give tokens after which it goes on;
        the text is read anew then. Where no more may be written, its `stop_reason` is `length` meanwhile, and
        what is given is left out. rounded: a precision to compute in where weights are in a wider one, of a
        model without experts and adapters; keys and values are held in it. recorder: of steps that are
        replayed (`Replays`); default: on a GPU.

        Raises ShunterError for a model whose rotations depend on how much stands beside a text."""
        if model.spec.rope.scaling == "dynamic":
            raise ShunterError(
                "dynamic rope scaling stretches all texts of a batch alike, so they cannot come and go",
                mend="Use generate, or a model with another scaling.",
            )
        self.model, self.config, self.stops, self.seed = model, config, frozenset(stop_ids), seed
        self.version, self.reply = version, reply
        weight = model.embed.weight
        # Experts and adapters are computed as they are.
        plain = model.spec.experts is None and not any(isinstance(m, AdaptedLinear) for m in model.modules())
        self.rounded = rounded if plain and rounded != weight.dtype else None
        size = size or 16
        tokens = tokens or config.batch * model.spec.max_positions
        held = self.rounded or weight.dtype
        self.cache = PagedCache(model.spec, -(-tokens // size), size, held, weight.device)
        self.recorder = recorder or (CudaRecorder(weight.device) if weight.is_cuda else None)
        # No method of this: what replays it would keep this and its cache from being freed.
        self.pick = partial(_tempered if tempered else pick, config=config)
        self._stepper: PagedStepper | None = None
        self._replays: Replays | None = None
        self._changed = False  # the weights, since the stepper was made
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []  # in the order of the cache's rows
        self.finished: list[Rollout] = []
        self.trace: list[tuple[int, Event, int]] = []
        self.steps = self.count = 0
        # If a text that fills the cache alone cannot be written, nothing can.
        self.room = min(model.spec.max_positions, self.cache.blocks * size)

    def submit(
        self, prompt: Sequence[int], stream: int | None = None, *, max_new_tokens: int | None = None
    ) -> int:
        """Queue a prompt; returns its number. stream: what it draws from; default: its number."""
        check_prompts(self.model, [prompt])
        if len(prompt) >= self.room:
            raise ShunterError(
                f"a prompt of {len(prompt)} tokens does not fit a cache of {self.room}",
                mend="Give the engine more tokens.",
            )
        number, self.count = self.count, self.count + 1
        limit = max_new_tokens or self.config.max_new_tokens
        most = min(limit, self.model.spec.max_positions - len(prompt))
        drawn = None
        if self.config.temperature > 0:
            drawn = uniforms(self.seed, number if stream is None else stream, most).tolist()
        rollout = Rollout(number=number, prompt=list(prompt))
        self.waiting.append(_Request(rollout, drawn, limit))
        return number

    def resume(self, begun: Rollout, stream: int | None = None) -> int:
        """Go on with a text that another engine has begun and not finished; returns its number here. stream:
        that it drew from there: it goes on where it was."""
        number = self.submit(begun.prompt, stream)
        request = self.waiting[-1]
        request.rollout = Rollout(
            ids=list(begun.ids),
            logprobs=list(begun.logprobs),
            number=number,
            prompt=list(begun.prompt),
            versions=list(begun.versions),
            wrote=list(begun.wrote),
            preempted=begun.preempted,
        )
        request.written = begun.count
        return number

    @property
    def begun(self) -> list[Rollout]:
        """Texts of which a part is written, as they are now."""
        return [each.rollout for each in (*self.running, *self.waiting) if each.rollout.ids]

    @property
    def busy(self) -> bool:
        """Whether anything waits or is written."""
        return bool(self.waiting or self.running)

    def run(self) -> list[Rollout]:
        """Write until nothing is left; returns what was finished, in the order of submission."""
        while self.busy:
            self.step()
        done, self.finished = self.finished, []
        return sorted(done, key=lambda rollout: rollout.number)

    def new_weights(self, version: int) -> None:
        """The model's weights have changed: all that runs is read anew before it goes on.

        A weight is never changed inside a step: whoever changes it calls this between two.
        """
        for row in range(len(self.running) - 1, -1, -1):
            self._put_aside(row)
        self.version = version
        self._changed = True
        if self._replays is None:  # a copy of older weights is of no use
            self.forget()
        self.trace.append((self.steps, "weights", version))

    @property
    def stepper(self) -> PagedStepper:
        """Of the weights as they are when the next step begins."""
        if self._stepper is None or (self._changed and not self._stepper.renew()):
            self.forget()
            self._stepper = PagedStepper(self.model, self.rounded)
        self._changed = False
        return self._stepper

    @property
    def replays(self) -> Replays | None:
        """Recorded steps; None where none is recorded, as the model or the device is not such."""
        stepper = self.stepper
        if (
            self._replays is None
            and self.recorder is not None
            and stepper.fixed
            and not torch.are_deterministic_algorithms_enabled()
        ):
            self._replays = Replays(stepper, self.cache, self.pick, self.recorder)
        return self._replays

    def forget(self) -> None:
        """Give up copies of weights, and what was recorded; the next step makes them anew."""
        self._stepper = self._replays = None

    @torch.inference_mode()
    def step(self) -> None:
        """Write a token of each that runs, and of those waiting that there is room for, in one pass."""
        self.steps += 1
        self._make_room()
        steps = {row: request.rollout.ids[-1] for row, request in enumerate(self.running)}
        texts = self._join(steps)
        if not self.running:
            return
        if not texts and (replays := self.replays) is not None:
            rows = list(steps)
            self._write(rows, *replays.read(steps, self._uniforms(rows)))
        else:
            turn = Pass(self.cache, texts, steps, self.stepper.even)
            drawn = self._uniforms(turn.order)
            uniform = torch.tensor(drawn, dtype=torch.float64, device=self.cache.device) if drawn else None
            found = self.pick(self.stepper.read(turn), uniform)
            self._write(turn.order, *(each.tolist() for each in found))

    def _uniforms(self, rows: Sequence[int]) -> list[float]:
        """What these rows draw their next token by; none where the likeliest is taken."""
        requests = [self.running[row] for row in rows]
        return [one.uniforms[one.written] for one in requests if one.uniforms is not None]

    def _join(self, steps: dict[int, int]) -> dict[tuple[int, ...], list[int]]:
        """Let as many waiting texts join as there is room for. Returns those to read, each with its rows:
        equal texts are read once. A prompt that a running text begins with is not read again: what is stored
        of it is copied, and its last token is added to `steps`."""
        joined: dict[tuple[int, ...], list[int]] = {}
        held = {tuple(self.running[row].rollout.prompt): row for row in steps} if self.waiting else {}
        tokens = 0
        while self.waiting and len(self.running) < self.config.batch:
            request = self.waiting[0]
            text = tuple(request.text)
            known = text in joined or text in held
            if not known and joined and tokens + len(text) > FILL_TOKENS:
                break
            # One more for each that runs: else what joins now would be put aside at once.
            spare = 0 if not self.running else len(self.running) + 1
            if self.cache.needed(len(text) + 1) + spare > len(self.cache.free) and self.running:
                break
            self.waiting.popleft()
            tokens += 0 if known else len(text)
            if text in held:
                steps[self.cache.fork(held[text], len(text))] = text[-1]
            else:
                joined.setdefault(text, []).append(self.cache.add(len(text)))
            self.running.append(request)
            resumed = bool(request.rollout.ids)
            self.trace.append((self.steps, "resume" if resumed else "join", request.rollout.number))
        return joined

    def _write(
        self, rows: Sequence[int], tokens: Sequence[int], logprobs: Sequence[float], best: Sequence[float]
    ) -> None:
        """A token for each of these rows, as `pick` chose it; those that have ended leave."""
        check(best)
        gone: list[int] = []
        turned: list[int] = []
        # For some hundred rows this takes as long as a small model's step on a GPU.
        running, version, stops = self.running, self.version, self.stops
        most = self.model.spec.max_positions
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            request = running[row]
            rollout = request.rollout
            rollout.add(token, logprob, version)
            request.written += 1
            if token in stops:
                rollout.stop_reason = "stop"
                if self._goes_on(request):
                    turned.append(row)
                    continue
            elif request.written == request.limit:
                rollout.stop_reason = "length"
            elif len(rollout.prompt) + len(rollout.ids) >= most:
                rollout.stop_reason = "context"
            else:
                continue
            gone.append(row)
        for row in gone:
            self.trace.append((self.steps, "finish", self.running[row].rollout.number))
            self.finished.append(self.running[row].rollout)
        self.waiting.extendleft(self.running[row] for row in reversed(turned))
        self._leave([*gone, *turned])

    def _goes_on(self, request: _Request) -> bool:
        """Put in what the model is told after its turn. What does not fit the context ends the text."""
        if self.reply is None:
            return False
        rollout = request.rollout
        full = request.written == request.limit
        if full:
            rollout.stop_reason = "length"  # so who replies need do nothing for it
        told = self.reply(rollout)
        if told is None:
            rollout.stop_reason = "stop"
            return False
        if full:
            return False
        if len(rollout.prompt) + len(rollout.ids) + len(told) >= self.room:
            rollout.stop_reason = "context"
            return False
        rollout.stop_reason = "length"  # as of a text that is being written
        rollout.tell(told, self.version)
        self.trace.append((self.steps, "turn", rollout.number))
        return True

    def _make_room(self) -> None:
        """A place for the next token of each that runs; the last ones are put aside if there is none."""
        if self.cache.grow_all():
            return
        row = 0
        while row < len(self.running):
            try:
                self.cache.grow(row)
                row += 1
            except OutOfBlocks:
                last = len(self.running) - 1
                if last == 0:
                    raise ShunterError(
                        f"a text of {self.cache.lengths[0] + 1} tokens does not fit the cache",
                        mend="Give the engine more tokens.",
                    ) from None
                self._put_aside(last)

    def _put_aside(self, row: int) -> None:
        request = self.running[row]
        request.rollout.preempted += 1
        self.trace.append((self.steps, "preempt", request.rollout.number))
        self._leave([row])
        self.waiting.appendleft(request)

    def _leave(self, rows: Sequence[int]) -> None:
        self.cache.remove(rows)
        for row in sorted(rows, reverse=True):
            del self.running[row]


def _tempered(
    logits: Tensor, uniform: Tensor | None, config: SamplingConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """As `pick`, with log-probabilities at the temperature that is drawn with."""
    if config.temperature not in (0, 1):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / config.temperature
        config = config.model_copy(update={"temperature": 1.0})
    return pick(logits, uniform, config)


def rollouts(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    stop_ids: Iterable[int] = (),
    seed: int = 0,
    *,
    tokens: int = 0,
    reply: Reply | None = None,
    told: int = 0,
    tick: Callable[[int], None] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Rollout]:
    """What `generate` gives, by continuous batching: the same streams, so the same tokens but for rounding.

    tokens: that the cache holds; 0: what `config.batch` of these prompts may come to. reply, told: what a
    text goes on after when a turn has ended, and how many tokens of that there may be. tick: called now and
    then with how many are finished; it may raise. on_token: called with a prompt's number and each id.
    """
    check_prompts(model, prompts)
    lengths = [min(len(p) + config.max_new_tokens + told, model.spec.max_positions) for p in prompts]
    size = block_size(sum(lengths) / max(1, len(lengths)))
    most = sum(sorted((-(-length // size) * size for length in lengths), reverse=True)[: config.batch])
    tokens = tokens or max(most, size)
    engine = RolloutEngine(model, config, stop_ids, seed, tokens=tokens, size=size, reply=reply)
    for prompt in prompts:
        engine.submit(prompt)
    seen: dict[int, int] = {}
    done = 0
    while engine.waiting or engine.running:
        engine.step()
        if on_token is not None:
            for one in (*(each.rollout for each in engine.running), *engine.finished[done:]):
                for id in one.ids[seen.get(one.number, 0) :]:
                    on_token(one.number, id)
                seen[one.number] = len(one.ids)
            done = len(engine.finished)
        if tick is not None and engine.steps % TICK == 0:
            tick(len(engine.finished))
    engine.forget()
    return engine.run()
