"""Where to cut a stack of layers into stages, given what each layer costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec

Weight = Callable[[int, int, int], float]  # (stage, first layer, layer after the last) -> its cost


def cut_layers(
    costs: Sequence[float], placement: Sequence[int], first: float = 0.0, last: float = 0.0
) -> list[int]:
    """Bounds of the stages: stage s has layers cut[s] to cut[s + 1].

    costs:     of each layer, in any unit; first, last: of what the first and the last stage do besides.
    placement: rank of each stage. The busiest rank gets as little as possible, and of such cuts the one
               whose largest stage is smallest.

    Contiguous cuts that minimise the largest part stand in for the variance of arXiv 1811.06965, section
    2.2. Where a rank holds several stages, bounds then move one layer at a time while that helps: exact
    for one stage a rank, else a local optimum.

    Raises ShunterError for fewer layers than stages.
    """
    stages = len(placement)
    if len(costs) < stages:
        raise ShunterError(
            f"{len(costs)} layers cannot be cut into {stages} stages",
            mend=f"Use at most {len(costs)} stages: fewer ranks, or fewer chunks on each.",
        )
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)

    def weight(stage: int, begin: int, end: int) -> float:
        return (
            sums[end] - sums[begin] + (first if stage == 0 else 0.0) + (last if stage == stages - 1 else 0.0)
        )

    cut = _smallest_maximum(len(costs), stages, weight)
    if stages > len(set(placement)):
        cut = _improve(cut, placement, weight)
    return cut


def loads(
    cut: Sequence[int],
    costs: Sequence[float],
    placement: Sequence[int],
    first: float = 0.0,
    last: float = 0.0,
) -> list[float]:
    """What each rank has to do."""
    found = [0.0] * (1 + max(placement))
    for stage, rank in enumerate(placement):
        found[rank] += sum(costs[cut[stage] : cut[stage + 1]])
    found[placement[0]] += first
    found[placement[-1]] += last
    return found


def decoder_costs(spec: DecoderSpec, row_length: int) -> tuple[list[float], float, float]:
    """Multiply-adds a token of each layer, of the embedding (none) and of the head.

    Attention sees half of the row on average.
    """
    qkv = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    out = spec.num_heads * spec.head_dim
    attention = spec.dim * (qkv + out) + row_length * out
    layers = [float(attention + spec.ffn_weights(n, active=True)) for n in range(spec.num_layers)]
    return layers, 0.0, float(spec.dim * spec.vocab_size)


def _smallest_maximum(layers: int, stages: int, weight: Weight) -> list[int]:
    """Dynamic programme over (stages used, layers used); each stage has at least one layer."""
    best = [[float("inf")] * (layers + 1) for _ in range(stages + 1)]
    back = [[0] * (layers + 1) for _ in range(stages + 1)]
    best[0][0] = 0.0
    for stage in range(stages):
        for end in range(stage + 1, layers - (stages - stage - 1) + 1):
            for begin in range(stage, end):
                worst = max(best[stage][begin], weight(stage, begin, end))
                if worst < best[stage + 1][end]:
                    best[stage + 1][end], back[stage + 1][end] = worst, begin
    cut = [layers]
    for stage in range(stages, 0, -1):
        cut.append(back[stage][cut[-1]])
    return cut[::-1]


def _improve(cut: list[int], placement: Sequence[int], weight: Weight) -> list[int]:
    def score(bounds: Sequence[int]) -> tuple[float, float, float]:
        ranks = [0.0] * (1 + max(placement))
        parts = []
        for stage, rank in enumerate(placement):
            part = weight(stage, bounds[stage], bounds[stage + 1])
            parts.append(part)
            ranks[rank] += part
        return max(ranks), max(parts), sum(part * part for part in parts)

    now = score(cut)
    while True:
        tries = []
        for bound in range(1, len(cut) - 1):
            for move in (-1, 1):
                moved = [*cut]
                moved[bound] += move
                if moved[bound - 1] < moved[bound] < moved[bound + 1]:
                    tries.append((score(moved), moved))
        if not tries or min(tries)[0] >= now:
            return cut
        now, cut = min(tries)
