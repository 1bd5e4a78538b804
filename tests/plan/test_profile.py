"""What a model takes on a machine: curves, what the planner makes of them, and what is refused.

Profiles here are made up, so that what the planner says of them can be reckoned by hand; ranks measure one in
tests/train/test_profiling.py. What this cannot show: how near predictions come to real steps, which `shunter
reproduce galvatron` measures.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.models.spec import DecoderSpec
from shunter.plan.calibrate import coefficients_of
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.plan import Plan
from shunter.plan.practice import practice
from shunter.plan.profile import Curve, Pass, Profile
from shunter.plan.score import predict
from shunter.plan.search import search

SPEC = DecoderSpec(
    vocab_size=512, dim=64, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=16, ffn_dim=128,
    max_positions=64, tied=False,
)  # fmt: skip
ROWS, ROW = 8, 64


def line(each: float, begin: float = 0.0) -> Curve:
    return Curve((1.0, 16.0), (begin + each, begin + 16 * each))


def made_up(message: float = 1e-3) -> Profile:
    """A layer takes 1 ms forward and 2 ms backward a row, half of it on two tensor ranks; ends nothing; each
    message the same whatever its size; the optimizer 5 ms."""
    flat = Curve((1.0, 1e12), (message, message))
    nothing = line(0.0)
    return Profile(
        spec=SPEC.model_dump(mode="json"),
        row=ROW,
        products="fp32",
        ranks=2,
        layer={1: Pass(line(1e-3), line(2e-3)), 2: Pass(line(0.5e-3), line(1e-3))},
        embedding={1: Pass(nothing, nothing), 2: Pass(nothing, nothing)},
        head={1: Pass(nothing, nothing), 2: Pass(nothing, nothing)},
        messages={kind: {2: flat} for kind in ("gather", "scatter", "sum", "hop")},
        update=Curve((1.0, 1e12), (5e-3, 5e-3)),
        machine="two made up",
        date="2026-11-26",
    )


def question(profile: Profile | None = None) -> Question:
    cluster = files.find("cpu")
    found = Question(SPEC, Fabric.of(cluster), ROWS, ROW, practice("shunter-fp32"), coefficients_of(cluster))
    return found if profile is None else found.measured(profile)


def step(degrees: dict[str, int], parts: int, message: float = 1e-3, **of_pipeline: object) -> float:
    grid = Grid(**degrees)
    rows = ROWS // (grid.dp * grid.fsdp) // parts
    return predict(question(made_up(message)), Choices.one(grid, rows, **of_pipeline)).seconds  # type: ignore[arg-type]


def test_what_was_measured_is_what_a_step_is_made_of() -> None:
    layers = SPEC.num_layers * ROWS * 3e-3 / 2  # both ranks have half of the work
    assert step({"dp": 2}, 1) == pytest.approx(layers + 1e-3 + 5e-3)  # one sum
    # Weights are gathered twice a micro-batch, and gradients scattered once a step; ends stay for backwards.
    gathered = 4 * 2 * (SPEC.num_layers + 1) * 1e-3  # layers in both passes; embedding and head in one
    assert step({"fsdp": 2}, 4) == pytest.approx(layers + gathered + 1e-3 + 5e-3)
    # Two regions a layer and two messages each, forward and backward, and one each way for either end.
    assert step({"tp": 2}, 2) == pytest.approx(layers + 2 * (8 * SPEC.num_layers + 4) * 1e-3 + 5e-3)


@given(st.floats(1e-6, 1e-2), st.sampled_from([1, 2, 4]))
def test_a_dearer_message_makes_no_layout_faster(message: float, parts: int) -> None:
    for degrees in ({"dp": 2}, {"fsdp": 2}, {"tp": 2}, {"cp": 2}, {"pp": 2}):
        assert step(degrees, parts, 2 * message) >= step(degrees, parts, message)


def test_stages_wait_as_long_as_measured() -> None:
    alone = SPEC.num_layers * ROWS * 3e-3 / 2
    # No time for messages: (m + p - 1) / m of the work, and the optimizer.
    assert step({"pp": 2}, 4, 1e-12) == pytest.approx(alone * 5 / 4 + 5e-3, rel=1e-6)


def test_a_stage_is_computed_again_where_its_program_says_so() -> None:
    """The last stage of 1F1B goes back at once and need not; all of GPipe's but its last part must."""
    plain, again = (step({"pp": 2}, 4, 1e-12, recompute=kind) for kind in ("none", "stage"))
    part = SPEC.num_layers / 2 * ROWS / 4 * 1e-3
    # The first rank has four forwards more, of which two pass while it would wait for the last one.
    assert plain < again < plain + 4 * part + 1e-9
    gpipe = step({"pp": 2}, 4, 1e-12, schedule="gpipe", recompute="stage")
    assert gpipe > again


def test_coefficients_stretch_what_was_measured() -> None:
    """A run that is slower than its plan is explained by them (`plan.anew`)."""
    asked = question(made_up())
    choice = Choices.one(Grid(tp=2), 4)
    found = predict(asked, choice)
    slower = predict(
        replace(asked, coefficients=asked.coefficients.but("", products=0.5, links=0.25)), choice
    )
    work = SPEC.num_layers * ROWS * 3e-3 / 2
    assert slower.seconds - found.seconds == pytest.approx(work + 3 * 2 * (8 * SPEC.num_layers + 4) * 1e-3)


def test_another_model_row_format_or_cluster_is_refused() -> None:
    profile = made_up()
    with pytest.raises(ShunterError, match="dim 64, not 32"):
        replace(question(), spec=SPEC.model_copy(update={"dim": 32})).measured(profile)
    with pytest.raises(ShunterError, match="rows of 64 tokens, not 128"):
        replace(question(), row=128).measured(profile)
    with pytest.raises(ShunterError, match="products in fp32, not bf16"):
        replace(question(), practice=practice("shunter")).measured(profile)
    with pytest.raises(ShunterError, match="2 ranks on one node, the cluster has 8"):
        replace(question(), fabric=Fabric.of(files.find("8xh100"))).measured(profile)
    # As deep as one likes: its layers are alike.
    replace(question(), spec=SPEC.model_copy(update={"num_layers": 9})).measured(profile)
    with pytest.raises(ShunterError, match="tensor degrees 1, 2, not 4"):
        predict(question(profile), Choices.one(Grid(tp=4), 4))


def test_measured_times_are_not_carried_far() -> None:
    """Twice the largest micro-batch is; the search does not look beyond."""
    asked = question(made_up())
    long = replace(asked, batch=128)
    predict(long, Choices.one(Grid(dp=2), 32))
    with pytest.raises(ShunterError, match="up to 16 rows, asked for 64"):
        predict(long, Choices.one(Grid(dp=2), 64))
    found = search(long, top=32)
    assert max(int(each.prediction.choice.rows[0]) for each in found.plans) <= 32


def test_it_is_kept_and_read_again(tmp_path: Path) -> None:
    profile = made_up()
    profile.save(tmp_path / "a.yaml")
    assert Profile.load(tmp_path / "a.yaml") == profile
    cluster = files.find("cpu")
    asked = question(profile)
    plan = Plan.of(asked, cluster, predict(asked, Choices.one(Grid(dp=2), 4)))
    plan.save(tmp_path / "plan.yaml")
    kept = Plan.load(tmp_path / "plan.yaml").profile
    assert kept is not None
    assert Profile.of(kept) == profile


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda it: it.pop("layer"), "damaged"),
        (lambda it: it["update"].update(sizes=[2.0, 1.0]), "rising sizes"),
        (lambda it: it["update"].update(seconds=["soon", 1.0]), "damaged"),
        (lambda it: it.update(format="plan"), "no profile"),
        (lambda it: it.update(version=9), "version 9"),
    ],
)
def test_a_damaged_one_is_refused(change: object, told: str) -> None:
    data = made_up().data()
    change(data)  # type: ignore[operator]
    with pytest.raises(ShunterError, match=told):
        Profile.of(data, "a.yaml")


points = st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 10)), min_size=1, max_size=6)


@given(points, st.floats(0.01, 1e9))
def test_a_curve_meets_its_points_and_lies_between_them(made: list[tuple[float, float]], size: float) -> None:
    known = dict(made)
    sizes = tuple(sorted(known))
    curve = Curve(sizes, tuple(known[each] for each in sizes))
    assert curve.at(np.array(sizes)) == pytest.approx([known[each] for each in sizes])
    found = float(curve.at(np.array([size]))[0])
    assert found >= 0
    if sizes[0] <= size <= sizes[-1]:
        assert min(known.values()) - 1e-9 <= found <= max(known.values()) + 1e-9
    if size < sizes[0]:  # never dearer than the least that was measured, and no cheaper than its share
        assert known[sizes[0]] * size / sizes[0] - 1e-12 <= found <= known[sizes[0]] + 1e-12
