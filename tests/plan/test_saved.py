"""A plan's file that is damaged is refused in a sentence, whatever is wrong with it: never a traceback, never
a run that is laid out or held by nonsense.

What this cannot show: that a plan whose every number is possible is the one that was written.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from shunter.config import write
from shunter.config.errors import ShunterError
from shunter.plan.plan import Plan
from shunter.plan.saved import SavedLayout, SavedPlan
from tests.plan.test_plan import made

OWN = {"dp": 1, "fsdp": 4, "cp": 1, "tp": 1, "ep": 1, "etp": 1}  # over the four ranks of a stage
WRONG: tuple[Any, ...] = ("many", None, -1, [], {}, [1, "two"], {"three": 3}, True, 1e400)


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return made("pp=2,tp=2,schedule=1f1b").data()


def load(data: dict[str, Any], path: Path) -> Plan:
    path.write_text(write.dumps(data, lambda _: None).replace("inf", ".inf"), encoding="utf-8")
    return Plan.load(path)


def refused(data: dict[str, Any]) -> bool:
    """Whether it is, and says where and what to do. Any other exception is a failure."""
    try:
        Plan.of_data(data, "plan.yaml").parallel()
    except ShunterError as error:
        return "plan.yaml" in str(error) and bool(error.mend)
    return False


def test_every_field_has_a_rule() -> None:
    assert {each.name for each in fields(Plan)} == set(SavedPlan.model_fields)
    layouts = (made(text) for text in ("pp=2,tp=2", "tp=8", "recompute=layer,tp=4", "recompute=stage,pp=4"))
    assert {name for plan in layouts for name in plan.layout} <= set(SavedLayout.model_fields)


def test_what_is_wrong_is_refused_with_its_place(data: dict[str, Any], tmp_path: Path) -> None:
    accepted = []
    for key in data:
        for value in WRONG:
            for inside in (data, data["layout"]) if key == "layout" else (data,):
                for name in inside if inside is data["layout"] else (key,):
                    broken = copy.deepcopy(data)
                    (broken["layout"] if inside is data["layout"] else broken)[name] = value
                    if broken == data:
                        continue
                    if not refused(broken):
                        accepted.append((name, value))
    # Words that may be any, lists and mappings that may be empty, and what need not be told.
    free = {"cluster", "cluster_fingerprint", "format", "version"}
    may_be_none = {"price_per_hour", "machine", "zero", "recomputed_layers", "again", "offload"}
    may_be_empty = {
        "coefficients", "coefficients_by_kind", "ranks", "placed", "recomputed_layers", "again", "offload",
    }  # fmt: skip
    for name, value in accepted:
        harmless = (name in free and isinstance(value, str)) or (value is None and name in may_be_none)
        empty = value in ([], {}) and name in may_be_empty
        assert harmless or empty or name in ("format", "version"), (name, value)


def test_a_key_that_is_missing_or_too_many(data: dict[str, Any], tmp_path: Path) -> None:
    for name in ("layout", "microbatches", "step_seconds", "model"):
        rest = {key: value for key, value in data.items() if key != name}
        with pytest.raises(ShunterError, match=rf"{name}.*required"):
            load(rest, tmp_path / "plan.yaml")
    with pytest.raises(ShunterError, match="unknown key"):
        load({**data, "layout": {**data["layout"], "tpp": 2}}, tmp_path / "plan.yaml")
    with pytest.raises(ShunterError, match=r"plan.yaml:\d+: microbatches: .*must be an integer"):
        load({**data, "microbatches": "many"}, tmp_path / "plan.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"devices": 16}, "8 ranks, the plan of 16 devices"),
        ({"microbatches": 3}, "do not make a rank's"),
        ({"memory_bytes_by_stage": [1.0]}, "has 1 ranks of 2"),
        ({"ranks": [0, 1, 2, 3, 4, 5, 6, 6]}, "each of the 8 devices once"),
        ({"practice": "shuntr"}, "no practice is called 'shuntr'.*Did you mean shunter"),
        ({"step_seconds": 0.0}, "greater than 0"),
        ({"coefficients": {"products": {"value": -3.0, "source": ""}}}, "products is -3"),
    ],
)
def test_what_does_not_fit_together(data: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ShunterError, match=said):
        Plan.of_data({**data, **change}, "plan.yaml")


def test_layers_that_cannot_be(data: dict[str, Any]) -> None:
    for change, said in (
        ({"cut": [40]}, "does not give every stage a layer"),
        ({"cut": [8, 16]}, "2 bounds, but 2 stages have 1"),
        ({"again": [3, 3]}, "each once"),
        ({"layers": [{**OWN, "of": [40]}]}, "layers does not name layers of 32"),
        ({"layers": [{**OWN, "of": [0]}, {**OWN, "of": [0]}]}, "each once"),
        ({"layers": [{**OWN, "of": [0], "tp": 8}]}, "over other ranks than their stage has"),
        ({"layers": [{**OWN, "of": []}]}, "at least 1 item"),
        ({"again": [3], "offload": [3]}, "both computed again and put aside"),
    ):
        with pytest.raises(ShunterError, match=said):
            Plan.of_data({**data, "layout": {**data["layout"], **change}}, "plan.yaml")
