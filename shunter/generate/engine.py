"""Batched generation with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig
from shunter.generate.sampling import choose, uniforms
from shunter.models.cache import KVCache
from shunter.models.decode import Stepper
from shunter.models.decoder import Decoder

# Tokens to be written from which on weights are copied into an order in which several rows are faster
# (`Stepper`): the copy takes as long as is won with about half as many.
COPIED = 256

StopReason = Literal["stop", "length", "context"]


@dataclass
class Completion:
    """What was written after a prompt.

    ids:      the new tokens, the stop token included if one was written.
    logprobs: of each, under the model at temperature 1, nats.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: StopReason = "length"


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Continue each prompt (a list of at least one id), in the order given.

    Each prompt draws from a stream of its own (seed, its number), so its completion does not depend on
    which others are beside it, but for rounding: products of other shapes may round otherwise. Dynamic rope
    scaling is an exception: past the original context it stretches for the longest of a batch, as
    transformers does.
    on_token is called with (prompt's number, id) as each token is written. Raises ShunterError for a
    prompt that is empty or fills the model's context.
    """
    check_prompts(model, prompts)
    if model.embed.weight.is_cuda and model.spec.rope.scaling != "dynamic":
        from shunter.generate.rollout import rollouts  # whose steps are replayed there

        return [*rollouts(model, prompts, config, stop_ids, seed, on_token=on_token)]
    done = [Completion() for _ in prompts]
    together = min(len(prompts), config.batch)
    stepper = Stepper(model, copy=together > 1 and len(prompts) * config.max_new_tokens >= COPIED)
    # Prompts of like length share a batch, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for begin in range(0, len(order), config.batch):
        chosen = order[begin : begin + config.batch]
        _Batch(stepper, prompts, chosen, config, frozenset(stop_ids), seed, done, on_token).run()
    return done


def check_prompts(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    """Raise ShunterError for a prompt that cannot be continued."""
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ShunterError(f"prompt {number} is empty", mend="Begin it with the end-of-text token.")
        if len(prompt) >= model.spec.max_positions:
            raise ShunterError(
                f"prompt {number} has {len(prompt)} tokens, the context is {model.spec.max_positions}",
                mend="Shorten it.",
            )


class _Batch:
    """Prompts that are continued together. `rows` holds the numbers of those still in the batch."""

    def __init__(
        self,
        stepper: Stepper,
        prompts: Sequence[Sequence[int]],
        rows: list[int],
        config: SamplingConfig,
        stops: frozenset[int],
        seed: int,
        done: list[Completion],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.config, self.stops, self.done, self.on_token = (
            stepper.model,
            config,
            stops,
            done,
            on_token,
        )
        self.stepper, model = stepper, stepper.model
        weight = model.embed.weight
        longest = max(len(prompts[row]) for row in rows)
        padded = [[0] * (longest - len(prompts[row])) + list(prompts[row]) for row in rows]
        starts = torch.tensor([longest - len(prompts[row]) for row in rows])
        limit = model.spec.max_positions
        self.rows: list[int | None] = list(rows)  # None: finished, still taking part
        self.room = [limit - len(prompts[row]) for row in rows]
        self.steps = min(config.max_new_tokens, max(self.room))
        self.tokens = torch.tensor(padded, device=weight.device)
        self.cache = KVCache(model.spec, starts, longest + self.steps, weight.dtype, weight.device)
        self.uniforms: Tensor | None = None
        if config.temperature > 0:
            drawn = [uniforms(seed, row, self.steps) for row in rows]
            self.uniforms = torch.stack(drawn).to(weight.device)

    def run(self) -> None:
        """Write until every prompt is finished."""
        logits = self.model.logits(self.model(self.tokens, cache=self.cache)[:, -1])
        for step in range(self.steps):
            if step:
                logits = self.stepper(self.tokens, self.cache)
            uniform = None if self.uniforms is None else self.uniforms[:, step]
            tokens, logprobs = choose(logits, uniform, self.config)
            self._note(step, tokens.tolist(), logprobs.tolist())
            going = [i for i, row in enumerate(self.rows) if row is not None]
            if not going:
                return
            self.tokens = tokens
            # Leaving costs a copy of the cache: it pays off when half of the batch is finished.
            if len(going) <= len(self.rows) // 2:
                self._keep(going)

    def _note(self, step: int, tokens: list[int], logprobs: list[float]) -> None:
        for i, row in enumerate(self.rows):
            if row is None:
                continue
            completion = self.done[row]
            completion.ids.append(tokens[i])
            completion.logprobs.append(logprobs[i])
            if self.on_token is not None:
                self.on_token(row, tokens[i])
            if tokens[i] in self.stops:
                completion.stop_reason, self.rows[i] = "stop", None
            elif step + 1 == self.config.max_new_tokens:
                self.rows[i] = None
            elif step + 1 == self.room[i]:
                completion.stop_reason, self.rows[i] = "context", None

    def _keep(self, going: list[int]) -> None:
        index = torch.tensor(going, device=self.tokens.device)
        self.cache.select(index)
        self.tokens = self.tokens[index]
        self.rows = [self.rows[i] for i in going]
        self.room = [self.room[i] for i in going]
        if self.uniforms is not None:
            self.uniforms = self.uniforms[index]
