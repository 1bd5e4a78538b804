"""Log-probabilities of given tokens, many sequences at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.models.decoder import Decoder

# Each new shape makes oneDNN build and keep a kernel: lengths are filled up to multiples of these.
ROUND_WIDTH, ROUND_COUNT = 32, 128
CPU_BATCH, GPU_BATCH = 4096, 32768  # tokens; on a CPU small batches stay in its cache
CHUNK_ELEMENTS = 1 << 22  # logits held at once: 16 MiB in float32


@dataclass(frozen=True)
class Scored:
    """Of each token asked for: its log-probability in nats, and whether it was the likeliest."""

    logprobs: NDArray[np.float64]
    likeliest: NDArray[np.bool_]


def token_logprobs(
    decoder: Decoder,
    sequences: Sequence[Sequence[int] | NDArray[np.int64]],
    begins: Sequence[int],
    *,
    batch_tokens: int = 0,
    tick: Callable[[int], None] | None = None,
) -> list[NDArray[np.float64]]:
    """The log-probabilities of `score_tokens` alone."""
    found = score_tokens(decoder, sequences, begins, batch_tokens=batch_tokens, tick=tick)
    return [scored.logprobs for scored in found]


@torch.no_grad()
def score_tokens(
    decoder: Decoder,
    sequences: Sequence[Sequence[int] | NDArray[np.int64]],
    begins: Sequence[int],
    *,
    batch_tokens: int = 0,
    tick: Callable[[int], None] | None = None,
) -> list[Scored]:
    """p(s[i] | s[:i]) for i from begin (at least 1) to the end, for each sequence s.

    Sequences of like length share a batch of at most `batch_tokens` tokens (0: what suits the device);
    padding stands on the right, where causal attention never looks. tick(n) is called after each batch with
    the tokens scored in it. Raises ShunterError when a probability is not a number.
    """
    device = decoder.head_weight.device
    batch_tokens = batch_tokens or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)
    found = [Scored(np.zeros(0), np.zeros(0, dtype=bool))] * len(sequences)
    # Dynamic scaling stretches by the row's length, so there padding is not without effect.
    alone = decoder.spec.rope.scaling == "dynamic"
    for chosen in _batches([len(s) - 1 for s in sequences], 1 if alone else batch_tokens):
        width = max(len(sequences[i]) for i in chosen) - 1
        width = width if alone else -(-width // ROUND_WIDTH) * ROUND_WIDTH
        tokens = np.zeros((len(chosen), width), dtype=np.int64)
        targets = np.zeros_like(tokens)
        wanted = np.zeros((len(chosen), width), dtype=bool)
        for row, i in enumerate(chosen):
            ids = np.asarray(sequences[i], dtype=np.int64)
            assert begins[i] >= 1, "the first token has nothing before it"
            tokens[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
            wanted[row, begins[i] - 1 : len(ids) - 1] = True
        hidden = decoder(torch.from_numpy(tokens).to(device))
        picked = torch.from_numpy(wanted.reshape(-1)).to(device)
        answers = torch.from_numpy(targets.reshape(-1)).to(device)[picked]
        logprobs, likeliest = _head(decoder, hidden.reshape(-1, hidden.shape[-1])[picked], answers)
        if not np.isfinite(logprobs).all():
            raise ShunterError(
                "the model gives probabilities that are not numbers",
                mend="Its training diverged, or its file is damaged: look at its loss with shunter report.",
            )
        borders = np.cumsum(wanted.sum(axis=1))
        parts = zip(chosen, np.split(logprobs, borders[:-1]), np.split(likeliest, borders[:-1]), strict=True)
        for i, part, flags in parts:
            found[i] = Scored(part, flags)
        if tick is not None:
            tick(len(logprobs))
    return found


def _head(decoder: Decoder, hidden: Tensor, answers: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-probabilities of answers [N] after hidden [N, D], and which of them are likeliest; all logits of
    a chunk exist at once, those of a batch never."""
    logprobs, likeliest = [], []
    size = max(64, CHUNK_ELEMENTS // decoder.spec.vocab_size)
    for begin in range(0, len(answers), size):
        answer = answers[begin : begin + size]
        spare = -len(answer) % ROUND_COUNT
        part = torch.nn.functional.pad(hidden[begin : begin + size], (0, 0, 0, spare))
        logits = decoder.logits(part)[: len(answer)].float()
        value = logits.gather(1, answer[:, None]).squeeze(1)
        logprobs.append((value - logits.logsumexp(dim=-1)).double().cpu().numpy())
        likeliest.append((value == logits.amax(dim=-1)).cpu().numpy())
    if not logprobs:
        return np.zeros(0), np.zeros(0, dtype=bool)
    return np.concatenate(logprobs), np.concatenate(likeliest)


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of sequences of like length, the longest first, so that a lack of memory shows at once."""
    order = sorted((i for i, n in enumerate(lengths) if n > 0), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
