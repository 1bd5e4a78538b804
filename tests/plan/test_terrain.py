"""Links asked pair by pair say on equal nodes what levels say; and when devices count as different.

What this cannot show: that NCCL builds its rings so.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.plan.fabric import Fabric
from shunter.plan.space import divisors
from shunter.plan.terrain import Terrain, differs
from tests.plan.uneven import NODES, cluster

EVEN = ("4x8xa100-80", "4x2xrtx4090-ethernet", "2x8xmi250x", "8xh100", "cpu")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EVEN), st.data())
def test_rings_and_hops_are_those_of_the_levels_on_equal_nodes(name: str, data: st.DataObject) -> None:
    it = files.find(name)
    fabric, terrain = Fabric.of(it), Terrain(it)
    count = data.draw(st.sampled_from(divisors(it.world)))
    stride = data.draw(st.sampled_from(divisors(it.world // count)))
    whole = tuple(range(it.world))
    if count > 1:
        told = fabric.wire(np.array([stride]), np.array([count]))
        assert terrain.rings(whole, stride, count) == pytest.approx([float(each[0]) for each in told])
    latency, bandwidth = fabric.hop(np.array([it.world // 2]), np.array([2]))
    if len(it.nodes) > 1:
        assert terrain.hop(0, it.world // 2) == pytest.approx((float(latency[0]), float(bandwidth[0])))


def test_what_makes_devices_differ() -> None:
    for name in EVEN:
        assert not differs(files.find(name)), name
        assert Fabric.of(files.find(name)).terrain is None
    assert differs(files.find("mixed-lab"))
    assert differs(files.find("2x8xa100-80").subcluster(range(12)))
    assert not differs(cluster(links=[(NODES[0], NODES[1], "ib", None)]))  # the same link, said twice
    for changed in (
        cluster(links=[(NODES[0], NODES[1], "slow", None)]),
        cluster(links=[(NODES[0], NODES[1], "ib", "slow")]),
        cluster(kinds=("quick", "quick", "quick", "lame")),
        cluster(sizes=(2, 2, 2, 4)),
        cluster(nics=("ib", "ib", "roce", "roce")),
    ):
        assert differs(changed)


def test_the_slow_way_back_counts() -> None:
    one, both = (Terrain(cluster(links=[(NODES[0], NODES[1], "slow", back)])) for back in ("ib", None))
    ring = (0, 2, 4, 6)
    assert one.ring(ring) == both.ring(ring)
    assert one.hop(0, 2)[1] < one.hop(2, 0)[1]


def test_a_node_s_nics_are_shared_by_its_devices() -> None:
    """Of an uneven cluster too: two members of a ring have twice the share of one."""
    it: Cluster = cluster(sizes=(4, 4, 2, 2))
    terrain = Terrain(it)
    assert terrain.ring((0, 4))[1] == pytest.approx(25e9 / 4)
    assert terrain.ring((0, 1, 4, 5))[1] == pytest.approx(25e9 / 2)
    assert terrain.ring((0, 8))[1] == pytest.approx(25e9 / 4)
    assert terrain.ring((8, 10))[1] == pytest.approx(25e9 / 2)
