"""Tables of `shunter plan`. Imported when they are printed: rich takes a moment to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from shunter.cli.tables import _print, _table
from shunter.jobs.ladder import Ladder
from shunter.jobs.planning import Asked
from shunter.jobs.questions import cited
from shunter.plan.afford import LAW, LAWS, Affordable
from shunter.plan.explain import Help, Reason, budget, operations
from shunter.plan.plan import Plan
from shunter.plan.search import Found
from shunter.recipe.disk import human
from shunter.recipe.progress import duration

DEGREES = ("pp", "dp", "fsdp", "cp", "tp", "ep", "etp")


def show(found: Found, asked: Asked, tokens: float | None = None) -> None:
    """The plans, best first, where the best one's memory goes, and what the numbers rest on."""
    question = found.question
    print(
        f"{_count(question.spec.num_parameters)} parameters, {question.batch} rows of {question.row} "
        f"tokens a step, {question.fabric.world} devices of {asked.cluster.name}\n"
    )
    plans = [Plan.of(question, asked.cluster, each.prediction) for each in found.plans]
    table = _table(
        "layout", "schedule", "micro-batch", "step", "compute", "messages", "waiting", "tokens/s a device",
        "MFU", "fullest rank", "why not",
    )  # fmt: skip
    for plan, each in zip(plans, found.plans, strict=True):
        degrees = _degrees(plan.layout)
        schedule = "" if plan.layout["pp"] == 1 else plan.schedule
        if plan.layout["chunks"] > 1:
            schedule += f" x{plan.layout['chunks']}"
        schedule += _recomputed(plan)
        seconds = (plan.step_seconds, plan.compute_seconds, plan.communication_seconds, plan.bubble_seconds)
        table.add_row(
            Text(
                "; or ".join([degrees, *(_degrees(same.choice.settings(0)) for same in each.also)])
                + _otherwise(plan)
            ),
            Text(schedule.strip()),
            Text(f"{plan.microbatch} x {plan.microbatches}"),
            *(Text(f"{value:.3g} s") for value in seconds),
            Text(f"{plan.tokens_per_second_per_device:,.0f}"),
            Text(f"{100 * plan.mfu:.1f} %"),
            Text(human(max(plan.memory_bytes_by_stage))),
            Text(each.lost_because or "the best"),
        )
    _print(table)
    best = plans[0]
    parts = sorted(best.memory_parts.items(), key=lambda item: -item[1])
    print(
        "\nthe best one's fullest rank: " + ", ".join(f"{name} {human(size)}" for name, size in parts if size)
    )
    flops = operations(question, found.plans[0].prediction)
    line = f"operations of its step: {flops['step']:.4g}"
    if flops["with_recomputation"] > flops["step"]:
        line += f", {flops['with_recomputation']:.4g} with what is computed again"
    print(line)
    stages = best.memory_bytes_by_stage
    if len(stages) > 1:
        shown = [human(size) for size in (stages if len(stages) <= 8 else [*stages[:4], *stages[-3:]])]
        print("memory by stage: " + ", ".join(shown))
        print("first layer of each stage but the first: " + ", ".join(map(str, best.layout["cut"])))
    for own in best.layout.get("layers") or ():
        print(f"layers {_numbers(own['of'])}: {_degrees({'pp': 1, **own})}")
    if ends := best.layout.get("ends"):
        print(f"embedding and head: {_degrees({'pp': 1, 'ep': 1, 'etp': 1, **ends})}")
    _placed(best)
    if tokens is not None:
        told = budget(found, tokens)
        line = f"{tokens:.3g} tokens: {told['steps']:,.0f} steps, {duration(told['seconds'] or 0.0)}"
        cost = told["cost"]
        line += f", {cost:,.0f} in the cluster's price" if cost else "; the cluster has no price"
        print(line)
    print(
        f"\n{found.considered:,} layouts considered, {found.rejected:,} do not fit; {found.seconds:.2f} s. "
        "Predicted, not measured."
    )
    for note in (*asked.notes, *cited(question)):
        print(f"note: {note}")


def _degrees(layout: Mapping[str, Any]) -> str:
    """`pp 2, tp 4`."""
    return ", ".join(f"{name} {layout[name]}" for name in DEGREES if layout[name] > 1) or "one device"


def _otherwise(plan: Plan) -> str:
    """How many layers have degrees of their own, and whether embedding and head have."""
    count = sum(len(each["of"]) for each in plan.layout.get("layers") or ())
    told = f"; {count} layers otherwise" if count else ""
    return told + ("; embedding and head otherwise" if plan.layout.get("ends") else "")


def _numbers(found: Sequence[int]) -> str:
    """`0-3, 7`."""
    runs: list[list[int]] = []
    for number in found:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _recomputed(plan: Plan) -> str:
    """What of the layers is not kept: `stage recomputed`, `9 layers recomputed, 3 put aside`."""
    layout = plan.layout
    if layout["recompute"] == "none":
        return ""
    if "again" not in layout:
        return f" {layout['recompute']} recomputed"
    told = [f"{len(layout['again'])} layers recomputed"] if layout["again"] else []
    told += [f"{len(layout['offload'])} layers put aside"] if layout["offload"] else []
    return " " + ", ".join(told) if told else ""


def _placed(plan: Plan) -> None:
    """Which devices each stage has, of what NICs, and what the order of the cluster's file would take."""
    if not plan.ranks:
        return
    names, stages = plan.placed["devices"], plan.layout["pp"]
    each = len(names) // stages
    print("devices of each stage, in the order of ranks:")
    for stage in range(stages):
        nics = " and ".join(plan.placed["nics"][stage]) or "none"
        print(f"  {stage}: {_runs(names[stage * each : (stage + 1) * each])} (NICs: {nics})")
    naive = plan.placed["naive_step_seconds"]
    if naive is None:
        line = "in the order of the cluster's file it does not fit"
    elif naive > plan.step_seconds * (1 + 1e-6):
        line = f"in the order of the cluster's file a step takes {naive:.3g} s"
    else:
        line = "the order of the cluster's file is as good"
    print(f"placed: {plan.placed['how']}; {line}")


def _runs(names: Sequence[str]) -> str:
    """`a.0/0-3 b.1/0`: neighbours of a node together."""
    found: list[list[str]] = []
    for name in names:
        node, _, place = name.rpartition("/")
        if found and found[-1][0] == node and int(found[-1][2]) + 1 == int(place):
            found[-1][2] = place
        else:
            found.append([node, place, place])
    return " ".join(f"{node}/{first}" + (f"-{last}" if last != first else "") for node, first, last in found)


def show_reason(found: Found, asked: Asked, reason: Reason) -> None:
    """Of a layout that was asked for, term by term."""
    names = ", ".join(f"{name}={value}" for name, value in reason.asked.items())
    print(f"\n{names}: {reason.sentence}")
    if not reason.terms():
        return
    table = _table("", "this layout", "the best")
    terms = {
        "seconds": "step", "compute": "compute", "communication": "messages", "bubble": "waiting",
        "fullest": "fullest rank",
    }  # fmt: skip
    for name, (here, best) in reason.terms().items():
        show_ = (lambda value: human(value)) if name == "fullest" else (lambda value: f"{value:.4g} s")
        table.add_row(Text(terms[name]), Text(show_(here)), Text(show_(best)))
    _print(table)
    if reason.prediction is not None and reason.prediction.placed is not None:
        _placed(Plan.of(found.question, asked.cluster, reason.prediction))


def show_help(helped: Sequence[Help]) -> None:
    """What would make it faster, most helpful first."""
    print("\nwhat would help (tokens a second, the layout chosen anew):")
    for each in helped:
        print(f"  {each.what}: {100 * (each.times - 1):+.1f} %")


def _count(number: float) -> str:
    """6.74B, 2.1M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def show_ladder(ladder: Ladder) -> None:
    """Small runs on one's own text, beside what published laws say of their sizes."""
    print(f"a ladder of small runs of {ladder.job} ({ladder.recipe}) on this machine, measured:\n")
    table = _table(
        "parameters", "layers", "width", "tokens", "epochs", "step", "predicted", "held-out loss",
        *(f"loss by {law}" for law in LAWS),
    )  # fmt: skip
    for each in ladder.rungs:
        seconds = (f"{value:.3g} s" if value else "" for value in (each.seconds, each.predicted))
        table.add_row(
            Text(_count(each.parameters)),
            Text(str(each.layers)),
            Text(str(each.dim)),
            Text(_count(each.tokens)),
            Text(f"{each.epochs:.2f}"),
            *map(Text, seconds),
            Text(f"{each.loss:.3f}"),
            *(Text(f"{each.law[law]:.3f}") for law in LAWS),
        )
    _print(table)
    own = ladder.own
    print(
        f"\ntheir line: {own.level:.3f} + {own.size:.4g} / parameters^{own.exponents[0]:g} + {own.data:.4g} "
        f"/ tokens^{own.exponents[1]:g} nats a token, off by {own.error:.3f} in the root of the mean square; "
        f"the exponents are those of {LAW}\n"
    )


def show_affordable(
    found: Sequence[Affordable], asked: Asked, time: str, ladder: Ladder | None = None
) -> None:
    """Models that can be trained in a time, the one of least expected loss first."""
    print(f"in {time} on {asked.question.fabric.world} devices of {asked.cluster.name}:\n")
    table = _table(
        "parameters", "layers", "width", "tokens", "tokens a parameter", "epochs", "steps", "rows a step",
        "step", "layout", *(f"loss by {law}" for law in LAWS), *(["by your ladder"] if ladder else []),
    )  # fmt: skip
    for each in found:
        parameters = each.spec.num_parameters
        table.add_row(
            Text(_count(parameters)),
            Text(str(each.spec.num_layers)),
            Text(str(each.spec.dim)),
            Text(_count(each.tokens)),
            Text(f"{each.tokens / parameters:.1f}"),
            Text("" if each.epochs is None else f"{each.epochs:.2f}"),
            Text(f"{each.steps:,}"),
            Text(f"{each.batch:,}"),
            Text(f"{each.step_seconds:.3g} s"),
            Text(each.layout),
            *(Text(f"{each.losses[law]:.3f}") for law in LAWS),
            *([Text("{:.2f} ({:.2f} to {:.2f})".format(*each.own))] if each.own else []),
        )
    _print(table)
    print(
        f"\nin order of {LAW}. Losses in nats a token on the laws' own text: they order sizes, and say "
        "little about the level on other text."
    )
    if ladder is None:
        print("Nothing is measured: --ladder RECIPE makes five small runs on your own text.")
    else:
        size, tokens = (
            max(getattr(each, name) for each in ladder.rungs) for name in ("parameters", "tokens")
        )
        print(
            f"By your ladder: its line carried on to {found[0].spec.num_parameters / size:,.0f} times the "
            f"parameters and {found[0].tokens / tokens:,.0f} times the tokens of its largest run, and in "
            "brackets what it is with any one run left out: it tells the level of your text at the ladder's "
            "sizes, and little so far beyond them."
        )
    for note in asked.notes:
        print(f"note: {note}")
