"""A plan made once more, when a run has told how long its steps take. Imports without torch.

Galvatron's later versions adapt a plan to what is measured, without a published algorithm; here is one. A
step's two parts set two coefficients, products and links, each by itself; what they do not explain is kept as
a factor over all predictions, which orders no layouts but makes the next one's prediction honest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.models.spec import DecoderSpec
from shunter.plan.calibrate import LEAST, MOST, Run, fit
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.plan import DEGREES, Plan
from shunter.plan.practice import Coefficient, Coefficients, practice
from shunter.plan.score import Prediction, predict
from shunter.plan.search import search
from shunter.plan.strategies import AGAIN, ASIDE, KEEP

GAIN = 0.05  # less than this share of a step is not worth another start
HALVINGS = 24


@dataclass(frozen=True)
class Measured:
    """A step under a plan. compute, communication: of the rank that computes longest, where known."""

    seconds: float
    compute: float | None = None
    communication: float | None = None


@dataclass(frozen=True)
class Anew:
    """plan: what to go on with. changed: whether it is another layout. before: seconds of a step so far."""

    plan: Plan
    changed: bool
    before: float


def cluster_of(plan: Plan) -> Cluster:
    """The cluster that it was made for. Raises ShunterError for a plan of an earlier version without it."""
    if plan.machine is None:
        raise ShunterError("the plan does not hold its cluster's description", mend="Plan again.")
    return Cluster.of(Description.model_validate(plan.machine))


def asked(plan: Plan, cluster: Cluster, coefficients: Coefficients | None = None) -> tuple[Question, Choices]:
    """What it was an answer to, and its layout. coefficients: those that it rests on, or others."""
    known = {name: Coefficient(each["value"], each["source"]) for name, each in plan.coefficients.items()}
    question = Question(
        DecoderSpec.model_validate(plan.model),
        Fabric.of(cluster),
        plan.batch,
        plan.sequence,
        practice(plan.practice),
        coefficients or Coefficients(known),
    )
    grid = Grid(**{name: plan.layout[name] for name in DEGREES})
    layout = plan.layout
    choice = Choices.one(grid, plan.microbatch, plan.schedule, layout["chunks"], layout["recompute"])
    return question, choice


def strategies_of(plan: Plan) -> list[int] | None:
    """Of its layers, where they are chosen one by one."""
    if plan.layout["recompute"] != "layer" or "again" not in plan.layout:
        return None
    again, aside = set(plan.layout["again"]), set(plan.layout["offload"])
    count = int(plan.model["num_layers"])
    return [AGAIN if n in again else ASIDE if n in aside else KEEP for n in range(count)]


def anew(plan: Plan, measured: Measured, source: str) -> Anew:
    """The best plan by what was measured, or the same layout where none is better by GAIN.

    source: said of what is fitted. Raises ShunterError where the plan does not hold its cluster.
    """
    cluster = cluster_of(plan)
    question, choice = asked(plan, cluster)
    chosen = strategies_of(plan)
    question = replace(question, coefficients=fitted(question, choice, measured, source, chosen))
    same = predict(question, choice, strategies=chosen)
    factor = measured.seconds / same.seconds
    best = search(question, top=1).plans[0].prediction
    if best.seconds > (1 - GAIN) * same.seconds or best.choice.settings(0) == choice.settings(0):
        known = {name: asdict(value) for name, value in question.coefficients.known.items()}
        return Anew(replace(plan, **_times(same, factor), coefficients=known), False, measured.seconds)
    new = Plan.of(question, cluster, best)
    rate = new.tokens_per_second_per_device / factor, new.flops_per_device / factor, new.mfu / factor
    new = replace(
        new,
        **_times(best, factor),
        tokens_per_second_per_device=rate[0],
        flops_per_device=rate[1],
        mfu=rate[2],
    )
    return Anew(new, True, measured.seconds)


def fitted(
    question: Question,
    choice: Choices,
    measured: Measured,
    source: str,
    strategies: Sequence[int] | None = None,
) -> Coefficients:
    """products by what was computed and links by what was sent, or products alone by the whole step."""
    if measured.compute is None or measured.communication is None:
        run = Run("the run", question, choice, measured.seconds, strategies)
        return fit([run], ["products"], question.coefficients, source)
    found = question.coefficients
    for _ in range(2):  # a message hides behind what is computed, so that each moves the other a little
        for name, wanted, part in (
            ("products", measured.compute, _compute),
            ("links", measured.communication, _communication),
        ):
            asked_now = replace(question, coefficients=found)
            found = _met(asked_now, choice, name, wanted, part, source, strategies)
    return found


def _compute(found: Prediction) -> float:
    return found.compute


def _communication(found: Prediction) -> float:
    return found.communication


def _met(
    question: Question,
    choice: Choices,
    name: str,
    wanted: float,
    part: Callable[[Prediction], float],
    source: str,
    strategies: Sequence[int] | None,
) -> Coefficients:
    """With the coefficient such that the part takes `wanted` seconds, as nearly as can be: by halving, as
    each part falls where its coefficient rises. As it was where the part is nothing."""
    start = question.coefficients
    if wanted <= 0 or part(predict(question, choice, strategies=strategies)) <= 0:
        return start

    def at(log: float) -> Coefficients:
        return start.but(source, **{name: start[name] * math.exp(log)})

    low, high = math.log(LEAST), math.log(MOST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = predict(replace(question, coefficients=at(middle)), choice, strategies=strategies)
        if part(tried) > wanted:
            low = middle
        else:
            high = middle
    return at((low + high) / 2)


def _times(found: Prediction, factor: float) -> dict[str, Any]:
    return {
        "step_seconds": found.seconds * factor,
        "compute_seconds": found.compute * factor,
        "communication_seconds": found.communication * factor,
        "bubble_seconds": found.bubble * factor,
    }
