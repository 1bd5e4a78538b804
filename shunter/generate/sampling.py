"""The next token: from logits, by inverse transform of one uniform number a prompt and step."""

from __future__ import annotations

import torch
from torch import Tensor

from shunter.config.seed import derive_seed
from shunter.generate.config import SamplingConfig


def uniforms(seed: int, prompt: int, count: int) -> Tensor:
    """[count] numbers in [0, 1): the stream of one prompt, whatever batch it is in."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "sample", prompt))
    return torch.rand(count, dtype=torch.float64, generator=generator)


def choose(logits: Tensor, uniform: Tensor | None, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Tokens [B] from logits [B, V], and their log-probabilities [B].

    uniform [B] is None for greedy choice. Log-probabilities are the model's own, at temperature 1 and
    without truncation: what a trainer computes for the same tokens.
    """
    if uniform is None:
        tokens = logits.argmax(dim=-1)
    else:
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / config.temperature
        if 0 < config.top_k < scaled.shape[-1]:
            least = scaled.topk(config.top_k, dim=-1).values[:, -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        if config.top_p < 1:
            scaled = _nucleus(scaled, config.top_p)
        shares = scaled.softmax(dim=-1).double().cumsum(dim=-1)
        # The sum may miss 1 by rounding: a number above it takes the last token that has any share.
        goal = uniform[:, None] * shares[:, -1:]
        tokens = torch.searchsorted(shares, goal, right=True).squeeze(1).clamp_max(logits.shape[-1] - 1)
    picked = logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=-1)
    return tokens, picked


def _nucleus(scaled: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches top_p (arXiv 1904.09751)."""
    ordered, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of the likelier tokens
    return scaled.masked_fill((before >= top_p).scatter(1, order, before >= top_p), -torch.inf)
