"""Packing: every token stands somewhere exactly once, and no example crosses a row that need not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.data import packing

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def covered(spans: packing.Spans) -> list[int]:
    return [token for _, begin, length in spans.tolist() for token in range(begin, begin + length)]


@given(LENGTHS, st.integers(2, 17))
def test_concat_places_every_token_once_and_in_order(lengths: list[int], row_length: int) -> None:
    spans = packing.concat(np.asarray(lengths), row_length)
    assert covered(spans) == list(range(sum(lengths)))
    borders = set(np.cumsum(lengths).tolist())
    for row, begin, length in spans.tolist():
        assert row == begin // row_length
        assert not borders & set(range(begin + 1, begin + length)), "a span crosses a document's border"
    filled = np.bincount(spans[:, 0], weights=spans[:, 2])
    assert (filled[:-1] == row_length).all(), "only the last row may have padding"


@given(LENGTHS, st.integers(2, 17), st.sampled_from(["split", "truncate"]))
def test_best_fit(lengths: list[int], row_length: int, overlong: packing.Overlong) -> None:
    spans, long = packing.best_fit(np.asarray(lengths), row_length, overlong)
    assert long == sum(length > row_length for length in lengths)
    assert (np.bincount(spans[:, 0], weights=spans[:, 2]) <= row_length).all()
    if overlong == "split":
        assert sorted(covered(spans)) == list(range(sum(lengths)))
    else:
        begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        expected = [t for b, n in zip(begins, lengths, strict=True) for t in range(b, b + min(n, row_length))]
        assert sorted(covered(spans)) == expected
    whole = {int(length) for length in lengths if length <= row_length}
    if overlong == "truncate" and whole:
        assert whole <= set(spans[:, 2].tolist()), "an example that fits was taken apart"


@given(LENGTHS, st.integers(2, 17))
def test_best_fit_wastes_little(lengths: list[int], row_length: int) -> None:
    """Best-fit decreasing needs at most 11/9 of the optimum and 4 rows more (Johnson 1974)."""
    lengths = [min(length, row_length) for length in lengths]
    spans, _ = packing.best_fit(np.asarray(lengths), row_length, "split")
    least = -(-sum(lengths) // row_length)
    assert int(spans[-1, 0]) + 1 <= max(11 / 9 * least + 4, len(lengths))
    assert int(spans[-1, 0]) + 1 <= 2 * least + 1


@pytest.mark.parametrize("pack", [packing.concat, lambda n, r: packing.best_fit(n, r, "split")[0]])
def test_nothing_to_pack(pack: object) -> None:
    spans = pack(np.zeros(0, dtype=np.int64), 8)  # type: ignore[operator]
    assert spans.shape == (0, 3)
