"""Reinforcement learning (PPO, arXiv 1707.06347): each epoch's examples are walks with the present policy.

A walker on a ring of ten places earns 1 when it stands on place 0; it sees where it is, and steps either way.
"""

from __future__ import annotations

import random

import torch
from torch import nn

PLACES, LENGTH, WALKS = 10, 8, 64


class Actor(nn.Module):
    """Logits of two steps, and the value of a place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(PLACES, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.policy_head, self.value_head = nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, places):
        x = self.fc2(torch.tanh(self.fc1(self.embed(places))))
        return self.policy_head(x), self.value_head(x)[..., 0]


model = Actor


# shunter: begin
def train(epoch, predict):
    draw = random.Random(epoch)
    walks = [{"places": [draw.randrange(PLACES)], "acts": [], "old": [], "values": []} for _ in range(WALKS)]
    for _ in range(LENGTH):
        for walk, (first, second, value) in zip(
            walks, predict([walk["places"][-1] for walk in walks]), strict=True
        ):
            act = int(draw.random() < second)
            walk["acts"].append(act)
            walk["old"].append((first, second)[act])
            walk["values"].append(value)
            walk["places"].append((walk["places"][-1] + (1 if act else -1)) % PLACES)
    for walk in walks:
        walk["rewards"] = [float(place == 0) for place in walk["places"][1:]]
    return walks


def collate(examples):
    if not isinstance(examples[0], dict):
        return torch.tensor(examples)
    batch = {
        key: torch.tensor([walk[key] for walk in examples]) for key in ("acts", "old", "values", "rewards")
    }
    batch["places"] = torch.tensor([walk["places"][:-1] for walk in examples])
    returns = batch["rewards"].flip(1).cumsum(1).flip(1)
    return {**batch, "returns": returns, "advantages": returns - batch["values"]}


def loss(model, batch, draws):
    logits, values = model(batch["places"])
    chosen = logits.softmax(-1).gather(-1, batch["acts"][..., None])[..., 0]
    ratio, gain = chosen / batch["old"], batch["advantages"]
    policy = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
    value = 0.5 * (values - batch["returns"]).square()
    entropy = -(logits.log_softmax(-1) * logits.softmax(-1)).sum(-1)
    return (policy + 0.5 * value - 0.01 * entropy).sum(), batch["acts"].numel()


def predict(model, batch, draws):
    logits, value = model(batch)
    return torch.cat((logits.softmax(-1), value[:, None]), -1)


# shunter: end
