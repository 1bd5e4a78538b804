"""Profiles of Hetu-Galvatron, read as its profilers write them, and its cost model over them.

Time: galvatron.core.cost_model.components.layer_cost and embedding_lmhead_cost; pipeline: cost_model_handler
(PKU-DAIR/Hetu-Galvatron at cea12ff). Sizes in MB of 2^20 bytes, times in ms, as in the files; results in
seconds. Context parallelism is left out, as it is there by default. Imports without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shunter.config.errors import ShunterError

MB = 1 << 20
CONTEXT = 1024.0  # MB of every rank
CACHE = 0.2  # share that is left to the allocator, of budgets over 20 GB


class Strategy(NamedTuple):
    """tp: Megatron's tensor parallelism, with parts of the sequence; sp: Ulysses.

    sharding: ddp, zero2 or zero3.
    """

    pp: int
    tp: int
    sp: int
    dp: int
    sharding: str
    checkpoint: bool = False

    @property
    def width(self) -> int:
        """Ranks that share a layer's tokens, by either way."""
        return max(self.tp, self.sp)

    @property
    def sharded(self) -> int:
        """Ranks that share in sharding."""
        return self.dp * self.sp


@dataclass(frozen=True)
class Ends:
    """Of embedding and head on one rank: MB of states by tensor degree, of activations a row by width."""

    states: Mapping[int, float]
    activations: Mapping[int, float]


@dataclass(frozen=True)
class Latency:
    """ms of a collective by MB of its message: as measured, else by the line through all."""

    known: Mapping[float, float]
    slope: float
    offset: float

    def at(self, size: float) -> float:
        found = self.known.get(size)
        return self.slope * size + self.offset if found is None else found


@dataclass(frozen=True)
class Profile:
    """forward, ends: ms a row of one layer, of embedding and head. parameters: MB of a layer. activations: MB
    a row of a layer by width; checkpoint: with recomputation. alone, first, last: ends without a pipeline,
    and with one. reduce: ms a MB by (ranks, whether they are neighbours). hop: ms a MB by stages."""

    hidden: int
    layers: int
    sequence: int
    forward: float
    ends: float
    parameters: float
    activations: Mapping[int, float]
    checkpoint: float
    alone: Ends
    first: Ends
    last: Ends
    reduce: Mapping[tuple[int, bool], float]
    hop: Mapping[int, float]
    overlap: float
    gather: Mapping[int, Latency]
    exchange: Mapping[int, Latency]

    @classmethod
    def read(
        cls,
        time: Path,
        memory: Path,
        hardware: Path,
        *,
        hidden: int,
        layers: int,
        sequence: int,
        nodes: int = 1,
        devices: int = 8,
    ) -> Profile:
        """From computation_profiling_*.json, memory_profiling_*.json (parts with sequence parallelism) and
        the folder of hardware_configs. Raises ShunterError for what is missing."""
        times, sizes = _json(time), _json(memory)
        name = f"{nodes}nodes_{devices}gpus_per_node.json"
        reduce = _json(hardware / f"allreduce_bandwidth_{name}")
        hop = _json(hardware / f"p2p_bandwidth_{name}")
        spans = _json(hardware / f"sp_time_{name}")
        overlap = _json(hardware / "overlap_coefficient.json")
        return cls.of(
            {
                "time": times,
                "memory": sizes,
                "allreduce": reduce,
                "p2p": hop,
                "sp": spans,
                "overlap": overlap,
            },
            hidden=hidden,
            layers=layers,
            sequence=sequence,
            world=nodes * devices,
            where=str(time.parent),
        )

    @classmethod
    def of(
        cls,
        data: Mapping[str, Mapping[str, Any]],
        *,
        hidden: int,
        layers: int,
        sequence: int,
        world: int,
        where: str = "profile",
    ) -> Profile:
        """From the contents of the files: time, memory, allreduce, p2p, sp, overlap."""
        try:
            times, sizes = data["time"], data["memory"]
            forward = next(v for k, v in times.items() if k.startswith("layertype_0_"))
            ends = next(v for k, v in times.items() if k.startswith("layertype_other_"))
            row = str(sequence)
            layer = sizes["layertype_0_sp"][row]
            by_width = dict(layer["tp_activation_per_bsz_dict"])
            light = by_width.pop("checkpoint")
            reduce = {(1, True): 0.0, (1, False): 0.0}
            size = world
            while size >= 2:
                for near in (True, False):
                    key = f"allreduce_size_{size}_consec_{int(near or size == world)}"
                    reduce[size, near] = 1 / data["allreduce"][key]
                size //= 2
            hop = {int(k.rsplit("_", 1)[1]): 1 / v for k, v in data["p2p"].items() if "pp_size_" in k}
            return cls(
                hidden=hidden,
                layers=layers,
                sequence=sequence,
                forward=forward,
                ends=ends,
                parameters=layer["parameter_size"],
                activations={int(k): v for k, v in by_width.items()},
                checkpoint=light,
                alone=_ends(sizes["other_memory_pp_off_sp"][row]),
                first=_ends(sizes["other_memory_pp_on_first_sp"][row]),
                last=_ends(sizes["other_memory_pp_on_last_sp"][row]),
                reduce=reduce,
                hop=hop,
                overlap=data["overlap"]["overlap_coe"],
                gather=_latencies(data["sp"], "allreduce", 0.5),
                exchange=_latencies(data["sp"], "all2all", 1.0),
            )
        except (KeyError, StopIteration, TypeError, ValueError) as error:
            raise ShunterError(
                f"the profile has no {error}",
                where=where,
                mend="Read files of Galvatron's profilers, with sequence parallelism, for this sequence.",
            ) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShunterError(f"no profile can be read ({error})", where=str(path)) from None
    if not isinstance(found, dict):
        raise ShunterError("this is no profile", where=str(path))
    return found


def _ends(data: Mapping[str, Mapping[str, float]]) -> Ends:
    return Ends(*({int(k): v for k, v in data[name].items()} for name in ("model_states", "activation")))


def _latencies(data: Mapping[str, float], operation: str, factor: float) -> dict[int, Latency]:
    found: dict[int, dict[float, float]] = {}
    for key, value in data.items():
        if key.startswith(f"{operation}_size_"):
            ranks, size = key.split("_")[2:4]
            found.setdefault(int(ranks), {})[float(size.removesuffix("MB"))] = value * factor
    fitted = {}
    for size_of_group, known in found.items():
        slope, offset = np.polyfit(list(known), list(known.values()), 1)
        fitted[size_of_group] = Latency(known, float(slope), float(offset))
    return fitted


@dataclass(frozen=True)
class Model:
    """The cost model for one batch cut into `chunks` micro-batches."""

    profile: Profile
    batch: int
    chunks: int

    def rows(self, strategy: Strategy) -> int:
        """Of a micro-batch on a rank."""
        return self.batch // self.chunks // strategy.dp

    def _message(self, rows: int) -> float:
        return rows * self.profile.sequence * self.profile.hidden * 2 / MB

    def layer(self, strategy: Strategy) -> tuple[float, float]:
        """Seconds of one layer and micro-batch, with and without the summing of gradients."""
        p, rows = self.profile, self.rows(strategy)
        forward = p.forward * rows / strategy.width
        backward = 2 * forward + (forward if strategy.checkpoint else 0.0)
        n = strategy.sharded
        size = (n - 1) * p.parameters / strategy.tp / n  # in half precision
        each = p.reduce[n, strategy.tp == 1]
        between = 0.0
        if strategy.width > 1:
            table = p.gather[strategy.tp] if strategy.tp > 1 else p.exchange[strategy.sp]
            count = 6 if strategy.tp > 1 else 4
            between = table.at(self._message(rows)) * count * (1.5 if strategy.checkpoint else 1.0)
        found = []
        for sync in (1.0, 0.0):
            time = forward + backward
            if strategy.dp > 1:
                time = forward + self._overlapped(size * sync, each, backward)
            time += between
            if strategy.sharding == "zero3":
                time += size / 2 * each
            if strategy.pp > 1:
                time += strategy.pp * 2 * self._message(rows) * p.hop[strategy.pp] / p.layers
            found.append(time / 1000)
        return found[0], found[1]

    def _overlapped(self, size: float, each: float, backward: float) -> float:
        """ms of a backward with a sum of gradients behind it; each slows the other down."""
        k = self.profile.overlap
        slowed, sending = backward * k, size * each * k
        if sending > slowed:
            return slowed + (size - slowed / (each * k)) * each
        return sending + (backward - sending / k)

    def memory(self, strategy: Strategy, stage: int) -> float:
        """MB of one layer on a rank of the stage."""
        p = self.profile
        live = 1 if strategy.pp == 1 else strategy.pp - stage
        if strategy.checkpoint:
            row = p.checkpoint / strategy.width
        else:
            row = p.activations[strategy.width]
        return 4 * p.parameters / strategy.tp * self._share(strategy) + row * live * self.rows(strategy)

    def _share(self, strategy: Strategy) -> float:
        """Of a layer's states, what a rank holds."""
        d = 1 / strategy.sharded + 0.003
        if strategy.sharding == "ddp":
            return 1.0
        if self.chunks == 1:
            return d if strategy.sharding == "zero3" else 7 / 8 * d + 1 / 8
        return 7 / 8 * d + 1 / 8 if strategy.sharding == "zero3" else 6 / 8 * d + 2 / 8

    def ends_memory(self, strategy: Strategy) -> list[float]:
        """MB of embedding and head, and of the device's context, by stage."""
        p, pp = self.profile, strategy.pp
        found, share = [CONTEXT] * pp, self._share(strategy)
        parts = [(0, p.alone, 1)] if pp == 1 else [(0, p.first, pp), (pp - 1, p.last, 1)]
        for stage, ends, live in parts:
            found[stage] += ends.states[strategy.tp] * share
            found[stage] += ends.activations[strategy.width] * live * self.rows(strategy)
        return found

    def ends(self, strategy: Strategy) -> tuple[list[float], list[float]]:
        """Seconds of embedding and head by stage, with and without the summing of gradients."""
        p, pp = self.profile, strategy.pp
        n = strategy.sharded
        each = p.reduce[n, strategy.tp == 1] * (n - 1) / n
        whole = p.ends * self.rows(strategy) / strategy.width
        between = p.gather[strategy.tp].at(self._message(self.rows(strategy))) if strategy.tp > 1 else 0.0
        parts = [(0, p.alone, whole, 2 * between)]
        if pp > 1:
            parts = [(0, p.first, whole / 2, between), (pp - 1, p.last, whole / 2, between)]
        ahead, behind = (0.5, 1.0) if strategy.sharding == "zero3" else (0.0, 0.5)
        with_sync, without = [0.0] * pp, [0.0] * pp
        for stage, ends, forward, messages in parts:
            size = ends.states[strategy.tp] / 4 / 2
            for target, factor in ((with_sync, behind), (without, behind - 0.5)):
                time = self._beside(size * each * ahead, forward)
                time += self._beside(size * each * factor, 2 * forward)
                target[stage] = (time + messages) / 1000
        return with_sync, without

    def _beside(self, sending: float, computing: float) -> float:
        slowed = computing * self.profile.overlap
        return sending + (slowed - sending) / self.profile.overlap if slowed > sending else sending

    def buffer(self, pp: int, width: int, world: int) -> float:
        """MB of the buffer in which tensor ranks gather."""
        rows = self.batch / self.chunks / (world // pp // width)
        return rows * self.profile.hidden * self.profile.sequence * 2 / MB

    def change(self, before: Strategy, after: Strategy, world: int) -> float:
        """Seconds from one layer's layout to another's, as priced there: 100 times what its units give."""
        if before.width == after.width:
            return 0.0
        width = max(before.width, after.width)
        dp = world // before.pp // width
        size = self.batch / self.chunks / dp * self.profile.sequence * self.profile.hidden * 2
        return (width - 1) / width * size * self.profile.reduce[width, True] * 1e-7

    def pipeline(self, strategies: Sequence[Strategy], cut: Sequence[int], ends: Sequence[float]) -> float:
        """Seconds of a step. cut: layers of each stage; ends: as `ends` has them, without sums."""
        times = {each: self.layer(each) for each in set(strategies)}
        inner, whole, begin = [], [], 0
        for stage, count in enumerate(cut):
            mine = [times[each] for each in strategies[begin : begin + count]]
            whole.append(sum(each[0] for each in mine))
            inner.append(sum(each[1] for each in mine) + ends[stage])
            begin += count
        return pipeline_seconds(inner, whole, self.chunks)


def pipeline_seconds(inner: Sequence[float], whole: Sequence[float], chunks: int) -> float:
    """Of stages that take `inner` a micro-batch, and `whole` with the summing of gradients.

    It looks at the first and the last stage only, which is right where stages are even: with a slow one in
    the middle it tells too little.
    """
    pp = len(inner)
    later = sum(inner[1:])
    ahead = min(pp - 1, chunks - 1) * inner[0]
    result = max(
        sum(inner) + inner[-1] * (chunks - 1),
        max(ahead / 3, later / 3) + max(2 * ahead / 3, 2 * later / 3) + inner[0] * max(0, chunks + 1 - pp),
    )
    sums, left = 0.0, -math.inf
    for mine, full in zip(inner, whole, strict=True):
        sums += mine
        left = max(left, full - sums)
    return result + max(left, 0.0)


@cache
def strategies(world: int, pp: int) -> tuple[Strategy, ...]:
    """Of a layer, with `pp` stages: tensor or Ulysses, sharded or not, recomputed or not."""
    found = []
    width = 1
    while width * pp <= world:
        dp = world // pp // width
        for tp, sp in {(width, 1), (1, width)}:
            for sharding in ("zero2", "zero3") if dp > 1 else ("ddp",):
                found += [Strategy(pp, tp, sp, dp, sharding, again) for again in (False, True)]
        width *= 2
    return tuple(sorted(found))
