"""Continuous batching against `transformers.generate` on ragged prompts with ragged answers.

48 prompts of 4 to 96 tokens; each answer ends after a number of tokens of its own (log-normal, median 48, at
most 256), the same on both sides, so both write the same number of tokens. Greedy, fp32, on the CPU, batches
of 16. Both are called from lists of ids to lists of ids. transformers takes the prompts in batches of like
length, and each batch until its last answer has ended, which is what it does; ours fills every place that
becomes free. `generate` of our own, which also takes batches, is measured beside it. Greedy tokens are
compared before anything is timed.

`python -m bench.rollout` measures all; `python -m bench.rollout 2M --tiny` times one round and keeps nothing.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.generate import SAME, SPECS, load
from bench.measure import alternate, machine, rounded, save
from shunter.generate.config import SamplingConfig
from shunter.generate.engine import generate
from shunter.generate.rollout import RolloutEngine
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.init import init_weights
from shunter.models.paged import block_size

COUNT, BATCH, MOST = 48, 16, 256
ROUNDS, WIDTH, LIMIT = 4, 0.05, 60.0
GOAL = 1.5

Ids = list[list[int]]


def ours(model: Decoder, prompts: Ids, limits: list[int]) -> Ids:
    """By the rollout engine."""
    mean = statistics.mean(len(p) + n for p, n in zip(prompts, limits, strict=True))
    config = SamplingConfig(temperature=0.0, max_new_tokens=MOST, batch=BATCH)
    engine = RolloutEngine(model, config, size=block_size(mean), tokens=BATCH * 256)
    for prompt, limit in zip(prompts, limits, strict=True):
        engine.submit(prompt, max_new_tokens=limit)
    return [done.ids for done in engine.run()]


def batches(prompts: Ids) -> list[list[int]]:
    """Numbers of prompts of like length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]


def theirs(model: Any, prompts: Ids, limits: list[int]) -> Ids:
    """By `transformers.generate`, which is told by a criterion when each answer has ended."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Ended(StoppingCriteria):
        def __init__(self, ends: torch.Tensor) -> None:
            self.ends = ends

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return input_ids.shape[1] >= self.ends

    found: Ids = [[] for _ in prompts]
    for chosen in batches(prompts):
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in chosen])
        seen = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
        ends = torch.tensor([width + limits[i] for i in chosen])
        written = model.generate(
            ids,
            attention_mask=seen,
            max_new_tokens=max(limits[i] for i in chosen),
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([Ended(ends)]),
        )
        for row, i in enumerate(chosen):
            found[i] = written[row, width : width + limits[i]].tolist()
    return found


def in_batches(model: Decoder, prompts: Ids, limits: list[int]) -> Ids:
    """By our own `generate`, each batch until its longest answer."""
    found: Ids = [[] for _ in prompts]
    for chosen in batches(prompts):
        most = max(limits[i] for i in chosen)
        config = SamplingConfig(temperature=0.0, max_new_tokens=most, batch=BATCH)
        for i, done in zip(chosen, generate(model, [prompts[i] for i in chosen], config), strict=True):
            found[i] = done.ids[: limits[i]]
    return found


def same(a: Ids, b: Ids) -> float:
    """Share of tokens that are the same."""
    pairs = [pair for x, y in zip(a, b, strict=True) for pair in zip(x, y, strict=True)]
    return statistics.mean(x == y for x, y in pairs)


def measure(size: str, tiny: bool) -> dict[str, Any]:
    """One model. Raises if the sides do not write the same tokens."""
    spec = SPECS[size]
    model = Decoder(spec)
    init_weights(model, 0)
    draw = random.Random(0)
    count = COUNT
    prompts = [[draw.randrange(spec.vocab_size) for _ in range(draw.randint(4, 96))] for _ in range(count)]
    limits = [max(4, min(MOST, round(draw.lognormvariate(3.9, 0.8)))) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        other = load(Path(folder))
    first = ours(model, prompts, limits)
    for side in (theirs(other, prompts, limits), in_batches(model, prompts, limits)):
        if (share := same(first, side)) < SAME:
            raise SystemExit(f"{size}: only {share:.0%} of the greedy tokens are the same")
    result: dict[str, Any] = {"tokens": sum(limits), "prompts": count}
    sides: dict[str, Callable[[], Ids]] = {
        "transformers.generate": lambda: theirs(other, prompts, limits),
        "generate": lambda: in_batches(model, prompts, limits),
    }
    for name, other_side in sides.items():
        rounds = 1 if tiny else ROUNDS
        limit = 0.0 if tiny else LIMIT
        found = alternate(
            lambda: ours(model, prompts, limits), other_side, rounds, 0, width=WIDTH, limit=limit
        )
        found |= {"a": rounded(found["a"]), "b": rounded(found["b"])}
        result[name] = found
        speed = sum(limits) / statistics.median(found["a"])
        print(
            f"{size}: {speed:.0f} tokens/s, {found['ratio_median']:.2f}x {name} "
            f"[{found['ratio_low']:.2f}, {found['ratio_high']:.2f}], "
            f"CPU seconds {found['cpu_ratio_median']:.2f}x"
        )
    return result


def main() -> None:
    tiny = "--tiny" in sys.argv
    sizes = [size for size in sys.argv[1:] if size in SPECS] or ["2M", "45M"]
    found = {size: measure(size, tiny) for size in sizes}
    if not tiny:
        print(save("rollout", {"goal": GOAL, "cases": found, "machine": machine()}))


if __name__ == "__main__":
    main()
