"""`shunter reproduce`: run a paper's arms as jobs, apply its claims, say plainly what holds."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.papers import catalogue
from shunter.papers.experiment import Experiment, Killed, Samples
from shunter.papers.statistics import MIN_SEEDS, Verdict, judge
from shunter.recipe.artefact import Artefact
from shunter.recipe.graph import Graph

if TYPE_CHECKING:
    from shunter.recipe.store import Store

ARM, NUMBER = "arm, mean over seeds", 9  # the first column of a table; the signs that a number takes
DEFAULT_STORE = "shunter-store"


def parse_seeds(text: str) -> list[int] | None:
    """`"0,1,2"` as numbers; None for an empty text."""
    if not text:
        return None
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        sentence = f"--seeds {text!r} is not a list of numbers"
        raise ShunterError(sentence, mend="Write --seeds 0,1,2.") from None
    if len(set(seeds)) < MIN_SEEDS or min(seeds) < 0:
        raise ShunterError(
            f"a claim needs at least {MIN_SEEDS} different seeds, none negative", mend="Write --seeds 0,1,2."
        )
    return seeds


def load_experiment(slug: str) -> Experiment:
    """The paper's module is `shunter.papers.<slug with underscores>`, its attribute EXPERIMENT."""
    paper = catalogue.find(slug)
    if paper.state == "missing":
        raise ShunterError(
            f"{slug} has no experiment yet",
            mend="`shunter papers --state partial` and `works` list those with one.",
        )
    module = importlib.import_module(f"shunter.papers.{slug.replace('-', '_').replace('.', '_')}")
    experiment: Experiment = module.EXPERIMENT
    return experiment


def reproduce(
    slug: str, *, seeds: Sequence[int] | None, store: Path, short: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Run every arm of the paper's experiment once a seed and apply its claims.

    Finished jobs are taken from the store, so a killed experiment continues. The result is plain
    JSON: slug, claim, baseline, ours, ratio, interval, seeds, unit, holds (of all claims together;
    the first five describe the headline claim), claims, table (metric, arm, one value a seed),
    seconds (of work in all jobs, also in those found in the store), short, notes, made (commit, date,
    machine).
    """
    experiment = load_experiment(slug)
    seeds = list(seeds if seeds is not None else experiment.seeds)
    work: dict[int, float] = {}  # of each artefact, made now or found in the store
    samples = {seed: _run_seed(experiment, seed, store, short, quiet, work) for seed in seeds}
    return conclude(experiment, samples, seconds=sum(work.values()), short=short)


def conclude(
    experiment: Experiment, samples: Mapping[int, Mapping[str, Samples]], *, seconds: float, short: bool
) -> dict[str, Any]:
    """Apply the claims of claims.toml to the samples: {seed: {arm: {metric: value}}}."""
    entry = catalogue.read_toml("claims.toml")[experiment.slug]
    verdicts: list[dict[str, Any]] = []
    for claim in entry["claims"]:
        baseline, ours = (
            [by_arm[claim[arm]][claim["metric"]] for by_arm in samples.values()]
            for arm in ("baseline", "ours")
        )
        verdict: Verdict = judge(claim["rule"], baseline, ours, threshold=claim.get("threshold", 0.0))
        verdicts.append(
            {
                **{key: claim[key] for key in ("name", "metric", "unit")},
                "arms": [claim["baseline"], claim["ours"]],
                **dataclasses.asdict(verdict),
            }
        )
    from shunter.recipe.attempt import code_record, environment_record

    head = verdicts[0]
    result = {
        "slug": experiment.slug,
        "claim": entry["claim"],
        **{key: head[key] for key in ("baseline", "ours", "ratio", "interval", "unit")},
        "seeds": list(samples),
        "holds": all(verdict["holds"] for verdict in verdicts),
        "claims": verdicts,
        "table": _table(experiment, samples),
        "seconds": round(seconds, 1),
        "short": short,
        "notes": list(experiment.notes({verdict["name"]: verdict for verdict in verdicts})),
        "made": {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "code": code_record(),
            "machine": environment_record(),
        },
    }
    return _finite(result)


def record(result: Mapping[str, Any]) -> Path:
    """Keep a result as the paper's recorded one; `shunter papers` computes the state from it."""
    catalogue.RESULTS.mkdir(exist_ok=True)
    path = catalogue.RESULTS / f"{result['slug']}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def show(result: Mapping[str, Any]) -> None:
    """Print the claim, the table with the baseline beside ours, and the verdicts."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    console.print(f"[bold]{result['slug']}[/bold]: {result['claim']}\n")
    metrics = {row["metric"]: row["unit"] for row in result["table"]}
    means = {(row["arm"], row["metric"]): row["mean"] for row in result["table"]}
    for arms, measured in _alike(result["table"]):
        room = console.width - max(len(arm) for arm in (*arms, ARM)) - 2
        most = max(1, room // (NUMBER + 2))  # columns that can be read side by side
        for begin in range(0, len(measured), most):
            some = measured[begin : begin + most]
            columns = [Column(metric.replace("_", " "), min_width=NUMBER, overflow="fold") for metric in some]
            table = Table(Column(ARM, no_wrap=True), *columns, box=None, header_style="bold")
            for arm in arms:
                cells = [means.get((arm, metric)) for metric in some]
                if any(cell is not None for cell in cells):
                    table.add_row(arm, *("" if cell is None else f"{cell:.4g}" for cell in cells))
            console.print(table)
            console.print()
    for metric, unit in metrics.items():
        console.print(f"  {metric.replace('_', ' ')}: {unit}", style="dim", highlight=False)
    verdicts = Table("claim", "holds", "baseline", "ours", "why", box=None, header_style="bold")
    for verdict in result["claims"]:
        mark = "[green]yes[/green]" if verdict["holds"] else "[red]no[/red]"
        base, ours = (f"{verdict[key]:.4g}" for key in ("baseline", "ours"))
        verdicts.add_row(verdict["name"], mark, base, ours, verdict["reason"])
    console.print()
    console.print(verdicts)
    for note in result["notes"]:
        console.print(f"- {note}", markup=False)
    ending = "holds" if result["holds"] else "does not hold"
    caveat = " (short form: this proves the machinery, not the claim)" if result["short"] else ""
    console.print(f"\nThe claim {ending} over seeds {result['seeds']}, {result['seconds']} s{caveat}.")


def _alike(table: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], list[str]]]:
    """Arms that have metrics in common, in one way or another, with all metrics of theirs: where arms measure
    different things, one table of all would be mostly empty, and too wide to read."""
    found: list[tuple[list[str], list[str]]] = []
    for row in table:
        mine = [each for each in found if row["arm"] in each[0] or row["metric"] in each[1]]
        arms, metrics = ([name for each in mine for name in each[i]] for i in (0, 1))
        joined = (list(dict.fromkeys([*arms, row["arm"]])), list(dict.fromkeys([*metrics, row["metric"]])))
        at = found.index(mine[0]) if mine else len(found)
        found = [each for each in found if each not in mine]
        found.insert(at, joined)
    return found


def _run_seed(
    experiment: Experiment, seed: int, store: Path, short: bool, quiet: bool, work: dict[int, float]
) -> dict[str, Samples]:
    from shunter.jobs.registry import KINDS
    from shunter.recipe.graph import load_recipe
    from shunter.recipe.runner import run_graph
    from shunter.recipe.store import Store

    runs: dict[str, dict[str, Artefact]] = {}
    for arm, overrides in experiment.arms(seed, short).items():
        if not quiet:
            print(f"{experiment.slug}: arm {arm}, seed {seed}", flush=True)
        chosen = [f"seed={seed}", *overrides]
        graph = load_recipe(experiment.recipes.get(arm, experiment.recipe), chosen, KINDS)
        # `how` is no part of an artefact's identity: such an arm would be taken for another one.
        place = store / "apart" / arm if arm in experiment.apart else store
        if (before := experiment.killed.get(arm)) is not None:
            recipe = experiment.recipes.get(arm, experiment.recipe)
            _until_killed(load_recipe(recipe, [*chosen, *before.overrides], KINDS), place, before, quiet)
        if place != store:
            share(graph, Store(store), Store(place))
        runs[arm] = run_graph(graph, Store(place), quiet=quiet)
        for artefact in runs[arm].values():
            attempts = artefact.manifest.attempts
            # By the file: a linked artefact is the one that it is linked to.
            work[(artefact.path / "manifest.json").stat().st_ino] = sum(
                float(attempt.get("seconds") or 0) for attempt in attempts
            )
    return {arm: dict(values) for arm, values in experiment.measure(runs).items()}


def share(graph: Graph, source: Store, place: Store) -> None:
    """Give an arm's own store what the common one has of jobs that are computed alike there, as hard links:
    corpora and rows need not be made once more for each arm."""
    from shunter.recipe import identity
    from shunter.recipe.store import Damaged

    place.create()
    alike: set[str] = set()
    for name, node in graph.nodes.items():
        folders = [folder for folder, owner, _, _ in source.folders() if owner == name]
        try:
            made = [source.load(folder) for folder in folders]
        except Damaged:
            continue
        same = all(each.manifest.how == identity.how(node.config) for each in made)
        if not made or not same or not set(node.upstream) <= alike:
            continue
        alike.add(name)
        for each in made:
            there = place.artefacts / each.path.name
            if there.exists():
                continue
            aside = place.work / f"{each.path.name}.linked"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(each.path, aside, copy_function=os.link)
            aside.rename(there)


def _until_killed(graph: Graph, place: Path, before: Killed, quiet: bool) -> None:
    """Run until the fault ends it; nothing where the arm is finished already."""
    from shunter.launch.inject import VARIABLE
    from shunter.recipe.runner import run_graph
    from shunter.recipe.store import Store

    os.environ[VARIABLE] = json.dumps({"faults": [dict(before.fault)]})
    try:
        run_graph(graph, Store(place), quiet=quiet)
    except ShunterError as error:
        if "was ended by" not in str(error):
            raise
    finally:
        del os.environ[VARIABLE]


def _table(experiment: Experiment, samples: Mapping[int, Mapping[str, Samples]]) -> list[dict[str, Any]]:
    rows = []
    arms = list(next(iter(samples.values())))
    for metric, unit in experiment.table.items():
        for arm in arms:
            values = [by_arm[arm][metric] for by_arm in samples.values() if metric in by_arm[arm]]
            if values:
                mean = sum(values) / len(values)
                rows.append({"metric": metric, "unit": unit, "arm": arm, "mean": mean, "values": values})
    return rows


def _finite(value: Any) -> Any:
    """JSON has no nan or infinity: they become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
