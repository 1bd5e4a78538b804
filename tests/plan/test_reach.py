"""Predictions far beyond all that was measured are refused, those a little beyond it are marked.

What this cannot show: how wrong they are there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shunter.cluster import files
from shunter.config import yaml
from shunter.config.errors import ShunterError
from shunter.jobs.questions import cited, question
from shunter.plan.choices import Question
from shunter.plan.presets import preset
from shunter.plan.reach import FAR, beyond, bounds, must_reach

PUBLISHED = Path(__file__).parent / "published.yaml"


def asked(cluster: str = "8xh100", row: int = 8192, *, extrapolate: bool = True) -> Question:
    return question(preset("llama-3-8b"), files.find(cluster), 8, row, "shunter", extrapolate=extrapolate)


def test_the_bounds_are_those_of_the_steps_that_predictions_are_held_against() -> None:
    told = yaml.load(PUBLISHED).data
    rows = [each for name in ("megatron", "torchtitan", "h200") for each in told[name]["rows"]]
    most = {each.what: each.most for each in bounds(asked())}
    assert most["tokens of a row"] == max(row.get("row", 2048) for row in rows)
    assert most["devices"] == max(row["gpus"] for row in rows)
    largest = max(preset(str(row["model"])).num_parameters for row in rows)
    assert most["parameters"] == pytest.approx(largest, rel=0.01)


@pytest.mark.parametrize(
    ("cluster", "row", "what"),
    [("8xh100", 262_144, "tokens of a row"), ("384x8xh100", 8192, "devices")],
)
def test_a_little_beyond_is_marked_and_far_beyond_refused(cluster: str, row: int, what: str) -> None:
    it = asked(cluster, row)
    assert not beyond(it)
    must_reach(it)
    for times, far in ((2, False), (FAR, False), (FAR + 1, True)):
        more = replace(it, row=int(row * times)) if what == "tokens of a row" else replace(
            it, fabric=replace(it.fabric, world=int(it.fabric.world * times))
        )  # fmt: skip
        assert len(beyond(more)) == 1
        assert f"extrapolated: {what}" in beyond(more)[0]
        assert beyond(more)[0] in cited(more)
        if far:
            with pytest.raises(ShunterError, match=what):
                must_reach(more)
        else:
            must_reach(more)


def test_it_is_refused_at_the_door_unless_asked_for_all_the_same() -> None:
    assert asked(row=1 << 22).row == 1 << 22
    with pytest.raises(ShunterError, match="4,194,304") as refused:
        asked(row=1 << 22, extrapolate=False)
    assert "--extrapolate" in str(refused.value)
    assert "1,048,576" in str(refused.value)
