"""What learning from pairs took, beside what the planner's cost model says of such steps.

Rows of answers have lengths of their own, so the prediction is of the mean step: as many micro-batches, rows
and tokens, padding included, as this run's steps had, the head at the answers' tokens alone. The reference's
pass, made once before the steps, is a forward of as many tokens. Imports without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.jobs import machine
from shunter.jobs.questions import Trained
from shunter.models.spec import DecoderSpec
from shunter.recipe.job import JobContext
from shunter.train.config import Parallel, TrainHow

if TYPE_CHECKING:
    from shunter.post.spent import Shape


def account(
    context: JobContext[Any],
    spec: DecoderSpec,
    shape: Shape,
    parallel: Parallel | None = None,
    *,
    scores: bool = True,
) -> dict[str, Any]:
    """`account` among a job's metrics, as `jobs.account` has it for jobs on rows; on rank 0, or alone.

    shape: of this rank's steps. parallel: as it was settled. scores: the head is asked for words. There is no
    prediction, and why, of adapters, of a layout that the cost model does not know, and where nothing
    describes the machine.
    """
    try:
        return {"account": _held(context, spec, shape, parallel, scores=scores)}
    except ShunterError as error:
        return {"account": {"unpredicted": error.what}}


def _held(
    context: JobContext[Any], spec: DecoderSpec, shape: Shape, parallel: Parallel | None, *, scores: bool
) -> dict[str, Any]:
    from shunter.jobs import account as accounts
    from shunter.jobs.foretold import predicted
    from shunter.plan.plan import Plan

    config = context.config
    if getattr(config, "adapter", None) is not None:
        raise ShunterError("the cost model does not know adapters")
    if not shape.steps:
        raise ShunterError("this attempt made no step")
    grid = (parallel or Parallel.model_validate({})).grid
    found = machine.described(grid.size, config.how.device)
    if found is None:
        raise ShunterError("nothing describes this machine's devices; shunter probe measures them")
    cluster, basis = found
    asked = mean_step(config, spec, shape, parallel)
    share = shape.targets / max(shape.tokens, 1) if scores else 0.0
    question, prediction = predicted(asked, cluster, here=True, scored=share)
    plan = Plan.of(question, cluster, prediction)
    said: list[dict[str, float]] = []
    if parallel is not None and asked.how.parallel is not None:
        said = accounts.layout_says(plan, asked.how.parallel, config.train.optimizer)
    told = accounts.account(plan, context.log / "events.jsonl", 0, said)
    for name in ("plan", "advice"):  # lengths differ: nothing is fitted to it, and nobody chose by it
        told.pop(name, None)
    told |= {"basis": basis, "mean_step": _told(asked, share)}
    if shape.reference is not None:
        seconds, tokens = shape.reference
        passes = tokens / (asked.batch * asked.row)
        ahead = prediction.microbatches * sum(prediction.forward)
        told |= {"reference_seconds": seconds, "plan_reference_seconds": passes * ahead}
    return told


def mean_step(config: Any, spec: DecoderSpec, shape: Shape, parallel: Parallel | None) -> Trained:
    """The step on rows of one length that has as many micro-batches, rows and tokens as the mean of `shape`:
    of all data ranks, which have alike."""
    laid = parallel or Parallel.model_validate({})
    parts = max(1, round(shape.batches / shape.steps))
    rows = max(1, round(shape.rows / shape.steps / parts))
    grid = laid.grid
    multiple = (2 * grid.cp if grid.cp > 1 else 1) * (grid.tp if laid.sequence else 1)
    row = -(-round(shape.tokens / shape.steps / parts / rows) // multiple) * multiple
    batch = parts * rows * laid.data
    train = config.train.plain().model_copy(update={"batch_rows": batch})
    told = None if parallel is None else parallel.model_copy(update={"microbatches": parts})
    return Trained(spec, row, train, TrainHow(parallel=told, micro_batch=rows, device=config.how.device))


def _told(asked: Trained, share: float) -> dict[str, Any]:
    return {"rows": asked.batch, "row": asked.row, "micro_batch": asked.how.micro_batch, "scored": share}
