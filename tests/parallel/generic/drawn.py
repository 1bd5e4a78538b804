"""Modules whose code takes ways that only some layers, calls, rows or modes take, made from a description."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, WORDS = 16, 23


def over_width(x: Tensor) -> Tensor:
    """Looks at all of the last dim: a part of it gives something else."""
    return F.normalize(x, dim=-1)


ACTS: dict[str, Any] = {
    "gelu": nn.GELU, "silu": nn.SiLU, "none": nn.Identity, "softmax": lambda: nn.Softmax(-1),
    "clip": lambda: nn.Hardtanh(-1, 1),
}  # fmt: skip
FUNCTIONS: dict[str, Any] = {"relu": F.relu, "tanh": torch.tanh, "width": over_width, "": lambda x: x}


class Feed(nn.Module):
    """act, function, normed: what stands between its products. train: only in training it looks at the width.
    zero: its last product begins at zero. scale: a plain number. residual: within."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.first, self.last = (nn.Linear(a, b, spec["bias"]) for a, b in ((WIDTH, 32), (32, WIDTH)))
        self.act, self.function = ACTS[spec["act"]](), FUNCTIONS[spec["function"]]
        self.normed, self.train_only, self.scale = spec["normed"], spec["train"], spec["scale"]
        self.gain = nn.Parameter(torch.ones(32)) if spec["gain"] else None
        if spec["zero"]:
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)
        if spec["frozen"]:
            self.first.requires_grad_(False)

    def forward(self, x: Tensor, wide: bool = False) -> Tensor:
        h = self.function(self.act(self.first(x)))
        if self.gain is not None:
            h = h * self.gain
        if self.normed or wide or (self.train_only and self.training):
            h = over_width(h)
        return self.scale * self.last(h)


class Heads(nn.Module):
    """x [T, B, D], torch's own order. normed: keys are normalised over all heads."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.n_heads, self.normed, self.train_only = spec["heads"], spec["normed"], spec["train"]
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, spec["bias"]) for _ in range(3))
        self.out_proj = nn.Linear(WIDTH, WIDTH, spec["bias"])
        if spec["zero"]:
            nn.init.zeros_(self.out_proj.weight)

    def forward(self, x: Tensor, wide: bool = False) -> Tensor:
        t, b, _ = x.shape
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.normed or wide or (self.train_only and self.training):
            k = over_width(k)
        q, k, v = (y.reshape(t, b * self.n_heads, -1).transpose(0, 1) for y in (q, k, v))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        found = (scores.softmax(-1) @ v).transpose(0, 1).reshape(t, b, -1)
        return self.out_proj(found)


class Mixture(nn.Module):
    """Experts that are called for the tokens that chose them only."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(Feed(spec) for _ in range(4))

    def forward(self, x: Tensor, wide: bool = False) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        weight, chosen = self.gate(flat).softmax(-1).max(-1)
        found = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            hit = chosen == number
            if hit.any():
                found = found.index_put((hit,), expert(flat[hit], wide) * weight[hit, None])
        return found.view(x.shape)


KINDS: dict[str, Any] = {"feed": Feed, "heads": Heads, "mixture": Mixture}


class Free(nn.Module):
    """order: "tbd" throughout, as torch has it, or "btd" outside of attention. uses: which block, in order:
    a block may stand in several places. seldom: the last one runs only for rows that begin with an even word.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(KINDS[each["kind"]](each) for each in spec["blocks"])
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in spec["blocks"])
        self.uses = [number % len(self.blocks) for number in spec["uses"]]
        self.first_batch, self.seldom = spec["order"] == "btd", spec["seldom"]
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor, wide: bool = False) -> Tensor:
        """[B, T, words]"""
        x = self.embed(ids if self.first_batch else ids.T)
        for number in self.uses[:-1] if self.seldom else self.uses:
            x = x + self._block(number, x, wide)
        even = (ids[:, 0] % 2 == 0).nonzero().flatten()
        if self.seldom and len(even):
            dim = 0 if self.first_batch else 1
            some = self._block(self.uses[-1], x.index_select(dim, even), wide)
            x = x.index_add(dim, even, some)
        found: Tensor = self.head(x)
        return found if self.first_batch else found.transpose(0, 1)

    def _block(self, number: int, x: Tensor, wide: bool) -> Tensor:
        block, y = self.blocks[number], self.norms[number](x)
        turned = isinstance(block, Heads) and self.first_batch
        found: Tensor = block(y.transpose(0, 1), wide).transpose(0, 1) if turned else block(y, wide)
        return found


def build(spec: dict[str, Any]) -> Free:
    torch.manual_seed(spec["seed"])
    return Free(spec).double()


def loss(model: nn.Module, ids: Tensor, wide: bool = False) -> Tensor:
    """Summed over tokens."""
    logits = model(ids, wide)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
