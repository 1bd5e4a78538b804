"""One script, four placements: the same bits. And that learning is what it is without roles.

With real processes of one or two ranks a role; how fast any of them is, nothing here says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.generate.rollout import RolloutEngine
from shunter.layout.generation import Hybrid
from shunter.models.paged import PagedStepper
from shunter.plan.mapping import Candidate, Mapper
from shunter.post.config import RewardConfig
from shunter.post.roles import scripts
from shunter.post.roles.flow import Flow
from shunter.post.roles.placement import Placement, arranged
from shunter.post.roles.stage import REMAX, Play, stage
from tests.post.roles.small import model_in, play, talks_in

POOLS = {"a": 2, "b": 1, "c": 1, "d": 1}
WHERE = {
    "colocate": {},
    "split": {"reward": "b", "critic": "b", "cost": "b", "cost_critic": "b"},
    "standalone": {"reference": "b", "reward": "c", "critic": "d", "cost": "c", "cost_critic": "d"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("placed")
    return model_in(folder), talks_in(folder / "talks")


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    with Flow(POOLS, tmp_path_factory.mktemp("roles"), timeout=100, exact=True) as it:
        yield it


def run(flow: Flow, placement: Placement, what: Play, script: Any, name: str = "", **more: Any) -> list[Any]:
    cast = stage(flow, placement, what, name)
    found: list[Any] = []
    for step in script(cast, range(2), **more):
        found.append({role: dict(future.told()) for role, future in step.items() if future.told()})
    prints = cast.actor.fingerprint().fetch()
    assert len(set(prints)) == 1  # all ranks hold the same
    return [*found, prints[0]]


def inline(tmp_path: Path, what: Play, script: Any, **more: Any) -> list[Any]:
    with Flow({"all": 1}, tmp_path, backend="inline", exact=True) as flow:
        where = dict.fromkeys(what.roles, "all")
        return run(flow, Placement({"all": 1}, where), what, script, **more)


def plays(made: tuple[Path, Path]) -> Mapping[str, tuple[Play, Any, dict[str, Any]]]:
    costs = [RewardConfig(kind="format", pattern=".*[0-9].*")]
    return {
        "grpo": (play(*made), scripts.grpo, {}),
        "ppo": (play(*made, algorithm="ppo"), scripts.ppo, {}),
        "remax": (play(*made, objective=REMAX), scripts.remax, {}),
        "safe": (play(*made, algorithm="ppo", costs=costs), scripts.safe, {"limit": 0.1, "rate": 0.5}),
    }


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "remax", pytest.param("safe", marks=pytest.mark.long)])
def test_four_placements_of_one_script_give_the_same_bits(
    flow: Flow, made: tuple[Path, Path], algorithm: str, tmp_path: Path
) -> None:
    what, script, more = plays(made)[algorithm]
    expected = inline(tmp_path, what, script, **more)
    assert expected[0]["actor"]["loss"] != expected[1]["actor"]["loss"]
    assert expected[1]["actor"]["updated"] == 1.0
    short = ("colocate", "standalone") if algorithm in ("remax", "safe") else tuple(WHERE)
    for name in short:
        where = {role: WHERE[name].get(role, "a") for role in what.roles}
        assert run(flow, Placement(POOLS, where), what, script, f"{algorithm} {name} ", **more) == expected


@pytest.mark.long
def test_a_placement_that_the_mapper_chose_gives_them_too(made: tuple[Path, Path], tmp_path: Path) -> None:
    class Even:
        """Roles whose work does not get faster with more devices: they are best apart."""

        memory = 1.0

        def candidates(self, role: str, devices: int) -> list[Candidate]:
            return [Candidate(Hybrid(d=devices), {"preparation": 1.0}, 0.1, 0.2)]

    what, script, _ = plays(made)["grpo"]
    roles = [role for role in what.roles if role not in ("prompts", "judge")]
    mapped = Mapper(roles, Even()).best(3)
    assert len(mapped.sets) == 3
    placement = Placement.of(mapped.sets, mapped.devices, what.roles)
    with Flow(placement.pools, tmp_path / "mapped", timeout=100, exact=True) as flow:
        assert run(flow, placement, what, script) == inline(tmp_path, what, script)


def test_who_writes_a_prompt_at_a_time_copies_the_weights_once_a_step(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `exact`, in which each prompt is written without the others beside it."""
    what, script, _ = plays(made)["grpo"]
    copies: list[int] = []
    seen: list[int] = []  # rows side by side
    make, step = PagedStepper.__init__, RolloutEngine.step

    def copied(self: PagedStepper, model: Any, *more: Any) -> None:
        copies.append(1)
        make(self, model, *more)

    def stepped(self: RolloutEngine) -> None:
        step(self)
        seen.append(len(self.running))

    monkeypatch.setattr(PagedStepper, "__init__", copied)
    monkeypatch.setattr(RolloutEngine, "step", stepped)
    inline(tmp_path, what, script)
    assert len(copies) == 2  # of two steps
    assert max(seen) <= what.group


def test_no_payload_passes_the_controller(flow: Flow, made: tuple[Path, Path]) -> None:
    what, script, _ = plays(made)["grpo"]
    where = {role: WHERE["standalone"].get(role, "a") for role in what.roles}
    fetched, moved, control = flow.count.fetched, flow.moved, flow.count.control
    cast = stage(flow, Placement(POOLS, where), what, "counted ")
    begun = flow.count.control
    for step in script(cast, range(2)):
        step["actor"].wait()
    assert flow.count.fetched == fetched
    assert flow.moved - moved > 5000
    # Names, numbers and where things stand: as many whatever the answers' length.
    assert flow.count.control - begun < 40_000
    assert begun > control


def test_arrangements_by_name() -> None:
    roles = ["prompts", "actor", "reference", "reward", "judge", "critic"]
    assert arranged("colocate", roles, 4).pools == {"actor+reference+reward+critic": 4}
    assert arranged("split", roles, 4).pools == {"actor+reference": 3, "reward+critic": 1}
    alone = arranged("standalone", roles, 6, {"critic": 2})
    assert alone.pools == {"actor": 2, "reference": 1, "reward": 1, "critic": 2}
    assert alone.where["prompts"] == alone.where["judge"] == "actor"
    with pytest.raises(ShunterError, match="standalone needs 4 processes, there are 3"):
        arranged("standalone", roles, 3)
    with pytest.raises(ShunterError, match="is in two pools"):
        Placement.of([["actor", "reward"], ["reward"]], [1, 1], roles)
    with pytest.raises(ShunterError, match="no pool has the roles reference"):
        Placement.of([["actor", "reward", "critic"]], [1], roles)
    with pytest.raises(ShunterError, match="no role 'cook'"):
        Placement.of([["actor", "cook"]], [1], roles)
