"""The next token: from logits, by inverse transform of one uniform number a prompt and step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.generate.config import SamplingConfig

COLDEST = 1e-30


def uniforms(seed: int, prompt: int, count: int) -> Tensor:
    """[count] numbers in [0, 1): the stream of one prompt, whatever batch it is in."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "sample", prompt))
    drawn = torch.rand(count, dtype=torch.float64, generator=generator)
    # A product with the largest number below 1 may round up to the other factor; with this it cannot.
    return drawn.clamp_max(1 - 2**-52)


def choose(logits: Tensor, uniform: Tensor | None, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Tokens [B] from logits [B, V], and their log-probabilities [B].

    uniform [B] is None for greedy choice. Log-probabilities are the model's own, at temperature 1 and
    without truncation: what a trainer computes for the same tokens. Raises ShunterError for logits that
    are not finite.
    """
    tokens, logprobs, best = pick(logits, uniform, config)
    check(best.tolist())
    return tokens, logprobs


def check(best: Sequence[float]) -> None:
    """Raise ShunterError where the best log-probability of a row is not finite."""
    if not all(map(math.isfinite, best)):
        raise ShunterError(
            "the model's scores are not finite, so no token can be chosen",
            mend="Its training may have diverged: look at its loss, and use an earlier checkpoint.",
        )


def pick(logits: Tensor, uniform: Tensor | None, config: SamplingConfig) -> tuple[Tensor, Tensor, Tensor]:
    """As `choose`, and the largest log-probability of each row, which is finite where the logits are; waits
    for nothing, and raises nothing."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # One kernel each, where a log-sum-exp is six: of a small model's step they are a few per cent.
    logprobs = wide.log_softmax(dim=-1)
    likeliest = wide.argmax(
        dim=-1, keepdim=True
    )  # of the logits: two of them may round to one log-probability
    best = logprobs.gather(1, likeliest).squeeze(1)
    if uniform is None:
        return likeliest.squeeze(1), best, best
    shares = wide.softmax(dim=-1) if config.temperature == 1 else _heated(wide, config.temperature)
    least = _least(shares, config)
    if least is not None:
        shares = shares.masked_fill(shares < least, 0.0)
    sums = _sums(shares.double())
    # The first sum above the goal belongs to a token that has a share, because it rose there.
    goal = uniform[:, None] * sums[:, -1:]
    tokens = torch.searchsorted(sums, goal, right=True)
    # Beyond the last one where no sum is finite.
    tokens = tokens.clamp_max(logits.shape[-1] - 1)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1), best


def _sums(shares: Tensor) -> Tensor:
    """Cumulative, on the CPU where bits must be the same: sums of a GPU are not, and refused."""
    if shares.is_cuda and torch.are_deterministic_algorithms_enabled():
        return shares.cpu().cumsum(dim=-1).to(shares.device)
    return shares.cumsum(dim=-1)


def _heated(logits: Tensor, temperature: float) -> Tensor:
    """Shares at a temperature; the largest logit is taken off first, so that none overflows.

    Below COLDEST nothing changes any more, but the division would be by what float32 takes for 0.
    """
    return ((logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, COLDEST)).softmax(dim=-1)


def _least(shares: Tensor, config: SamplingConfig) -> Tensor | None:
    """[B, 1]: the smallest share that may be drawn; None: any. Tokens that tie with the last one stay.

    top-k, and of what that leaves the smallest set of likeliest tokens whose probability reaches top_p
    (arXiv 1904.09751).
    """
    count = min(config.top_k or shares.shape[-1], shares.shape[-1])
    if config.top_p < 1:
        ordered = _descending(shares)[:, :count].double()
        sums = ordered.cumsum(dim=-1)
        # Kept are those before which less than top_p has been reached: the first one always.
        kept = (sums - ordered < config.top_p * sums[:, -1:]).sum(dim=-1, keepdim=True)
        return ordered.gather(1, kept - 1).to(shares.dtype)
    if count < shares.shape[-1]:
        return _largest(shares, count)
    return None


def _descending(values: Tensor) -> Tensor:
    if values.device.type == "cpu":  # numpy sorts 40 times faster than torch, which orders indices too
        return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)
    return values.sort(dim=-1, descending=True).values


def _largest(values: Tensor, count: int) -> Tensor:
    """[B, 1]: the count-th largest value of each row."""
    if values.device.type == "cpu":
        place = values.shape[-1] - count
        return torch.from_numpy(np.partition(values.numpy(), place, axis=-1)[:, place, None])
    return values.topk(count, dim=-1).values[:, -1:]
