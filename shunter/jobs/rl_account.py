"""What reinforcement learning took, phase by phase, beside what the planner's cost model says of such steps.

Of one process, in which the roles take turns. Writing is bound by memory (`plan.role_costs`), preparation
is forward passes, learning is updates of the mean one's shape; what grading takes nobody can know beforehand.
Imports without torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.jobs import machine
from shunter.jobs.pairs_account import mean_step
from shunter.models.spec import DecoderSpec
from shunter.recipe.job import JobContext

if TYPE_CHECKING:
    from shunter.plan.choices import Question
    from shunter.post.spent import Phases

PHASES = ("writing", "grading", "preparation", "learning")


def account(context: JobContext[Any], spec: DecoderSpec, phases: Phases) -> dict[str, Any]:
    """`account` among a job's metrics, with `phases`; why there is no prediction, where there is none."""
    try:
        return {"account": _held(context, spec, phases)}
    except ShunterError as error:
        return {"account": {"unpredicted": error.what}}


def _held(context: JobContext[Any], spec: DecoderSpec, phases: Phases) -> dict[str, Any]:
    from shunter.jobs import account as accounts
    from shunter.jobs.foretold import predicted
    from shunter.plan.plan import Plan

    config = context.config
    if (what := _unknown(config)) is not None:
        raise ShunterError(f"the cost model does not know {what}")
    if not phases.updates.steps:
        raise ShunterError("this attempt made no update")
    found = machine.described(1, config.how.device)
    if found is None:
        raise ShunterError("nothing describes this machine's devices; shunter probe measures them")
    cluster, basis = found
    updates, steps = phases.updates, phases.steps
    asked = mean_step(config, spec, updates, None)
    share = updates.targets / max(updates.tokens, 1)
    question, policy = predicted(asked, cluster, here=True, scored=share)
    seconds = {
        "writing": _writing(question, phases),
        "preparation": phases.prepared / steps / (asked.batch * asked.row) * _ahead(policy),
        "learning": updates.steps / steps * policy.seconds,
    }
    memory = policy.fullest
    if config.policy.kl or config.how.divergence:  # and the reference's weights
        memory += question.practice.weights * spec.num_parameters
    if phases.taught:
        _, critic = predicted(asked, cluster, here=True, scored=0.0)
        seconds["learning"] += phases.taught / steps * critic.seconds
        memory += sum(critic.bytes[0][name] for name in ("weights", "gradients", "optimizer"))
    plan = replace(
        Plan.of(question, cluster, policy),
        step_seconds=sum(seconds.values()),
        memory_bytes_by_stage=[memory],
    )
    told = accounts.account(plan, context.log / "events.jsonl")
    for name in ("plan", "advice"):
        told.pop(name, None)
    measured = {name: phases.seconds.get(name, 0.0) / steps for name in PHASES}
    told["phases"] = [
        {"phase": name, "plan_seconds": seconds.get(name), "seconds": measured[name]} for name in PHASES
    ]
    return told | {"basis": basis}


def _unknown(config: Any) -> str | None:
    if config.how.parallel is not None:
        return "writing and learning by the ranks of a layout"
    if config.adapter is not None:
        return "adapters"
    if config.apart or config.staleness:
        return "writing beside learning"
    if config.generator != "own":
        return "a server that writes"
    return None if config.tools is None else "tools that answer between turns"


def _ahead(policy: Any) -> float:
    """Seconds of the forward passes of an update."""
    return float(policy.microbatches * sum(policy.forward))


def _writing(question: Question, phases: Phases) -> float:
    """Of a step: the mean prompt, and as many tokens as the longest answer of a step has in the mean."""
    from shunter.plan.role_costs import Costs, Load, Work

    load = Load(
        batch=max(1, round(phases.answers / phases.steps)),
        prompt=max(1, round(phases.prompts / phases.answers)),
        answer=max(1, round(phases.longest / phases.steps)),
    )
    works = {"writer": Work(question.spec, writes=True, prepares=False)}
    known = question.fabric, question.practice, question.coefficients
    found = Costs(works, load, *known, cut=False).candidates("writer", 1)
    if not found:
        raise ShunterError("by the cost model there is no room to write")
    return found[0].seconds["writing"]
