"""Log-probabilities of given tokens, many sequences at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from shunter.config.errors import ShunterError
from shunter.models.decoder import Decoder
from shunter.models.head import linear_cross_entropy


@torch.no_grad()
def token_logprobs(
    decoder: Decoder,
    sequences: Sequence[Sequence[int] | NDArray[np.int64]],
    begins: Sequence[int],
    *,
    batch_tokens: int = 8192,
    tick: Callable[[int], None] | None = None,
) -> list[NDArray[np.float64]]:
    """log p(s[i] | s[:i]) in nats for i from begin (at least 1) to the end, for each sequence s.

    Sequences of like length share a batch of at most `batch_tokens` tokens; padding stands on the right,
    where causal attention never looks. tick(n) is called after each batch with the tokens scored in it.
    Raises ShunterError when a probability is not a number.
    """
    device = decoder.head_weight.device
    weight = decoder.head_weight.detach()
    found: list[NDArray[np.float64]] = [np.zeros(0)] * len(sequences)
    for chosen in _batches([len(s) - 1 for s in sequences], batch_tokens):
        width = max(len(sequences[i]) for i in chosen) - 1
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
        hidden = hidden.reshape(-1, hidden.shape[-1])[picked]
        answers = torch.from_numpy(targets.reshape(-1)).to(device)[picked]
        ones = torch.ones(len(answers), dtype=torch.float32, device=device)
        _, logprobs = linear_cross_entropy(hidden, weight, answers, ones)
        values = logprobs.double().cpu().numpy()
        if not np.isfinite(values).all():
            raise ShunterError(
                "the model gives probabilities that are not numbers",
                mend="Its training diverged, or its file is damaged: look at its loss with shunter report.",
            )
        counts = wanted.sum(axis=1)
        for i, part in zip(chosen, np.split(values, np.cumsum(counts)[:-1]), strict=True):
            found[i] = part
        if tick is not None:
            tick(int(counts.sum()))
    return found


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
