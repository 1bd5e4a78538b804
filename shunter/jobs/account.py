"""A plan held to account: what a run took beside what was predicted, and coefficients fitted to it.

Imports without torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec
from shunter.plan import calibration
from shunter.plan.anew import asked, cluster_of, cut_of, ends_of, own_of, strategies_of
from shunter.plan.calibrate import Run, coefficients_of, fit
from shunter.plan.plan import Plan
from shunter.plan.practice import kernels, practice
from shunter.plan.probe import cache
from shunter.recipe import disk
from shunter.record import events
from shunter.train.config import Parallel

WARM = 1  # lines of the log that are not counted: kernels are chosen, memory is taken
DRIFT = 1.15  # measured over predicted, or the other way round, beyond which a plan has to be made anew
FITTED = ("products", "links")


def account(
    plan: Plan, log: Path, since: int = 0, held: Sequence[Mapping[str, float]] = ()
) -> dict[str, Any]:
    """Predicted and measured, and what to do where they are far apart.

    since: steps done when the plan began to hold. Seconds of a step: the median of the lines of the log after
    it, but the first. Memory: of rank 0's process or device, at most, beside the fullest rank's prediction.
    ranks: of each, its step's shares, most bytes alive, bytes sent, as watched in one step (see
    `shunter.train.recording`). held: of each rank, what `layout_says`.
    """
    rows = [row for row in events.read_metrics(log) if row["step"] > since or not since]
    memory = [float(row["train/memory_mib"]) for row in rows if "train/memory_mib" in row]
    found: dict[str, Any] = {"plan_step_seconds": plan.step_seconds}
    if times := _times(plan, rows):
        seconds = statistics.median(times[WARM:] or times)
        ratio = seconds / plan.step_seconds
        found |= {"step_seconds": seconds, "measured_over_predicted": ratio}
        if not 1 / DRIFT <= ratio <= DRIFT:
            found["advice"] = (
                f"the step takes {ratio:.2f} times what was predicted: fit the coefficients with shunter "
                "calibrate, and plan again"
            )
    found["plan_memory_bytes"] = max(plan.memory_bytes_by_stage)
    if memory:
        found["memory_bytes"] = max(memory) * 2**20
    found |= _by_rank(plan, log, since, held)
    found["plan"] = plan.data()
    return found


def _by_rank(plan: Plan, log: Path, since: int, held: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The last watched steps under the plan, rank by rank; empty where there are none."""
    seen = {
        event["event"]: event
        for event in events.read(log)
        if event["event"] in ("ranks", "memory", "traffic") and event.get("step", -1) >= since
    }
    if "ranks" not in seen:
        return {}
    ranks: list[dict[str, Any]] = [{"rank": n, **shares} for n, shares in enumerate(seen["ranks"]["ranks"])]
    for number, each in enumerate(ranks):
        if "memory" in seen:
            each["peak_bytes"] = seen["memory"]["peak_bytes"][number]
        if "traffic" in seen:
            sent = seen["traffic"]["ranks"][number]["sent"]
            each["sent_bytes"] = sum(size for _, size in sent.values())
        if held:
            each |= held[number]
    busiest = max(ranks, key=lambda each: float(each["compute"]))
    parts = {"compute": "compute", "communication": "communication", "waiting": "bubble"}
    found: dict[str, Any] = {"watched_step": seen["ranks"]["step"]}
    for name, planned in parts.items():
        found[f"{name}_seconds"] = busiest[name]
        found[f"plan_{name}_seconds"] = getattr(plan, f"{planned}_seconds")
    return found | {"ranks": ranks}


def layout_says(plan: Plan, parallel: Parallel, optimizer: str) -> list[dict[str, float]]:
    """Of each rank, bytes that it holds at most and that it sends in a step, counted tensor by tensor."""
    from shunter.train.layout_describe import describe
    from shunter.train.layout_parts import Plan as Laid

    spec = DecoderSpec.model_validate(plan.model)
    settled = parallel.settled(plan.batch, plan.microbatch)
    bf16 = practice(plan.practice).compute == 2
    layout = describe(Laid.make(spec, settled, plan.sequence, plan.batch, bf16=bf16), optimizer, {})
    return [
        {"plan_peak_bytes": rank.total, "plan_sent_bytes": sum(sent.values())}
        for rank, sent in zip(layout.ranks, layout.traffic, strict=True)
    ]


def _times(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of a step by line; from the rate in logs that do not tell them."""
    found = [float(row["train/step_seconds"]) for row in rows if "train/step_seconds" in row]
    if found:
        return found
    rates = [float(row["train/tokens_per_second"]) for row in rows if "train/tokens_per_second" in row]
    return [plan.batch * plan.sequence / rate for rate in rates if rate]


@dataclass(frozen=True)
class Calibrated:
    """kept: where `parallel: auto` and `shunter plan` find it too, of a machine that was measured."""

    coefficients: Mapping[str, float]
    practice: str
    kinds: tuple[str, ...]
    kept: Path | None = None


def calibrate(folders: Sequence[Path], cluster_name: str | None, out: Path) -> Calibrated:
    """Fit coefficients to runs, and write them for `shunter plan --calibration`.

    One run tells how fast products are; several tell about links too. folders: of the artefacts.
    cluster_name: by default what the first run's plan holds. Raises ShunterError for an artefact without an
    account, for a plan of another cluster, and for runs of several practices.
    """
    plans = [_planned(folder) for folder in folders]
    if cluster_name is None:
        cluster = cluster_of(plans[0][0])
    else:
        cluster = files.find(cluster_name)
    practised = plans[0][0].practice
    for folder, (plan, _) in zip(folders, plans, strict=True):
        if kernels(plan.practice) != kernels(practised):
            raise ShunterError(
                f"one run is of {practised}, another of {plan.practice}",
                where=str(folder),
                mend="Calibrate by runs of one practice at a time.",
            )
    runs = [
        _run(folder.name, plan, told, cluster) for folder, (plan, told) in zip(folders, plans, strict=True)
    ]
    names = FITTED[: min(len(runs), len(FITTED))]
    source = f"fitted to {', '.join(str(folder) for folder in folders)}"
    found = fit(runs, names, coefficients_of(cluster, practised=practised), source)
    made = calibration.made(found, names, cluster, practised)
    calibration.save(made, out)
    kept = None
    if cluster.description.measured is not None:
        kept = calibration.kept_at(cache(), cluster, practised)
        calibration.save(made, kept)
    return Calibrated({name: found[name] for name in names}, practised, tuple(made.kinds), kept)


def _planned(folder: Path) -> tuple[Plan, Mapping[str, Any]]:
    """The plan of an artefact's run, and its account."""
    manifest = disk.read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else None
    told = (manifest or {}).get("metrics", {}).get("account") if isinstance(manifest, dict) else None
    if not isinstance(told, dict) or "step_seconds" not in told or "plan" not in told:
        raise ShunterError(
            "this artefact has no account of a plan",
            where=str(folder),
            mend="Train with how.parallel: {plan: FILE}, a file of `shunter plan -o`.",
        )
    return Plan.of_data(told["plan"], str(folder / "manifest.json")), told


def _run(name: str, plan: Plan, told: Mapping[str, Any], cluster: Cluster) -> Run:
    plan.must_be_for(cluster=cluster)
    question, choice = asked(plan, cluster, coefficients_of(cluster, practised=plan.practice))
    seconds, chosen = float(told["step_seconds"]), strategies_of(plan)
    laid = tuple(plan.ranks), chosen, cut_of(plan), own_of(plan), ends_of(plan)
    return Run(name, question, choice, seconds, *laid)
