"""Bytes that each rank sends in a step, by kind, from shapes alone. Imports without torch.

A ring's figures, as `shunter.parallel.counted` counts them: of n ranks with s bytes each, an all-gather sends
s (n - 1), a reduce-scatter s (n - 1) / n, an all-reduce 2 s (n - 1) / n, and all-to-all what is for others.

tensor    arXiv 1909.08053 (section 3), arXiv 2205.05198 (section 4.2.2): every attention and feed-forward
          gathers its tokens and scatters its sums, and the other way round backwards; without `sequence` two
          all-reduces forward and two backward a layer. Embedding and head one pair each, and for the head
          three numbers a token for the softmax.
context   `shunter.layout.context_traffic`, for rows of one document; documents make a ring's less.
experts   arXiv 2504.14960 (section 3.3): rows to the experts' ranks and back, in both passes, load even.
pipeline  hidden states and their gradients, and a tied weight's gradient between the two ends.
fsdp      weights gathered, gradients reduced and scattered (arXiv 2004.09336; FSDP2's padding included).
data      gradients added up over ranks that saw other tokens (all axes of which a rank has a part). Where
          copies share the optimizer's state, in two halves: sums scattered, and what is updated gathered;
          of a matrix with one owner, its gradient to it and the matrix from it.
muon      a matrix that is cut has one owner, which gets the gradient's parts and sends the update's.
turns     hidden states between layers whose degrees differ, and their gradients; and what data ranks tell
          each other of their rows for it.
counts    loss, norm, numbers of tokens, load of experts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import prod

from shunter.layout.context_traffic import traffic as context_traffic
from shunter.layout.grid import DENSE, Grid
from shunter.layout.holding import Holding
from shunter.layout.seats import Seats, evenly, handed_over, seats
from shunter.layout.zero import Kept, holdings, padded_rows
from shunter.models.sharding import kv_heads
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, RECOMPUTE, REDUCE, UNSHARD
from shunter.schedule.lower import SENDS
from shunter.train.layout_parts import Plan, muon_takes

BUCKET_BYTES = 64 << 20  # as `shunter.parallel.gradients`
LAYERS, WITH_ENDS = 3, 6  # numbers of each token that data ranks tell each other, as `shunter.train.views`
COUNT = 8  # bytes of a number that is counted


def step_traffic(plan: Plan, rank: int, optimizer: str = "adamw") -> dict[str, int]:
    """Bytes that `rank` sends in one step, by kind; kinds that send nothing are left out."""
    place = plan.grid.coordinates(rank)
    sent: Counter[str] = Counter()
    stages = plan.stages(place)
    actions = [action for action in plan.order.actions[place["pp"]] if action.stage in stages]
    for action in actions:
        if action.op in (FORWARD, RECOMPUTE):
            sent.update(_pass(plan, place, action.stage, backward=False))
        elif action.op in (BACKWARD, INPUT):
            sent.update(_pass(plan, place, action.stage, backward=True))
            sent.update(_pass(plan, place, action.stage, backward=False, again=True))
    if plan.grid.pp > 1:
        messages = sum(node.rank == place["pp"] and node.op in SENDS for node in plan.program.nodes)
        sent["pipeline"] += messages * plan.own_tokens * plan.spec.dim * plan.wide
        sent["pipeline"] += _tied(plan, place, optimizer)
    if plan.parallel.sharded:
        sent["fsdp"] += _sharded(plan, place)
    sent["data"] += _gradients(plan, place, optimizer)
    if optimizer == "muon":
        sent["muon"] += _muon(plan, rank)
    sent["counts"] += _counts(plan, place)
    if plan.parallel.others:
        told = LAYERS if plan.parallel.ends_grid is None else WITH_ENDS
        each = plan.rows * told * plan.row_length + 1
        sent["turns"] += COUNT * plan.order.microbatches * each * (plan.parallel.data - 1)
    return {kind: size for kind, size in sent.items() if size}


def all_reduce(size: int, ranks: int) -> int:
    """Bytes that a rank sends so that all have the sum of `size` bytes."""
    return 2 * size * (ranks - 1) // ranks


def _pass(
    plan: Plan, place: Mapping[str, int], stage: int, *, backward: bool, again: bool = False
) -> Counter[str]:
    """One micro-batch through one stage; again: through those of its layers that are computed once more, each
    up to the message after its last product, which no backward needs."""
    sent = Counter[str]()
    layers = list(range(plan.bounds[stage], plan.bounds[stage + 1]))
    rank = plan.rank(place)
    if again:
        chosen = plan.parallel.again(plan.spec.num_layers)
        layers = [number for number in layers if number in chosen]
    else:
        _ends(plan.of_ends, stage, sent, backward=backward)
        if plan.parallel.others:
            sent["turns"] += _turned(plan, rank, stage, backward=backward)
    alike: dict[Grid, list[int]] = defaultdict(list)
    for number in layers:
        alike[plan.at(number).grid].append(number)
    for grid, numbers in alike.items():
        _through(plan.at(numbers[0]), grid.coordinates(rank), numbers, sent, backward=backward, again=again)
    return sent


def _ends(plan: Plan, stage: int, sent: Counter[str], *, backward: bool) -> None:
    """Embedding and head, where the stage has them."""
    tp, wide = plan.parallel.tp, plan.wide
    first, last = stage == 0, stage == plan.order.stages - 1
    if tp == 1:
        return
    whole = plan.tokens * plan.spec.dim
    if plan.parallel.sequence:
        sent["tensor"] += (first + last) * (whole // tp * (tp - 1)) * wide
    else:
        sent["tensor"] += (last if backward else first) * all_reduce(whole * wide, tp)
    if last and not backward:
        sent["tensor"] += all_reduce(plan.tokens * wide, tp) + all_reduce(2 * plan.tokens * wide, tp)


def _turned(plan: Plan, rank: int, stage: int, *, backward: bool) -> int:
    """Hidden states that change ranks between a stage's layers, and before and after them."""
    own, each = plan.grid, rank % (plan.grid.size // plan.grid.pp)
    counts = (plan.rows,) * plan.parallel.data

    def of(grid: Grid) -> Seats:
        rows = counts if grid == own else evenly(sum(counts), grid)
        return seats(grid, rows, plan.row_length, sequence=plan.parallel.sequence)

    ends, bounds = plan.of_ends.grid, plan.bounds
    layers = [plan.at(number).grid for number in range(bounds[stage], bounds[stage + 1])]
    grids = [own if stage else ends, *layers, own if stage < plan.order.stages - 1 else ends]
    tokens = 0
    for before, after in pairwise(grids):
        if before != after:
            here, there = (of(after), of(before)) if backward else (of(before), of(after))
            tokens += handed_over(here, there, each)
    return tokens * plan.spec.dim * plan.wide


def _through(
    plan: Plan,
    place: Mapping[str, int],
    layers: list[int],
    sent: Counter[str],
    *,
    backward: bool,
    again: bool,
) -> None:
    """Layers of one grid, which is the plan's."""
    spec, parallel, tp = plan.spec, plan.parallel, plan.parallel.tp
    if tp > 1:
        whole = plan.tokens * spec.dim
        mixtures = [n for n in layers if spec.experts is not None and spec.experts.inside(n)]
        regions = 2 * len(layers) - len(mixtures)  # attentions, feed-forwards
        if spec.experts is not None and spec.experts.shared_ffn_dim:
            regions += len(mixtures)
        out = regions
        if again:
            shared = spec.experts is not None and spec.experts.shared_ffn_dim
            out -= len(layers) - (0 if shared else len(mixtures))
        if parallel.sequence:
            # Into a region in the hidden states' type, out of it in that of products.
            share = whole // tp * (tp - 1)
            sent["tensor"] += share * (regions * plan.wide + out * plan.narrow)
        else:
            size = plan.wide if backward else plan.narrow
            sent["tensor"] += out * all_reduce(whole * size, tp)
    if parallel.cp > 1:
        low, high = kv_heads(spec, place["tp"], tp)
        found = context_traffic(
            parallel.attention,
            plan.rows,
            plan.row_length,
            spec.num_heads // tp,
            high - low,
            spec.head_dim,
            parallel.cp,
            plan.narrow,
            place["cp"],
        )
        sent["context"] += len(layers) * (found.backward if backward else found.forward)
    if spec.experts is not None:
        inside = len([n for n in layers if spec.experts.inside(n)])
        sent["experts"] += inside * _mixture(plan, backward=backward)


def _mixture(plan: Plan, *, backward: bool) -> int:
    """One layer's experts, in one pass, where each expert gets as many rows as any other."""
    spec, ep, etp = plan.spec, plan.grid.ep, plan.grid.etp
    assert spec.experts is not None
    sent = 0
    others = plan.grid.cp * plan.grid.tp
    if ep * etp > 1:
        rows, padded = plan.own_tokens * spec.experts.per_token, plan.parallel.pad_experts
        if padded:
            room = spec.experts.room(plan.rows, plan.own_tokens // plan.rows, others)
            assert room is not None
            rows = room * spec.experts.num_experts
        moved = rows * (ep - 1) // ep + rows * (etp - 1)  # to ranks with other experts; to parts of an expert
        # There and back; and each row's weight, in full precision, one of the two ways.
        sent += moved * (2 * spec.dim * plan.narrow + plan.wide)
        if not backward and not padded:  # how many rows each is to get
            sent += COUNT * spec.experts.num_experts * ((ep - 1) + ep * (etp - 1))
    if others > 1 and not backward:
        if spec.experts.balance_loss:
            sent += all_reduce(COUNT * plan.rows * spec.experts.num_experts, others)
        if spec.experts.capacity is not None and spec.experts.capacity_scope == "sequence":
            each = plan.own_tokens * (spec.experts.per_token * (COUNT + plan.wide) + 1)
            sent += each * (others - 1)
    return sent


def _tied(plan: Plan, place: Mapping[str, int], optimizer: str) -> int:
    ends = plan.order.placement[0], plan.order.placement[-1]
    if not plan.spec.tied or ends[0] == ends[1] or plan.order.collectives or place["pp"] not in ends:
        return 0
    # Of a gradient that is scattered already, the rows that each updates.
    mine = holdings(plan.held(place), plan.shared(place, optimizer))["embed.weight"]
    return mine.piece.numel * plan.wide


def _sharded(plan: Plan, place: Mapping[str, int]) -> int:
    """Weights gathered when they are not there, and gradients reduced and scattered once a step."""
    sent = 0
    by_program = plan.grid.pp > 1
    again = plan.parallel.reshard and not by_program
    gathers: dict[int, list[str]] = defaultdict(list)
    if by_program:
        nodes = [node for node in plan.program.nodes if node.rank == place["pp"]]
        for node in nodes:
            if node.op in (UNSHARD, REDUCE):
                gathers[node.stage].append(node.op)
    else:
        for action in plan.order.actions[place["pp"]]:
            gathers[action.stage].append(action.op)
    for stage, operations in gathers.items():
        for unit in plan.units(place, stage):
            piece = unit.share * (unit.size - 1)
            if by_program:
                sent += len(operations) * piece * plan.wide
                continue
            here, count = False, 0
            for op in operations:
                if op in (FORWARD, RECOMPUTE, BACKWARD, INPUT):
                    count += not here
                    here = op in (FORWARD, RECOMPUTE) and not (again and unit.layer is not None)
            sent += piece * (count * unit.bytes + plan.wide)  # and the reduction
    return sent


def _gradients(plan: Plan, place: Mapping[str, int], optimizer: str) -> int:
    kept = plan.shared(place, optimizer)
    sent, by_axes = 0, defaultdict[tuple[Grid, tuple[str, ...]], list[int]](list)
    for name, holding in plan.held(place).items():
        if name.endswith("router.bias"):
            continue
        elements, grid = holding.piece.numel, holding.grid or plan.grid
        for shared in holding.shared:
            rows = (shared.end - shared.begin) * prod(holding.piece.local_shape[1:])
            sent += rows * plan.wide * (grid.degree(shared.axis) - 1)
        if name in kept:
            sent += _shared(plan, place, holding, kept[name])
        elif axes := tuple(axis for axis in holding.partial if grid.degree(axis) > 1):
            by_axes[grid, axes].append(elements * plan.wide)
    for (grid, axes), sizes in by_axes.items():
        ranks = prod(grid.degree(axis) for axis in axes)
        sent += sum(all_reduce(size, ranks) for size in _buckets(sizes))
    return sent


def _shared(plan: Plan, place: Mapping[str, int], holding: Holding, kept: Kept) -> int:
    """Of a parameter whose state copies share: its gradient to those that update it, and what they made."""
    grid = kept.grid or plan.grid
    shape, others = holding.piece.local_shape, prod(grid.degree(axis) for axis in kept.axes) - 1
    if kept.owner is None:
        return 2 * padded_rows(shape[0], others + 1) * prod(shape[1:]) * plan.wide * others
    return holding.piece.numel * plan.wide * (1 if kept.holding is None else others)


def _buckets(sizes: Iterable[int]) -> list[int]:
    found: list[int] = []
    for size in sizes:
        if found and found[-1] + size <= BUCKET_BYTES:
            found[-1] += size
        else:
            found.append(size)
    return found


def muon_owners(plan: Plan, rank: int, held: Mapping[str, Holding]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Of each matrix that is cut and of which `rank` has a part (and no copy alone the state): its owner, and
    all ranks that have parts."""
    kept = plan.shared(plan.grid.coordinates(rank), "muon")
    names = sorted(
        name
        for name, each in held.items()
        if muon_takes(name, each.piece.shape)
        and not each.piece.is_whole
        and not (name in kept and kept[name].holding is None)
    )
    found = {}
    numbers: Counter[tuple[Grid, tuple[str, ...]]] = Counter()  # as `CutMuon` counts
    for name in names:
        grid = held[name].grid or plan.grid
        axes = tuple(axis for axis in held[name].cut if grid.degree(axis) > 1)
        peers = grid.peers(axes, rank)
        found[name] = peers[numbers[grid, axes] % len(peers)], peers
        numbers[grid, axes] += 1
    return found


def _muon(plan: Plan, rank: int) -> int:
    held = plan.held(plan.grid.coordinates(rank))
    elements = 0
    for name, (owner, peers) in muon_owners(plan, rank, held).items():
        if owner != rank:
            elements += held[name].piece.numel  # of the gradient
            continue
        for peer in peers:
            if peer != rank:
                elements += plan.held(plan.grid.coordinates(peer))[name].piece.numel  # of the update
    return elements * plan.wide


def _counts(plan: Plan, place: Mapping[str, int]) -> int:
    data, everyone = plan.parallel.data, plan.grid.size
    sent = all_reduce(2 * COUNT, data) + all_reduce(2 * COUNT, everyone) + all_reduce(COUNT, everyone)
    if (experts := plan.spec.experts) is not None:
        sent += all_reduce(COUNT, data) * (2 if plan.parallel.pad_experts else 1)
        layers = (n for s in plan.stages(place) for n in range(plan.bounds[s], plan.bounds[s + 1]))
        mixtures = sum(experts.inside(n) for n in layers)
        ranks = prod(plan.grid.degree(axis) for axis in DENSE[1:])
        sent += all_reduce(COUNT * mixtures * (experts.num_experts + 3), ranks) if mixtures else 0
    return sent
