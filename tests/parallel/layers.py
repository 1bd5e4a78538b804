"""A small stack of unequal layers, whole and cut into stages; everything from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shunter.parallel.stage import LOSS, Stage
from shunter.parallel.tree import Tree

DIM = 6


class Layer(nn.Module):
    """Residual, a norm's parameters and a bias: some gradients are deferred and some are not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM, dtype=torch.float64)
        self.up = nn.Linear(DIM, width, dtype=torch.float64)
        self.down = nn.Linear(width, DIM, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


def layers(count: int, seed: int = 0) -> list[Layer]:
    torch.manual_seed(seed)
    return [Layer(3 + index % 3) for index in range(count)]


def batches(microbatches: int, seed: int = 0, uneven: bool = False) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1000 + seed)
    return [
        torch.randn(2 + (index % 2 if uneven else 0), 3, DIM, generator=draw, dtype=torch.float64)
        for index in range(microbatches)
    ]


def loss_of(x: Tensor) -> Tensor:
    return x.square().sum() / 7


def stages_of(
    whole: Sequence[Layer], cut: Sequence[int], data: Sequence[Tensor], numbers: Sequence[int]
) -> dict[int, Stage]:
    """Those of `numbers`; stage s has layers cut[s] to cut[s + 1]. The first reads `data`."""
    last = len(cut) - 2
    found = {}
    for number in numbers:
        module = nn.Sequential(*whole[cut[number] : cut[number + 1]])

        def compute(inputs: Tree, microbatch: int, number: int = number, module: nn.Module = module) -> Tree:
            y = module(inputs["x"] if number else data[microbatch])
            return {LOSS: loss_of(y)} if number == last else {"x": y}

        found[number] = Stage(compute, module)
    return found


def reference(whole: Sequence[Layer], data: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[float]]:
    """Gradients by parameter and losses by micro-batch of one process."""
    module = nn.Sequential(*whole)
    losses = []
    for x in data:
        loss = loss_of(module(x))
        loss.backward()
        losses.append(loss.item())
    gradients = {f"{i}.{n}": p.grad for i, layer in enumerate(whole) for n, p in layer.named_parameters()}
    return gradients, losses
