"""A stage's forward once more, with the random draws of the first time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.parallel.tree import Tree
from shunter.private import version_of


@dataclass(frozen=True)
class Draws:
    """States of torch's global generators: the CPU's and, where the stage computes there, the GPU's."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> Draws:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, device)

    def again(self, compute: Callable[[], Tree]) -> Tree:
        """What `compute` returns when it draws what was drawn from here on; what comes after draws on."""
        with torch.random.fork_rng([self.device] if self.cuda is not None else []):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            return compute()


def light_forward(compute: Callable[[], Tree], inputs: Tree, trains: bool) -> Tree:
    """The outputs of `compute` without a graph.

    Which of them depend on a parameter is not known without a graph: all of floating point are taken to.
    Raises ShunterError if it changed one of its inputs, which the recomputation would find changed.
    """
    versions = {key: version_of(tensor) for key, tensor in inputs.items()}
    with torch.no_grad():
        outputs = compute()
    for key, tensor in inputs.items():
        if version_of(tensor) != versions[key]:
            raise ShunterError(
                f"a stage changes its input {key!r} in place, so it cannot be recomputed",
                mend="Let its first layer write to a new tensor, or turn recomputation off.",
            )
    trains = trains or any(tensor.requires_grad for tensor in inputs.values())
    return {
        key: tensor.detach().requires_grad_(trains and tensor.is_floating_point())
        for key, tensor in outputs.items()
    }
