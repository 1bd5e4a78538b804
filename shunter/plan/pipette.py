"""Step time of a pipeline whose links differ, and every layout with it (Pipette, arXiv 2405.18093).

Under 1F1B a rank has at most pp micro-batches in flight, so every group of pp waits for one round trip of the
pipeline: messages count n / pp times. A plain count of micro-batches misses that path.

Two things differ from the card. A node's k pipelines share its link, so a message takes k times as long
(with k = 1 they agree). And stages compute their own messages in the order of the grid, not the first
stage's alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.plan.transformer import Shape

MICROBATCHES = (1, 2, 4, 8)  # rows
TENSOR = (1, 2, 4, 8)
HALF = 2  # bytes of a number that is sent
SAFE = 70 / 80  # the share of a device's memory that a predicted layout may take (the paper's soft limit)

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Nodes:
    """bandwidth: bytes a second from node to node, [from][to]; the diagonal is within a node. latency:
    seconds, likewise. devices: of each node. memory: bytes that a device may use, the soft limit taken
    off."""

    bandwidth: Matrix
    latency: Matrix
    devices: int = 8
    memory: float = 70e9

    @classmethod
    def of(cls, cluster: Cluster, usable: float = SAFE) -> Nodes:
        """Of a cluster's nodes: between two, what all of a node's NICs carry; within, its slowest link.

        usable: share of a device's memory. Raises ShunterError where nodes have different numbers of devices.
        """
        sizes = {len(node.ranks) for node in cluster.nodes}
        if len(sizes) > 1:
            raise ShunterError(f"nodes have {min(sizes)} to {max(sizes)} devices: place equal nodes only")
        bandwidth, latency = [], []
        for one in cluster.nodes:
            a = one.ranks[0]
            row, waits = [], []
            for other in cluster.nodes:
                if one is other:
                    link = cluster.slowest(one.ranks) if len(one.ranks) > 1 else cluster.link(a, a)
                    row.append(link.bandwidth)
                    waits.append(link.latency)
                else:
                    b = other.ranks[0]
                    nics = min(cluster.group(a).nics, cluster.group(b).nics, len(one.ranks))
                    row.append(cluster.bandwidth(a, b) * nics)
                    waits.append(cluster.latency(a, b))
            bandwidth.append(row)
            latency.append(waits)
        memory = min(device.spec.memory for device in cluster.devices) * usable
        return cls(bandwidth, latency, sizes.pop(), memory)

    @property
    def count(self) -> int:
        return len(self.bandwidth)

    @property
    def nominal(self) -> Nodes:
        """With all links between nodes as fast as they are on average: what a data sheet would say."""
        size = range(self.count)
        others = [self.bandwidth[a][b] for a in size for b in size if a != b]
        mean = sum(others) / len(others) if others else self.bandwidth[0][0]
        slow = [self.latency[a][b] for a in size for b in size if a != b]
        wait = sum(slow) / len(slow) if slow else 0.0
        return replace(
            self,
            bandwidth=[[self.bandwidth[a][b] if a == b else mean for b in size] for a in size],
            latency=[[self.latency[a][b] if a == b else wait for b in size] for a in size],
        )


@dataclass(frozen=True)
class Choice:
    """A layout. rows: of a micro-batch. microbatches: n of a pipeline. compute: C, seconds that a
    micro-batch's forward and backward take on a stage, with what tensor parallelism sends."""

    pp: int
    tp: int
    dp: int
    rows: int
    microbatches: int
    compute: float

    def replicas(self, devices: int) -> int:
        """k: pipelines that a node takes part in, each with `tp` of its devices."""
        return max(1, devices // self.tp)

    def __str__(self) -> str:
        return f"pp{self.pp} tp{self.tp} dp{self.dp} b{self.rows} n{self.microbatches}"


@dataclass(frozen=True)
class Latency:
    """Seconds of a step. pipeline: one round trip of messages, in the worst pipeline."""

    total: float
    compute: float
    pipeline: float
    data: float


def message_bytes(shape: Shape, choice: Choice) -> float:
    """Of one micro-batch between two stages."""
    return float(HALF * choice.rows * shape.sequence * shape.hidden)


def gradient_bytes(shape: Shape, choice: Choice) -> list[float]:
    """Of each stage on a device, exact: embedding on the first, head on the last, the rest even."""
    layer = 12 * shape.hidden**2 + 13 * shape.hidden
    words = shape.hidden * shape.vocabulary
    found = [layer * shape.layers / choice.pp] * choice.pp
    found[0] += words
    found[-1] += words
    return [HALF * each / choice.tp for each in found]


def choices(
    shape: Shape,
    nodes: Nodes,
    batch: int,
    compute: Callable[[int, int, int], float],
    memory: Callable[[Choice], float],
) -> Iterator[tuple[Choice, str]]:
    """Every layout with the reason why it cannot be, or an empty text.

    compute(pp, tp, rows): C. memory(choice): bytes of the fullest device. A stage fills whole nodes: pp
    divides the number of nodes."""
    for pp in (n for n in range(1, nodes.count + 1) if nodes.count % n == 0):
        for tp in (n for n in TENSOR if n <= nodes.devices and nodes.devices % n == 0):
            dp = nodes.count * nodes.devices // (pp * tp)
            for rows in MICROBATCHES:
                part = batch // dp
                choice = Choice(pp, tp, dp, rows, part // rows, compute(pp, tp, rows))
                why = ""
                if shape.layers % pp:
                    why = f"{shape.layers} layers do not divide by {pp} stages"
                elif shape.heads % tp:
                    why = f"{shape.heads} heads do not divide by {tp}"
                elif batch % dp or part % rows or not part:
                    why = f"{batch} rows do not divide by {dp} replicas of {rows} rows"
                elif (need := memory(choice)) > nodes.memory:
                    why = f"needs {need / 1e9:.1f} GB of {nodes.memory / 1e9:.1f}"
                yield choice, why


class Objective:
    """T_PP and T_DP of a grid of nodes: row after row, `pp` nodes each; a row is a pipeline (of k), a column
    is a stage's ring. Made once for a layout: every pair's cost is looked up."""

    def __init__(self, shape: Shape, nodes: Nodes, choice: Choice) -> None:
        self.choice, self.nodes = choice, nodes
        self.pp, self.rows = choice.pp, nodes.count // choice.pp
        k = choice.replicas(nodes.devices)
        message, grads = message_bytes(shape, choice), gradient_bytes(shape, choice)
        count = range(nodes.count)
        wire, wait = nodes.bandwidth, nodes.latency
        # There and back: an activation one way, its gradient the other.
        self.hop = [
            [0.0 if a == b else k * message / wire[a][b] + k * message / wire[b][a] + wait[a][b] + wait[b][a]
             for b in count] for a in count
        ]  # fmt: skip
        e = self.rows
        self.ring = [
            [[0.0 if a == b else 2 * (e - 1) * (size / e / wire[a][b] + wait[a][b]) for b in count]
             for a in count] for size in grads
        ]  # fmt: skip
        self.inner = [
            max(2 * (k - 1) * (size / k / wire[n][n] + wait[n][n]) for n in count) if k > 1 else 0.0
            for size in grads
        ]
        # Times that the step waits for a round trip: n / pp, not rounded down, and at least once.
        self.weight = max(choice.microbatches / self.pp, 1.0)

    def pipeline(self, grid: Sequence[int]) -> float:
        """T_PP: of the slowest pipeline."""
        hop, pp = self.hop, self.pp
        worst = 0.0
        for begin in range(0, len(grid), pp):
            total = 0.0
            for at in range(begin, begin + pp - 1):
                total += hop[grid[at]][grid[at + 1]]
            if total > worst:
                worst = total
        return worst

    def data(self, grid: Sequence[int]) -> float:
        """T_DP: of the slowest stage, its ring within nodes and the one between them."""
        pp, rows = self.pp, self.rows
        worst = 0.0
        for stage in range(pp):
            ring, slowest = self.ring[stage], 0.0
            if rows > 1:
                before = grid[(rows - 1) * pp + stage]
                for row in range(rows):
                    here = grid[row * pp + stage]
                    cost = ring[before][here]
                    if cost > slowest:
                        slowest = cost
                    before = here
            if slowest + self.inner[stage] > worst:
                worst = slowest + self.inner[stage]
        return worst

    def __call__(self, grid: Sequence[int]) -> float:
        """What placement can change of a step: T_PP as often as it is waited for, and T_DP."""
        return self.weight * self.pipeline(grid) + self.data(grid)

    def latency(self, grid: Sequence[int]) -> Latency:
        """T = T_bubble + T_straggler + T_DP (the card's section 3)."""
        c, pp, n = self.choice.compute, self.choice.pp, self.choice.microbatches
        around, data = self.pipeline(grid), self.data(grid)
        if n < pp:
            total = pp * c + around + (n - 1) * c + data
        else:
            total = n / pp * (pp * c + around) + (pp - 1) * c + data
        return Latency(total, (n + pp - 1) * c, around, data)


def amp_latency(shape: Shape, nodes: Nodes, choice: Choice) -> float:
    """The baseline (AMP): (n - 1) C + pp C + 2 (pp - 1) msg / W + T_DP over nominal, equal links; messages
    are counted once, as if none but the first waited."""
    even = nodes.nominal
    objective = Objective(shape, even, choice)
    grid = list(range(nodes.count))
    n, pp, c = choice.microbatches, choice.pp, choice.compute
    return (n - 1) * c + pp * c + objective.pipeline(grid) + objective.data(grid)


def need_layouts(found: Sequence[tuple[Choice, str]]) -> list[Choice]:
    """Those that can be. Raises ShunterError, with a reason, where there are none."""
    sound = [choice for choice, why in found if not why]
    if not sound:
        last = found[-1] if found else None
        told = f", such as {last[0]}: {last[1]}" if last else ""
        raise ShunterError(
            f"none of {len(found)} layouts can be{told}", mend="Use more nodes or a smaller model."
        )
    return sound
