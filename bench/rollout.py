"""Continuous batching against transformers' `generate` and its own continuous batching, on ragged prompts.

48 prompts of 4 to 96 tokens; each answer ends after a number of tokens of its own (log-normal, median 49, at
most 256), the same on both sides, so both write the same number of tokens. Greedy, fp32, on the CPU, batches
of 16; other shapes (`SHAPES`) against continuous batching alone. Both are called from lists of ids to lists
of ids. transformers takes the prompts in batches of like length, and each batch until its last answer has
ended, which is what it does; ours fills every place that becomes free. `generate` of our own, which also
takes batches, is measured beside it. transformers' continuous batching has a cache as large as ours and as
many tokens a step, and is started once, outside of the time; it asks for its answers ten times a second or
oftener. Greedy tokens, which differ in these models, are compared before anything is timed.

`python -m bench.rollout` measures all; `python -m bench.rollout 2M ragged --tiny` times one round of one case
and keeps nothing.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.generate import SAME, SPECS, load, varied
from bench.measure import alternate, machine, rounded, save
from shunter.generate.config import SamplingConfig
from shunter.generate.engine import generate
from shunter.generate.rollout import RolloutEngine
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.paged import block_size

MOST = 256  # tokens of an answer
PAGE = 32  # tokens of a page of transformers' cache
ASKED = itertools.count()
ROUNDS, WIDTH, LIMIT = 4, 0.05, 60.0
GOAL = 1.5

Ids = list[list[int]]


@dataclass(frozen=True)
class Shape:
    """How many prompts, and at once; their least and most tokens; the median of the answers' tokens. room:
    tokens of the cache for each text of a batch, more than they come to."""

    count: int = 48
    batch: int = 16
    prompt: tuple[int, int] = (4, 96)
    answer: int = 49
    room: int = 256


SHAPES = {
    "ragged": Shape(),
    "few": Shape(count=16, batch=4),
    "many": Shape(count=96, batch=48),
    "short": Shape(answer=10),
    "prompts": Shape(prompt=(96, 240), room=384),
}


def ours(model: Decoder, prompts: Ids, limits: list[int], batch: int, room: int) -> Ids:
    """By the rollout engine."""
    mean = statistics.mean(len(p) + n for p, n in zip(prompts, limits, strict=True))
    config = SamplingConfig(temperature=0.0, max_new_tokens=MOST, batch=batch)
    engine = RolloutEngine(model, config, size=block_size(mean), tokens=room)
    for prompt, limit in zip(prompts, limits, strict=True):
        engine.submit(prompt, max_new_tokens=limit)
    return [done.ids for done in engine.run()]


def batches(prompts: Ids, batch: int) -> list[list[int]]:
    """Numbers of prompts of like length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[i : i + batch] for i in range(0, len(order), batch)]


def theirs(model: Any, prompts: Ids, limits: list[int], batch: int) -> Ids:
    """By `transformers.generate`, which is told by a criterion when each answer has ended."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Ended(StoppingCriteria):
        def __init__(self, ends: torch.Tensor) -> None:
            self.ends = ends

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return input_ids.shape[1] >= self.ends

    found: Ids = [[] for _ in prompts]
    for chosen in batches(prompts, batch):
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


def continuous(manager: Any, prompts: Ids, limits: list[int]) -> Ids:
    """By transformers' continuous batching."""
    numbers = {f"{next(ASKED)}": i for i in range(len(prompts))}
    for name, i in numbers.items():
        manager.add_request(prompts[i], request_id=name, max_new_tokens=limits[i])
    found: Ids = [[] for _ in prompts]
    for _ in prompts:
        done = manager.get_result(timeout=300)
        if done is None:
            raise SystemExit("transformers' continuous batching does not answer")
        found[numbers[done.request_id]] = list(done.generated_tokens)
    return found


def in_batches(model: Decoder, prompts: Ids, limits: list[int], batch: int) -> Ids:
    """By our own `generate`, each batch until its longest answer."""
    found: Ids = [[] for _ in prompts]
    for chosen in batches(prompts, batch):
        most = max(limits[i] for i in chosen)
        config = SamplingConfig(temperature=0.0, max_new_tokens=most, batch=batch)
        for i, done in zip(chosen, generate(model, [prompts[i] for i in chosen], config), strict=True):
            found[i] = done.ids[: limits[i]]
    return found


def same(a: Ids, b: Ids) -> float:
    """Share of tokens that are the same."""
    pairs = [pair for x, y in zip(a, b, strict=True) for pair in zip(x, y, strict=True)]
    return statistics.mean(x == y for x, y in pairs)


def measure(size: str, name: str, tiny: bool) -> dict[str, Any]:
    """One model and shape. Raises if the sides do not write the same tokens."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    spec, shape = SPECS[size], SHAPES[name]
    model, _ = varied(spec)
    draw = random.Random(0)
    count, batch, middle = shape.count, shape.batch, math.log(shape.answer)
    prompts = [
        [draw.randrange(spec.vocab_size) for _ in range(draw.randint(*shape.prompt))] for _ in range(count)
    ]
    limits = [max(4, min(MOST, round(draw.lognormvariate(middle, 0.8)))) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        other = load(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        paged = load(Path(folder))  # its attention is set to another kind
    room = batch * shape.room
    sizes = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=room // PAGE, max_batch_tokens=room, max_requests_per_batch=batch
    )
    greedy = GenerationConfig(do_sample=False, max_new_tokens=MOST, eos_token_id=-1, pad_token_id=0)
    with paged.continuous_batching_context_manager(
        generation_config=greedy, continuous_batching_config=sizes, block=True
    ) as manager:
        sides: dict[str, Callable[[], Ids]] = {
            "transformers' continuous batching": lambda: continuous(manager, prompts, limits),
        }
        if name == "ragged":
            sides |= {
                "transformers.generate": lambda: theirs(other, prompts, limits, batch),
                "generate": lambda: in_batches(model, prompts, limits, batch),
            }
        mine = lambda: ours(model, prompts, limits, batch, room)  # noqa: E731
        return _measured(f"{size} {name}", mine, limits, sides, tiny) | {"prompts": count, "batch": batch}


def _measured(
    size: str,
    mine: Callable[[], Ids],
    limits: list[int],
    sides: dict[str, Callable[[], Ids]],
    tiny: bool,
) -> dict[str, Any]:
    first = mine()
    result: dict[str, Any] = {"tokens": sum(limits)}
    for name, other_side in sides.items():
        if (share := same(first, other_side())) < SAME:
            raise SystemExit(f"{size}: only {share:.0%} of {name}'s greedy tokens are the same")
        result["different_tokens"] = len({token for ids in first for token in ids})
    for name, other_side in sides.items():
        rounds = 1 if tiny else ROUNDS
        limit = 0.0 if tiny else LIMIT
        found = alternate(mine, other_side, rounds, 0, width=WIDTH, limit=limit)
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
    shapes = [name for name in sys.argv[1:] if name in SHAPES] or list(SHAPES)
    found: dict[str, Any] = {}
    for size in sizes:
        for name in shapes:
            found[f"{size} {name}"] = measure(size, name, tiny)
            if not tiny:  # after each case: a run that is stopped keeps what it has
                print(save("rollout", {"goal": GOAL, "cases": found, "machine": machine()}))


if __name__ == "__main__":
    main()
