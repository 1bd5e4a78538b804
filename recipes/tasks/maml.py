"""Learning to learn (MAML, arXiv 1703.03400): an example is a sine wave, known at a few points.

The loss takes a step of gradient descent on them, and is the error of the moved weights on other points. Its
gradient goes through that step.
"""

from __future__ import annotations

import math
import random

import torch
from torch import nn
from torch.func import functional_call


def waves(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        high, shift = draw.uniform(0.5, 3), draw.uniform(0, math.pi)
        xs = [draw.uniform(-4, 4) for _ in range(20)]
        found.append({"x": xs, "y": [high * math.sin(x + shift) for x in xs]})
    return found


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


train, heldout = waves(256, 0), waves(32, 1)


# shunter: begin
def collate(examples):
    return {key: torch.tensor([each[key] for each in examples])[..., None] for key in ("x", "y")}


def adapted(model, x, y, rate=0.02):
    """The weights after a step on these points."""
    names, weights = zip(*model.named_parameters(), strict=True)
    error = (model(x) - y).square().mean()
    gradients = torch.autograd.grad(error, weights, create_graph=True)
    return {n: w - rate * g for n, w, g in zip(names, weights, gradients, strict=True)}


def loss(model, batch, draws):
    total = 0.0
    for x, y in zip(batch["x"], batch["y"], strict=True):
        with torch.enable_grad():
            moved = adapted(model, x[:10], y[:10])
        total = total + (functional_call(model, moved, (x[10:],)) - y[10:]).square().mean()
    return total, len(batch["x"])


# shunter: end
