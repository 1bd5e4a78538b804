"""`shunter probe`: this machine, measured by processes that all work at once, as a cluster's file."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Collective, Description, Link, Measured, NodeGroup, Pair
from shunter.cluster.device import DeviceKind, Rates
from shunter.config.errors import ShunterError
from shunter.launch import elastic
from shunter.recipe.attempt import environment_record
from shunter.record.memory import available

LOADS = ("shunter.parallel.wires", "shunter.plan.rates")  # by the process that ranks are forked from
FORMAT = 1  # a new one measures anew
ALIKE = 1.25  # links whose latency and bandwidth differ by no more than this, or their spreads, are one
NAMES = {
    "H100 80GB": "8xh100",
    "H200": "8xh200",
    "A100-SXM4-80GB": "8xa100-80",
    "RTX 4090": "4x2xrtx4090-ethernet",
}


def probe(
    ranks: int | None = None,
    *,
    quick: bool = False,
    again: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Cluster, Path]:
    """The cluster that this machine is, and its file in the cache, made now if there is none.

    ranks: processes, by default one for each GPU, else two. quick: fewer timings, wider spreads. Raises
    ShunterError where there are fewer devices than ranks.
    """
    count = ranks or len(environment_record()["devices"]) or 2
    mark = fingerprint(count, quick)
    path = cache() / f"probe-{mark}.yaml"
    if path.exists() and not again:
        say(f"measured before: {path}")
        return files.read(path), path
    with tempfile.TemporaryDirectory() as folder:
        told = Told(Path(folder) / "told", say)
        threads = max(1, environment_record()["cores"] // count)
        request = {"quick": quick, "told": str(told.path)}
        found = elastic.launch(
            "shunter.plan.probe", request, count, Path(folder) / "ranks", threads=threads, poll=told.poll
        )
    files.save(describe(rounded(found), count, mark, quick), path)
    return files.read(path), path


def measured_before() -> Cluster | None:
    """This machine as a probe of all its devices found it, the careful form first; None if there was none."""
    count = len(environment_record()["devices"]) or 2
    for quick in (False, True):
        path = cache() / f"probe-{fingerprint(count, quick)}.yaml"
        if path.exists():
            return files.read(path)
    return None


def cache() -> Path:
    """Where measurements are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shunter"


def fingerprint(ranks: int, quick: bool) -> str:
    """Of what a measurement depends on: processor, devices, memory, versions, ranks, and how it was made."""
    record = environment_record()
    what = {key: record[key] for key in ("platform", "cores", "cpu", "devices", "memory_bytes")}
    what |= {"torch": record["packages"].get("torch"), "ranks": ranks, "quick": quick, "format": FORMAT}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def rounded(value: Any) -> Any:
    """Plain data with four digits of each number: more are not measured."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


class Told:
    """What rank 0 says while it works: lines of a file that both sides know."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self._say, self._read = path, say, 0

    def poll(self) -> None:
        """Say what is new."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
            for line in lines[self._read :]:
                self._say(line)
            self._read = len(lines)


def describe(found: dict[str, Any], ranks: int, mark: str, quick: bool) -> Description:
    """What the ranks measured as a cluster of one node. Links that are alike become one."""
    flops = {
        dtype: Rates(
            peak=max([found["peaks"].get(dtype, 0.0), *(rate for rate, _ in classes.values())]),
            achieved={name: rate for name, (rate, _) in classes.items()},
            spread={name: spread for name, (_, spread) in classes.items()},
        )
        for dtype, classes in found["rates"].items()
    }
    peaks = "as the data sheet says" if found["peaks"] else "the fastest that was measured"
    kind = DeviceKind(
        type=found["type"],
        memory=found["memory"],
        memory_bandwidth=found["memory_bandwidth"],
        copy_bandwidth=found["copy_bandwidth"],
        host_memory=found.get("host_memory"),
        flops=flops,
        overlap_slowdown=found["overlap"],
        source=f"Measured by {ranks} processes at once, forward only; peak: {peaks}.",
    )
    links, pairs = _links(found["links"])
    return Description(
        name=found["machine"],
        devices={"device": kind},
        links=links,
        nodes={"here": NodeGroup(device="device", devices=ranks, inside=next(iter(links), None))},
        pairs=pairs,
        measured=Measured(
            fingerprint=mark,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            machine=found["machine"],
            quick=quick,
            collectives=[Collective.model_validate(each) for each in found["collectives"]],
        ),
    )


def _links(measured: list[dict[str, Any]]) -> tuple[dict[str, Link], list[Pair]]:
    """Links by name, the commonest first, and the pairs that have another."""
    kinds: list[list[dict[str, Any]]] = []
    for each in measured:
        for kind in kinds:
            alike = max(ALIKE, 1 + 2 * (each["spread"] + kind[0]["spread"]))
            if all(1 / alike <= each[key] / kind[0][key] <= alike for key in ("latency", "bandwidth")):
                kind.append(each)
                break
        else:
            kinds.append([each])
    kinds.sort(key=len, reverse=True)
    links, name_of = {}, {}
    for number, kind in enumerate(kinds):
        middle = sorted(kind, key=lambda each: each["bandwidth"])[len(kind) // 2]
        name = f"link{number}"
        keys = ("latency", "bandwidth", "type", "spread")
        links[name] = Link(**{key: middle[key] for key in keys}, source="Measured.")
        name_of.update({(each["from"], each["to"]): name for each in kind})
    pairs = []
    for (a, b), name in name_of.items():
        back = name_of[b, a]
        if a < b and (name, back) != ("link0", "link0"):
            ends = [f"here.0/{a}", f"here.0/{b}"]
            pairs.append(Pair(ends=ends, link=name, back=None if back == name else back))
    return links, pairs


def work(request: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """One rank of the measurement."""
    import torch
    import torch.distributed as dist

    from shunter.parallel import wires
    from shunter.plan import rates

    cuda = torch.cuda.is_available()
    if cuda and torch.cuda.device_count() < size:
        raise ShunterError(
            f"torch sees {torch.cuda.device_count()} devices, and {size} ranks were asked for",
            mend=f"Use --ranks {torch.cuda.device_count()}.",
        )
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    wait = timedelta(seconds=600)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", rank=rank, world_size=size, timeout=wait
    )

    def say(line: str) -> None:
        if rank == 0:
            with open(request["told"], "a", encoding="utf-8") as file:
                file.write(line + "\n")

    patience = rates.QUICK if request["quick"] else rates.Patience()
    effort = wires.QUICK if request["quick"] else wires.Effort()
    dist.barrier()
    measured = rates.measure_rates(device, patience, say)
    dist.barrier()
    memory = rates.memory_bandwidth(device, patience)
    copy = rates.copy_bandwidth(device, patience)
    say(f"memory: {memory.value / 1e9:.1f} GB/s read and written")
    links = wires.measure_pairs(size, device, effort, say)
    sizes = sorted({size, *(2**n for n in range(1, 12) if 2**n <= size)} - {1})
    collectives = wires.measure_collectives(sizes, device, effort, say)
    data = torch.zeros(1 << 20, device=device)
    slower = 1.0
    if size > 1:
        slower = rates.overlap(device, patience, lambda: dist.all_reduce(data, async_op=True))
        say(f"products beside an all-reduce take {slower:.2f} times as long")
    dist.barrier()
    name = torch.cuda.get_device_name(device) if cuda else environment_record()["cpu"]
    return {
        "type": "gpu" if cuda else "cpu",
        "machine": f"{size} x {name}",
        "memory": _memory(device, size),
        "memory_bandwidth": memory.value,
        "copy_bandwidth": copy.value if copy else None,
        "host_memory": _memory(torch.device("cpu"), size) if cuda else None,
        "rates": measured,
        "peaks": _peaks(name) if cuda else {},
        "overlap": slower,
        "links": [
            {
                "from": a, "to": b, "latency": wire.latency.value, "bandwidth": wire.bandwidth.value,
                "spread": max(wire.latency.spread, wire.bandwidth.spread), "type": "NCCL" if cuda else "gloo",
            }
            for (a, b), wire in sorted(links.items())
        ],
        "collectives": collectives,
    }  # fmt: skip


def _memory(device: Any, size: int) -> float:
    """Bytes that this process can have: a GPU's, or its share of what the machine has available."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[1])
    free = available()
    if free is None:  # not Linux: what is physically there
        free = environment_record()["memory_bytes"]
    return float(free) / size


def _peaks(name: str) -> dict[str, float]:
    """Peaks by format of a GPU that a shipped machine has; none of an unknown one."""
    found = shipped(name)
    if found is None:
        return {}
    (kind,) = found.devices.values()
    return {dtype: rates.peak for dtype, rates in kind.flops.items()}


def shipped(name: str) -> Description | None:
    """The shipped machine that has a GPU which its driver calls so."""
    machine = next((machine for part, machine in NAMES.items() if part in name), None)
    return None if machine is None else files.find(machine).description
