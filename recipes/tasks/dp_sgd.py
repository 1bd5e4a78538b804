"""Training under differential privacy (arXiv 1607.00133): each example's gradient clipped, and noise added.

settings: clip, the largest norm of one example's gradient; noise, the noise's deviation in units of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

settings: dict = globals().get("settings", {})


def points(count: int, seed: int) -> list[tuple[list[float], int]]:
    """Points around four centres, and which of them."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randint(4, (count,), generator=draw)
    centres = torch.tensor([[2.0, 0], [-2, 0], [0, 2], [0, -2]])
    places = centres[kinds] + torch.randn(count, 2, generator=draw) * 0.7
    return list(zip(places.tolist(), kinds.tolist(), strict=True))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 4))


train, heldout = points(512, 0), points(128, 1)


# shunter: begin
def collate(examples):
    return torch.tensor([x for x, _ in examples]), torch.tensor([y for _, y in examples])


def loss(model, batch, draws):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="sum"), len(y)


def predict(model, batch, draws) -> Tensor:
    return model(batch[0]).argmax(-1)


def metrics(examples, outputs):
    return {"accuracy": sum(y == o for (_, y), o in zip(examples, outputs, strict=True)) / len(outputs)}


def step(step):
    clip, noise = settings.get("clip", 1.0), settings.get("noise", 0.5)
    summed, total = step.noise(0.0), 0.0
    for example, number in zip(step.examples, step.numbers, strict=True):
        gradient, lost, _ = step.gradient([example], [number])
        scale = min(1.0, clip / (step.norm(gradient) + 1e-12))
        summed = {name: summed[name] + scale * each for name, each in gradient.items()}
        total += lost
    summed, drawn = step.add_up(summed), step.noise(clip * noise)
    step.update({name: (each + drawn[name]) / step.everyone for name, each in summed.items()})
    return {"loss": step.total(total)[0] / step.everyone}


# shunter: end
