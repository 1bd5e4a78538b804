"""Loss on held-out rows."""

from __future__ import annotations

import math

import numpy as np
import torch

from shunter.data.tokens import TokenRows
from shunter.models.decoder import Decoder
from shunter.train.objective import CrossEntropy
from shunter.train.step import forward_loss


@torch.no_grad()
def validate(
    decoder: Decoder, rows: TokenRows, count: int, size: int, device: torch.device, precision: str
) -> tuple[float, float]:
    """Mean negative log-probability, nats a target, of `count` rows, and bits per byte of text.

    The rows are spread evenly over the split, whose sources stand one after the other.
    Bits per byte takes the targets per byte of the whole split; `evaluate` measures it exactly.
    """
    nats, targets, tokens = 0.0, 0, 0
    numbers = np.unique(np.linspace(0, rows.num_rows - 1, count).round().astype(np.int64))
    for begin in range(0, len(numbers), size):
        batch = rows.rows(numbers[begin : begin + size])
        coefficients = torch.from_numpy(CrossEntropy().coefficients(batch, {"token": 1.0})).to(device)
        nats += float(forward_loss(decoder, decoder, batch, coefficients, device, precision)[0])
        targets += batch.num_valid
        tokens += int((batch.segments >= 0).sum())
    loss = nats / max(targets, 1)
    share = targets / max(tokens, 1)  # of tokens that are targets
    per_byte = rows.index["tokens"] * share / max(rows.text_bytes, 1)
    return loss, loss / math.log(2) * per_byte
