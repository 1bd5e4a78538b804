"""Groups of equal keys, also of more than a packed number has places for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.data.curation import repeats
from shunter.data.curation.repeats import Grams, Groups, groups


def told(found: Groups) -> list[list[int]]:
    return [
        found.places[head : head + size].tolist()
        for head, size in zip(found.heads.tolist(), found.sizes.tolist(), strict=True)
    ]


@given(st.lists(st.integers(0, 9), max_size=40), st.sampled_from([2, 4, 24]))
def test_any_number_of_keys(values: list[int], bits: int) -> None:
    keys, places = np.array(values, np.uint64) << np.uint64(30), np.arange(len(values)) * 5
    expected = [[5 * n for n, v in enumerate(values) if v == value] for value in sorted(set(values))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "PACKED", bits)
        found = groups(keys, places)
    assert told(found) == [places for places in expected if len(places) > 1]
    assert found.later.sum() == sum(found.sizes) - len(found.sizes)


def test_places_beyond_sixteen_million() -> None:
    places = np.array([3, (1 << 24) + 5])
    assert told(groups(np.array([7, 7], np.uint64), places)) == [places.tolist()]


def test_the_most_frequent_run_of_a_large_batch() -> None:
    """Two runs of one document far out: the more frequent one counts, of equally frequent ones the first."""

    class Letters:
        """As many characters before each word as a word has, times its place."""

        def __getitem__(self, places: Any) -> Any:
            return np.asarray(places) * 4

    class Zeros:
        def __getitem__(self, places: Any) -> Any:
            return np.zeros(len(places), np.int64)

    far = 1 << 25
    grams = Grams.__new__(Grams)
    words = {"first": np.array([0, far]), "counts": np.array([far]), "pages": [0], "document": Zeros()}
    grams.words = SimpleNamespace(**words)  # type: ignore[assignment]
    grams._letters = Letters()  # type: ignore[assignment]
    places = np.array([5, 9, far - 9, far - 7, far - 5])
    found = Groups(places, np.array([0, 2]), np.array([2, 3]), np.array([0, 1, 0, 1, 1], bool))
    assert grams.top(2, found).tolist() == [3 * (2 * 4 + 1)]
