"""What of several machines does not fit together, and which process one is. Pure; test_crew.py measures."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.launch import links, machines, route
from shunter.launch.place import Place, leave


def node(host: str, **more: Any) -> dict[str, Any]:
    return {
        "name": host, "host": host, "node": 0, "ranks": 2, "python": "3.12.3", "torch": "2.13.0",
        "nccl": "2.29",
        "shunter": "0.1.0", "digest": "aaa", "commit": "c" * 40, "dirty": False, "devices": ["L40S", "L40S"],
        "gpus": 2, "cores": 8, "free_bytes": 10**12, "recipe_seen": True, "address": "10.0.0.1", "clock": 0.0,
        **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "breaks", "says"),
    [
        ({"torch": "2.12.0"}, True, "b has torch 2.12.0, a 2.13.0. Install the same torch"),
        ({"nccl": None}, True, "b has nccl not at all, a 2.29"),
        ({"digest": "bbb"}, True, r"b has code of shunter 0.1.0 \(bbb\), a 0.1.0 \(aaa\)"),
        ({"python": "3.11.9"}, False, "b has Python 3.11.9, a 3.12.3"),
        ({"commit": None}, False, "b is at commit none, a at cccccccccc; the files agree"),
        ({"devices": ["A10"]}, False, "b has 1 x A10, a 2 x L40S"),
        ({"recipe_seen": False}, False, "b does not see the recipe's folder"),
    ],
)
def test_differences(changed: dict[str, Any], breaks: bool, says: str) -> None:
    (problem,) = machines.differences([node("a"), node("b", **changed)])
    assert problem.breaks is breaks
    with pytest.raises(ShunterError, match=says):
        raise ShunterError(problem.text)


def test_what_agrees_is_no_problem() -> None:
    nodes = [node("a"), node("b", python="3.12.9", cores=4, clock=-0.9)]
    assert machines.differences(nodes) == []
    assert machines._devices(nodes, "auto") == []
    assert machines._disks(nodes) == []
    assert machines.judge_links(nodes, []) == []


def test_devices_that_do_not_suffice() -> None:
    assert "has 2 GPUs for 3 processes" in machines._devices([node("a", ranks=3)], "auto")[0].text
    assert machines._devices([node("a", ranks=3)], "cpu") == []
    assert "b has no GPU, a has" in machines._devices([node("a"), node("b", gpus=0)], "auto")[0].text


def test_links_clocks_and_addresses() -> None:
    nodes = [node("a"), node("b", clock=-3.0), node("c", clock=None, address="127.0.1.1")]
    seen = [
        {"from": "a", "to": "b", "latency": 1e-4, "bandwidth": 1e9},
        {"from": "b", "to": "c", "latency": 1e-4, "bandwidth": 1e8},
        {"from": "c", "to": "a", "error": "10.0.0.1:999: Connection refused"},
    ]
    told = [(problem.breaks, problem.text) for problem in machines.judge_links(nodes, seen)]
    assert [breaks for breaks, _ in told] == [True, True, False, False, True]
    assert "c takes rank 0's name for its own loopback address 127.0.1.1" in told[0][1]
    assert "c cannot reach a (10.0.0.1:999: Connection refused)" in told[1][1]
    assert "the link from b to c carries 100.0 MB/s, the fastest 1.0 GB/s" in told[2][1]
    assert "the clock of b is 3.0 s behind a's" in told[3][1]
    assert "c cannot reach a to compare clocks" in told[4][1]


def test_who_does_not_know_the_token_measures_nothing() -> None:
    server = links.Server("127.0.0.1", "a" * 32)
    try:
        assert links.measure("127.0.0.1", server.port, "a" * 32, bulk=False).keys() == {"latency", "clock"}
        with pytest.raises(OSError):
            links.measure("127.0.0.1", server.port, "b" * 32)
    finally:
        server.close()
    with pytest.raises(OSError):
        links.measure("127.0.0.1", server.port, "a" * 32)


def test_the_interface_that_leads_somewhere() -> None:
    assert route.own_address("127.0.0.1", 9) == "127.0.0.1"
    assert route.interface_of("127.0.1.1") == "lo"
    assert route.interface_of("::1") == "lo"
    assert route.interface_of("192.0.2.77") is None, "an address of nobody"
    assert route.variables("localhost", 9) == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert route.variables("no-such-machine.invalid", 9) == {}


UNDER = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"}


def test_which_process_this_is() -> None:
    place = Place.of({**UNDER, "MASTER_PORT": "77", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert place == Place(3, 4, 1, 2, 1, "a", 77, True, socket.gethostname())
    for alone in ({}, {"RANK": "0"}, {**UNDER, "WORLD_SIZE": "1", "RANK": "0"}):
        assert Place.of(alone) is None
    for wrong in (
        {"RANK": "4"},
        {"RANK": "x"},
        {"LOCAL_RANK": "2"},
        {"WORLD_SIZE": "0"},
        {"MASTER_PORT": "-1"},
    ):
        with pytest.raises(ShunterError, match="Let torchrun set"):
            Place.of({**UNDER, **wrong})


def test_a_process_that_leaves_forgets_what_torchrun_set() -> None:
    environment = {**UNDER, "TORCHELASTIC_RUN_ID": "x", "PATH": "/bin", "OMP_NUM_THREADS": "1"}
    leave(environment)
    assert environment == {"PATH": "/bin", "OMP_NUM_THREADS": "1"}
