"""The loader's position is global: no batch size, world size or restart changes what comes next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data.loader import Loader


@dataclass
class Rows:
    num_rows: int
    digest: str = "one"


TAKES = st.lists(st.integers(1, 9), min_size=1, max_size=20)


@given(st.integers(1, 23), TAKES, st.integers(0, 5))
def test_each_row_exactly_once_an_epoch(count: int, takes: list[int], seed: int) -> None:
    """The ledger: whatever the batch sizes, each epoch holds each row once."""
    loader = Loader(Rows(count), seed)
    taken = np.concatenate([loader.take(n) for n in takes])
    assert len(taken) == sum(takes) == loader.position
    for epoch in range(len(taken) // count):
        assert sorted(taken[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))


@given(st.integers(1, 23), TAKES, TAKES, st.integers(0, 5))
def test_a_resume_with_other_batches_goes_on(
    count: int, before: list[int], after: list[int], seed: int
) -> None:
    whole = Loader(Rows(count), seed).take(sum(before) + sum(after))
    first = Loader(Rows(count), seed)
    taken = [first.take(n) for n in before]
    second = Loader(Rows(count), seed + 100)  # what a fresh process has before it restores
    second.restore(first.state())
    taken += [second.take(n) for n in after]
    assert np.concatenate(taken).tolist() == whole.tolist()


@given(st.integers(2, 23), st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 60))
def test_a_turn_reorders_what_is_left_and_nothing_else(count: int, turns: list[int], after: int) -> None:
    """After turns at any positions each epoch still holds each row once, and a resume goes on the same."""
    plain, loader = Loader(Rows(count), 3), Loader(Rows(count), 3)
    taken = []
    for number, step in enumerate(turns):
        taken.append(loader.take(step))
        if number == 0:
            assert taken[0].tolist() == plain.take(step).tolist()
        loader.turn(100 + number)
    again = Loader(Rows(count), 3)
    again.restore(loader.state())
    rest = loader.take(after)
    assert rest.tolist() == again.take(after).tolist()
    whole = np.concatenate([*taken, rest])
    for epoch in range(len(whole) // count):
        assert sorted(whole[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))


def test_a_turn_is_another_order() -> None:
    plain, loader = Loader(Rows(50), 0), Loader(Rows(50), 0)
    for one in (plain, loader):
        one.take(20)
    loader.turn(7)
    assert plain.take(30).tolist() != loader.take(30).tolist()  # of this epoch
    assert plain.take(50).tolist() != loader.take(50).tolist()  # and of the next


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(0, 3))
def test_ranks_share_one_order(count: int, world: int, batch: int, seed: int) -> None:
    """Rank r takes rows r, r + world, ... of each step's slice: together they are one process's rows."""
    one = Loader(Rows(count), seed)
    for _ in range(3):
        step = one.take(batch * world)
        parts = [step[rank::world] for rank in range(world)]
        assert sorted(np.concatenate(parts).tolist()) == sorted(step.tolist())


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    loader = Loader(Rows(50), 0)
    first, second = loader.take(50).tolist(), loader.take(50).tolist()
    assert len({tuple(first), tuple(second), tuple(range(50)), tuple(Loader(Rows(50), 1).take(50))}) == 4


def test_a_changed_corpus_is_refused() -> None:
    state = Loader(Rows(10), 0).state()
    with pytest.raises(ShunterError, match="the corpus is not the one that this run began with"):
        Loader(Rows(10, "other"), 0).restore(state)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ShunterError, match="no rows to train on"):
        Loader(Rows(0), 0)
