"""What a layout has for a moment, beside what it keeps. Imports without torch.

In the backward of a feed-forward there are, in elements, for T tokens of the rank: 3 T F / tp (gradients of
gate, up and product, and a result on the way, less the product, which is gone) or, where weights are larger
than activations, T F / tp + T D + 2 F D / tp, with the weights' gradients of gate and up. Either with T D / s
of the sum before it and F D / tp of the gradient of `down`. Names as in `layout_describe`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod

from shunter.layout.grid import Grid
from shunter.layout.zero import in_buckets
from shunter.train.layout_parts import Plan
from shunter.train.layout_traffic import BUCKET_BYTES

CHUNK_BYTES, FEWEST = 1 << 23, 64  # of logits and of their tokens, as `shunter.models.head` on a CPU


def passing(plan: Plan, stage: int) -> int:
    """Bytes of the widest moment in a backward of a stage, beside what was kept and the gradients that are
    there."""
    return max((_layer(plan, n) for n in range(plan.bounds[stage], plan.bounds[stage + 1])), default=0)


def _layer(plan: Plan, layer: int) -> int:
    plan = plan.at(layer)
    spec, tp, wide, narrow = plan.spec, plan.parallel.tp, plan.wide, plan.narrow
    residual = plan.own_tokens * spec.dim * wide
    if spec.experts is None or not spec.experts.inside(layer):
        width, tokens, weights = spec.ffn_dim / tp, plan.tokens, spec.ffn_dim / tp * spec.dim
    else:
        e = spec.experts
        width, tokens = e.ffn_dim / plan.grid.etp, plan.own_tokens * e.per_token * plan.grid.etp
        weights = e.num_experts / plan.grid.ep * width * spec.dim
    inside = tokens * width * narrow
    wider = max(3 * inside, inside + tokens * spec.dim * narrow + 2 * weights * wide)
    return round(residual + weights * wide + wider)


def logits(plan: Plan) -> int:
    """Bytes of a chunk of them, as a CPU has them; a GPU takes larger ones."""
    plan = plan.of_ends
    words = -(-plan.spec.vocab_size // plan.parallel.tp)
    if plan.order.collectives:
        words = -(-words // plan.grid.pp)
    return min(plan.tokens, max(FEWEST, CHUNK_BYTES // plan.narrow // words)) * words * plan.narrow


def summed(plan: Plan, place: Mapping[str, int], optimizer: str) -> int:
    """Bytes of the copies in which gradients are added up over ranks, the most at a time.

    A gradient that travels alone is its own copy; where copies share the optimizer's state, this rank's rows
    are there besides, and in float32, as on a CPU, another copy: gloo makes one to scatter a sum.
    """
    kept = plan.shared(place, optimizer)
    travel = defaultdict[tuple[Grid, tuple[str, ...], int | None, bool], list[tuple[str, int]]](list)
    for name, holding in plan.held(place).items():
        if name.endswith("router.bias"):
            continue
        grid, size = holding.grid or plan.grid, holding.piece.numel * plan.wide
        if (its := kept.get(name)) is not None:
            travel[its.grid or plan.grid, its.axes, its.owner, True].append((name, size))
        elif axes := tuple(axis for axis in holding.partial if grid.degree(axis) > 1):
            travel[grid, axes, None, False].append((name, size))
    most = 0
    for (grid, axes, owner, shared), each in travel.items():
        sizes = dict(each)
        for names in in_buckets(each, BUCKET_BYTES):
            whole = sum(sizes[name] for name in names)
            mine = whole // prod(grid.degree(axis) for axis in axes) if shared and owner is None else 0
            mine += whole if mine and plan.narrow == plan.wide else 0
            alone = len(names) == 1 and owner is None
            most = max(most, mine + (0 if alone else whole))
    return most
