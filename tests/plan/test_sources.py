"""What predictions rest on is said: guesses, fitted coefficients; and guesses are the same everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shunter.cluster import files
from shunter.layout.grid import Grid
from shunter.plan import compute
from shunter.plan.calibrate import coefficients_of
from shunter.plan.choices import Choices, Question
from shunter.plan.elapsed import links_of
from shunter.plan.fabric import Fabric
from shunter.plan.practice import OTHERWISE, OWN_FUSED, PRACTICES, Coefficients
from shunter.plan.practice import practice as named
from shunter.plan.presets import preset
from shunter.plan.score import predict
from shunter.plan.search import _merged
from shunter.plan.sources import rests_on


def question(cluster: str, practice: str = "shunter", model: str = "llama-3-8b") -> Question:
    where = files.find(cluster)
    return Question(preset(model), Fabric.of(where), 64, 4096, named(practice), coefficients_of(where))


@pytest.mark.parametrize("cluster", ["8xa100-80", "8xmi250x", "4x2xrtx4090-ethernet", "8xh100"])
def test_narrower_products_are_slower_on_every_device(cluster: str) -> None:
    asked = question(cluster)
    (device, *_) = asked.fabric.kinds
    rates = compute.rate(device, "bf16", np.array([100.0, 500.0, 2000.0, 9000.0]))
    assert (np.diff(rates) > 0).all()
    h100 = compute.rate(question("8xh100").fabric.device, "bf16", np.array([100.0, 500.0, 2000.0, 9000.0]))
    assert rates / rates[-1] == pytest.approx(h100 / h100[-1], rel=0.02)


def test_guesses_are_said_to_be_guesses() -> None:
    assert not [note for note in rests_on(question("8xh100")) if "guesses" in note]
    (note,) = [note for note in rests_on(question("8xa100-80")) if "guesses" in note]
    assert note.endswith("tiny, small, medium, attention")
    (note,) = [note for note in rests_on(question("8xmi250x")) if note.startswith("products")]
    assert "not fitted for this kind" in note
    (note,) = [note for note in rests_on(question("8xh100")) if note.startswith("products")]
    assert "fitted to a step of this program" in note
    assert [
        note
        for note in rests_on(question("grand-teton", "torchtitan+compiled+float8+async"))
        if "assumed" in note
    ]
    assert [n for n in rests_on(question("8xh100", model="mixtral-8x7b")) if n.startswith("grouped")]


def test_every_number_has_a_source() -> None:
    for practised in PRACTICES.values():
        assert practised.source
        assert all(named(f"{practised.name}+{each}").source for each in OTHERWISE)
    for name, coefficient in Coefficients().known.items():
        assert coefficient.source, name


def test_a_compiled_plan_is_a_practice_of_its_own() -> None:
    found = named("shunter+compiled")
    assert (
        found.name == "shunter+compiled"
    )  # a plan's file names it, so that a run is held to what was planned
    assert found.elementwise == OWN_FUSED
    assert not {"zb1p", "zbv"} & set(found.schedules)


@given(
    machine=st.sampled_from(["2x8xa100-80", "3x8xmi250x", "4x2xrtx4090-ethernet", "2xgrand-teton"]),
    width=st.sampled_from([1, 2, 4, 8]),
    data=st.data(),
)
def test_a_hop_takes_the_slowest_link_of_its_pairs(machine: str, width: int, data: st.DataObject) -> None:
    cluster = files.find(machine)
    block, nics = len(cluster.nodes[0].ranks), cluster.group(0).nics
    assume(cluster.world >= 2 * width)
    first = width * data.draw(st.integers(0, cluster.world // width - 2))
    pairs = [(first + n, first + width + n) for n in range(width)]
    links = [cluster.link(a, b) for a, b in pairs]
    away = sum(cluster.devices[a].node != cluster.devices[b].node for a, b in pairs)
    share = min(1.0, nics / min(away, block)) if away else 1.0
    latency, bandwidth = Fabric.of(cluster).between(first, first + width, width)
    assert latency == max(link.latency for link in links)
    assert bandwidth == pytest.approx(share * min(link.bandwidth for link in links))


def test_pipelines_of_several_stages_a_node_have_fast_hops_inside() -> None:
    asked = question("2x8xh100")
    links = links_of(asked, Choices.one(Grid(pp=4, tp=4), 1, "1f1b"))
    inside, between = links.of(0, 1), links.of(1, 2)
    assert inside == links.of(2, 3) == links.of(1, 0)
    assert between[1] == pytest.approx(9 * inside[1])  # 450 and 50 GB/s
    # The ring of interleaved stages closes between nodes.
    assert links_of(asked, Choices.one(Grid(pp=4, tp=4), 1, "interleaved-1f1b", 2)).of(3, 0) == between


def test_ties_are_one_row() -> None:
    asked = question("8xh100")
    one = predict(asked, Choices.one(Grid(fsdp=8), 1))
    other = replace(one, seconds=one.seconds * (1 + 1e-12))
    slower = replace(one, seconds=one.seconds * 1.001)
    assert [len(each) for each in _merged([one, other, slower])] == [2, 1]


def test_context_parallelism_is_not_free() -> None:
    asked = question("8xa100-80")
    alone, parts = (
        predict(asked, Choices.one(grid, rows)).seconds
        for grid, rows in ((Grid(fsdp=8), 1), (Grid(fsdp=4, cp=2), 2))
    )
    assert parts > 1.005 * alone
