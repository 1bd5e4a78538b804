"""A cluster's file means what its links say, for every pair and direction; nothing wrong in it passes.

What this cannot show: that a number in a shipped file is right. Each has a source to look up.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.cluster.device import shape_class
from shunter.config import yaml
from shunter.config.check import parse
from shunter.config.errors import ShunterError

TWO = """\
name: two rooms
devices:
  card: {memory: 8e9, memory_bandwidth: 1e12,
    flops: {bf16: {peak: 100e12, achieved: {large: 80e12, small: 30e12}}}}
links:
  bus: {latency: 1e-6, bandwidth: 10e9, type: PCIe}
  fast: {latency: 2e-6, bandwidth: 5e9, type: InfiniBand}
  roce: {latency: 3e-6, bandwidth: 4e9, type: RoCE}
  slow: {latency: 50e-6, bandwidth: 1e9, type: Ethernet}
nodes:
  near: {count: 2, device: card, devices: 2, inside: bus, between: fast}
  far: {count: 2, device: card, devices: 4, inside: bus, between: roce, nics: 2,
    package: {size: 2, link: fast}}
between: slow
"""


def read(text: str) -> Cluster:
    source = yaml.parse(text, "c.yaml")
    return Cluster.of(parse(Description, source.data, source), source)


def test_each_pair_has_the_link_that_is_said_finest() -> None:
    text = TWO + (
        "pairs:\n"
        "  - {ends: [near.0, far.1], link: roce, back: slow}\n"
        "  - {ends: [near.0/1, far.1/0], link: bus}\n"
    )
    it = read(text)
    assert it.world == 12
    assert [it.level(*pair) for pair in ((0, 0), (4, 5), (4, 6), (0, 4))] == [
        "self", "package", "node", "nodes",
    ]  # fmt: skip
    kinds = {pair: it.link(*pair).type for pair in ((0, 1), (0, 2), (4, 5), (4, 6), (4, 8), (2, 4))}
    assert list(kinds.values()) == ["PCIe", "InfiniBand", "InfiniBand", "PCIe", "RoCE", "Ethernet"]
    assert (it.link(0, 8).type, it.link(8, 0).type) == ("RoCE", "Ethernet")  # as said by `back`
    assert it.link(1, 8).type == it.link(8, 1).type == "PCIe"
    assert it.bandwidth(4, 8, flows=4) == 4e9 * 2 / 4  # four messages through two NICs
    assert it.bandwidth(4, 5, flows=4) == 5e9  # none within the node
    assert it.seconds(0, 1, 1e9) == pytest.approx(0.100001)
    assert it.slowest([0, 2, 4]).type == "Ethernet"
    assert it.nics(range(4)) == {"InfiniBand"}
    assert it.nics([0, 11]) == {"InfiniBand", "RoCE"}


@given(st.lists(st.integers(0, 11), min_size=1, unique=True))
def test_a_part_of_a_cluster_keeps_its_links(ranks: list[int]) -> None:
    whole = read(TWO)
    part = whole.subcluster(ranks)
    assert part.world == len(ranks)
    assert sorted(rank for node in part.nodes for rank in node.ranks) == list(range(len(ranks)))
    for a, old in enumerate(ranks):
        assert part.device(a).name == whole.device(old).name
        for b, other in enumerate(ranks):
            assert part.link(a, b) == whole.link(old, other)
            assert part.level(a, b) == whole.level(old, other)


@settings(max_examples=30)
@given(st.data())
def test_what_is_written_is_read_again(data: st.DataObject) -> None:
    description = files.find(data.draw(st.sampled_from(files.names()))).description
    source = yaml.parse(files.dumps(description))
    assert parse(Description, source.data, source) == description


def test_shipped_machines_are_sound_and_each_number_has_a_source() -> None:
    for name in files.names():
        it = files.find(name)
        assert it.name.lower() == name
        for device in it.description.devices.values():
            assert device.source, name
        for link in it.description.links.values():
            assert link.source, name
    # Data sheets: A100 300 GB/s a direction; a Frontier die has half of a NIC when all send.
    assert files.find("8xA100-80").bandwidth(0, 7) == 300e9
    frontier = files.find("2x8xMI250X")
    assert [frontier.bandwidth(0, other, flows=8) for other in (1, 2, 8)] == [200e9, 50e9, 12.5e9]


def test_names_with_numbers() -> None:
    assert files.find("16x8xa100-80").world == 128
    assert len(files.find("24xA100-80").nodes) == 3
    assert files.find("3xH100").world == 3
    for text, said in {
        "8xH10O": "Did you mean '8xh100'",
        "12xA100-80": "Ask for 8 or 16",
        "nothing": "Known are",
    }.items():
        with pytest.raises(ShunterError, match=re.escape(said)):
            files.find(text)


def test_a_class_of_shapes_that_was_not_measured_takes_the_next_larger() -> None:
    card = read(TWO).device(0).spec
    assert [shape_class(8192, 4096, n) for n in (64, 256, 1024, 4096)] == ["tiny", "small", "medium", "large"]
    assert [card.rate("bf16", name) for name in ("tiny", "small", "medium", "attention")] == [
        30e12, 30e12, 80e12, 80e12,
    ]  # fmt: skip
    assert not card.known("bf16", "tiny")
    assert card.known("bf16", "small")


BAD = {
    ("memory: 8e9", "memory: 0"): "c.yaml:3: devices.card.memory: must be greater than 0",
    ("memory: 8e9", "memry: 8e9"): "Did you mean 'memory'",
    ("achieved: {large: 80e12", "achieved: {large: 180e12"): "more than the peak",
    ("between: slow", ""): "near.0/0 and far.0/0 have no link",
    ("inside: bus, between: fast", "between: fast"): "Add `inside: LINK` to nodes.near",
    ("inside: bus, between: fast", "inside: bus"): "Add `between: LINK` to nodes.near",
    (
        "between: fast",
        "between: fest",
    ): "c.yaml:11: nodes.near.between: there is no link 'fest'. Did you mean",
    ("device: card, devices: 2", "device: cart, devices: 2"): "Did you mean 'card'",
    ("size: 2", "size: 3"): "4 devices are no whole packages of 3",
    ("latency: 50e-6", "latency: -1.0"): "links.slow.latency: must be at least 0",
    ("bandwidth: 1e9", "bandwidth: 0"): "links.slow.bandwidth: must be greater than 0",
}
PAIRS = {
    "{ends: [near.0, far.9], link: bus}": "'far.9' is no group, node or device. Did you mean 'far.0'",
    "{ends: [near.0, far.0/1], link: bus}": "c.yaml:16: pairs.0.ends: near.0 and far.0/1 are not of one sort",
    "{ends: [near.0, near.0], link: bus}": "near.0 cannot have a link to itself",
    "{ends: [near, far], link: bus}\n  - {ends: [far, near], link: fast}": "name that one there as `back`",
    "{ends: [near, far], link: bus, back: bass}": "there is no link 'bass'",
}


@pytest.mark.parametrize("change", BAD, ids=lambda change: change[1])
def test_what_is_wrong_is_said(change: tuple[str, str]) -> None:
    assert change[0] in TWO
    with pytest.raises(ShunterError, match=re.escape(BAD[change])):
        read(TWO.replace(*change, 1))


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_that_are_none(pair: str) -> None:
    with pytest.raises(ShunterError, match=re.escape(PAIRS[pair])):
        read(f"{TWO}pairs:\n  - {pair}\n")


def test_a_cluster_of_pairs_alone(tmp_path: Path) -> None:
    """As the probe writes it: each pair of nodes has its own link, and one is forgotten."""
    head, _, _ = TWO.partition("between: slow")
    head = head.replace(", between: fast", "").replace(", between: roce", "")
    names = ["near.0", "near.1", "far.0", "far.1"]
    rows = [f"  - {{ends: [{a}, {b}], link: slow}}\n" for n, a in enumerate(names) for b in names[n + 1 :]]
    path = tmp_path / "c.yaml"
    path.write_text(head + "pairs:\n" + "".join(rows), encoding="utf-8")
    assert files.read(path).link(1, 11).type == "Ethernet"
    path.write_text(head + "pairs:\n" + "".join(rows[:-1]), encoding="utf-8")
    with pytest.raises(ShunterError, match=r"far.0/0 and far.1/0 have no link"):
        files.read(path)
    files.save(read(TWO).description, path)
    assert files.read(path).description == read(TWO).description
