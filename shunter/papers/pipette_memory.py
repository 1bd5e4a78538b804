"""Peak memory on more devices than were trained on (arXiv 2405.18093): by a network, by a published formula,
by a count of all tensors, and by a network that learns what is measured over what is counted."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

from shunter.papers.experiment import Arm
from shunter.plan.transformer import Shape


def estimated(arm: Arm, seed: int) -> dict[str, dict[str, float]]:
    """Mean relative errors of peak memory on more devices than were trained on."""
    from shunter.plan.memory_net import features, train

    samples = {
        name: json.loads((arm[name].path / "samples.json").read_text(encoding="utf-8"))
        for name in ("train", "test")
    }
    rows = {
        name: [
            features(*(each[key] for key in ("layers", "hidden", "heads", "pp", "tp", "dp", "rows", "batch")))
            for each in found
        ]
        for name, found in samples.items()
    }
    net = train(rows["train"], [each["peak"] for each in samples["train"]], seed=seed)
    peaks = [each["peak"] for each in samples["test"]]
    network = [abs(net(row) / peak - 1) for row, peak in zip(rows["test"], peaks, strict=True)]
    more = train(rows["train"], [each["peak"] / counted(each) for each in samples["train"]], seed=seed)
    both = [
        abs(counted(each) * more(row) / each["peak"] - 1)
        for row, each in zip(rows["test"], samples["test"], strict=True)
    ]
    formula, count = (
        statistics.mean(abs(told(each) / peak - 1) for each, peak in zip(samples["test"], peaks, strict=True))
        for told in (published, counted)
    )
    return {
        "measured memory": {"memory_error": 0.0},
        "network": {"memory_error": statistics.mean(network)},
        "analytic": {"memory_error": formula},
        "counted": {"memory_error": count},
        "network on the count": {"memory_error": statistics.mean(both)},
        "nearest of the others": {"memory_error": min(formula, count, statistics.mean(network))},
    }


def published(it: Mapping[str, Any]) -> float:
    """The baseline in float32: 16 bytes a weight and, for each micro-batch in flight, twice the published
    s b h (10 + 24 / t) + 5 a s^2 b / t of half precision (arXiv 2205.05198)."""
    shape = Shape(it["layers"], it["hidden"], it["heads"], it["sequence"], it["vocabulary"])
    weights = 12 * shape.hidden**2 * shape.layers / it["pp"] + shape.vocabulary * shape.hidden
    flight = min(it["pp"], it["batch"] // it["dp"] // it["rows"])
    inside = flight * shape.layers / it["pp"] * 2 * shape.inside_bytes(it["rows"], it["tp"])
    return float(16 * weights / it["tp"] + inside)


def counted(it: Mapping[str, Any]) -> float:
    """Tensor by tensor, of the fuller of the first and the last stage, as `shunter.parallel.live` executes
    it: what nobody has to learn. Only the buffers of small operations are left out."""
    return max(_stage(it, stage) for stage in {0, it["pp"] - 1})


def _stage(it: Mapping[str, Any], stage: int) -> float:
    h, t, words = it["hidden"], it["tp"], it["vocabulary"] / it["tp"]
    layers, tokens = it["layers"] / it["pp"], it["rows"] * it["sequence"]
    scores = it["heads"] / t * it["sequence"]
    last = stage == it["pp"] - 1
    each = 12 * h * h / t + 7 * h / t + 6 * h
    ends = (stage == 0) * words * h + last * words * (h + 1)
    weights = 4 * (layers * each + ends)
    # Inputs and results of both norms; queries, keys, values, attention's result, and twice 4 h of the rest.
    kept = 4 * tokens * (layers * (4 * h + 12 * h / t + scores) + last * (words + h))
    rounds = it["batch"] // it["dp"] // it["rows"]
    flight = min(it["pp"] - stage, rounds)
    # On its way back: the head's gradient, or one layer's, of 4 h twice or of its scores twice.
    way = 4 * tokens * max(last * words, h + max(8 * h / t, 2 * scores + 3 * h / t))
    # The first backward makes gradients as activations go; later ones find them there.
    passes = weights + flight * kept + way + (weights if rounds > flight else 0.0)
    passes = max(passes, 2 * weights + (flight - 1) * kept)
    return max(passes, 4 * weights)  # moments are made in the first update
