"""A plan made once more, when a run has told how long its steps take. Imports without torch.

Galvatron's later versions adapt a plan to what is measured, without a published algorithm; here is one. A
step's two parts set two coefficients, products and links, each by itself; what they do not explain is kept as
a factor over all predictions, which orders no layouts but makes the next one's prediction honest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.models.spec import DecoderSpec
from shunter.plan.calibrate import LEAST, MOST, Run, coefficients_of, fit
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.plan import DEGREES, END_DEGREES, Plan, fingerprint
from shunter.plan.practice import Coefficient, Coefficients, compilable, practice
from shunter.plan.profile import Profile
from shunter.plan.score import Prediction
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
    """The cluster that it was made for. Raises ShunterError for a plan that does not hold it: an earlier
    version's, or one for some of its devices."""
    whole = None if plan.machine is None else Cluster.of(Description.model_validate(plan.machine))
    if whole is not None:
        # Or the first of its devices, as `4xa100-80` is of a machine of eight.
        for found in (
            whole,
            *([whole.subcluster(range(plan.devices))] if plan.devices < whole.world else []),
        ):
            if fingerprint(found) == plan.cluster_fingerprint:
                return found
    raise ShunterError("the plan does not hold its cluster's description", mend="Plan again.")


def asked(plan: Plan, cluster: Cluster, coefficients: Coefficients | None = None) -> tuple[Question, Choices]:
    """What it was an answer to, and its layout. coefficients: those that it rests on, or others."""
    if coefficients is None:
        kinds = {kind: _known(own) for kind, own in plan.coefficients_by_kind.items()}
        rest = coefficients_of(cluster, practised=plan.practice)
        coefficients = Coefficients(rest.known | _known(plan.coefficients), kinds or rest.kinds)
    question = Question(
        DecoderSpec.model_validate(plan.model),
        Fabric.of(plan.part_of(cluster)),
        plan.batch,
        plan.sequence,
        practice(plan.practice),
        coefficients,
        None if plan.profile is None else Profile.of(plan.profile),
    )
    grid = Grid(**{name: plan.layout[name] for name in DEGREES})
    layout = plan.layout
    choice = Choices.one(grid, plan.microbatch, plan.schedule, layout["chunks"], layout["recompute"])
    return question, choice


def _known(told: Mapping[str, Any]) -> dict[str, Coefficient]:
    return {name: Coefficient(each["value"], each.get("source", "")) for name, each in told.items()}


def strategies_of(plan: Plan) -> list[int] | None:
    """Of its layers, where they are chosen one by one."""
    if plan.layout["recompute"] != "layer" or "again" not in plan.layout:
        apart = plan.layout.get("layers") or plan.layout.get("ends")
        every = KEEP if plan.layout["recompute"] == "none" else AGAIN
        return [every] * int(plan.model["num_layers"]) if apart else None
    again, aside = set(plan.layout["again"]), set(plan.layout["offload"])
    count = int(plan.model["num_layers"])
    return [AGAIN if n in again else ASIDE if n in aside else KEEP for n in range(count)]


def own_of(plan: Plan) -> dict[int, Choices]:
    """Of its layers with degrees of their own, each layer's."""
    found: dict[int, Choices] = {}
    for each in plan.layout.get("layers") or ():
        found |= dict.fromkeys(each["of"], _under(plan, each, DEGREES[1:]))
    return found


def ends_of(plan: Plan) -> Choices | None:
    """Of embedding and head, where they have degrees of their own."""
    its = plan.layout.get("ends")
    return None if its is None else _under(plan, its, END_DEGREES)


def _under(plan: Plan, its: Mapping[str, Any], names: Sequence[str]) -> Choices:
    layout = plan.layout
    grid = Grid(layout["pp"], **{name: its[name] for name in names})
    rows = plan.microbatch * layout["dp"] * layout["fsdp"] // (grid.dp * grid.fsdp)
    return Choices.one(grid, rows, plan.schedule, layout["chunks"], layout["recompute"])


def cut_of(plan: Plan) -> list[int]:
    """Bounds of its stages."""
    return [0, *plan.layout["cut"], int(plan.model["num_layers"])]


def anew(plan: Plan, measured: Measured, source: str, *, compiled: bool = False) -> Anew:
    """The best plan by what was measured, or the same layout where none is better by GAIN.

    source: said of what is fitted. compiled: the run's layers are. Raises ShunterError where the plan does
    not hold its cluster.
    """
    cluster = cluster_of(plan)
    question, choice = asked(plan, cluster)
    order, chosen = tuple(plan.ranks), strategies_of(plan)
    laid = order, chosen, cut_of(plan), own_of(plan), ends_of(plan)
    run = Run("the run", question, choice, measured.seconds, *laid)
    known = fitted(run, measured, source)
    same = run.prediction(known)
    factor = measured.seconds / same.seconds
    whole = replace(question, fabric=Fabric.of(cluster), coefficients=known)
    if compiled:
        whole = replace(whole, practice=compilable(whole.practice))
    found = search(whole, top=1)
    best = found.plans[0].prediction
    if best.seconds > (1 - GAIN) * same.seconds or best.settings == same.settings:
        told, by_kind = (
            {name: asdict(value) for name, value in known.known.items()},
            {kind: {name: asdict(value) for name, value in own.items()} for kind, own in known.kinds.items()},
        )
        times = _times(same, factor)
        kept = replace(plan, **times, coefficients=told, coefficients_by_kind=by_kind)
        return Anew(kept, False, measured.seconds)
    new = Plan.of(found.question, cluster, best)
    rate = new.tokens_per_second_per_device / factor, new.flops_per_device / factor, new.mfu / factor
    new = replace(
        new,
        **_times(best, factor),
        tokens_per_second_per_device=rate[0],
        flops_per_device=rate[1],
        mfu=rate[2],
    )
    return Anew(new, True, measured.seconds)


def fitted(run: Run, measured: Measured, source: str) -> Coefficients:
    """products by what was computed and links by what was sent, or products alone by the whole step."""
    known = run.question.coefficients
    if measured.compute is None or measured.communication is None:
        return fit([run], ["products"], known, source)
    for _ in range(2):  # a message hides behind what is computed, so that each moves the other a little
        for name, wanted, part in (
            ("products", measured.compute, _compute),
            ("links", measured.communication, _communication),
        ):
            known = _met(run, known, name, wanted, part, source)
    return known


def _compute(found: Prediction) -> float:
    return found.compute


def _communication(found: Prediction) -> float:
    return found.communication


def _met(
    run: Run,
    known: Coefficients,
    name: str,
    wanted: float,
    part: Callable[[Prediction], float],
    source: str,
) -> Coefficients:
    """With the coefficient such that the part takes `wanted` seconds, as nearly as can be: by halving, as
    each part falls where its coefficient rises. As it was where the part is nothing."""
    if wanted <= 0 or part(run.prediction(known)) <= 0:
        return known

    def at(log: float) -> Coefficients:
        return known.but(source, **{name: known[name] * math.exp(log)})

    low, high = math.log(LEAST), math.log(MOST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if part(run.prediction(at(middle))) > wanted:
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
