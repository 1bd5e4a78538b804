"""The cheapest part of a cluster, and what fits where the model as asked does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.config.errors import ShunterError
from shunter.plan.choices import Question
from shunter.plan.fitting import largest
from shunter.plan.parts import Near, parts
from shunter.plan.plan import Plan
from shunter.plan.presets import preset
from shunter.plan.search import Found, search
from tests.plan.uneven import DEVICES, LINKS, cluster, question


def cost(found: Found) -> float:
    """In the cluster's price, of a step."""
    price = found.question.fabric.price_per_hour
    assert price is not None
    return price * found.plans[0].prediction.seconds


def seven(name: str, batch: int = 48) -> Question:
    return replace(question(files.find(name), batch, 1024), spec=preset("llama-2-7b"))


def test_every_part_of_a_small_cluster_is_looked_at() -> None:
    it = cluster((2, 2, 2), kinds=("quick", "lame", "lame"), price=2.0)
    found = list(parts(question(it).fabric))
    assert len(found) == 2**3 - 1
    assert {part.world for part in found} == {2, 4, 6}
    assert {part.price_per_hour for part in found} == {2.0, 4.0, 6.0}
    even = question(files.find("4x8xa100-80")).fabric
    assert [part.world for part in parts(replace(even, price_per_hour=40.0))] == [8, 16, 24, 32]


def test_of_equal_nodes_those_with_good_links_are_taken() -> None:
    """The first one has a bad cable to both others."""
    tree = {
        "name": "three",
        "devices": {"card": DEVICES["quick"]},
        "links": {
            name: {"latency": wait, "bandwidth": rate, "type": type}
            for name, (wait, rate, type) in LINKS.items()
        },
        "nodes": {"n": {"count": 3, "device": "card", "devices": 2, "inside": "nvlink", "between": "ib",
                        "price_per_hour": 2.0}},
        "pairs": [{"ends": ["n.0", other], "link": "slow"} for other in ("n.1", "n.2")],
    }  # fmt: skip
    it = Cluster.of(Description.model_validate(tree))
    assert Near(it).ranks({"n": 2}) == [2, 3, 4, 5]
    assert Near(it).ranks({"n": 3}) == list(range(6))
    found = [part for part in parts(question(it).fabric) if part.world == 4]
    assert found[0].terrain is not None
    assert [device.name for device in found[0].terrain.cluster.devices] == [
        "n.1/0",
        "n.1/1",
        "n.2/0",
        "n.2/1",
    ]


def test_the_cheapest_part_costs_less_than_any_other() -> None:
    asked = question(cluster((2, 2, 2), kinds=("lame", "quick", "lame"), price=2.0), batch=24)
    found = search(asked, objective="cost", top=1)
    assert found.objective == "cost"
    others = [search(replace(asked, fabric=part), top=1) for part in parts(asked.fabric)]
    assert cost(found) == pytest.approx(min(map(cost, others)))
    # At the same price a third of the speed is no bargain.
    plan = Plan.of(found.question, cluster((2, 2, 2)), found.plans[0].prediction)
    assert plan.placed["devices"] == ["n1.0/0", "n1.0/1"]
    assert plan.devices == 2


def test_what_has_no_price_is_refused() -> None:
    with pytest.raises(ShunterError, match=r"has no price.*\n?.*price_per_hour"):
        search(question(cluster()), objective="cost")


@pytest.mark.parametrize("what", ["batch", "row"])
def test_the_largest_that_fits_is_one_step_from_what_does_not(what: str) -> None:
    asked = replace(seven("8xa100-80", 48), row=24576)
    fixed = {
        "pp": 1,
        "tp": 1,
        "cp": 1,
        "fsdp": 8,
        "recompute": "none",
        "microbatch": 6 if what == "batch" else 1,
    }
    if what == "batch":
        fixed = {"pp": 8, "schedule": "gpipe", "recompute": "none", "microbatch": 1}
        asked = replace(asked, row=4096)
    room = 60e9 if what == "batch" else 80e9
    found = largest(asked, fixed, room, what)  # type: ignore[arg-type]
    assert found is not None

    def fits(size: int) -> bool:
        try:
            search(replace(asked, **{what: size}), fixed=fixed, room=room, top=1, finalists=1)
        except ShunterError:
            return False
        return True

    value = getattr(asked, what)
    assert value % found  # no divisor, as the best is not among these
    assert fits(found)
    step = 16 if what == "row" else 1
    assert not fits(found + step)
