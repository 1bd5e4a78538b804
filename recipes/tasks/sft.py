"""Instruction tuning in three functions: sums in words of one character; the answer alone is learnt."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORDS, WIDTH, HEADS = "0123456789+=.", 48, 4


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q_attn, self.k_attn, self.v_attn, self.o_attn = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn_norm(x)
        q, k, v = (each(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for each in self.qkv())
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.o_attn(y)
        return x + self.fc2(F.gelu(self.fc1(self.mlp_norm(x))))

    def qkv(self) -> tuple[nn.Module, ...]:
        return self.q_attn, self.k_attn, self.v_attn


class Writer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(len(WORDS), WIDTH), nn.Embedding(16, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, len(WORDS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


model = Writer
pairs = [(f"{a}+{b}=", f"{a + b}.") for a in range(20) for b in range(20)]
random.Random(0).shuffle(pairs)
train, heldout = pairs[:360], pairs[360:]


# shunter: begin
def collate(examples):
    texts = [prompt + answer for prompt, answer in examples]
    longest = max(map(len, texts))
    ids = torch.tensor([[WORDS.index(c) for c in text.ljust(longest, ".")] for text in texts])
    starts = torch.tensor([len(prompt) for prompt, _ in examples])
    place = torch.arange(1, longest)
    ends = torch.tensor([len(text) for text in texts])
    return {"ids": ids, "starts": starts, "mask": (place >= starts[:, None]) & (place < ends[:, None])}


def loss(model, batch, draws):
    logits = model(batch["ids"])[:, :-1]
    each = F.cross_entropy(logits.transpose(1, 2), batch["ids"][:, 1:], reduction="none")
    return (each * batch["mask"]).sum(), batch["mask"].sum()


def predict(model, batch, draws):
    ids, written = batch["ids"].clone(), ["" for _ in batch["starts"]]
    for place in range(int(batch["starts"].min()), ids.shape[1]):
        best = model(ids[:, :place])[:, -1].argmax(-1)
        for row, start in enumerate(batch["starts"].tolist()):
            if place >= start and not written[row].endswith("."):
                ids[row, place] = best[row]
                written[row] += WORDS[int(best[row])]
    return written


def metrics(examples, outputs):
    return {
        "right": sum(o == answer for (_, answer), o in zip(examples, outputs, strict=True)) / len(outputs)
    }


# shunter: end
