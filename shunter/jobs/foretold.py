"""What a layout that was written by hand is predicted to take, so that every run stands beside a prediction.

Nothing is measured for it: the machine is what an earlier probe found, or what ships for its devices. Imports
without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.jobs import machine
from shunter.jobs.questions import Trained, question
from shunter.layout.grid import Grid
from shunter.models.families import from_config
from shunter.models.spec import DecoderShape, DecoderSpec
from shunter.post.config import PostTrain
from shunter.recipe import disk
from shunter.recipe.job import JobContext
from shunter.train.config import Parallel, TrainConfig, TrainHow

if TYPE_CHECKING:
    from shunter.cluster.cluster import Cluster
    from shunter.plan.choices import Question
    from shunter.plan.plan import Plan
    from shunter.plan.score import Prediction


@dataclass(frozen=True)
class Foretold:
    """plan: with the layout as it is. basis: what describes the machine. why: there is no prediction."""

    plan: Plan | None
    basis: str = ""
    why: str = ""


def foretell(asked: Trained, cluster: Cluster, *, here: bool = False) -> Plan:
    """The job's own layout as a plan. Raises ShunterError for what the cost model does not know, such as a
    schedule of one's own, and for what cannot be."""
    from shunter.plan.plan import Plan

    it, found = predicted(asked, cluster, here=here)
    return Plan.of(it, cluster, found)


def predicted(
    asked: Trained, cluster: Cluster, *, here: bool = False, scored: float = 1.0
) -> tuple[Question, Prediction]:
    """The same with all of its parts. scored: see `Question`."""
    from shunter.plan.calibrate import Run
    from shunter.plan.choices import SCHEDULES, Choices
    from shunter.plan.practice import practice
    from shunter.plan.score import predict
    from shunter.plan.strategies import AGAIN, ASIDE, KEEP
    from shunter.train.layout_parts import Plan as Laid

    written = asked.how.parallel or Parallel.model_validate({})
    parallel = written.settled(asked.batch, asked.how.micro_batch)
    _must_be_known(parallel, SCHEDULES)
    name = asked.practice(cluster, here=here)
    name += "" if parallel.zero else "+unshared"
    name += "+thin" if parallel.gather == "bf16" else ""
    it = replace(question(asked.spec, cluster, asked.batch, asked.row, name), scored=scored)
    if it.fabric.world != parallel.grid.size:
        raise ShunterError(
            f"the layout is of {parallel.grid.size} ranks, {cluster.name} of {it.fabric.world}"
        )
    laid = Laid.make(asked.spec, parallel, asked.row, asked.batch, bf16=practice(name).compute == 2)
    layers, kept = asked.spec.num_layers, "none"
    again, aside = set(parallel.again(layers)), set(parallel.aside(layers))
    if parallel.recompute is True:
        kept, again = "stage", set(range(layers))
    elif parallel.recompute == "selective" and not aside:
        kept = "selective"
    elif again or aside:
        kept = "layer"
    schedule = parallel.schedule if parallel.pp > 1 else "1f1b"

    def laid_out(grid: Grid) -> Choices:
        rows = laid.rows * parallel.data // (grid.dp * grid.fsdp)
        return Choices.one(grid, max(rows, 1), schedule, laid.order.stages // parallel.pp, kept)

    choice = laid_out(parallel.grid)
    own = {number: laid_out(grid) for number, grid in parallel.own_grids().items()}
    chosen = [AGAIN if n in again else ASIDE if n in aside else KEEP for n in range(layers)]
    ends = None if parallel.ends_grid is None else laid_out(parallel.ends_grid)
    strategies = chosen if kept == "layer" or own or ends is not None else None
    if it.fabric.terrain is not None:
        order = tuple(parallel.ranks or range(parallel.grid.size))
        run = Run(cluster.name, it, choice, 1.0, order, strategies, laid.bounds, own, ends)
        found = run.prediction(it.coefficients)
    else:
        found = predict(it, choice, strategies=strategies, cut=laid.bounds, own=own, ends=ends)
    return it, found


def _must_be_known(parallel: Parallel, schedules: tuple[str, ...]) -> None:
    what = None
    if parallel.program is not None:
        what = "a program of one's own"
    elif parallel.vocabulary is not None:
        what = "embedding and head over all ranks"
    elif parallel.own_grids() and parallel.recompute not in (False, None):
        what = "layers with degrees of their own beside recomputation"
    elif parallel.cut == "measured":
        what = "a cut that is measured when the run begins"
    elif parallel.cp > 1 and parallel.attention != "ring":
        what = f"attention {parallel.attention}"
    elif parallel.pp > 1 and parallel.schedule not in schedules:
        what = f"the schedule {parallel.schedule}"
    if what is not None:
        raise ShunterError(f"the cost model does not know {what}")


def of_run(context: JobContext[Any]) -> Foretold | None:
    """Of a training that is about to begin. Of one by a plan's file there is none: the plan tells. None of
    jobs that know their rows when they are done alone (`pairs_account`).

    Its why tells where there is no prediction, which is no reason not to train.
    """
    config = context.config
    if isinstance(getattr(config, "train", None), PostTrain):
        return None
    train, how = getattr(config, "train", None), getattr(config, "how", None)
    if not isinstance(train, TrainConfig) or not isinstance(how, TrainHow):
        return Foretold(None, why="the job does not train on rows")
    if getattr(config, "adapter", None) is not None:
        return Foretold(None, why="the cost model does not know adapters")
    parallel = how.parallel.located(context.base) if how.parallel is not None else None
    ranks = 1 if parallel is None else parallel.grid.size
    try:
        found = machine.described(ranks, how.device)
        if found is None:
            devices = "this machine's devices" if ranks == 1 else f"{ranks} devices of this machine"
            return Foretold(None, why=f"nothing describes {devices}; shunter probe measures them")
        cluster, basis = found
        spec, row = _model(context)
        asked = Trained(spec, row, train, how.model_copy(update={"parallel": parallel}))
        return Foretold(foretell(asked, cluster, here=True), basis)
    except ShunterError as error:
        return Foretold(None, why=error.what)


def _model(context: JobContext[Any]) -> tuple[DecoderSpec, int]:
    """What the job's inputs tell: nothing is guessed any more."""
    from shunter.data.tokens import TokenRows

    rows = TokenRows(context.one("tokens").path / "train")
    shape = getattr(context.config, "model", None)
    if isinstance(shape, DecoderShape):
        spec = DecoderSpec(**shape.model_dump(), vocab_size=rows.vocab_size, max_positions=rows.row_length)
        return spec, rows.row_length
    field = "init" if "init" in context.inputs else "model"
    file = Path(context.one(field).path) / "config.json"
    return from_config(disk.read_json(file) or {}, str(file)), rows.row_length


def account(context: JobContext[Any], found: Foretold, parallel: Parallel | None = None) -> dict[str, Any]:
    """What of a run without a plan's file stands beside its prediction: as `jobs.account.account`."""
    from shunter.jobs.account import account as held_to
    from shunter.jobs.account import layout_says

    if found.plan is None:
        return {"account": {"unpredicted": found.why}}
    said: list[dict[str, float]] = []
    if parallel is not None:
        said = layout_says(found.plan, parallel, context.config.train.optimizer)
    told = held_to(found.plan, context.log / "events.jsonl", 0, said)
    told.pop("advice", None)  # nobody chose the layout by this prediction
    return {"account": {**told, "basis": found.basis}}
