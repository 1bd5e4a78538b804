"""`shunter plan`: which layout trains a model fastest on a cluster, and why the others lost."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shunter.config.errors import ShunterError

if TYPE_CHECKING:
    from shunter.jobs.ladder import Ladder


class Objective(StrEnum):
    """What is to be least."""

    time = "time"
    cost = "cost"
    memory = "memory"


def plan(
    context: typer.Context,
    cluster: Annotated[str, typer.Option(help="A cluster's file, or a shipped one, such as 16x8xH100.")],
    model: Annotated[
        str | None, typer.Option(help="A recipe, a config.json, or a published model's name.")
    ] = None,
    global_batch: Annotated[int | None, typer.Option(help="Rows of a step; default: the recipe's.")] = None,
    seq: Annotated[int | None, typer.Option(help="Tokens of a row; default: the recipe's.")] = None,
    budget_memory: Annotated[
        str | None, typer.Option(help="What each device may hold, such as 38GiB; default: all it has.")
    ] = None,
    objective: Annotated[Objective, typer.Option(help="What is to be least.")] = Objective.time,
    top: Annotated[int, typer.Option(min=1, max=32, help="Plans to show.")] = 5,
    fix: Annotated[str | None, typer.Option(help="Degrees that are given: tp=8,pp=4,microbatch=2.")] = None,
    why: Annotated[str | None, typer.Option(help="Say why a layout is not the best, as for --fix.")] = None,
    what_helps: Annotated[
        bool, typer.Option("--what-helps", help="Say which faster link, memory or batch would help most.")
    ] = False,
    tokens: Annotated[str | None, typer.Option(help="Show time and cost of so many tokens: 15T.")] = None,
    job: Annotated[
        str | None, typer.Option(help="Of a recipe: the job; default: the one that trains.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Instead of a model: which one, and how many tokens, in 12h or 3d.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="With --time: tokens that there are, such as 20B.")] = None,
    ladder: Annotated[
        Path | None,
        typer.Option(
            help="With --time: a recipe whose training is made with five tiny models here, to show what "
            "your own text says beside the published laws. Takes minutes; goes on after a kill."
        ),
    ] = None,
    ladder_tokens: Annotated[str, typer.Option(help="Tokens of the ladder's longest runs.")] = "1M",
    ladder_folder: Annotated[Path, typer.Option(help="Of the ladder's runs.")] = Path("shunter-ladder"),
    practice: Annotated[
        str | None,
        typer.Option(
            help="Whose program computes: shunter, torchtitan, megatron-2021; default: shunter, as the "
            "recipe's job has it."
        ),
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="A file of shunter calibrate.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="A file of `shunter probe --model`: what this model takes there.")
    ] = None,
    extrapolate: Annotated[
        bool,
        typer.Option("--extrapolate", help="Answer far beyond any step that was ever measured, too."),
    ] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the best plan here.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Find the best layout of a model on a cluster, by prediction."""
    from shunter.jobs import planning
    from shunter.jobs.ladder import climb
    from shunter.jobs.layouts import parse_bytes
    from shunter.jobs.questions import cited
    from shunter.plan import explain
    from shunter.plan.plan import Plan, answer
    from shunter.plan.search import search

    if (model is None) == (time is None):
        raise ShunterError("give either --model or --time", mend="`shunter plan --help` shows both.")
    if time is not None:
        _must_apply(context, WITH_TIME | (WITH_LADDER if ladder is not None else set()), "--time")
        climbed = None
        if ladder is not None:
            climbed = climb(
                ladder, job, planning.parse_tokens(ladder_tokens), ladder_folder,
                lambda line: typer.echo(line, err=True),
            )  # fmt: skip
        _afford(cluster, time, data, seq, practice, calibration, json_, climbed, extrapolate)
        return
    _must_apply(context, WITH_MODEL, "--model")
    assert model is not None
    fixed = explain.parse(fix) if fix else {}
    asked = planning.ask(
        model, cluster, global_batch, seq, practice_name=practice, calibration=calibration, profile=profile,
        job=job, extrapolate=extrapolate,
    )  # fmt: skip
    room = None
    if budget_memory is not None:
        room = planning.budget(asked.question, parse_bytes(budget_memory))
    budget = None if tokens is None else planning.parse_tokens(tokens)
    wanted = explain.parse(why) if why else {}
    found = search(asked.question, fixed=fixed, room=room, objective=objective.value, top=top)
    reason = explain.why(found, wanted) if why else None
    helped = explain.what_would_help(found) if what_helps else None
    if out is not None:
        Plan.of(found.question, asked.cluster, found.plans[0].prediction).save(out)
    if json_:
        told = answer(found, asked.cluster)
        told["flops"] = explain.operations(found.question, found.plans[0].prediction)
        told["notes"] = [*asked.notes, *cited(found.question)]
        if budget is not None:
            told["tokens"] = explain.budget(found, budget)
        if reason is not None:
            told["why"] = {"asked": reason.asked, "because": reason.sentence, "terms": reason.terms()}
            if reason.prediction is not None and reason.prediction.placed is not None:
                told["why"]["ranks"] = list(reason.prediction.placed.order)
        if helped is not None:
            told["would_help"] = [{"what": each.what, "times": each.times} for each in helped]
        typer.echo(json.dumps(told, indent=1))
        return
    from shunter.cli import plan_tables

    plan_tables.show(found, asked, budget)
    if reason is not None:
        plan_tables.show_reason(found, asked, reason)
    if helped is not None:
        plan_tables.show_help(helped)
    if out is not None:
        typer.echo(f"written: {out}")


COMMON = {"cluster", "seq", "practice", "calibration", "extrapolate", "json_", "context"}
WITH_TIME = COMMON | {"time", "data"}
WITH_LADDER = {"ladder", "ladder_tokens", "ladder_folder", "job"}
WITH_MODEL = COMMON | {
    "model", "global_batch", "budget_memory", "objective", "top", "fix", "why", "what_helps", "tokens", "job",
    "out",
}  # fmt: skip


def _must_apply(context: typer.Context, known: set[str], question: str) -> None:
    """Raise ShunterError for an option that the question does not look at: none is ignored."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in known:
            option = max(parameter.opts, key=len)
            raise ShunterError(f"{option} says nothing beside {question}", mend="Leave one of the two out.")


def _afford(
    cluster: str,
    time: str,
    data: str | None,
    seq: int | None,
    practice: str | None,
    calibration: Path | None,
    json_: bool,
    climbed: Ladder | None,
    extrapolate: bool,
) -> None:
    from dataclasses import asdict

    from shunter.jobs import planning
    from shunter.jobs.questions import cited
    from shunter.plan.afford import LAW, afford, parse_time

    seconds = parse_time(time)
    tokens = None if data is None else planning.parse_tokens(data)
    model, row, job = "llama-2-7b", seq or 2048, None
    if climbed is not None:  # its vocabulary and rows: losses of other tokens are other losses
        model, row, job = climbed.recipe, seq or climbed.row, climbed.job
    asked = planning.ask(
        model, cluster, 1, row, practice_name=practice, calibration=calibration, job=job,
        extrapolate=extrapolate,
    )  # fmt: skip
    found = afford(asked.question, seconds, tokens, None if climbed is None else climbed.own)
    if json_:
        rows = [{**asdict(each), "spec": each.spec.model_dump(mode="json")} for each in found]
        notes = [*asked.notes, *cited(asked.question)]
        told: dict[str, Any] = {"models": rows, "law": LAW, "notes": notes}
        told |= {} if climbed is None else {"ladder": climbed.told()}
        typer.echo(json.dumps(told, indent=1))
        return
    from shunter.cli import plan_tables

    if climbed is not None:
        plan_tables.show_ladder(climbed)
    plan_tables.show_affordable(found, asked, time, climbed)
