"""Peak memory from samples of small runs: Pipette's estimator, a small network (arXiv 2405.18093).

Features and widths are the card's. Two things differ: features and target are logarithms, and a straight
line is added to the network. Memory is made of products of these features, so a line in logarithms carries
on where a plain network goes flat; and inputs far out of what it was trained on are refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from shunter.config.errors import ShunterError

NAMES = ("devices", "layers", "hidden", "heads", "tp", "pp", "dp", "stage layers", "rows", "batch", "part")
WIDTHS = (64, 48, 24, 12)
FAR = 4.0  # times beyond the smallest and the largest of each feature in training that are still answered


def features(
    layers: int, hidden: int, heads: int, pp: int, tp: int, dp: int, rows: int, batch: int
) -> list[float]:
    """[G, L, h, a, tp, pp, dp, L / pp, b, B, B / dp]."""
    return [
        float(x)
        for x in (pp * tp * dp, layers, hidden, heads, tp, pp, dp, layers / pp, rows, batch, batch / dp)
    ]


@dataclass(frozen=True)
class MemoryNet:
    """A trained estimator: the mean of some networks. low, high: of each feature in training."""

    nets: tuple[Any, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: Any
    scale: Any
    target: tuple[float, float]

    def __call__(self, row: Sequence[float]) -> float:
        """Bytes. Raises ShunterError for a feature far out of what was trained on."""
        import torch

        for name, value, low, high in zip(NAMES, row, self.low, self.high, strict=True):
            if not low / FAR <= value <= high * FAR:
                raise ShunterError(
                    f"{name} is {value:g}, and was {low:g} to {high:g} in training: too far out to predict",
                    mend="Measure some larger runs and train again.",
                )
        with torch.no_grad():
            x = (torch.tensor([row], dtype=torch.float64).log() - self.mean) / self.scale
            mean, scale = self.target
            told = sum(float(net(x)) for net in self.nets) / len(self.nets)
            return math.exp(told * scale + mean)


def train(
    rows: Sequence[Sequence[float]],
    peaks: Sequence[float],
    *,
    seed: int = 0,
    epochs: int = 600,
    decay: float = 2.0,
    members: int = 5,
) -> MemoryNet:
    """Fit to features and peak bytes. Deterministic for a seed.

    members: networks whose mean is taken. decay: of weights, strong; it was chosen on samples with twice
    the devices of those trained on."""
    import torch

    x = torch.tensor(rows, dtype=torch.float64).log()
    y = torch.tensor(peaks, dtype=torch.float64).log()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    middle, spread = float(y.mean()), float(y.std().clamp_min(1e-6))
    x, y = (x - mean) / scale, (y - middle) / spread
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        nets = tuple(_fitted(x, y, epochs, decay) for _ in range(members))
    finally:
        torch.set_rng_state(before)
    columns = list(zip(*rows, strict=True))
    return MemoryNet(nets, tuple(map(min, columns)), tuple(map(max, columns)), mean, scale, (middle, spread))


def _fitted(x: Any, y: Any, epochs: int, decay: float) -> Any:
    """One network. The line comes from least squares; the rest learns what is left."""
    import torch
    from torch import nn

    net = _Net(len(NAMES)).double()
    with torch.no_grad():
        design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        ridge = design.T @ design + 1e-6 * torch.eye(design.shape[1], dtype=x.dtype)
        solved = torch.linalg.solve(ridge, design.T @ y)
        net.line.weight.copy_(solved[None, :-1])
        net.line.bias.copy_(solved[-1:])
    optimizer = torch.optim.AdamW(net.deep.parameters(), lr=5e-3, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x).squeeze(-1), y)
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def _Net(inputs: int) -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (inputs, *WIDTHS)
            layers: list[nn.Module] = []
            for a, b in pairwise(sizes):
                layers += [nn.Linear(a, b), nn.ReLU()]
            out = nn.Linear(WIDTHS[-1], 1)
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
            self.deep, self.line = nn.Sequential(*layers, out), nn.Linear(inputs, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.deep(x) + self.line(x)
            return y

    return Net()
