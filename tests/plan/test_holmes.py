"""Groups by type of NIC, and layers by speed. What this cannot show: that NCCL binds the NIC it is told
to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.config.errors import ShunterError
from shunter.plan import holmes

TYPES = ("InfiniBand", "RoCE", "Ethernet")


def cluster(counts: dict[str, int], devices: int = 2) -> Cluster:
    """counts: nodes by type of NIC."""
    tree: dict[str, Any] = {
        "name": "c",
        "devices": {"d": {"memory": 1e9, "memory_bandwidth": 1e9, "flops": {"fp32": {"peak": 1e9}}}},
        "links": {
            name: {"latency": 1e-5, "bandwidth": rate, "type": name}
            for name, rate in {"InfiniBand": 25e9, "RoCE": 20e9, "Ethernet": 3e9, "NVLink": 3e11}.items()
        },
        "nodes": {
            name.lower(): {
                "count": count, "device": "d", "devices": devices, "inside": "NVLink", "between": name,
            }
            for name, count in counts.items()
        },
        "between": "Ethernet",
    }  # fmt: skip
    return Cluster.of(Description.model_validate(tree))


@st.composite
def arranged(draw: st.DrawFn) -> tuple[Cluster, holmes.Arrangement, list[str]]:
    """Of clusters in which every type has whole stages."""
    devices, tensor = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (8, 8)]))
    whole = draw(st.integers(1, 3))  # nodes of a stage
    stages = draw(st.dictionaries(st.sampled_from(TYPES), st.integers(1, 3), min_size=1))
    it = cluster({name: count * whole for name, count in stages.items()}, devices)
    data = whole * devices // tensor
    order = draw(st.permutations(list(stages)))
    return it, holmes.arrange(it, sum(stages.values()), data, tensor, order), list(order)


@given(arranged())
def test_only_pipelines_mix_types(case: tuple[Cluster, holmes.Arrangement, list[str]]) -> None:
    it, found, order = case
    assert list(dict.fromkeys(next(iter(types)) for types in found.types)) == order
    assert sorted(found.ranks) == list(range(it.world))
    assert not found.mixed
    for group in holmes.groups(it, found, tensor=1e6, data=1e6, pipeline=1e6):
        if group.axis != "pipeline":
            assert len(group.types) == 1
            assert group.nic != holmes.MIXED
        if group.axis == "tensor":
            assert group.nic == "within the node"
        assert group.size > 0
        assert group.seconds > 0


def test_the_baseline_mixes_and_pays_for_it() -> None:
    it = cluster({"InfiniBand": 2, "RoCE": 2}, 8)
    aware, blind = holmes.arrange(it, 2, 2, 8), holmes.blind(it, 2, 2, 8)
    assert aware.mixed == []
    assert blind.mixed == [0, 1]
    slow, fast = (
        max(g.seconds for g in holmes.groups(it, x, data=1e9) if g.axis == "data") for x in (blind, aware)
    )
    assert slow / fast == pytest.approx(20 / 3, rel=0.01)
    assert {g.nic for g in holmes.groups(it, blind) if g.axis == "data"} == {holmes.MIXED}
    assert {g.nic for g in holmes.groups(it, aware) if g.axis == "data"} == {"InfiniBand", "RoCE"}
    assert {g.nic for g in holmes.groups(it, aware) if g.axis == "pipeline"} == {holmes.MIXED}


@pytest.mark.parametrize(
    ("alpha", "layers"), [(1.0, [26, 22]), (1.05, [27, 21])], ids=["plain", "the paper's"]
)
def test_the_card_s_partition(alpha: float, layers: list[int]) -> None:
    speeds = {"IB": 197.0, "RoCE": 160.0}
    assert holmes.partition(48, ["IB", "RoCE"], speeds, alpha) == layers
    assert holmes.written(["IB", "RoCE"], layers) == f"1 {layers[0]} 1 {layers[1]}"


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=9),
    st.tuples(*[st.floats(1, 500)] * 3),
    st.integers(0, 60),
    st.floats(1.0, 1.3),
)
def test_layers_add_up_and_no_stage_is_empty(
    stages: list[str], speeds: tuple[float, ...], more: int, alpha: float
) -> None:
    stages.sort()
    layers = len(stages) + more
    by_type = dict(zip("abc", speeds, strict=True))
    found = holmes.partition(layers, stages, by_type, alpha)
    assert sum(found) == layers
    assert min(found) >= 1
    for name in set(stages):
        mine = [n for n, each in zip(found, stages, strict=True) if each == name]
        assert max(mine) - min(mine) <= 1
    line = holmes.written(stages, found)
    assert holmes.read(line, len(set(stages)), layers, len(stages)) == found


def test_what_cannot_be_is_refused() -> None:
    it = cluster({"InfiniBand": 3, "RoCE": 1}, 2)
    for call, said in {
        lambda: holmes.arrange(it, 2, 2): "are not the 8 devices",
        lambda: holmes.arrange(it, 2, 4): "6 devices with InfiniBand are no whole stages",
        lambda: holmes.arrange(it, 4, 2, 1, ["RoCE", "RoCE"]): "'RoCE' is named twice",
        lambda: holmes.arrange(it, 4, 2, 1, ["Roce"]): "'Roce' is no type of NIC here",
        lambda: holmes.arrange(it, 2, 1, 4, strict=False): "would leave a node",
        lambda: holmes.partition(1, ["a", "b"], {"a": 1, "b": 1}): "too few for 2 stages",
        lambda: holmes.partition(4, ["a", "b"], {"a": 1}): "'b' has no speed",
        lambda: holmes.read("1 26 1", 2, 48, 2): "1 stages, and 0 numbers of layers follow",
        lambda: holmes.read("1 26 1 21", 2, 48, 2): "has 47 layers, and there are 48",
        lambda: holmes.read("2 26 22", 2, 48, 2): "has 1 types, and there are 2",
        lambda: holmes.read("1 x", 1, 4, 1): "is no list of numbers",
    }.items():
        with pytest.raises(ShunterError, match=said):
            call()
    assert holmes.read("2 4 4 3 5 5 5", 2, 23, 5) == [4, 4, 5, 5, 5]
    assert holmes.arrange(it, 2, 4, strict=False).mixed == [1]
    assert holmes.partition(7, ["a"] * 3, {"a": 9.0}) == [3, 2, 2]
