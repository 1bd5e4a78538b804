"""Layouts of learning from answers: what can be chosen, and what is refused. Imports without torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec
from shunter.post.config import LaidOutHow, PostTrain
from shunter.train.config import Parallel
from shunter.train.layout_check import check_layout

WHERE = "how.parallel"
ROUND = 8  # rows are filled up to a multiple of it, as without a layout

# What this learning has no part for, and why.
REFUSED = {
    "plan": "plans are made for rows of tokens, and here are answers",
    "replan": "plans are made for rows of tokens, and here are answers",
    "layers": "layers with degrees of their own are not tried with answers",
    "ends": "degrees of their own for embedding and head are not tried with answers",
    "vocabulary": "vocabulary splits the head over stages, and scores of answers are made by one",
}


@dataclass(frozen=True)
class Unit:
    """What stays in one micro-batch. name: of several. samples: of one. mend: for too few of them, with
    `{least}`."""

    name: str
    samples: int
    mend: str


PAIR = Unit("pairs", 2, "Raise batch_pairs to at least {least}")
ANSWER = Unit("answers", 1, "Raise group or prompts_per_step until an update has {least} answers")


def check_parallel(
    how: LaidOutHow,
    train: PostTrain,
    units: int,
    base: Path,
    *,
    value: bool = False,
    adapter: bool = False,
    unit: Unit = PAIR,
) -> None:
    """Raise ShunterError for a layout that learning from `units` a step cannot have. value: with a value
    head."""
    if how.parallel is None:
        return
    if adapter:
        raise ShunterError(
            f"adapters that learn from {unit.name} are not tried on several processes",
            where=WHERE,
            mend="Leave out either adapter or parallel.",
        )
    for name, why in REFUSED.items():
        if getattr(how.parallel, name) is not None:
            raise ShunterError(why, where=f"{WHERE}.{name}", mend=f"Leave {name} out.")
    if value and how.parallel.zero:
        raise ShunterError(
            "zero: 1 shares out the optimizer's state, and a value head's is not shared",
            where=f"{WHERE}.zero",
            mend="Use fsdp, or leave zero out.",
        )
    if how.parallel.gather == "bf16" and train.precision != "bf16":
        raise ShunterError(
            f"gather: bf16 rounds weights, and precision {train.precision} takes weights whole",
            where=WHERE,
            mend="Set train.precision to bf16, or leave gather out.",
        )
    parallel = how.parallel.located(base)
    settled(parallel, units, 1, how.micro_tokens, unit).order()


def settled(
    parallel: Parallel, units: int, unit_tokens: int, micro_tokens: int, unit: Unit = PAIR
) -> Parallel:
    """With the number of micro-batches decided: of about `micro_tokens`, where a unit (what stays in one
    micro-batch) has so many tokens at most. Raises ShunterError where a step has too few units."""
    if parallel.microbatches is None and parallel.pp == 1 and parallel.chunks is None:
        most = max(1, units // parallel.data)
        mine = -(-units // parallel.data) * unit_tokens
        found = min(most, max(1, -(-mine // micro_tokens)))
        parallel = parallel.model_copy(update={"microbatches": found})
    if units < parallel.data * parallel.parts:
        least = parallel.data * parallel.parts
        raise ShunterError(
            f"{units} {unit.name} a step cannot be cut into {parallel.parts} micro-batches on each of "
            f"{parallel.data} data ranks",
            where=WHERE,
            mend=f"{unit.mend.format(least=least)}, or set fewer microbatches.",
        )
    return parallel


def row_multiple(parallel: Parallel) -> int:
    """What the width of rows must be a multiple of."""
    parts = (2 * parallel.cp if parallel.cp > 1 else 1) * (parallel.tp if parallel.sequence else 1)
    return lcm(ROUND, parts)


def row_width(parallel: Parallel, longest: int) -> int:
    """Tokens of a row that holds any sample of at most `longest` tokens, of which the last is predicted."""
    parts = row_multiple(parallel)
    return -(-max(1, longest - 1) // parts) * parts


def must_fit(spec: DecoderSpec, parallel: Parallel, width: int) -> None:
    """Raise ShunterError where the model cannot be laid out so. parallel: settled."""
    check_layout(spec, parallel, parallel.order(), width)
    experts = spec.experts
    if experts is not None and experts.capacity is not None:
        raise ShunterError(
            "experts with a capacity drop tokens by their place in the step, which another layout deals out "
            "otherwise",
            where=WHERE,
            mend="Train this model in one process.",
        )
