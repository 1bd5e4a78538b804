"""Embedding and head with degrees of their own where memory is short, where some degrees are fixed, and where
devices differ.

What this cannot show: that a device holds what the cost model says; `test_layout_moments` counts real bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.jobs.foretold import foretell
from shunter.jobs.questions import Trained
from shunter.plan import placing
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.frame import Frame
from shunter.plan.plan import Plan
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.score import Prediction
from shunter.plan.search import Found, search
from shunter.train.config import Parallel, TrainConfig, TrainHow
from tests.plan import uneven
from tests.plan.test_apart import saved_and_run

# Nine heads, which no power of two cuts, and 262,144 words, which it does: most of its weights.
WORDS = preset("llama-3-8b").model_copy(
    update={
        "dim": 1152, "num_heads": 9, "num_kv_heads": 9, "ffn_dim": 4096, "num_layers": 12,
        "vocab_size": 262144, "tied": True,
    }
)  # fmt: skip
ALIKE: dict[str, int | str] = {"layers": "alike"}
MIXED = uneven.cluster(kinds=("quick", "lame", "lame", "quick"))


@pytest.fixture(scope="module")
def asked() -> Question:
    fabric = Fabric.of(files.find("8xa100-80"))
    return Question(WORDS, fabric, 32, 2048, PRACTICES["shunter"], Coefficients())


def best(found: Found) -> Prediction:
    return found.plans[0].prediction


def test_what_fits_nowhere_with_one_layout_for_all_fits(asked: Question, tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match="fits nowhere"):
        search(asked, fixed=ALIKE, room=4e9, hints=False)
    found = best(search(asked, room=4e9))
    assert found.ends is not None
    assert found.ends.tp[0] > 1
    assert found.fullest <= 4e9
    saved_and_run(asked, found, tmp_path)
    with pytest.raises(ShunterError, match="embedding and head do not spare enough"):
        search(asked, room=2e9, hints=False)


def test_the_leanest_is_as_lean_as_any_ends_make_its_frame(asked: Question, tmp_path: Path) -> None:
    alike, own = (best(search(asked, objective="memory", fixed=fixed)) for fixed in (ALIKE, {}))
    assert own.fullest < 0.7 * alike.fullest
    assert own.ends is not None
    room = asked.fabric.room(None)
    frame = Frame(asked, own, room=room)
    each = [frame.ends.take([number]) for number in range(len(frame.ends))]
    every = (frame.whole(own.choice, own.strategies, {}, ends, room) for ends in each)
    assert own.fullest == pytest.approx(min(it.fullest for it in every if it is not None))
    saved_and_run(asked, own, tmp_path)


def test_the_leanest_takes_no_more_where_less_is_allowed(asked: Question) -> None:
    rooms = 6e9, 4e9, 3.6e9
    first, *rest = (best(search(asked, objective="memory", room=room)).fullest for room in rooms)
    assert all(least <= 1.01 * first for least in rest)


def test_ends_of_their_own_do_not_change_what_is_computed_again() -> None:
    made = TrainConfig(steps=1, batch_rows=32, optimizer="adamw", precision="bf16")
    for recompute in (True, "full", "selective"):
        layouts = ({"fsdp": 8}, {"fsdp": 8, "ends": {"tp": 8}})
        seconds = [
            foretell(
                Trained(WORDS, 2048, made, TrainHow(parallel=Parallel(recompute=recompute, **layout))),
                files.find("8xa100-80"),
            ).compute_seconds
            for layout in layouts
        ]
        assert seconds[1] == pytest.approx(seconds[0], rel=0.05), recompute


def test_what_is_fixed_is_the_layers(asked: Question) -> None:
    for fixed in ({"fsdp": 8}, {"dp": 2, "tp": 1, "recompute": "none"}):
        found = best(search(asked, fixed=fixed, room=30e9))
        assert found.ends is not None
        for each in (found.choice, *found.own.values()):
            assert all(getattr(each, name)[0] == value for name, value in fixed.items() if value != "none")
        assert not any(found.recomputed) or "recompute" not in fixed
        assert found.seconds < best(search(asked, fixed={**fixed, **ALIKE}, room=30e9)).seconds
    few = best(search(asked, fixed={"pp": 1, "microbatch": 2}, room=7e9))
    assert few.choice.rows[0] == 2
    whole: dict[str, int | str] = {"pp": 1, "dp": 1, "fsdp": 8, "cp": 1, "tp": 1}
    assert best(search(asked, fixed=whole, room=30e9)).ends is None


def test_devices_that_differ_have_them_too() -> None:
    it = Question(WORDS, Fabric.of(MIXED), 32, 2048, PRACTICES["shunter"], Coefficients())
    alike, found = (search(it, fixed=fixed, room=8e9, top=1) for fixed in (ALIKE, {}))
    own = best(found)
    assert own.ends is not None
    assert own.placed is not None
    assert own.seconds < 0.995 * best(alike).seconds
    assert own.fits(8e9)
    assert sorted(own.placed.order) == list(range(8))
    assert not np.isnan(own.placed.naive)
    same = placing.again(it, own, 8e9)
    assert same is not None
    assert same.seconds == pytest.approx(own.seconds)
    # As a run by this plan is held against: the same devices, cut and degrees.
    plan = Plan.of(it, MIXED, own)
    made = TrainConfig(steps=1, batch_rows=32, optimizer="adamw", precision="bf16")
    how = TrainHow(parallel=Parallel.model_validate(plan.parallel()), micro_batch=plan.microbatch)
    again = foretell(Trained(WORDS, 2048, made, how), MIXED)
    assert again.step_seconds == pytest.approx(plan.step_seconds, rel=0.02)
