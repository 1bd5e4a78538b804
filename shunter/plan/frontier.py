"""A machine of three levels of links as a simulator of training throughput (arXiv 2312.12705): a stand-in for
short runs, to try tuners on. Rates and efficiencies are assumed where the paper has none; see `Machine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shunter.cluster.cluster import Cluster
from shunter.plan.transformer import Shape
from shunter.plan.trials import Failed, Point, Space
from shunter.schedule.action import BACKWARD, FORWARD
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs, Links
from shunter.schedule.simulate import simulate

GPT_175B = Shape(layers=96, hidden=12288, heads=96, sequence=2048, vocabulary=51200)
GPT_22B = Shape(layers=48, hidden=6144, heads=48, sequence=2048, vocabulary=51200)
# Knobs of the 175B study, from memory, with small micro-batches added: the recipe that it found has 1.
KNOBS: Mapping[str, Sequence[int]] = {
    "pp": (1, 2, 4, 8, 12, 16),
    "tp": (1, 2, 4, 8),
    "rows": (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20),
    "accumulation": (5, 10),
    "zero": (0, 1),
    "nodes": (12, 16),
}


@dataclass(frozen=True)
class Machine:
    """cluster: one node with its links. best: share of the peak that large products reach. half: rows x
    columns at which a product reaches half of it. usable: share of memory. The last three are assumed:
    nothing was measured on this machine."""

    cluster: Cluster
    best: float = 0.55
    half: float = 1.2e6
    usable: float = 0.92

    @property
    def room(self) -> float:
        """Bytes of a device that training may take."""
        return self.cluster.device(0).spec.memory * self.usable

    def product_rate(self, rows: float, columns: float) -> float:
        """FLOP/s of products whose result is rows x columns."""
        area = rows * columns
        return self.cluster.device(0).spec.peak("bf16") * self.best * area / (area + self.half)

    def all_reduce(self, ranks: int, size: float, *, across: int = 1) -> float:
        """Seconds of a ring of so many ranks of a node, or with `across` of so many nodes, whose 8 devices
        share the NICs."""
        if across > 1:
            group = self.cluster.group(0)
            link = self.cluster.description.links[group.between or ""]
            rate = link.bandwidth * group.nics / group.devices
            return 2 * (across - 1) / across * size / rate + 2 * (across - 1) * link.latency
        if ranks < 2:
            return 0.0
        link = self.cluster.slowest(range(ranks))
        return 2 * (ranks - 1) / ranks * size / link.bandwidth + 2 * (ranks - 1) * link.latency


@dataclass(frozen=True)
class Setting:
    """devices: in all. accumulation: micro-batches of each replica in a step. zero: 1 shards the
    optimizer."""

    pp: int
    tp: int
    rows: int
    accumulation: int
    zero: int
    devices: int

    @property
    def dp(self) -> int:
        return self.devices // (self.pp * self.tp)

    @classmethod
    def of(cls, point: Point, per_node: int = 8) -> Setting:
        whole = {name: int(value) for name, value in point.items()}
        return cls(devices=whole.pop("nodes") * per_node, **whole)


def refused(shape: Shape, it: Setting) -> str:
    """Why a setting cannot be, or an empty text."""
    if it.devices % (it.pp * it.tp):
        return f"{it.devices} devices are no whole replicas of {it.pp} x {it.tp}"
    if shape.layers % it.pp:
        return f"{shape.layers} layers do not divide by {it.pp} stages"
    return f"{shape.heads} heads do not divide by {it.tp}" if shape.heads % it.tp else ""


def stage_bytes(shape: Shape, it: Setting, stage: int) -> float:
    """Most that a device of a stage holds: weights and gradients in half precision, fp32 weights and two
    moments (12 bytes, of which ZeRO-1 keeps 1 / dp), inputs of layers for each of the p - stage micro-batches
    in flight, and the inside of one layer that is computed again (attention without its matrix)."""
    layers = shape.layers / it.pp
    weights = 12 * shape.hidden**2 * layers
    if stage in (0, it.pp - 1):
        weights += shape.vocabulary * shape.hidden
    state = weights / it.tp * (4 + 12 / (it.dp if it.zero else 1))
    flight = min(it.pp - stage, it.accumulation)
    inputs = flight * layers * shape.boundary_bytes(it.rows)
    inside = shape.sequence * it.rows * shape.hidden * (10 + 24 / it.tp)
    logits = 6.0 * it.rows * shape.sequence * shape.vocabulary / it.tp if stage == it.pp - 1 else 0.0
    return state + inputs + inside + logits


def throughput(shape: Shape, machine: Machine, it: Setting) -> float:
    """Model FLOP/s of each device, recomputation not counted, by the events of a 1F1B step.

    Raises Failed where a stage does not fit in memory.
    """
    room = machine.room
    need, stage = max((stage_bytes(shape, it, stage), stage) for stage in range(it.pp))
    if need > room:
        told = f"out of memory: stage {stage} needs {need / 1e9:.0f} GB of {room / 1e9:.0f}"
        raise Failed(told, need / room)
    tokens = it.rows * shape.sequence
    layers = shape.layers / it.pp
    rate = machine.product_rate(tokens, 4 * shape.hidden / it.tp)
    forward = 24 * tokens * shape.hidden**2 * (1 + shape.sequence / (6 * shape.hidden)) / it.tp / rate
    sent = machine.all_reduce(it.tp, 2.0 * tokens * shape.hidden)  # twice a layer and pass
    layer_forward, layer_backward = forward + 2 * sent, 3 * forward + 4 * sent  # with recomputation
    head = 2.0 * tokens * shape.hidden * shape.vocabulary / it.tp / rate
    seconds = {}
    for stage in range(it.pp):
        extra = head if stage == it.pp - 1 else 0.0
        seconds[FORWARD, stage] = layers * layer_forward + extra
        seconds[BACKWARD, stage] = layers * layer_backward + 2 * extra
    links = machine.cluster.description.links
    group = machine.cluster.group(0)
    # Neighbouring stages lie in other nodes as soon as a stage's replicas fill one.
    name = group.inside if it.devices // it.pp < group.devices else group.between
    link = links[name or ""]
    share = group.nics / group.devices if name == group.between else 1.0
    hop = (link.latency, shape.boundary_bytes(it.rows) / it.tp / (link.bandwidth * share))
    program = assemble(schedule("1f1b").build(it.pp, it.accumulation))
    step = simulate(program, Costs(seconds), Links(*hop)).elapsed
    weights = (12 * shape.hidden**2 * layers + shape.vocabulary * shape.hidden) / it.tp
    across = max(1, it.dp * it.tp // group.devices)
    step += machine.all_reduce(1, 2 * weights, across=min(it.dp, across)) if it.dp > 1 else 0.0
    if it.zero and it.dp > 1:
        step += 0.02  # the gather of updated weights has its own start and its own buckets
    per_row = shape.sequence * (6 * shape.parameters + 12 * shape.layers * shape.hidden * shape.sequence / 2)
    return it.dp * it.rows * it.accumulation * per_row / step / it.devices


def study(
    shape: Shape, machine: Machine, knobs: Mapping[str, Sequence[int]] | None = None
) -> tuple[Space, Callable[[Point], float]]:
    """The space of the paper's study, all that divides, whether it fits or not; and the function that runs a
    point of it, in TFLOP/s of each device."""
    space = Space(KNOBS if knobs is None else knobs, lambda point: refused(shape, Setting.of(point)))
    return space, lambda point: throughput(shape, machine, Setting.of(point)) / 1e12
