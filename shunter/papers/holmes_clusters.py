"""The clusters of Holmes' experiment (arXiv 2312.03549) that are emulated, and the layouts on them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.plan import holmes
from shunter.plan.truth import pipelines_step

# A thousandth of real rates (200, 160, 100 and 25 Gbit/s), so that messages of some 10 kB show.
LINKS = {"InfiniBand": 20e6, "RoCE": 16e6, "Omni-Path": 12.5e6, "Ethernet": 3e6}
LATENCY, SPREAD = 2e-4, 0.1  # seconds; of the logarithm of a rate, over seeds
SPEEDS = (197.0, 160.0, 122.0)  # the paper's for InfiniBand, RoCE and Ethernet, from memory
LAYERS, UNIT = 48, 0.8e-3  # seconds of a layer's forward at speed 1
LAYER, COUNT = 40e3, 4  # bytes of a layer's gradients, micro-batches
MANY = 12  # micro-batches where layers are cut by speed on two stages
MESSAGES = (10e3, 40e3, 160e3, 480e3)  # bytes between two stages
TYPICAL = MESSAGES[1]


@dataclass(frozen=True)
class Emulated:
    """A cluster of nodes of one device. nodes: by type of NIC; types talk to each other by Ethernet. stages:
    of a pipeline. speeds: of devices by type, where they differ; any unit, the first is the fastest."""

    name: str
    nodes: Mapping[str, int]
    stages: int
    speeds: Mapping[str, float] = field(default_factory=dict)

    @property
    def replicas(self) -> int:
        return sum(self.nodes.values()) // self.stages

    def described(self, seed: int) -> Description:
        """The cluster's file. Each seed draws the rate of each type of link anew."""
        draw = random.Random(f"holmes {self.name} {seed}")
        rates = {
            name: LINKS[name] * math.exp(draw.gauss(0, SPREAD)) for name in {**self.nodes, "Ethernet": 1}
        }
        tree: dict[str, Any] = {
            "name": self.name,
            "devices": {"device": {"memory": 1e9, "memory_bandwidth": 1e9, "flops": {"fp32": {"peak": 1e9}}}},
            "links": {
                name: {"latency": LATENCY, "bandwidth": rate, "type": name} for name, rate in rates.items()
            },
            "nodes": {
                name: {"count": count, "device": "device", "devices": 1, "between": name}
                for name, count in self.nodes.items()
            },
            "between": "Ethernet",
        }
        return Description.model_validate(tree)

    def relative(self) -> dict[str, float]:
        """Speeds over the fastest one."""
        return {name: speed / max(self.speeds.values()) for name, speed in self.speeds.items()}

    def grids(self) -> tuple[list[int], list[int]]:
        """Type-blind and type-aware: rank of each place."""
        it = Cluster.of(self.described(0))
        blind = holmes.blind(it, self.stages, self.replicas)
        return list(blind.grid()), list(holmes.arrange(it, self.stages, self.replicas).grid())

    def by_speed(self) -> list[int]:
        """Layers of each stage, type-aware."""
        it = Cluster.of(self.described(0))
        types = [next(iter(types)) for types in holmes.arrange(it, self.stages, self.replicas).types]
        return holmes.partition(LAYERS, types, self.speeds, alpha=1.0)

    def even(self) -> list[int]:
        return [LAYERS // self.stages] * self.stages

    def cases(self) -> dict[str, dict[str, Any]]:
        """`blind` and `aware` of types; the latter with all links Ethernet's, and where speeds differ with
        layers by speed."""
        blind, aware = self.grids()
        found = {
            "blind": case(blind, self.even()),
            "aware": case(aware, self.even()),
            "all Ethernet": case(aware, self.even(), by="Ethernet"),
        }
        if self.speeds:
            found["by speed"] = case(aware, self.by_speed())
        return found

    def share(self, message: float) -> str:
        """Bytes that pass between two stages in a step, one way, over those of a stage's gradients."""
        return f"messages {message * COUNT / (self.even()[0] * LAYER):.2g}"

    def simulated(self, given: Mapping[str, Any], seed: int) -> float:
        """Seconds of a case by event simulation: no measurement. Reductions come after the backward."""
        it, speeds = Cluster.of(self.described(seed)), self.relative()

        def hop(a: int, b: int, size: float) -> tuple[float, float]:
            by = given.get("by")
            link = it.description.links[by] if by else it.link(a, b)
            return link.latency, size / link.bandwidth

        def reduce(ring: Sequence[int], stage: int) -> float:
            part, rounds = given["gradients"][stage] / len(ring), 2 * (len(ring) - 1)
            return rounds * max(sum(hop(ring[at - 1], ring[at], part)) for at in range(len(ring)))

        return pipelines_step(
            given["grid"], given["pp"], given["microbatches"],
            forward=lambda node, stage: given["forward"][stage] / speeds.get(it.node(node).group, 1.0),
            hop=lambda a, b: hop(a, b, given["message"]), reduce=reduce,
        )  # fmt: skip


def case(
    grid: Sequence[int], layers: Sequence[int], message: float = TYPICAL, count: int = COUNT, **more: Any
) -> dict[str, Any]:
    """A layout, as the job `emulate` takes it."""
    forward = [each * UNIT for each in layers]
    return {
        "grid": list(grid), "pp": len(layers), "microbatches": count, "forward": forward,
        "backward": [2 * each for each in forward], "message": message,
        "gradients": [each * LAYER for each in layers], **more,
    }  # fmt: skip


class Two(Emulated):
    """The card's two clusters: also by bytes of messages, and with reductions that overlap the backward."""

    def cases(self) -> dict[str, dict[str, Any]]:
        blind, aware = self.grids()
        found = super().cases()
        found["overlapped"] = case(aware, self.even(), buckets=8, overlap=True)
        for message in MESSAGES:
            if message != TYPICAL:
                for name, grid in (("blind", blind), ("aware", aware)):
                    found[f"{name}, {self.share(message)}"] = case(grid, self.even(), message)
        return found


class Slower(Emulated):
    """The card's with one of them slower, at many micro-batches, where the slowest stage decides."""

    def cases(self) -> dict[str, dict[str, Any]]:
        _, aware = self.grids()
        return {
            "even cut": case(aware, self.even(), MESSAGES[0], MANY),
            "by speed": case(aware, self.by_speed(), MESSAGES[0], MANY),
        }


def _emulated(
    form: type[Emulated], name: str, stages: int, nodes: Mapping[str, int], *, speeds: bool
) -> Emulated:
    """speeds: whether they differ by type; else all devices are alike."""
    return form(name, nodes, stages, dict(zip(nodes, SPEEDS, strict=False)) if speeds else {})


# Names are short: a table of 80 columns has them beside its numbers.
IB_ROCE = {"InfiniBand": 2, "RoCE": 2}
TWO = _emulated(Two, "2 IB 2 RoCE", 2, IB_ROCE, speeds=False)
SLOWER = _emulated(Slower, "2 IB 2 slow RoCE", 2, IB_ROCE, speeds=True)
UNEVEN = _emulated(Emulated, "4 IB 2 RoCE", 3, {"InfiniBand": 4, "RoCE": 2}, speeds=True)
THREE = _emulated(Emulated, "2 IB 2 RoCE 2 OPA", 3, {**IB_ROCE, "Omni-Path": 2}, speeds=True)
WITHOUT = _emulated(Emulated, "2 IB 2 RoCE 2 Eth", 3, {**IB_ROCE, "Ethernet": 2}, speeds=True)
CLUSTERS = (TWO, SLOWER, UNEVEN, THREE, WITHOUT)
