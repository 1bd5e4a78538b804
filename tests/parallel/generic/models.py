"""Modules as people write them, without a word about parallelism, made from a drawn description."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 16
WORDS = 24


class Conv1D(nn.Module):
    """As Hugging Face has it: the weight is [in, out]. shunter knows it by name and home."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.2), nn.Parameter(torch.randn(nf) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return found.view(*x.shape[:-1], self.nf)


Conv1D.__module__ = "transformers.pytorch_utils"


def product(kind: str, inputs: int, outputs: int, bias: bool) -> nn.Module:
    return Conv1D(outputs, inputs) if kind == "conv1d" else nn.Linear(inputs, outputs, bias=bias)


class MLP(nn.Module):
    """names: of its two or three products. inner_norm: something between that looks at all of the width; a
    softmax takes any width, and gives something else."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.names, bias = spec["names"], spec["bias"]
        inner = spec["inner"]
        for name in self.names[:-1]:
            setattr(self, name, product(spec["product"], WIDTH, inner, bias))
        setattr(self, self.names[-1], product(spec["product"], inner, WIDTH, bias))
        norms = {"layer": nn.LayerNorm(inner), "softmax": nn.Softmax(-1)}
        self.norm = norms.get(spec["inner_norm"], nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(getattr(self, self.names[0])(x))
        for name in self.names[1:-1]:
            y = y * getattr(self, name)(x)
        return getattr(self, self.names[-1])(self.norm(y))


class Attention(nn.Module):
    """counted: heads are found by a number of the module, not by the width. whole_norm: queries are
    normalised over all heads, which a rank with some of them cannot."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = spec["heads"], spec["groups"]
        self.head_dim = WIDTH // self.num_heads
        self.counted, self.fused, bias = spec["counted"], spec["fused"], spec["bias"]
        keys = self.num_kv_heads * self.head_dim
        if self.fused:
            self.split = [WIDTH, keys, keys]
            self.c_attn = product(spec["product"], WIDTH, WIDTH + 2 * keys, bias)
        else:
            self.q_proj = product(spec["product"], WIDTH, WIDTH, bias)
            self.k_proj = product(spec["product"], WIDTH, keys, bias)
            self.v_proj = product(spec["product"], WIDTH, keys, bias)
        self.o_proj = product(spec["product"], WIDTH, WIDTH, bias)
        self.head_norm = nn.LayerNorm(self.head_dim)
        self.wide_norm = nn.LayerNorm(WIDTH) if spec["whole_norm"] else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.fused:
            q, k, v = self.c_attn(x).split(self.split, dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.wide_norm is not None:
            q = self.wide_norm(q)
        b, t, _ = x.shape
        queries, groups = (self.num_heads, self.num_kv_heads) if self.counted else (-1, -1)
        q = self.head_norm(q.view(b, t, queries, self.head_dim)).transpose(1, 2)
        k = k.view(b, t, groups, self.head_dim).transpose(1, 2)
        v = v.view(b, t, groups, self.head_dim).transpose(1, 2)
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        scores = q @ k.mT / math.sqrt(self.head_dim) + mask
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))


class Torch(nn.Module):
    """torch's own attention, which reads its weights past its layers."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, spec["heads"], batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attn(x, x, x, need_weights=False)[0]
        return found


class Conv(nn.Module):
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.mT).mT


class Raw(nn.Module):
    """A matrix that is no layer's, and one that is used in two ways."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.2)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.mixing + x @ self.mixing.mT) * self.scale


class Recurrent(nn.Module):
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.cell = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.cell(x)[0]
        return found


class Subclass(nn.Linear):
    """A Linear that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2, self.bias) + x


class Sub(nn.Module):
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.thing = Subclass(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.thing(x)


KINDS = {
    "mlp": MLP, "attention": Attention, "torch": Torch, "conv": Conv, "raw": Raw, "gru": Recurrent, "sub": Sub
}  # fmt: skip


class Layer(nn.Module):
    """A block under a name, by which rules know it, or do not."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.within = spec.get("within", "self_attn" if spec["kind"] == "attention" else "part")
        setattr(self, self.within, KINDS[spec["kind"]](spec))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        block = getattr(self, self.within)
        return x + (block(self.norm(x), mask) if isinstance(block, Attention) else block(self.norm(x)))


class Net(nn.Module):
    """Tables, blocks with residuals and norms, and a head that may be the table."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        words = spec["words"]
        self.embed = nn.Embedding(words, WIDTH, padding_idx=spec["padding"])
        self.places = nn.Embedding(8, WIDTH)
        self.blocks = nn.ModuleList(Layer(each) for each in spec["blocks"])
        self.chain = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, WIDTH))
        self.lm_head = nn.Linear(WIDTH, words, bias=False)
        if spec["tied"] == "module":
            self.lm_head.weight = self.embed.weight
        self.functional = spec["tied"] == "function"

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        x = self.embed(ids) + self.places(torch.arange(t))
        mask = torch.full((t, t), float("-inf"), dtype=x.dtype).triu(1)[None, None]
        for block in self.blocks:
            x = block(x, mask)
        x = x + self.chain(x)
        return F.linear(x, self.embed.weight) if self.functional else self.lm_head(x)


def build(spec: dict[str, Any], dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(spec["seed"])
    return Net(spec).to(dtype)


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Summed over tokens."""
    logits = model(ids)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


class Flagged(nn.Module):
    """A feed-forward block that begins at zero, with one thing between its products that looks at the whole
    width in some cases only. how: "" never, "flag" by the module's own flag, "act" by a module without
    parameters, "train" in training, "call" when it is called so, "function" by a function that it keeps."""

    def __init__(self, how: str, wide: bool) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(16, 8)
        nn.init.zeros_(self.down_proj.weight)
        nn.init.zeros_(self.down_proj.bias)
        self.how, self.normed = how, wide and how == "flag"
        self.act = nn.Softmax(-1) if wide and how == "act" else nn.GELU()
        self.function = _over_width if wide and how == "function" else F.relu

    def forward(self, x: Tensor, normed: bool = False) -> Tensor:
        h = self.function(self.act(self.up_proj(x)))
        if self.normed or normed or (self.how == "train" and self.training):
            h = F.normalize(h, dim=-1)
        return x + self.down_proj(h)


def _over_width(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


class Stack(nn.Module):
    """The first block never looks at the width, the second may; both are of one class and one size."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Flagged(how, False), Flagged(how, True)])
        self.enter, self.out, self.how = nn.Linear(8, 8), nn.Linear(8, 3), how

    def forward(self, x: Tensor, call: bool = False) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, call and self.how == "call")
        found: Tensor = self.out(x)
        return found
