"""A layout of a decoder in a training, written down before anything starts. Imports without torch.

Activations are an estimate, in elements a token, of what a layer keeps for its backward:

    2 D / s             inputs of the two norms                 s = tp with `sequence`, else 1
    2 D                 inputs of qkv and of gate_up, as products have them
    4 H d / tp          queries, keys, values, and the output of attention
    3 F / tp            gate, up, and their product

D width, H and K heads of queries and of keys and values, d width of a head, F width of the feed-forward. Keys
and values are repeated for the queries that share them, but on several context ranks: 2 K for 2 H. In float32
there is H d / tp more: a CPU keeps attention's output in another order than the next product takes it. In a
mixture the last two terms are of the rows that experts get, k a token (each D + 3 F / etp, on etp ranks), of
the shared part, and D / s more. A stage with the head keeps D + D / s more, the gradient of the hidden states
and what the last norm is given. With
`recompute: true` a stage keeps its inputs, D / s, and the inside of one micro-batch. A layer that is computed
again keeps its input, and with `selective` also (2 H + 2 K) d / tp + 2 F / tp + 2 D, what products and
attention make; one at a time is whole. A layer that is put aside (`offload`) keeps nothing; two of a stage
are there at a time, on the way out or back. Norms' inputs are float32, the rest bfloat16 with precision bf16,
which also keeps the matrices of layers that stay once more in bfloat16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

from shunter.config.errors import ShunterError
from shunter.layout import zero
from shunter.layout.described import KindOfWeight, Layout, RankHolds
from shunter.layout.grid import DENSE, EXPERT
from shunter.models.spec import DecoderSpec
from shunter.recipe.disk import human
from shunter.schedule.action import BACKWARD, FORWARD, INPUT, RECOMPUTE, WEIGHT
from shunter.schedule.order import Order
from shunter.train.config import Parallel
from shunter.train.layout_moments import logits, passing, summed
from shunter.train.layout_parts import Plan, muon_takes
from shunter.train.layout_traffic import muon_owners, step_traffic

KINDS = {
    "embed.weight": "embedding",
    "attention.qkv.weight": "qkv",
    "attention.qkv.bias": "qkv bias",
    "attention.out.weight": "out",
    "attention.q_norm.weight": "head norms",
    "ffn.gate_up.weight": "gate_up",
    "ffn.down.weight": "down",
    "ffn.router.weight": "router",
    "ffn.experts.gate_up": "experts gate_up",
    "ffn.experts.down": "experts down",
    "ffn.shared.gate_up.weight": "shared gate_up",
    "ffn.shared.down.weight": "shared down",
    "norm.weight": "norms",
    "head.weight": "head",
}


def describe(
    plan: Plan, optimizer: str, settings: Mapping[str, Any], notes: list[str] | None = None
) -> Layout:
    """Who holds what, which axes cut what, what travels. settings: told beside it, and compared by `diff`."""
    ranks = [_rank(plan, rank, optimizer) for rank in range(plan.grid.size)]
    traffic = [step_traffic(plan, rank, optimizer) for rank in range(plan.grid.size)]
    told = [*(notes or [])]
    if plan.parallel.zero and not plan.shared(plan.grid.coordinates(0), optimizer):
        told.append("zero: 1 changes nothing here: no ranks hold the same weights")
    if plan.order.collectives:
        told.append("messages of `vocabulary` are not counted")
    if plan.parallel.cp > 1 and plan.parallel.attention == "ring":
        told.append("a ring sends less where rows hold several documents, or with a sliding window")
    if plan.spec.experts is not None and plan.grid.ep * plan.grid.etp > 1:
        told.append("messages of experts are those of even load")
    if plan.own_grids:
        told.append(f"layers {', '.join(map(str, plan.own_grids))} have degrees of their own")
    if plan.parallel.ends_grid is not None:
        told.append("embedding and head have degrees of their own")
    if plan.parallel.cut == "measured":
        told.append("stages are cut by operations here; cut: measured decides at the start")
    return Layout(dict(settings), ranks, _kinds(plan), traffic, told)


def must_fit(layout: Layout, memory: int, plan: Plan, optimizer: str, batch_rows: int) -> None:
    """Raise ShunterError where a rank needs more than `memory` bytes, with the nearest degree that helps."""
    fullest = max(layout.ranks, key=lambda each: each.total)
    if fullest.total <= memory:
        return
    raise ShunterError(
        f"rank {fullest.rank} needs about {human(fullest.total)}, and has {human(memory)}",
        where="how.parallel",
        mend=_smaller(plan, memory, optimizer, batch_rows),
    )


def _smaller(plan: Plan, memory: int, optimizer: str, batch_rows: int) -> str:
    """The mend: shared state, or one axis made larger, with the fewest ranks."""
    best: tuple[int, int, str] | None = None
    for order, axis in enumerate(("zero", "fsdp", "tp", "pp", "cp", "ep")):
        for factor in (2, 3, 4, 6, 8, 12, 16, 32, 64) if axis != "zero" else (1,):
            degree = getattr(plan.parallel, axis) * factor if axis != "zero" else 1
            try:
                parallel = Parallel.model_validate({**plan.parallel.model_dump(), axis: degree})
                other = Plan.make(
                    plan.spec, parallel, plan.row_length, batch_rows, bf16=plan.narrow < plan.wide
                )
                parallel.settled(batch_rows, plan.rows)
            except (ShunterError, ValueError):
                continue
            # The first and the last ranks of a pipeline are the fullest.
            places = {other.grid.rank(pp=stage) for stage in range(parallel.pp)}
            if max(_rank(other, rank, optimizer).total for rank in places) <= memory:
                found = parallel.grid.size, order, f"{axis}={degree}"
                best = min(best, found) if best else found
                break
    if best is None:
        return "No single axis mends it: use shorter rows, fewer rows in a micro-batch, or recompute: true."
    return f"Use {best[2]} ({best[0]} ranks)."


def _rank(plan: Plan, rank: int, optimizer: str) -> RankHolds:
    grid = plan.grid
    place = grid.coordinates(rank)
    held = {name: h for name, h in plan.held(place).items() if not name.endswith("router.bias")}
    owners = muon_owners(plan, rank, held) if optimizer == "muon" else {}
    state = 0
    for name, holding in zero.holdings(held, plan.shared(place, optimizer)).items():
        if name in owners:  # momentum and update of the whole matrix, at its owner
            state += 2 * prod(holding.piece.shape) if owners[name][0] == rank else 0
        elif optimizer == "muon" and muon_takes(name, holding.piece.shape):
            state += holding.piece.numel
        else:
            state += 2 * holding.piece.numel
    elements = sum(holding.piece.numel for holding in held.values())
    stages = plan.stages(place)
    bytes_of = {
        stage: plan.wide * sum(held[name].piece.numel for name in plan.owned(stage) if name in held)
        for stage in stages
    }
    # The head's gradient is taken as it computes.
    last = plan.order.stages - 1
    head = "embed.weight" if plan.spec.tied else "head.weight"
    early = plan.wide * held[head].piece.numel if last in stages and head in held else 0
    gathered, waiting, of_ends, last_ones = _gathered(plan, place, stages)
    bytes_of = {stage: size + waiting[stage] for stage, size in bytes_of.items()}
    early += of_ends.get(last, 0)
    one, most, together, fullest = _activations(plan, stages, plan.order, place["pp"], bytes_of, early)
    gradients = elements * plan.wide + sum(waiting.values())
    at_end = gradients + max(last_ones, summed(plan, place, optimizer))
    axes = dict.fromkeys([*DENSE, *(EXPERT if grid.ep * grid.etp > 1 else ())])
    return RankHolds(
        rank=rank,
        place={axis: place[axis] for axis in axes if grid.degree(axis) > 1},
        stages=stages,
        layers=[[plan.bounds[stage], plan.bounds[stage + 1]] for stage in stages],
        parameters=elements,
        weights=elements * plan.wide,
        gradients=gradients,
        optimizer=state * plan.wide,
        gathered=gathered,
        activations=one,
        at_once=most,
        together=together,
        moment=max(fullest, at_end) - together,
    )


def _gathered(
    plan: Plan, place: Mapping[str, int], stages: list[int]
) -> tuple[int, dict[int, int], dict[int, int], int]:
    """Whole weights that are here at most. By stage, other ranks' parts of whole gradients that wait: for the
    last micro-batch, or of embedding and head for the end of the backward; and these ends' alone. And what is
    whole of gradients at that end: those of a layer, and of the one before, as they travel.

    Of layers that are given up there are two: the one in use, and what another was fetched in.
    """
    waiting, ends = dict.fromkeys(stages, 0), dict.fromkeys(stages, 0)
    if not plan.parallel.sharded:
        return 0, waiting, {}, 0
    stay = plan.grid.pp > 1 or not plan.parallel.reshard
    wait = plan.grid.pp > 1 or plan.order.microbatches > 1
    by_layer: Counter[int] = Counter()
    whole: Counter[int] = Counter()
    root = 0
    for stage in stages:
        for unit in plan.units(place, stage):
            others = unit.share * (unit.size - 1) * plan.wide
            if unit.layer is None:
                root += unit.share * unit.size * unit.bytes
                ends[stage] += others
            else:
                by_layer[unit.layer] += unit.share * unit.size * unit.bytes
                whole[unit.layer] += unit.share * unit.size * plan.wide
            if wait or unit.layer is None:
                waiting[stage] += others
    weights, gradients = (sorted(found.values(), reverse=True) for found in (by_layer, whole))
    held = root + sum(weights if stay else weights[:2])
    if stay and plan.grid.pp == 1:
        held += max(weights, default=0)  # what one was fetched in, here too
    return held, waiting, ends, 0 if wait else sum(gradients[:2])


def _activations(
    plan: Plan, stages: list[int], order: Order, at: int, gradients: Mapping[int, int], head: int
) -> tuple[int, int, int, int]:
    """Bytes of one micro-batch in all stages of a rank, the most at once, and the most together with
    gradients, of which a stage has none but the head's until its first backward: they come as its activations
    go. And the most together with what is there for a moment."""
    inside = {stage: _inside(plan, stage) for stage in stages}
    light = {stage: plan.own_tokens * plan.spec.dim * plan.wide for stage in stages}
    # Some are not computed again: those that go back at once.
    again = {(it.stage, it.microbatch) for it in order.actions[at] if it.op == RECOMPUTE}
    held, most, there, together, fullest = 0, 0, 0, 0, 0
    had: set[int] = set()
    last, moments = order.stages - 1, {stage: passing(plan, stage) for stage in stages}
    for action in order.actions[at]:
        if action.stage not in inside:
            continue
        now = held
        if action.op == FORWARD:
            apart = (action.stage, action.microbatch) in again
            held += light[action.stage] if apart else inside[action.stage]
            now = held + _travels(plan, action.stage)
            if action.stage == last:
                there = there if action.stage in had else max(there, head)
                fullest = max(fullest, now + there + logits(plan))
        elif action.op == RECOMPUTE:
            held += inside[action.stage] - light[action.stage]
        now = max(now, held)
        if action.op in (BACKWARD, INPUT):  # one layer after the other is whole for a moment
            now = max(now, held + max(_once_more(plan, action.stage), _travels(plan, action.stage)))
            fullest = max(fullest, now + there + moments[action.stage])
        most, together = max(most, now), max(together, now + there)
        if action.op in (BACKWARD, WEIGHT):
            held -= inside[action.stage]
            had.add(action.stage)
            there = sum(gradients[stage] for stage in had)
            together = max(together, held + there)
    return sum((light if again else inside).values()), most, together, max(fullest, together)


def _inside(plan: Plan, stage: int) -> int:
    """What a stage keeps of one micro-batch for its backward."""
    layers = range(plan.bounds[stage], plan.bounds[stage + 1])
    again, aside = (set(found(plan.spec.num_layers)) for found in (plan.parallel.again, plan.parallel.aside))
    total = sum(_copies(plan, stage, layer) for layer in layers if layer not in again | aside)
    stay = (layer for layer in layers if layer not in aside)
    total += sum(_kept(plan, layer) if layer in again else _layer(plan, layer) for layer in stay)
    if stage and layers[0] in aside:  # what was sent here is not the layer's alone
        total += plan.own_tokens * plan.spec.dim * plan.wide
    return total + (_of_head(plan) if stage == plan.order.stages - 1 else 0)


def _of_head(plan: Plan) -> int:
    """What the head keeps: the gradient of its hidden states, and what the last norm is given."""
    plan = plan.of_ends
    return (plan.tokens + plan.own_tokens) * plan.spec.dim * plan.wide


def _copies(plan: Plan, stage: int, layer: int) -> int:
    """With precision bf16, products keep the weights as they take them, once a micro-batch."""
    if plan.narrow == plan.wide:
        return 0
    mine = plan.cut(plan.grid.coordinates(plan.grid.rank(pp=plan.order.placement[stage])))
    own = (name for name in plan.owned(stage) if name.startswith(f"layers.{layer}."))
    return plan.narrow * sum(mine[n].piece.numel for n in own if muon_takes(n, mine[n].piece.shape))


def _travels(plan: Plan, stage: int) -> int:
    """The inside of the layers that are put aside, of those two that are on a device at a time."""
    layers = range(plan.bounds[stage], plan.bounds[stage + 1])
    aside = [layer for layer in plan.parallel.aside(plan.spec.num_layers) if layer in layers]
    sizes = sorted((_layer(plan, layer) + _copies(plan, stage, layer) for layer in aside), reverse=True)
    return sum(sizes[:2])


def host_bytes(plan: Plan, rank: int) -> int:
    """What a rank's layers have in the host's memory at most, where some are put aside."""
    place = plan.grid.coordinates(rank)
    held, most = 0, 0
    aside = set(plan.parallel.aside(plan.spec.num_layers))
    for action in plan.order.actions[place["pp"]] if aside else ():
        layers = range(plan.bounds[action.stage], plan.bounds[action.stage + 1])
        size = sum(_layer(plan, n) + _copies(plan, action.stage, n) for n in layers if n in aside)
        if action.op == FORWARD:
            held += size
        elif action.op in (BACKWARD, INPUT):
            held -= size
        most = max(most, held)
    return most


def _layer(plan: Plan, layer: int) -> int:
    """What a layer keeps, all of it."""
    plan = plan.at(layer)
    spec, tp, wide, narrow = plan.spec, plan.parallel.tp, plan.wide, plan.narrow
    results = 2 if narrow == wide else 1
    keys = spec.num_heads if plan.parallel.cp == 1 else spec.num_kv_heads
    heads = ((1 + results) * spec.num_heads + 2 * keys) * spec.head_dim / tp
    total = round(plan.own_tokens * 2 * spec.dim * wide) + round(plan.tokens * (spec.dim + heads) * narrow)
    if spec.experts is None or not spec.experts.inside(layer):
        return total + round(plan.tokens * (spec.dim + 3 * spec.ffn_dim / tp) * narrow)
    rows = plan.own_tokens * spec.experts.per_token * plan.grid.etp
    total += round(rows * (spec.dim + 3 * spec.experts.ffn_dim / plan.grid.etp) * narrow)
    total += round(plan.own_tokens * spec.dim * narrow)
    return total + round(plan.tokens * 3 * spec.experts.shared_ffn_dim / tp * narrow)


def _kept(plan: Plan, layer: int) -> int:
    """What a layer keeps that is computed again: its input; with `selective` what products and attention
    make."""
    plan = plan.at(layer)
    spec, tp = plan.spec, plan.parallel.tp
    total = plan.own_tokens * spec.dim * plan.wide
    if plan.parallel.recompute != "selective":
        return total
    width = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim / tp + 2 * spec.dim
    if spec.experts is None or not spec.experts.inside(layer):
        return total + round(plan.tokens * (width + 2 * spec.ffn_dim / tp) * plan.narrow)
    rows = plan.own_tokens * spec.experts.per_token * plan.grid.etp
    total += round(rows * (spec.dim + 2 * spec.experts.ffn_dim / plan.grid.etp) * plan.narrow)
    return total + round(plan.tokens * (width + 2 * spec.experts.shared_ffn_dim / tp) * plan.narrow)


def _once_more(plan: Plan, stage: int) -> int:
    """What the largest of the stage's layers has more while it is computed again."""
    layers = range(plan.bounds[stage], plan.bounds[stage + 1])
    again = [layer for layer in plan.parallel.again(plan.spec.num_layers) if layer in layers]
    return max((_layer(plan, layer) - _kept(plan, layer) for layer in again), default=0)


def _kinds(plan: Plan) -> list[KindOfWeight]:
    grid = plan.grid
    found: dict[str, KindOfWeight] = {}
    for stage in range(grid.pp):
        place = grid.coordinates(grid.rank(pp=stage))
        for name, holding in plan.held(place).items():
            kind = kind_of(name)
            if kind is None or kind in found:
                continue
            axes = [axis for axis in holding.cut if (holding.grid or grid).degree(axis) > 1]
            if grid.pp > 1 and (plan.order.collectives or name.startswith("layers.")):
                axes = ["pp", *axes]
            found[kind] = KindOfWeight(kind, list(holding.piece.shape), list(holding.piece.local_shape), axes)
    rows = list(dict.fromkeys(KINDS.values()))
    return sorted(found.values(), key=lambda each: rows.index(each.kind))


def kind_of(name: str) -> str | None:
    """What a parameter is called in a table; None of a buffer."""
    leaf = name.split(".", 2)[2] if name.startswith("layers.") else name
    if leaf.endswith("k_norm.weight"):
        leaf = "attention.q_norm.weight"
    if leaf in ("attention_norm.weight", "ffn_norm.weight"):
        leaf = "norm.weight"
    return KINDS.get(leaf)


def spec_settings(spec: DecoderSpec) -> dict[str, Any]:
    """Of a model, what is told beside its layout."""
    names = ("num_layers", "dim", "num_heads", "num_kv_heads", "vocab_size")
    return {name: getattr(spec, name) for name in names}
