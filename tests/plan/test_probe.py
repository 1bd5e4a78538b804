"""The probe says what a link is, and writes a file that can be read.

Namespaces carry real TCP under gloo; a switch in this process delays packets and paces them. What this cannot
show: that rates of a GPU are right; nobody has another measure of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shunter.cluster import files
from shunter.plan import communication, probe
from shunter.plan.calibrate import coefficients_of
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import practice
from shunter.plan.presets import preset
from tests.plan import tunnels

DELAY, RATE, BACK = 0.012, 10e6, 5e6  # slow beside what a busy machine adds

RANK = """
import json, sys, torch
import torch.distributed as dist
from shunter.parallel.wires import Effort, measure_pair
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
found = measure_pair(0, 1, torch.device("cpu"), Effort(9, 3, 0.06))
if rank == 0:
    print(json.dumps([[a, b, w.latency.value, w.bandwidth.value] for (a, b), w in found.items()]))
dist.barrier()
"""


@pytest.mark.long
@pytest.mark.skipif(bool(tunnels.refused()), reason=f"{tunnels.refused()}")
def test_an_injected_delay_and_limit_are_reported_within_a_tenth() -> None:
    switch = tunnels.Switch(2, {(0, 1): (DELAY, RATE), (1, 0): (DELAY, BACK)})
    try:
        where = f"tcp://{switch.address(0)}:29517"
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "tun0", "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                switch.command(rank, [sys.executable, "-c", RANK, str(rank), where]),
                env=environment, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        told, _ = ranks[0].communicate(timeout=60)
        ranks[1].communicate(timeout=60)
    finally:
        switch.close()
    found = {(a, b): (latency, bandwidth) for a, b, latency, bandwidth in json.loads(told)}
    for pair, rate in {(0, 1): RATE, (1, 0): BACK}.items():
        latency, bandwidth = found[pair]
        assert latency == pytest.approx(DELAY, rel=0.1)
        assert bandwidth == pytest.approx(rate, rel=0.1)


def measured() -> dict[str, object]:
    def link(a: int, b: int, bandwidth: float) -> dict[str, object]:
        return {"from": a, "to": b, "latency": 1e-5, "bandwidth": bandwidth, "spread": 0.01, "type": "gloo"}

    rates = {name: (rate, 0.02) for name, rate in {"large": 9e10, "tiny": 2e10}.items()}
    return {
        "type": "cpu", "machine": "3 x thing", "memory": 4e9, "memory_bandwidth": 1e10,
        "copy_bandwidth": None,        "rates": {"fp32": rates}, "peaks": {}, "overlap": 1.2,
        "links": [
            link(a, b, 1e8 if (a, b) == (2, 0) else 1e9 + 1e6 * a)
            for a in range(3)
            for b in range(3)
            if a != b
        ],
        "collectives": [{"op": "all_reduce", "ranks": 3, "latency": 1e-4, "bandwidth": 5e8, "spread": 0.1}],
    }  # fmt: skip


def test_what_was_measured_is_a_cluster_with_the_slow_direction_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "here.yaml"
    files.save(probe.describe(measured(), 3, "mark", True), path)
    it = files.read(path)
    assert it.world == 3
    assert (it.bandwidth(2, 0), it.bandwidth(0, 2)) == (1e8, pytest.approx(1e9, rel=0.01))
    assert it.description.measured is not None
    assert it.description.measured.collectives[0].ranks == 3
    # What collectives reached of the slowest link of their ring, both ways, is what messages are counted by.
    known = coefficients_of(it)
    assert (known["links"], known["collectives"], known.ring) == (1.0, 5.0, 5.0)
    asked = Question(preset("llama-2-7b"), Fabric.of(it), 6, 512, practice("shunter-fp32"), known)
    share, slow = (
        float(communication.all_reduce(question, np.array([1]), np.array([3]), np.array([3e9]))[0])
        for question in (asked, replace(asked, coefficients=known.but("half of it", collectives=2.5)))
    )
    assert slow == pytest.approx(2 * share, rel=1e-3)
    spec = it.device(0).spec
    assert (spec.rate("fp32", "small"), spec.peak("fp32"), spec.overlap_slowdown) == (9e10, 9e10, 1.2)


def test_another_machine_or_form_measures_anew_and_the_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    marks = {probe.fingerprint(ranks, quick) for ranks in (2, 3) for quick in (True, False)}
    assert len(marks) == 4
    calls = []
    monkeypatch.setattr(probe.elastic, "launch", lambda *a, **k: calls.append(a) or measured())
    first, path = probe.probe(3, quick=True)
    again, same = probe.probe(3, quick=True)
    assert (first.description, path, len(calls)) == (again.description, same, 1)
    probe.probe(3, quick=True, again=True)
    assert len(calls) == 2
