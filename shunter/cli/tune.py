"""`shunter tune RECIPE`: find the choices with which a job runs best, by trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def tune(
    recipe: Annotated[Path, typer.Argument(help="The recipe file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it that all trials share, such as fewer steps.")
    ] = None,
    job: Annotated[str, typer.Option(help="The job to run again and again.")] = "base",
    knob: Annotated[
        list[str] | None,
        typer.Option(help="A key and its values: jobs.base.how.parallel.pp=1,2. Repeatable."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="The number of the job's result to make large.")
    ] = "tokens_per_second",
    trials: Annotated[int, typer.Option(min=1, help="How many runs.")] = 20,
    start: Annotated[
        list[str] | None,
        typer.Option(help="A point to begin with: pp=2,tp=1. Repeatable. Default: the planner's best."),
    ] = None,
    unplanned: Annotated[
        bool, typer.Option("--unplanned", help="Begin by chance, not with the planner's best.")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(help="What the planner takes this machine for; default: what a probe finds."),
    ] = None,
    method: Annotated[Literal["bayes", "random"], typer.Option(help="How points are chosen.")] = "bayes",
    seed: Annotated[int, typer.Option(help="Another seed, another search.")] = 0,
    folder: Annotated[
        Path, typer.Option(help="For the store and the log of trials; the same command goes on from it.")
    ] = Path("shunter-tune"),
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Run a job with other choices each time, learn from what was found and from what failed."""
    from shunter.config.errors import ShunterError
    from shunter.jobs import tuning
    from shunter.plan.trials import Trial

    if unplanned and (start or cluster):
        raise ShunterError(
            f"--unplanned says nothing beside {'--start' if start else '--cluster'}", mend="Leave one out."
        )
    if start and cluster:
        raise ShunterError("--start and --cluster both say where to begin", mend="Leave one out.")
    knobs = tuning.read_knobs(knob or [])
    begin = [tuning.read_point(text, knobs) for text in start or []] if start or unplanned else None

    def told(trial: Trial) -> None:
        short = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in trial.point.items())
        outcome = f"failed: {trial.failed}" if trial.value is None else f"{trial.value:.4g}"
        typer.echo(f"{trial.number + 1:3}/{trials}  {short}  {outcome}", err=True)

    space, found = tuning.tune(
        recipe, overrides or [], job, knobs, metric=metric, trials=trials, store=folder / "store",
        log=folder / "trials.jsonl", seed=seed, method=method,
        start=begin, cluster=cluster, told=told, say=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    result = tuning.report(space, found)
    if json_:
        typer.echo(json.dumps(result, indent=1))
        return
    best = result["best"]
    typer.echo(f"{result['trials']} trials, {result['failures']} failed")
    if result["by_other_code"]:
        typer.echo(f"{result['by_other_code']} of them were made by other code than this")
    if best is None:
        typer.echo("none ran: every failure stands in the log")
    else:
        typer.echo(f"best {metric}: {best['value']:.4g}, trial {best['number'] + 1}:")
        typer.echo("  " + " ".join(f"{key}={json.dumps(value)}" for key, value in best["point"].items()))
    for name, it in result["importance"].items():
        typer.echo(f"  {name}: {it['share']:.2f} of the variance (95 %: {it['low']:.2f} to {it['high']:.2f})")
    if not result["importance"]:
        typer.echo("too few or too equal trials to say which knob matters")
