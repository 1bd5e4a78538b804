"""Who writes the answers of a training whose weights go on meanwhile: in this process, or beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from shunter.config.seed import derive_seed
from shunter.generate.rollout import Engine, Rollout

Hear = Callable[[int, Mapping[int, Rollout]], None]  # answers of a step, by their place in it
Weights = Mapping[str, Tensor]
BLOCK = 8  # tokens of a block of the cache: texts are short


class Writer(Protocol):
    """Writes what it is asked for, and calls `hear` with it from inside `ask` or `listen`.

    An answer is begun with the weights of the last `renew` before its `ask`, or with newer ones."""

    def renew(self, version: int, weights: Weights) -> None:
        """Go on with these weights, which nobody changes any more."""

    def ask(self, step: int, prompts: Mapping[int, Sequence[int]]) -> None:
        """Write answers of a step, by their place in it."""

    def listen(self, wait: bool) -> None:
        """Hear what has been written since; wait: until there is something. Raises ShunterError where nothing
        can come any more."""

    def close(self) -> None:
        """Write no more."""


class Here:
    """Writes in this process with the model that learns: all that it is asked for, before it returns."""

    def __init__(self, engine: Engine, seed: int, hear: Hear) -> None:
        self.engine, self.seed, self.hear = engine, seed, hear

    def renew(self, version: int, weights: Weights) -> None:
        self.engine.new_weights(version)

    def ask(self, step: int, prompts: Mapping[int, Sequence[int]]) -> None:
        asked = submit(self.engine, self.seed, step, prompts)
        while self.engine.busy:
            self.engine.step()
            self.hear(step, {asked[one.number]: one for one in self.engine.finished})
            self.engine.finished.clear()
        self.engine.trace.clear()

    def listen(self, wait: bool) -> None:
        pass

    def close(self) -> None:
        pass


def submit(engine: Engine, seed: int, step: int, prompts: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Queue answers of a step, each with its stream of random numbers; their places, by request."""
    engine.seed = derive_seed(seed, "rollout", step)
    return {engine.submit(list(ids), stream=at): at for at, ids in prompts.items()}
