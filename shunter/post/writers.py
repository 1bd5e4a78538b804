"""Who writes the answers of a training whose weights go on meanwhile: in this process, or beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shunter.config.seed import derive_seed
from shunter.generate.rollout import Engine, Rollout, RolloutEngine
from shunter.post.journal import Journal

Hear = Callable[[int, Mapping[int, Rollout]], None]  # answers of a step, by their place in it
Weights = Mapping[str, Tensor]
Rollouts = Mapping[int, Rollout]
HELD = 8  # one group in so many is held against the weights that wrote it
KEEP = 10.0  # seconds after which parts of answers go to disk


class Writer(Protocol):
    """Writes what it is asked for, puts it on disk, and calls `hear` with it from inside `ask` or `listen`.

    An answer is begun with the weights of the last `renew` before its `ask`, or with newer ones.
    beside: it writes elsewhere, so `listen` may be called on a thread of its own, one at a time. memory:
    bytes at most of a process that it is, as far as that has been told."""

    beside: bool

    @property
    def memory(self) -> int: ...

    def renew(self, version: int, weights: Weights) -> None:
        """Go on with these weights, which nobody changes any more."""

    def ask(self, step: int, prompts: Mapping[int, Sequence[int]], begun: Rollouts) -> None:
        """Write answers of a step, by their place in it. begun: parts of some that are there."""

    def listen(self, wait: bool) -> None:
        """Hear what has been written since; wait: until there is something. Raises ShunterError where nothing
        can come any more."""

    def close(self) -> None:
        """Write no more."""


class Here:
    """Writes in this process with the model that learns: all that it is asked for, before it returns."""

    beside = False
    memory = 0

    def __init__(self, engine: Engine, seed: int, journal: Journal, exact: bool, hear: Hear) -> None:
        self.engine, self.seed, self.journal, self.exact, self.hear = engine, seed, journal, exact, hear

    def renew(self, version: int, weights: Weights) -> None:
        self.engine.new_weights(version)

    def ask(self, step: int, prompts: Mapping[int, Sequence[int]], begun: Rollouts) -> None:
        asked = submit(self.engine, self.seed, step, prompts, begun)
        for fresh in written(self.engine, step, asked, self.journal, self.exact):
            self.hear(step, fresh)

    def listen(self, wait: bool) -> None:
        pass

    def close(self) -> None:
        pass


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors as they are now, in the host's memory; not those that nobody trains, which are those
    that the run began with."""
    return {name: value.detach().to("cpu", copy=True) for name, value in trained(module).items()}


def load(module: nn.Module, weights: Weights) -> None:
    """Take what `snapshot` gave of a module of this kind. Raises ValueError where that is not all of it, or
    more."""
    found = module.load_state_dict(weights, strict=False)
    wrong = sorted({*found.unexpected_keys, *(trained(module).keys() & found.missing_keys)})
    if wrong:
        raise ValueError(f"the weights are of another model: {', '.join(wrong[:3])}")


def trained(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors by name, without parameters that nobody trains."""
    return {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if value.requires_grad or not isinstance(value, nn.Parameter)
    }


def arrays(weights: Weights) -> dict[str, NDArray[np.generic]]:
    """Weights as they can be sent. numpy knows no bfloat16: its bits go as integers."""
    return {
        name: (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in weights.items()
    }


def tensors(sent: Mapping[str, NDArray[np.generic]], module: nn.Module) -> dict[str, Tensor]:
    """What `arrays` has made of weights of a module of this kind."""
    found = {name: torch.from_numpy(array) for name, array in sent.items()}
    for name, value in module.state_dict().items():
        if name in found and value.dtype == torch.bfloat16 and found[name].dtype == torch.int16:
            found[name] = found[name].view(torch.bfloat16)
    return found


def submit(
    engine: Engine, seed: int, step: int, prompts: Mapping[int, Sequence[int]], begun: Rollouts
) -> dict[int, int]:
    """Queue answers of a step, each with its stream of random numbers; their places, by request."""
    engine.seed = derive_seed(seed, "rollout", step)
    asked = {}
    for at, ids in prompts.items():
        if at in begun and isinstance(engine, RolloutEngine) and begun[at].prompt == list(ids):
            asked[engine.resume(begun[at], stream=at)] = at
        else:
            asked[engine.submit(list(ids), stream=at)] = at
    return asked


def written(
    engine: Engine, step: int, asked: Mapping[int, int], journal: Journal, exact: bool
) -> Iterator[dict[int, Rollout]]:
    """Answers of a step as they are finished, until all are; on disk first. asked: places, by request.
    exact: a part of an answer is of no use, since others than those would be written beside it."""
    last = time.monotonic()
    while engine.busy:
        engine.step()
        fresh = {asked[one.number]: one for one in engine.finished}
        journal.write(step, fresh)
        engine.finished.clear()
        if fresh:
            yield fresh
        if not exact and isinstance(engine, RolloutEngine) and time.monotonic() - last > KEEP:
            journal.keep(step, {asked[one.number]: one for one in engine.begun})
            last = time.monotonic()
    engine.trace.clear()
