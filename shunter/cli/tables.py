"""Tables of several verbs. Imported when a table is printed: rich takes a moment to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shunter.recipe.disk import human
from shunter.recipe.doctor import FAIL, OK, WARN, Row
from shunter.recipe.progress import duration
from shunter.recipe.runs import RunRecord

if TYPE_CHECKING:
    from shunter.launch.ssh import Ended

STYLES = {
    "done": "green",
    "reused": "green",
    "running": "cyan",
    "failed": "red",
    "killed": "red",
    "removed": "red",
    "stopped": "yellow",
    OK: "green",
    WARN: "yellow",
    FAIL: "red",
}


def show_runs(runs: Sequence[RunRecord]) -> None:
    """One line a run, oldest first."""
    table = _table("run", "recipe", "state", "began (UTC)", "took")
    for run in runs:
        took = run.data.get("seconds")
        began = str(run.data.get("begin", ""))[:19].replace("T", " ")
        table.add_row(
            Text(run.id),
            Text(run.name),
            _state(run.state),
            Text(began),
            Text(duration(float(took)) if took is not None else ""),
        )
    _print(table)


def show_jobs(run: Mapping[str, Any]) -> None:
    """One line a job of one run, with notes below: errors, other code."""
    print(f"\n{run['run']}: {run['state']}")
    table = _table("job", "kind", "state", "took", "peak memory", "size", "attempts", "artefact")
    for job in run["jobs"]:
        table.add_row(
            Text(job["name"]),
            Text(str(job["kind"])),
            _state(job["state"]),
            Text(duration(job["seconds"]) if job["seconds"] is not None else ""),
            Text(human(job["peak_bytes"]) if job["peak_bytes"] else ""),
            Text(human(job["bytes"]) if job["bytes"] is not None else ""),
            Text(str(job["attempts"] or "")),
            Text((job["artefact"] or "") + (" *" if job["other_code"] else "")),
        )
    _print(table)
    for job in run["jobs"]:
        if job["error"]:
            print(f"{job['name']}: {job['error']}")
    if any(job["other_code"] for job in run["jobs"]):
        print("* made by other code than this; shunter run --redo JOB makes it again")


def show_checks(rows: Sequence[Row]) -> None:
    """One line a check."""
    table = _table("check", "", "")
    for row in rows:
        table.add_row(Text(row.name), _state(row.state), Text(row.text))
    _print(table)


def show_comparison(found: Mapping[str, Any]) -> None:
    """What differs, job by job; metrics side by side; paired statistics."""
    a, b = found["a"], found["b"]
    print(f"a: {a}\nb: {b}")
    for job in found["jobs"]:
        if job["same"]:
            how = _changes(job["how"])
            print(f"\n{job['name']}: the same content" + (f", made another way: {how}" if how else ""))
            continue
        if len(job["in"]) < 2:
            print(f"\n{job['name']}: only in {job['in'][0]}")
            continue
        print(f"\n{job['name']}:")
        for half in ("what", "how"):
            if job[half]:
                print(f"  {half}: {_changes(job[half])}")
        if job.get("unfinished"):
            print(f"  not finished in {' and '.join(job['unfinished'])}")
            continue
        for word, names in (("other inputs", job["inputs"]), ("other files", job["reads"])):
            if names:
                print(f"  {word}: {', '.join(names)}")
        if not job["code"]:
            print("  made by different code")
        if job["metrics"]:
            table = _table("  metric", "a", "b", "b - a")
            for name, (left, right) in job["metrics"].items():
                numbers = [type(value) in (int, float) for value in (left, right)]
                change = f"{right - left:+.4g}" if all(numbers) else ""
                table.add_row(Text(f"  {name}"), Text(_value(left)), Text(_value(right)), Text(change))
            _print(table)
    if found["scores"]:
        print("\npaired, b against a on the same items:")
        keys = list(dict.fromkeys(key for row in found["scores"] for key in row))
        table = _table(*keys)
        for row in found["scores"]:
            table.add_row(*(Text(_value(row.get(key))) for key in keys))
        _print(table)


def _changes(changes: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key} {_value(old)} -> {_value(new)}" for key, (old, new) in changes.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _state(state: str) -> Text:
    return Text(state, style=STYLES.get(state, ""))


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, header_style="bold", pad_edge=False)


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        # A pipe or a file has no width: nothing is cut off for it.
        console = Console(width=1000)
    console.print(table)


def show_tables(tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]) -> None:
    """Tables by title, head and rows, as a report has them."""
    for number, (title, head, rows) in enumerate(tables):
        print(f"{title}:" if not number else f"\n{title}:")
        table = _table(*head)
        for row in rows:
            table.add_row(*map(Text, row))
        _print(table)


def show_schedules(ranks: int, microbatches: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a schedule; one that cannot be says why."""
    print(
        f"{ranks} ranks, {microbatches} micro-batches; times in forwards of a rank, memory in micro-batches"
    )
    table = _table("schedule", "stages a rank", "elapsed", "idle/ideal", "span", "memory", "what it does")
    for row in rows:
        if "refused" in row:
            table.add_row(
                Text(row["schedule"]), "", "", "", "", "", Text(f"not here: {row['refused']}", "yellow")
            )
            continue
        table.add_row(
            Text(row["schedule"]),
            Text(str(row["chunks"])),
            Text(f"{row['elapsed']:g}"),
            Text(f"{row['idle_over_ideal']:.1%}"),
            Text(f"{row['longest_span']:g}"),
            Text(f"{row['peak_activations']:g}"),
            Text(row["about"]),
        )
    _print(table)


def show_hosts(ended: Sequence[Ended]) -> None:
    """One line a host of a launch: how it ended, and where its output stands."""
    table = _table("host", "ended", "took", "output")
    for each in ended:
        style = "green" if each.code == 0 else "yellow" if each.told == "stopped" else "red"
        table.add_row(
            Text(each.host), Text(each.told, style), Text(duration(each.seconds)), Text(str(each.log))
        )
    _print(table)
