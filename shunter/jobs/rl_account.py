"""What reinforcement learning took, phase by phase, beside what the planner's cost model says of such steps.

Writing is counted as the engine does it (`plan.writing`), preparation is forward passes, learning is updates
of the mean one's shape; what grading takes nobody can know beforehand. In one process, and under a layout,
phases follow each other; where another process writes, the longer of writing and the rest counts. Imports
without torch.
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
    from shunter.plan.score import Prediction
    from shunter.plan.writing import Texts, Writes
    from shunter.post.reinforce import Reinforcement
    from shunter.post.spent import Phases, Shape
    from shunter.train.config import Parallel

# Pages of libraries that training and writing touch first: measured on Linux x86-64 with torch 2.13.
CODE = 38 << 20
PHASES = ("writing", "grading", "preparation", "learning")


def account(context: JobContext[Any], spec: DecoderSpec, lessons: Reinforcement) -> dict[str, Any]:
    """`account` among a job's metrics, with `phases`; why there is no prediction, where there is none. Of
    several ranks the first one's."""
    if getattr(context.world, "rank", 0):
        return {}
    try:
        return {"account": _held(context, spec, lessons)}
    except ShunterError as error:
        return {"account": {"unpredicted": error.what}}


def _held(context: JobContext[Any], spec: DecoderSpec, lessons: Reinforcement) -> dict[str, Any]:
    from shunter.jobs import account as accounts
    from shunter.jobs import rl_memory
    from shunter.jobs.foretold import predicted
    from shunter.plan.plan import Plan
    from shunter.plan.writing import seconds as writing

    config, phases = context.config, lessons.phases
    if (what := _unknown(config)) is not None:
        raise ShunterError(f"the cost model does not know {what}")
    if not phases.updates.steps:
        raise ShunterError("this attempt made no update")
    if lessons.critic is not None and lessons.critic.decoder.spec != spec:
        raise ShunterError("the cost model does not know a value model of another shape than the policy's")
    parallel: Parallel | None = getattr(lessons.policy, "parallel", None)
    ranks = 1 if parallel is None else parallel.grid.size
    found = machine.described(ranks, config.how.device)
    if found is None:
        raise ShunterError("nothing describes this machine's devices; shunter probe measures them")
    cluster, basis = found
    updates, steps = phases.updates, phases.steps
    asked = mean_step(config, spec, updates, parallel)
    share = updates.targets / max(updates.tokens, 1)
    question, policy = predicted(asked, cluster, here=True, scored=share)
    writers = len(config.how.writers or [0]) if config.apart else 0
    texts, writes = _texts(phases, lessons, max(ranks, writers)), _writes(config, question, max(1, writers))
    device = question.fabric.device
    written = writing(spec, texts, writes, device, question.coefficients["memory"])
    seconds = {
        "writing": written,
        "preparation": phases.prepared / steps / (asked.batch * asked.row) * _ahead(policy),
        "learning": updates.steps / steps * policy.seconds,
    }
    widest = mean_step(config, spec, _widest(updates), parallel)
    asked_most, most = predicted(widest, cluster, here=True, scored=share)
    critic = None
    if phases.taught:
        _, mean = predicted(asked, cluster, here=True, scored=0.0)
        _, critic = predicted(widest, cluster, here=True, scored=0.0)
        seconds["learning"] += phases.taught / steps * mean.seconds
    # Of weights that are kept, all but those to compute with are in the host's memory.
    kept = int(config.apart or config.staleness > 0) + config.staleness if device.type == "cpu" else 0
    it = rl_memory.Held(
        writes,
        None if config.apart else texts,
        updates.widest[2],
        (updates.shared, phases.prompts / phases.answers) if updates.shared else None,
        whole=lessons.copies,
        engine_stays=parallel is None,
        reference=bool(config.policy.kl or config.how.divergence),
        moments=kept + int(config.staleness > 0),
    )
    began = float(phases.began + CODE) if phases.resident else most.bytes[0]["other"]
    memory = {name: size + began for name, size in rl_memory.of_phases(asked_most, most, critic, it).items()}
    if config.staleness:  # writing goes on meanwhile
        lasts = max(seconds["writing"], seconds["preparation"] + seconds["learning"])
    else:
        lasts = sum(seconds.values())
    plan = replace(
        Plan.of(question, cluster, policy),
        step_seconds=lasts,
        memory_bytes_by_stage=[max(memory.values())],
    )
    told = accounts.account(plan, context.log / "events.jsonl")
    for name in ("plan", "advice"):
        told.pop(name, None)
    told["began_memory_bytes"] = began
    if phases.peaks:
        told["memory_bytes"] = max(phases.peaks.values())
    told["phases"] = [
        {
            "phase": name,
            "plan_seconds": seconds.get(name),
            "seconds": phases.seconds[name] / steps if name in phases.seconds else None,
            "plan_memory_bytes": memory.get(name),
            "memory_bytes": phases.peaks.get(name),
        }
        for name in PHASES
    ]
    if config.apart:
        told["plan_writer_memory_bytes"] = rl_memory.beside(spec, texts, writes) + began
        told["writer_memory_bytes"] = phases.writer or None
    return told | {"basis": basis}


def _unknown(config: Any) -> str | None:
    if config.adapter is not None:
        return "adapters"
    if config.generator != "own":
        return "a server that writes"
    return None if config.tools is None else "tools that answer between turns"


def _ahead(policy: Prediction) -> float:
    """Seconds of the forward passes of an update."""
    return float(policy.microbatches * sum(policy.forward))


def _texts(phases: Phases, lessons: Reinforcement, parts: int) -> Texts:
    """What each of so many processes writes of the mean step."""
    from shunter.plan.writing import Texts

    answers = phases.answers / phases.steps / parts
    return Texts(
        answers=max(1, round(answers)),
        prompts=max(1.0, phases.asked / phases.steps / parts),
        prompt=phases.prompts / phases.answers,
        answer=phases.written / phases.answers,
        longest=phases.longest / phases.steps,
        room=lessons.room,
    )


def _writes(config: Any, question: Question, parts: int) -> Writes:
    """By the engine of one of so many processes beside this one; weights have the learner's width."""
    from shunter.plan.writing import Writes

    at_once = -(-min(config.answers, config.how.at_once) // parts)
    device = (config.how.writers or [question.fabric.device.type])[0].partition(":")[0]
    element, cpu = question.practice.weights, device == "cpu"
    return Writes(
        at_once,
        config.how.block,
        config.how.cache,
        element,
        copies=cpu and element == 4,
        anew=config.staleness > 0 and config.how.swap == "tokens",
        device=device,
        rounded=not cpu and element == 4 and question.practice.compute == 2 and question.spec.experts is None,
    )


def _widest(shape: Shape) -> Shape:
    """As if all micro-batches were as the one with most tokens."""
    rows, width, targets = shape.widest
    parts = max(1, round(shape.batches / shape.steps))
    return replace(
        shape, steps=1, batches=parts, rows=parts * rows, tokens=parts * rows * width, targets=parts * targets
    )
