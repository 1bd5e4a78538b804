"""Noise in the input belongs to (seed, step, row of the step): no cut into micro-batches changes a draw."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.noise import noised
from shunter.data.tokens import Batch

VOCABULARY = 50


def batch(rows: int, length: int = 40) -> Batch:
    ids = np.arange(rows * length).reshape(rows, length) % VOCABULARY
    return Batch(ids, ids + 1, np.zeros_like(ids, dtype=np.int32), ids, np.arange(rows))


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 7), st.integers(0, 9), st.integers(0, 9))
def test_micro_batches_draw_the_same(rows: int, size: int, seed: int, step: int) -> None:
    whole = noised(batch(rows), 0.3, VOCABULARY, seed, step, 0)
    parts = []
    for begin in range(0, rows, size):
        part = batch(rows)
        cut = slice(begin, begin + size)
        part = Batch(part.tokens[cut], part.targets[cut], part.segments, part.positions, part.row_ids)
        parts.append(noised(part, 0.3, VOCABULARY, seed, step, begin).tokens)
    assert np.concatenate(parts).tolist() == whole.tokens.tolist()


def test_a_share_of_the_inputs_changes_and_no_target() -> None:
    plain = batch(50)
    found = noised(plain, 0.2, VOCABULARY, 0, 0, 0)
    assert 0.15 < (found.tokens != plain.tokens).mean() < 0.25
    assert found.targets is plain.targets
    assert (plain.tokens == batch(50).tokens).all()  # the row file's own arrays are not written to
    assert found.tokens.min() >= 0
    assert found.tokens.max() < VOCABULARY
    for other in (noised(plain, 0.2, VOCABULARY, 1, 0, 0), noised(plain, 0.2, VOCABULARY, 0, 1, 0)):
        assert (other.tokens != found.tokens).any()
