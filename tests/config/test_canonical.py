"""Canonical JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config import canonical
from shunter.config.base import Config
from shunter.config.seed import derive_seed

TREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)


@given(TREE)
def test_reads_back_equal_and_is_stable(tree: object) -> None:
    text = canonical.dumps(tree)
    assert json.loads(text) == tree
    assert canonical.dumps(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), min_size=2), st.randoms(use_true_random=False))
def test_order_of_keys_counts_nothing(tree: dict, random: object) -> None:
    items = list(tree.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert canonical.dumps(dict(items)) == canonical.dumps(tree)
    assert canonical.digest(dict(items)) == canonical.digest(tree)


def test_what_differs_differs() -> None:
    values = [1, 1.0, "1", True, None, [1], [[1]], {"1": 1}, "", [], {}]
    assert len({canonical.dumps(value) for value in values}) == len(values)


def test_refusals() -> None:
    for value in ({1: 2}, {"a": {1, 2}}, object(), [b"x"]):
        with pytest.raises(TypeError):
            canonical.dumps(value)
    for value in (float("nan"), [float("inf")]):
        with pytest.raises(ValueError):
            canonical.dumps(value)


def test_models() -> None:
    class Point(Config):
        y: float = 1
        x: int = 2

    assert canonical.dumps({"p": Point(), "t": (1, 2)}) == '{"p":{"x":2,"y":1.0},"t":[1,2]}'
    assert canonical.digest(Point()) == canonical.digest({"x": 2, "y": 1.0})


@given(st.lists(st.text(max_size=4) | st.integers(), max_size=4), st.integers(0, 2**31))
def test_seeds_do_not_collide_by_splitting(keys: list, seed: int) -> None:
    assert 0 <= derive_seed(seed, *keys) < 2**63
    assert derive_seed(seed, *keys) == derive_seed(seed, *keys)
    assert derive_seed(seed, *keys, "a", "bc") != derive_seed(seed, *keys, "ab", "c")
    assert derive_seed(seed, *keys, 1) != derive_seed(seed, *keys, "1")
