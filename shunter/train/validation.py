"""Loss on held-out rows."""

from __future__ import annotations

import math

import numpy as np
import torch

from shunter.data.tokens import TokenRows
from shunter.train.objective import CrossEntropy
from shunter.train.passes import Passes


def validate(passes: Passes, rows: TokenRows, count: int, size: int) -> tuple[float, float]:
    """Mean negative log-probability, nats a target, of `count` rows, and bits per byte of text.

    The rows are spread evenly over the split, whose sources stand one after the other; `size` of them
    make a micro-batch. Bits per byte takes the targets per byte of the whole split; `evaluate` measures it
    exactly.
    """
    numbers = np.unique(np.linspace(0, rows.num_rows - 1, count).round().astype(np.int64))
    batches = [rows.rows(numbers[begin : begin + size]) for begin in range(0, len(numbers), size)]
    unit = [torch.from_numpy(CrossEntropy().coefficients(batch, {"token": 1.0})) for batch in batches]
    targets = sum(batch.num_valid for batch in batches)
    tokens = sum(int((batch.segments >= 0).sum()) for batch in batches)
    loss = float(passes.loss(batches, unit)) / max(targets, 1)
    share = targets / max(tokens, 1)  # of tokens that are targets
    per_byte = rows.index["tokens"] * share / max(rows.text_bytes, 1)
    return loss, loss / math.log(2) * per_byte
