"""Roles on devices: the search against one that tries everything, and what it refuses.

That a simulated second is a real one is not shown here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.layout.generation import Hybrid
from shunter.models.footprint import copied_bytes
from shunter.plan.fabric import Fabric
from shunter.plan.mapping import STAGES, Candidate, Mapper, allocations, partitions
from shunter.plan.practice import PRACTICES
from shunter.plan.presets import preset
from shunter.plan.role_costs import Costs, Load, Work

ROLES = ("actor", "critic", "reference", "reward")


class Drawn:
    """Random costs that fall with the devices, each role with a layout that is fast and one that is small."""

    def __init__(self, seed: int, memory: float = 10.0) -> None:
        self.memory = memory
        draw = random.Random(seed)
        self.work = {role: {stage: draw.uniform(0, 9) for stage in STAGES} for role in ROLES}
        self.size = {role: draw.uniform(2, 12) for role in ROLES}
        self.turn = {role: draw.uniform(0, 4) for role in ROLES}

    def candidates(self, role: str, devices: int) -> Sequence[Candidate]:
        found = []
        for number, degree in enumerate(range(1, devices + 1)):
            if devices % degree:
                continue
            layout = Hybrid(t=degree, d=devices // degree, tg=degree)
            slower = 1 + 0.1 * number
            seconds = {stage: slower * it / devices + 0.05 for stage, it in self.work[role].items()}
            held = self.size[role] / degree
            found.append(Candidate(layout, seconds, held, held + self.turn[role] / devices))
        return found


def test_all_ways_to_part_and_to_give_out() -> None:
    assert [len(list(partitions(ROLES[:count]))) for count in range(1, 5)] == [1, 2, 5, 15]
    for way in partitions(ROLES):
        assert sorted(role for members in way for role in members) == sorted(ROLES)
    assert list(allocations(4, 2)) == [(1, 3), (2, 2), (3, 1)]
    assert all(sum(given) == 7 and min(given) > 0 for given in allocations(7, 3))


@pytest.mark.parametrize("seed", range(12))
def test_the_best_is_what_trying_everything_finds(seed: int) -> None:
    """Each set's layouts tried in all combinations, without memory kept or a least allocation."""
    profile = Drawn(seed)
    roles = ROLES[: 3 + seed % 2]
    devices = 4 + seed % 3
    best = float("inf")
    for way in partitions(roles):
        for given in allocations(devices, len(way)):
            stages = dict.fromkeys(STAGES, 0.0)
            for members, count in zip(way, given, strict=True):
                mine = by_turns(profile, members, count)
                if mine is None:
                    break
                for stage in STAGES:
                    stages[stage] = max(stages[stage], sum(it.seconds[stage] for it in mine))
            else:
                best = min(best, sum(stages.values()))
    if best == float("inf"):
        with pytest.raises(ShunterError, match="no placement"):
            Mapper(roles, profile).best(devices)
        return
    found = Mapper(roles, profile).best(devices)
    assert found.seconds == pytest.approx(best, rel=1e-12)
    assert sum(found.devices) == devices
    for members, count in zip(found.sets, found.devices, strict=True):
        chosen = [found.chosen[role] for role in members]
        assert all(it.layout.size == count for it in chosen)
        held = sum(it.held for it in chosen)
        assert held + max(it.needed - it.held for it in chosen) <= profile.memory


def by_turns(profile: Drawn, members: Sequence[str], count: int) -> list[Candidate] | None:
    """The first combination, in the order of each role's speed, that fits."""
    each = [sorted(profile.candidates(role, count), key=lambda it: it.total) for role in members]
    for chosen in product(*each):  # the last role gives way first, as the search has it
        held = sum(it.held for it in chosen)
        if held + max(it.needed - it.held for it in chosen) <= profile.memory:
            return list(chosen)
    return None


def test_a_fixed_partition_is_never_better() -> None:
    mapper = Mapper(ROLES, Drawn(3, memory=30.0))
    best = mapper.best(8).seconds
    for way in partitions(ROLES):
        assert mapper.best(8, way).seconds >= best


def test_what_has_no_memory_is_refused_in_a_sentence() -> None:
    with pytest.raises(ShunterError, match="no placement on 2 devices of 1e-09 GB has the memory"):
        Mapper(ROLES, Drawn(0, memory=1.0)).best(2)


def costs(model: str = "llama-2-7b") -> Costs:
    spec = preset(model)
    works = {
        "actor": Work(spec, writes=True, learns=True),
        "critic": Work(spec, learns=True),
        "reference": Work(spec),
        "reward": Work(spec),
    }
    fabric = Fabric.of(files.find("superpod-a100-80"))
    return Costs(works, Load(1024, 1024, 1024), fabric, PRACTICES["megatron-2021"])


def test_by_the_planners_costs_more_devices_are_faster_and_fits_are_kept() -> None:
    profile = costs()
    mapper = Mapper(ROLES, profile, unit=8)
    found = {devices: mapper.best(devices) for devices in (16, 32, 64)}
    assert found[16].seconds > found[32].seconds > found[64].seconds
    for it in found.values():
        assert all(candidate.needed <= profile.memory for candidate in it.chosen.values())
        assert it.explain()[0].endswith(" s")
    small = costs()
    small.memory = 4e9
    with pytest.raises(ShunterError, match="no placement"):
        Mapper(ROLES, small, unit=8).best(16)


def test_writing_with_fewer_parts_is_faster_where_keys_and_values_fit() -> None:
    """7B on one machine: the paper finds two parts 60 % faster than eight."""
    actor = [it for it in costs().candidates("actor", 16) if (it.layout.p, it.layout.t) == (1, 8)]
    written = {it.layout.tg: it.seconds["writing"] for it in actor}
    assert written[2] < written[8]


def test_our_own_engine_writes_so_many_at_once_and_holds_its_cache_and_a_copy() -> None:
    spec = preset("llama-2-7b").model_copy(update={"num_layers": 2, "vocab_size": 1000})
    fabric = Fabric.of(files.find("cpu"))

    def written(memory: float = 1e12, **more: int) -> Candidate | None:
        load = Load(64, 32, 32, **more)
        it = Costs({"actor": Work(spec, writes=True)}, load, fabric, PRACTICES["shunter-fp32"], cut=False)
        it.memory = memory
        found = it.candidates("actor", 1)
        return found[0] if found else None

    plain, few, many, grouped = (
        written(),
        written(at_once=8),
        written(at_once=32),
        written(at_once=32, group=8),
    )
    found = [each for each in (grouped, many, few, plain) if each is not None]
    grouped, many, few, plain = found
    seconds = [each.seconds["writing"] for each in (grouped, many, few)]
    assert sorted(seconds) == seconds
    tokens = 72 * 2 * 2 * spec.num_kv_heads * spec.head_dim * 4
    assert many.needed - few.needed == pytest.approx(24 * tokens)
    assert few.needed - plain.needed == pytest.approx(8 * tokens + copied_bytes(spec, 4))
    assert written(few.needed / 0.9 + tokens, at_once=8) is not None
    assert written(few.needed / 0.9 - 8 * tokens, at_once=8) is None
