"""Latency and bandwidth between ranks and of collectives, measured from inside the processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shunter.record.spread import Median, median

FIRST, MOST = 1 << 20, 1 << 28  # bytes of the shortest and the longest message that bandwidth is taken from
STOP = -1


@dataclass(frozen=True)
class Effort:
    """pings, repeats: of each measurement. long: seconds that the longest message takes at least."""

    pings: int = 50
    repeats: int = 9
    long: float = 0.2


QUICK = Effort(20, 5, 0.05)


@dataclass(frozen=True)
class Wire:
    """From one rank to another: seconds of an empty message, bytes a second."""

    latency: Median
    bandwidth: Median


def measure_pair(a: int, b: int, device: torch.device, effort: Effort) -> dict[tuple[int, int], Wire] | None:
    """Both directions between two ranks; both call it, and rank `a` gets the answer.

    Latency is half of a round trip: without a common clock its two directions cannot be told apart. Bandwidth
    is of the message that is answered by an empty one, less a round trip.
    """
    me = dist.get_rank()
    if me not in (a, b):
        return None
    other = b if me == a else a
    note = torch.zeros(1, dtype=torch.int64, device=device)

    def ping(first: bool) -> float:
        begin = time.perf_counter()
        if first:
            dist.send(note, other)
            dist.recv(note, other)
            note.item()  # waits for the device
        else:
            dist.recv(note, other)
            note.item()
            dist.send(note, other)
        return time.perf_counter() - begin

    for _ in range(3):
        ping(me == a)
    rounds = median([ping(me == a) for _ in range(effort.pings)])
    if me == b:
        _answer(other, device)
        back = _bandwidth(other, rounds.value, device, effort)
        dist.send(torch.tensor([*back], dtype=torch.float64).to(device), other)
        return None
    out = _bandwidth(other, rounds.value, device, effort)
    _answer(other, device)
    told = torch.zeros(2, dtype=torch.float64, device=device)
    dist.recv(told, other)
    value, spread = told.tolist()
    latency = Median(rounds.value / 2, rounds.spread)
    return {(a, b): Wire(latency, out), (b, a): Wire(latency, Median(value, spread))}


def _bandwidth(other: int, round_trip: float, device: torch.device, effort: Effort) -> Median:
    """Of messages to another rank, which answers each; longer and longer until they take long enough."""
    note = torch.zeros(1, dtype=torch.int64, device=device)

    def once(data: torch.Tensor) -> float:
        note[0] = data.numel()
        dist.send(note, other)
        dist.recv(note, other)  # it has room for it now
        note.item()
        begin = time.perf_counter()
        dist.send(data, other)
        dist.recv(note, other)
        note.item()
        return max(1e-9, time.perf_counter() - begin - round_trip)

    size = FIRST
    data = torch.zeros(size, dtype=torch.uint8, device=device)
    while once(data) < effort.long and size < MOST:
        size *= 2
        data = torch.zeros(size, dtype=torch.uint8, device=device)
    found = median([size / once(data) for _ in range(effort.repeats)])
    note[0] = STOP
    dist.send(note, other)
    return found


def _answer(other: int, device: torch.device) -> None:
    """The other side of `_bandwidth`."""
    note = torch.zeros(1, dtype=torch.int64, device=device)
    data = torch.zeros(0, dtype=torch.uint8, device=device)
    while True:
        dist.recv(note, other)
        size = int(note.item())
        if size == STOP:
            return
        if data.numel() != size:
            data = torch.zeros(size, dtype=torch.uint8, device=device)
        dist.send(note, other)
        dist.recv(data, other)
        dist.send(note, other)


def measure_pairs(
    size: int, device: torch.device, effort: Effort, say: Callable[[str], None]
) -> dict[tuple[int, int], Wire]:
    """Every pair of ranks, one after the other so that they do not disturb each other. Rank 0 has all."""
    found: dict[tuple[int, int], Wire] = {}
    for a in range(size):
        for b in range(a + 1, size):
            dist.barrier()
            mine = measure_pair(a, b, device, effort)
            everything: list[Any] = [None] * size
            dist.all_gather_object(everything, mine)
            for each in everything:
                found |= each or {}
            say(f"link {a}-{b}: {found[a, b].latency.value * 1e6:.0f} us, "
                f"{found[a, b].bandwidth.value / 1e6:.0f} MB/s")  # fmt: skip
    return found


Group = dist.ProcessGroup | None


def _all_reduce(data: torch.Tensor, ranks: int, group: Group) -> None:
    dist.all_reduce(data, group=group)


def _all_gather(data: torch.Tensor, ranks: int, group: Group) -> None:
    parts = list(data.chunk(ranks))
    dist.all_gather(parts, parts[dist.get_rank(group)].clone(), group=group)


def _all_to_all(data: torch.Tensor, ranks: int, group: Group) -> None:
    dist.all_to_all_single(torch.empty_like(data), data, group=group)


# Name -> (the call, shares of the whole tensor that leave each rank).
_COLLECTIVES: dict[str, tuple[Callable[[torch.Tensor, int, Group], None], Callable[[int], float]]] = {
    "all_reduce": (_all_reduce, lambda ranks: 2 * (ranks - 1) / ranks),
    "all_gather": (_all_gather, lambda ranks: (ranks - 1) / ranks),
    "all_to_all": (_all_to_all, lambda ranks: (ranks - 1) / ranks),
}


def measure_collectives(
    sizes: Sequence[int], device: torch.device, effort: Effort, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Collectives of the first so many ranks: op, ranks, latency, bandwidth (bytes a second that leave each
    rank), spread. All ranks call it; rank 0 has the answer."""
    found = []
    for ranks in sizes:
        group = dist.new_group(list(range(ranks)))
        for name, (call, share) in _COLLECTIVES.items():
            dist.barrier()
            if dist.get_rank() < ranks:
                found.append(_collective(name, call, share(ranks), ranks, group, device, effort))
                say(f"{name} of {ranks}: {found[-1]['latency'] * 1e6:.0f} us, "
                    f"{found[-1]['bandwidth'] / 1e6:.0f} MB/s")  # fmt: skip
    return found


def _collective(
    name: str,
    call: Callable[[torch.Tensor, int, Group], None],
    share: float,
    ranks: int,
    group: Group,
    device: torch.device,
    effort: Effort,
) -> dict[str, Any]:
    def seconds(size: int, times: int) -> Median:
        data = torch.zeros(size // 4 // ranks * ranks, device=device)
        call(data, ranks, group)
        took = []
        for _ in range(times):
            begin = time.perf_counter()
            call(data, ranks, group)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took.append(time.perf_counter() - begin)
        return median(took)

    latency = seconds(4 * ranks, effort.pings)
    size = FIRST
    while size < MOST:
        enough = torch.tensor([seconds(size, 1).value >= effort.long / 2], dtype=torch.int32, device=device)
        dist.broadcast(enough, 0, group=group)  # all take the same size
        if enough.item():
            break
        size *= 2
    long = seconds(size, effort.repeats)
    moving = max(1e-9, long.value - latency.value)
    return {
        "op": name,
        "ranks": ranks,
        "latency": latency.value,
        "bandwidth": share * size / moving,
        "spread": long.spread,
    }
