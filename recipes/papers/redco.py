"""Four small models under the module names of Llama, GPT-J, T5 and OPT, and a task that they learn.

`shunter reproduce redco` trains them as they stand here: nothing in this file knows of several processes.
settings: family; layers, width, heads, words, inner and positions, for other sizes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

settings: dict = globals().get("settings", {})
FAMILY = settings.get("family", "llama")
LAYERS, WIDTH, HEADS = settings.get("layers", 2), settings.get("width", 64), settings.get("heads", 4)
WORDS, INNER = settings.get("words", 64), settings.get("inner", 160)
POSITIONS = settings.get("positions", 64)
LENGTH, COUNT = 16, 24


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def turned(x: Tensor) -> Tensor:
    """Rotary positions of [B, H, T, D]."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angles = torch.arange(x.shape[2], dtype=torch.float32, device=x.device)[:, None] * rates
    a, b = x.chunk(2, -1)
    return torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, causal: bool, scale: float) -> Tensor:
    """[B, H, T, D] -> [B, T, H D]."""
    scores = q @ k.mT * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Of Llama, GPT-J and OPT. out: name of the output product. rotary: with rotary positions."""

    def __init__(self, out: str, *, bias: bool, rotary: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.out, self.rotary = HEADS, WIDTH // HEADS, out, rotary
        for name in ("q_proj", "k_proj", "v_proj", out):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        shape = *x.shape[:2], self.num_heads, self.head_dim
        q, k, v = (each(x).view(shape).transpose(1, 2) for each in (self.q_proj, self.k_proj, self.v_proj))
        if self.rotary:
            q, k = turned(q), turned(k)
        return getattr(self, self.out)(attend(q, k, v, None, causal=True, scale=self.head_dim**-0.5))


class LlamaMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = SelfAttention("o_proj", bias=False, rotary=True), LlamaMLP()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(WIDTH), RMSNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class GPTJMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_in, self.fc_out = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(F.gelu(self.fc_in(x)))


class GPTJLayer(nn.Module):
    """Attention and feed-forward beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.mlp = nn.LayerNorm(WIDTH), GPTJMLP()
        self.attn = SelfAttention("out_proj", bias=False, rotary=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        return x + self.attn(y) + self.mlp(y)


class OPTLayer(nn.Module):
    """The feed-forward's products stand in the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = SelfAttention("out_proj", bias=True, rotary=False)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(F.relu(self.fc1(self.final_layer_norm(x))))


class Decoder(nn.Module):
    """Of Llama, GPT-J and OPT: table, layers, norm, head."""

    def __init__(self) -> None:
        super().__init__()
        layer = {"llama": LlamaLayer, "gptj": GPTJLayer, "opt": OPTLayer}[FAMILY]
        norm = RMSNorm if FAMILY == "llama" else nn.LayerNorm
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(WORDS, WIDTH)
        if FAMILY == "opt":
            self.model.embed_positions = nn.Embedding(POSITIONS, WIDTH)
        self.model.layers = nn.ModuleList(layer() for _ in range(LAYERS))
        self.model.norm = norm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.model.embed_tokens(ids)
        if FAMILY == "opt":
            x = x + self.model.embed_positions(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.model.layers:
            x = layer(x)
        return self.lm_head(self.model.norm(x))


class T5Attention(nn.Module):
    """With a table of biases by distance in the first layer, which the later ones are handed."""

    def __init__(self, biased: bool, *, causal: bool) -> None:
        super().__init__()
        self.n_heads, self.d_kv, self.causal = HEADS, WIDTH // HEADS, causal
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        if biased:
            self.relative_attention_bias = nn.Embedding(32, HEADS)

    def forward(
        self, x: Tensor, others: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        source = x if others is None else others
        q = self.q(x).view(*x.shape[:2], self.n_heads, self.d_kv).transpose(1, 2)
        k, v = (
            each(source).view(*source.shape[:2], self.n_heads, self.d_kv).transpose(1, 2)
            for each in (self.k, self.v)
        )
        if bias is None and hasattr(self, "relative_attention_bias"):
            place = torch.arange(max(q.shape[2], k.shape[2]), device=x.device)
            far = (place[: q.shape[2], None] - place[None, : k.shape[2]] + 16).clamp(0, 31)
            bias = self.relative_attention_bias(far).permute(2, 0, 1)[None]
        scale = 1.0 / math.sqrt(self.d_kv)
        return self.o(attend(q, k, v, bias, causal=self.causal, scale=scale)), bias


class T5FF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.relu(self.wi(x)))


class T5Layer(nn.Module):
    def __init__(self, first: bool, *, decoder: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(first, causal=decoder)
        self.layer_norm, self.ff_norm = RMSNorm(WIDTH), RMSNorm(WIDTH)
        if decoder:
            self.EncDecAttention, self.cross_norm = T5Attention(False, causal=False), RMSNorm(WIDTH)
        self.DenseReluDense = T5FF()

    def forward(self, x: Tensor, read: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        seen, bias = self.SelfAttention(self.layer_norm(x), None, bias)
        x = x + seen
        if read is not None:
            x = x + self.EncDecAttention(self.cross_norm(x), read)[0]
        return x + self.DenseReluDense(self.ff_norm(x)), bias


class T5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.ModuleList(T5Layer(i == 0, decoder=False) for i in range(LAYERS))
        self.decoder = nn.ModuleList(T5Layer(i == 0, decoder=True) for i in range(LAYERS))
        self.norm, self.lm_head = RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        read, bias = self.shared(ids.flip(1)), None
        for layer in self.encoder:
            read, bias = layer(read, None, bias)
        x, bias = self.shared(ids), None
        for layer in self.decoder:
            x, bias = layer(x, read, bias)
        return self.lm_head(self.norm(x))


def model() -> nn.Module:
    return T5() if FAMILY == "t5" else Decoder()


def _texts(count: int, seed: int) -> list[list[int]]:
    """Each number follows from the one before, with some exceptions."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        row = [int(torch.randint(WORDS, (), generator=draw))]
        while len(row) < LENGTH:
            surprise = float(torch.rand((), generator=draw)) < 0.1
            row.append(
                int(torch.randint(WORDS, (), generator=draw)) if surprise else (5 * row[-1] + 3) % WORDS
            )
        found.append(row)
    return found


train, heldout = _texts(COUNT, 0), _texts(8, 1)


def collate(examples: list[list[int]]) -> Tensor:
    return torch.tensor(examples)


def loss(net: nn.Module, ids: Tensor, draws: object) -> tuple[Tensor, int]:
    logits = net(ids)[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum"), ids[:, 1:].numel()


def predict(net: nn.Module, ids: Tensor, draws: object) -> Tensor:
    return net(ids).argmax(-1)
