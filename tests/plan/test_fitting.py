"""What a planner offers where a model does not fit is true: that fits, and nothing smaller (larger) does.

What this cannot show: that memory is as predicted.
"""

from __future__ import annotations

import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.fitting import _fit, _of, largest, smallest_cluster
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.reasons import why_none
from shunter.plan.search import search
from shunter.plan.space import Fixed, space

KEPT: Fixed = {"microbatch": 8, "recompute": "none"}


def asked(model: str, cluster: str, batch: int, row: int) -> Question:
    where = Fabric.of(files.find(cluster))
    return Question(preset(model), where, batch, row, PRACTICES["shunter"], Coefficients())


@pytest.mark.parametrize("begin", [1, 2, 3, 4, 6])
def test_the_smallest_cluster_does_not_depend_on_what_one_has(begin: int) -> None:
    question = asked("llama-2-7b", f"{begin}xa100-80", 64, 4096)
    found, _ = smallest_cluster(question, KEPT, question.fabric.memory)
    assert found == 8
    for count in range(begin, 9):
        there = asked("llama-2-7b", f"{count}xa100-80", 64, 4096)
        assert _fit(there, KEPT, there.fabric.memory) == (count >= 8), count


def test_whole_nodes_one_after_the_other() -> None:
    question = asked("llama-2-70b", "1x8xa100-80", 48, 2048)
    found, _ = smallest_cluster(question, {}, question.fabric.memory)
    assert found is not None
    for nodes in range(2, found // 8 + 1):
        there = asked("llama-2-70b", f"{nodes}x8xa100-80", 48, 2048)
        assert _fit(there, {}, there.fabric.memory) == (8 * nodes == found), nodes


def test_of_different_devices_as_many_again_of_all() -> None:
    """By the smallest of them, which is enough and may be more than needed."""
    with pytest.raises(ShunterError, match=r"\d+ of this cluster would do, even if each") as caught:
        search(asked("llama-3-70b", "mixed-lab", 64, 1024))
    times = int(str(caught.value).partition(" of this cluster")[0].rpartition(" ")[2])
    smallest = asked("llama-3-70b", "4x2xrtx4090-ethernet", 64, 1024).fabric.memory
    question = asked("llama-3-70b", "mixed-lab", 64, 1024)
    assert smallest_cluster(question, {}, smallest)[0] == 8 * times
    assert 8 * times * smallest > 16 * question.spec.num_parameters


def test_what_is_fixed_holds_in_the_larger_cluster_too() -> None:
    question = asked("llama-2-70b", "8xa100-80", 64, 2048)
    with pytest.raises(
        ShunterError, match=r"Without dp and fsdp \d+ devices of this kind would do"
    ) as caught:
        search(question, fixed={"dp": 8, "fsdp": 1, "pp": 1, "tp": 1, "cp": 1})
    assert "here no batch and no sequence fits" in str(caught.value)
    with pytest.raises(ShunterError, match="No cluster of this kind of up to"):
        search(question, fixed={"pp": 1, "tp": 1, "cp": 1, "microbatch": 8, "recompute": "none"})


@pytest.mark.parametrize(
    ("fixed", "what"),
    [
        ({"tp": 1, "cp": 1, "pp": 1, "recompute": "none"}, "row"),
        ({"tp": 1, "pp": 1, "recompute": "none", "microbatch": 1}, "row"),
        ({"microbatch": 2, "recompute": "none", "fsdp": 4}, "row"),
        ({"recompute": "none", "microbatch": 4, "pp": 4, "tp": 1}, "batch"),
    ],
)
def test_the_largest_that_fits(fixed: Fixed, what: str) -> None:
    question = asked("llama-2-7b", "8xa100-80", 64, 4096 if what == "batch" else 65536)
    room = question.fabric.memory
    found = largest(question, fixed, room, what)  # type: ignore[arg-type]
    assert found is not None
    search(_of(question, what, found), fixed=fixed, top=1, finalists=2)  # which accepts it
    beyond = range(found + 1, min(found + 17, getattr(question, what)))
    assert not any(_fit(_of(question, what, size), fixed, room) for size in beyond)


def test_rows_of_any_length_where_nothing_cuts_them() -> None:
    question = asked("llama-2-7b", "8xa100-80", 64, 2047)
    choices = space(question, {})
    assert set(choices.tp.tolist()) == set(choices.cp.tolist()) == {1}
    assert set(space(asked("llama-2-7b", "8xa100-80", 64, 2046), {}).tp.tolist()) == {1, 2}
    with pytest.raises(ShunterError, match="rows of 2047 tokens do not divide into the 2 parts of tp 2"):
        search(question, fixed={"tp": 2})


REASONS = {
    "no experts": {"ep": 2},
    "does not recompute by selective": {"recompute": "selective"},
    "micro-batches of 3": {"microbatch": 3},
    "32 heads": {"tp": 5},
    "pp 2 x tp 8 is 16 devices": {"tp": 8, "pp": 2},
    "8 devices do not divide by 3": {"cp": 3},
    "32 layers make no 64 stages": {"pp": 64},
    "zbv has 2 stages a rank, not 3": {"schedule": "zbv", "chunks": 3},
    "one stage has no 2 chunks": {"pp": 1, "chunks": 2},
    "zb1p holds what": {"schedule": "zb1p", "recompute": "layer"},
    "does not go with": {"pp": 8, "schedule": "interleaved-1f1b", "microbatch": 16},
}


@pytest.mark.parametrize("said", REASONS)
def test_the_reason_is_said_and_what_it_offers_is_true(said: str) -> None:
    question, fixed = asked("llama-2-7b", "8xa100-80", 64, 2048), REASONS[said]
    why, mend = why_none(question, fixed)
    assert said in why
    name, may, numbers = mend.rstrip(".").partition(" may be ")
    name = name.rpartition(" ")[2]
    for value in numbers.removeprefix("at most ").split(", ") if may else ():
        other = int(value) if value.isdecimal() else value
        assert len(space(question, {**fixed, name: other})), (fixed, name, other)
