"""A server of vLLM or SGLang as the generator: tokens go in and come out, each with its log-probability.

Whether it computes the policy that is trained, the trainer measures in each step, as with our own generator.
How the two are spoken to stands in `shunter.generate.servers`.
"""

from __future__ import annotations

import math
import queue
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.generate.config import SamplingConfig, ServerConfig
from shunter.generate.rollout import Event, Reply, Rollout
from shunter.generate.servers import DIALECTS, Kind, Said, Wire

Save = Callable[[Path], None]  # writes the model as it is now into a folder, in Hugging Face's format


@dataclass
class _Request:
    rollout: Rollout
    seed: int
    limit: int  # tokens that the model writes at most, in all turns


class ServedEngine:
    """As `RolloutEngine`, but written by a server. A text is a request for each turn of the model.

    Before anything is written after `new_weights`, the weights are put into a folder, and the server is told
    to load them. It never does so while it writes for us.
    """

    def __init__(
        self,
        kind: Kind,
        server: ServerConfig,
        config: SamplingConfig,
        stop_ids: Iterable[int],
        seed: int = 0,
        *,
        save: Save,
        folder: Path,
        context: int,
        version: int = 0,
        reply: Reply | None = None,
    ) -> None:
        """config: its batch is how many requests are under way at once. folder: that the server sees too.
        context: tokens that fit the model. reply: as of `RolloutEngine`."""
        self.server, self.config, self.stops, self.seed = server, config, frozenset(stop_ids), seed
        self.version, self.reply, self.context = version, reply, context
        self.waiting: deque[_Request] = deque()
        self.running: dict[int, _Request] = {}
        self.finished: list[Rollout] = []
        self.trace: list[tuple[int, Event, int]] = []
        self._save, self._folder = save, folder
        self._loaded: int | None = None
        self._count = 0
        self._said: queue.Queue[tuple[int, Said | Exception]] = queue.Queue()
        self._speaks = DIALECTS[kind](Wire(server))

    @property
    def busy(self) -> bool:
        """Whether anything waits or is written."""
        return bool(self.waiting or self.running)

    def submit(
        self, prompt: Sequence[int], stream: int | None = None, *, max_new_tokens: int | None = None
    ) -> int:
        """Queue a prompt; returns its number. stream: which random numbers, where the server takes a seed.
        Raises ShunterError for one that is empty or fills the context."""
        if not 0 < len(prompt) < self.context:
            raise ShunterError(
                f"a prompt of {len(prompt)} tokens cannot be continued in a context of {self.context}",
                mend="Shorten it, or begin it with the end-of-text token.",
            )
        number, self._count = self._count, self._count + 1
        seed = derive_seed(self.seed, "served", number if stream is None else stream)
        limit = max_new_tokens or self.config.max_new_tokens
        self.waiting.append(_Request(Rollout(number=number, prompt=list(prompt)), seed, limit))
        return number

    def new_weights(self, version: int) -> None:
        """The model's weights have changed; the server gets them before it writes again. Raises ShunterError
        while texts are being written."""
        if self.busy:
            raise ShunterError("weights change only when the server has written all that it was asked for")
        self.version = version
        self.trace.append((0, "weights", version))
        self._loaded = None

    def step(self) -> None:
        """Ask for what waits, as much as may be under way, and take what has been written; at least one turn.

        Raises ShunterError for a server that does not answer, or answers otherwise than it should."""
        if self._loaded != self.version:
            self._load()
        while self.waiting and len(self.running) < self.config.batch:
            request = self.waiting.popleft()
            number = request.rollout.number
            self.running[number] = request
            self.trace.append((0, "resume" if request.rollout.ids else "join", number))
            # Not waited for at the end of the program, as a pool's would be.
            threading.Thread(target=self._ask, args=(number, request), daemon=True).start()
        while self.running:
            number, said = self._said.get()
            if isinstance(said, Exception):
                raise said
            self._take(self.running.pop(number), said)
            if self._said.empty():
                return

    def run(self) -> list[Rollout]:
        """Write until nothing is left; returns what was finished, in the order of submission."""
        while self.busy:
            self.step()
        done, self.finished = self.finished, []
        return sorted(done, key=lambda rollout: rollout.number)

    def _ask(self, number: int, request: _Request) -> None:
        rollout = request.rollout
        text = [*rollout.prompt, *rollout.ids]
        most = min(request.limit - rollout.count, self.context - len(text))
        seed = derive_seed(request.seed, rollout.turns)
        try:
            self._said.put((number, self._speaks.write(text, most, seed, self.config, sorted(self.stops))))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            self._said.put((number, self._odd(f"it has another form than is known ({error})")))
        except Exception as error:  # it is raised where it is waited for
            self._said.put((number, error))

    def _take(self, request: _Request, said: Said) -> None:
        rollout = request.rollout
        text = [*rollout.prompt, *rollout.ids]
        self._check(text, said)
        rollout.write(said.ids, said.logprobs, self.version)
        length = len(text) + len(said.ids)
        if said.reason == "stop":
            full = rollout.count >= request.limit
            rollout.stop_reason = "length" if full else "stop"  # as of `RolloutEngine`
            told = None if self.reply is None else self.reply(rollout)
            if told is None:
                rollout.stop_reason = "stop"
            elif not full:
                if length + len(told) >= self.context:
                    rollout.stop_reason = "context"
                else:
                    rollout.stop_reason = "length"  # as of a text that is being written
                    rollout.tell(told, self.version)
                    self.trace.append((0, "turn", rollout.number))
                    self.waiting.appendleft(request)
                    return
        else:
            rollout.stop_reason = "context" if length >= self.context else "length"
        self.trace.append((0, "finish", rollout.number))
        self.finished.append(rollout)

    def _check(self, text: list[int], said: Said) -> None:
        if said.prompt not in (None, text, len(text)):
            raise self._odd("it continued other tokens than it was given")
        if said.version is not None and said.version != str(self.version):
            raise self._odd(
                f"it wrote with the weights {said.version!r}, and was given {str(self.version)!r} before",
                "Let nobody else load weights into it while a training uses it.",
            )
        if said.reason not in ("stop", "length"):
            raise self._odd(f"it ended a text because of {said.reason!r}")
        if not said.ids or len(said.ids) != len(said.logprobs):
            raise self._odd(f"it gave {len(said.ids)} tokens with {len(said.logprobs)} log-probabilities")
        if not all(math.isfinite(each) for each in said.logprobs):
            raise self._odd("a log-probability is not a number")
        if said.reason == "stop" and said.ids[-1] not in self.stops:
            raise self._odd(
                f"it ended a text at the token {said.ids[-1]}, which does not end one here",
                "Serve the folder that the training began with: its generation_config.json names what ends.",
            )

    def _odd(self, what: str, mend: str | None = None) -> ShunterError:
        return ShunterError(
            f"the server's answer cannot be learnt from: {what}", where=self.server.url, mend=mend
        )

    def _load(self) -> None:
        """Weights into a folder of their own, then to the server; those before are removed."""
        here = self._folder / f"weights-{self.version:08d}"
        aside = self._folder / "weights.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        self._save(aside)
        shutil.rmtree(here, ignore_errors=True)
        aside.rename(here)
        self._speaks.load(here.resolve(), str(self.version))
        self._loaded = self.version
        for other in self._folder.glob("weights-*"):
            if other != here:
                shutil.rmtree(other, ignore_errors=True)
