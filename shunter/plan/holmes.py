"""One model over clusters that can only talk to each other by Ethernet (Holmes, arXiv 2312.03549).

Tensor groups send most, then data groups, then pipelines: tensor groups stay in a node, data groups within
one type of NIC, and only pipelines cross. Layers are cut by the speed of each type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError

ALPHA = (
    1.05  # faster types get this much more than their share (the paper's, from memory); 1 is the plain rule
)
MIXED = "sockets"  # what a group whose members have different NICs must use


@dataclass(frozen=True)
class Group:
    """axis: tensor, data or pipeline. ranks: of devices, in order. types: of their NICs. nic: what the group
    uses: its one type, or sockets. size: bytes that each member sends in a step. seconds: of that."""

    axis: str
    ranks: tuple[int, ...]
    types: frozenset[str]
    nic: str
    size: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Arrangement:
    """ranks[((stage * data) + replica) * tensor + part]: device of each place. types: of each stage; a stage
    with several is mixed."""

    pipeline: int
    data: int
    tensor: int
    ranks: tuple[int, ...]
    types: tuple[frozenset[str], ...]

    @property
    def mixed(self) -> list[int]:
        """Stages whose data groups mix types."""
        return [stage for stage, types in enumerate(self.types) if len(types) > 1]

    def at(self, stage: int, replica: int, part: int = 0) -> int:
        """The device of a place."""
        return self.ranks[(stage * self.data + replica) * self.tensor + part]

    def grid(self) -> tuple[int, ...]:
        """Row after row, a row a pipeline of first parts: what `plan.truth` and the job `emulate` take."""
        return tuple(self.at(stage, row) for row in range(self.data) for stage in range(self.pipeline))


def nic_of(cluster: Cluster, rank: int) -> str:
    """Type of the NIC by which a device leaves its node."""
    (found,) = cluster.nics([rank])
    return found


def arrange(
    cluster: Cluster,
    pipeline: int,
    data: int,
    tensor: int = 1,
    order: Sequence[str] = (),
    *,
    strict: bool = True,
    type_of: Callable[[Cluster, int], str] = nic_of,
) -> Arrangement:
    """Devices sorted by type of NIC, then rank, on a grid of stages, replicas and parts, parts fastest.

    order: of types; those not named follow as they come. type_of: another sorting of devices.

    Raises ShunterError where degrees do not make up the cluster, a type is named twice or is not there,
    tensor groups would leave a node, or with `strict` where a type's devices are no whole stages, so that
    some data group would be mixed.
    """
    if pipeline * data * tensor != cluster.world:
        raise ShunterError(
            f"{pipeline} stages x {data} replicas x {tensor} parts are not the {cluster.world} devices"
        )
    types = [type_of(cluster, rank) for rank in range(cluster.world)]
    present = list(dict.fromkeys(types))
    for name in order:
        if name not in present or list(order).count(name) > 1:
            what = "is named twice" if name in present else "is no type of NIC here"
            raise ShunterError(f"{name!r} {what}", mend=f"Here are {', '.join(present)}.")
    ranking = {name: at for at, name in enumerate(dict.fromkeys([*order, *present]))}
    ranks = tuple(sorted(range(cluster.world), key=lambda rank: (ranking[types[rank]], rank)))
    each = data * tensor
    if strict:
        for name in ranking:
            count = types.count(name)
            if count % each:
                raise ShunterError(
                    f"{count} devices with {name} are no whole stages of {data} x {tensor} devices: "
                    "a data group would mix types of NICs",
                    mend=f"Use degrees whose product divides {count}, or leave devices out.",
                )
    for at in range(0, len(ranks), tensor):
        if len({cluster.device(rank).node for rank in ranks[at : at + tensor]}) > 1:
            names = ", ".join(cluster.device(rank).name for rank in ranks[at : at + tensor])
            raise ShunterError(
                f"tensor groups of {tensor} would leave a node: {names}",
                mend="Use a tensor degree that divides the devices of every node.",
            )
    return Arrangement(pipeline, data, tensor, ranks, _types(cluster, ranks, each))


def blind(cluster: Cluster, pipeline: int, data: int, tensor: int = 1) -> Arrangement:
    """The baseline: devices as nodes take turns, whatever their NICs, as a scheduler may hand them out. Data
    groups then lie across types."""
    order = sorted(
        range(cluster.world),
        key=lambda rank: (_turn(cluster, rank), cluster.devices[rank].node, cluster.devices[rank].place),
    )
    return Arrangement(pipeline, data, tensor, tuple(order), _types(cluster, order, data * tensor))


def _turn(cluster: Cluster, rank: int) -> int:
    """The number of a device's node among those of its group."""
    node = cluster.node(rank)
    return [each.name for each in cluster.nodes if each.group == node.group].index(node.name)


def _types(cluster: Cluster, ranks: Sequence[int], each: int) -> tuple[frozenset[str], ...]:
    return tuple(
        frozenset(nic_of(cluster, rank) for rank in ranks[at : at + each])
        for at in range(0, len(ranks), each)
    )


def partition(
    layers: int, stages: Sequence[str], speeds: Mapping[str, float], alpha: float = ALPHA
) -> list[int]:
    """Layers of each stage, given the type of each and the speed of types (any unit, of a homogeneous run).

    A type with k of the stages gets floor(alpha k S / sum(k S) N) layers, fastest first, the slowest the
    rest, split as evenly as can be over its stages; none gets fewer than one. One type alone: evenly.
    Raises ShunterError for fewer layers than stages and a type without a speed."""
    if layers < len(stages):
        raise ShunterError(f"{layers} layers are too few for {len(stages)} stages")
    counts = {name: list(stages).count(name) for name in dict.fromkeys(stages)}
    for name in counts:
        if not speeds.get(name, 0.0) > 0:
            raise ShunterError(f"{name!r} has no speed", mend="Give one for every type, such as IB=197.")
    total = sum(count * speeds[name] for name, count in counts.items())
    fastest = sorted(counts, key=lambda name: -speeds[name])
    left, given = layers, dict[str, int]()
    for at, name in enumerate(fastest):
        others = sum(counts[other] for other in fastest[at + 1 :])
        share = int(alpha * counts[name] * speeds[name] / total * layers + 1e-9)
        given[name] = left if not others else max(counts[name], min(share, left - others))
        left -= given[name]
    parts = {
        name: [given[name] // count + (n < given[name] % count) for n in range(count)]
        for name, count in counts.items()
    }
    return [parts[name].pop(0) for name in stages]


def written(stages: Sequence[str], layers: Sequence[int]) -> str:
    """The paper's line: for each type its number of stages, then their layers: `1 26 1 22`."""
    words: list[int] = []
    for name in dict.fromkeys(stages):
        mine = [count for each, count in zip(stages, layers, strict=True) if each == name]
        words += [len(mine), *mine]
    return " ".join(map(str, words))


def read(text: str, types: int, layers: int, stages: int) -> list[int]:
    """Layers of each stage from such a line. Raises ShunterError where its counts do not add up."""
    try:
        words = [int(word) for word in text.split()]
    except ValueError:
        raise ShunterError(f"{text!r} is no list of numbers", mend="Write it as '1 26 1 22'.") from None
    found: list[int] = []
    entries = 0
    while words:
        count, words = words[0], words[1:]
        if count < 1 or len(words) < count:
            raise ShunterError(f"{text!r}: {count} stages, and {len(words)} numbers of layers follow")
        found, words, entries = found + words[:count], words[count:], entries + 1
    for what, is_, wanted in (
        ("types", entries, types), ("stages", len(found), stages), ("layers", sum(found), layers)
    ):  # fmt: skip
        if is_ != wanted:
            raise ShunterError(f"{text!r} has {is_} {what}, and there are {wanted}")
    if min(found) < 1:
        raise ShunterError(f"{text!r}: a stage has no layers")
    return found


def groups(
    cluster: Cluster, it: Arrangement, *, tensor: float = 0.0, data: float = 0.0, pipeline: float = 0.0
) -> list[Group]:
    """Every group with its types, the NIC it can use, what each member sends in a step, and how long that
    takes.

    tensor, data: bytes that a member's all-reduces are of in a step. pipeline: bytes that pass between two
    stages in a step, one way. A ring of k members sends 2 (k - 1) / k of its bytes over its slowest link.
    """
    found = []
    for stage in range(it.pipeline):
        for replica in range(it.data):
            ranks = tuple(it.at(stage, replica, part) for part in range(it.tensor))
            found.append(_group(cluster, "tensor", ranks, tensor))
    for stage in range(it.pipeline):
        for part in range(it.tensor):
            ranks = tuple(it.at(stage, replica, part) for replica in range(it.data))
            found.append(_group(cluster, "data", ranks, data))
    for replica in range(it.data):
        for part in range(it.tensor):
            ranks = tuple(it.at(stage, replica, part) for stage in range(it.pipeline))
            found.append(_group(cluster, "pipeline", ranks, pipeline))
    return [group for group in found if len(group.ranks) > 1]


def _group(cluster: Cluster, axis: str, ranks: tuple[int, ...], size: float) -> Group:
    types = frozenset(cluster.nics(ranks))
    within = len({cluster.device(rank).node for rank in ranks}) == 1
    nic = "within the node" if within else next(iter(types)) if len(types) == 1 else MIXED
    if len(ranks) < 2:
        return Group(axis, ranks, types, nic)
    if axis == "pipeline":
        pairs = pairwise(ranks)
        seconds = max(cluster.seconds(a, b, size) + cluster.seconds(b, a, size) for a, b in pairs)
        return Group(axis, ranks, types, nic, 2 * size, seconds)
    sent = 2 * (len(ranks) - 1) / len(ranks) * size
    link = cluster.slowest(ranks)
    return Group(axis, ranks, types, nic, sent, sent / link.bandwidth + 2 * (len(ranks) - 1) * link.latency)
