"""A plan held to account: what a run took beside what was predicted, and coefficients fitted to it.

Imports without torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec
from shunter.plan.anew import asked, own_of, strategies_of
from shunter.plan.calibrate import Run, coefficients_of, fit, save_coefficients
from shunter.plan.plan import Plan
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
    settled, bf16 = parallel.settled(plan.batch, plan.microbatch), plan.practice == "shunter"
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


def calibrate(folders: Sequence[Path], cluster_name: str, out: Path) -> Mapping[str, float]:
    """Fit coefficients to runs that had a plan, and write them for `shunter plan --calibration`.

    One run tells how fast products are; several tell about links too. folders: of the artefacts. Returns the
    coefficients. Raises ShunterError for an artefact without an account, and for a plan of another cluster.
    """
    cluster = files.find(cluster_name)
    runs = [_run(folder, cluster) for folder in folders]
    names = FITTED[: min(len(runs), len(FITTED))]
    source = f"fitted to {', '.join(str(folder) for folder in folders)}"
    found = fit(runs, names, coefficients_of(cluster), source)
    save_coefficients(found, names, cluster.devices[0].kind, out)
    return {name: found[name] for name in names}


def _run(folder: Path, cluster: Cluster) -> Run:
    manifest = disk.read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else None
    told = (manifest or {}).get("metrics", {}).get("account") if isinstance(manifest, dict) else None
    if not isinstance(told, dict) or "step_seconds" not in told:
        raise ShunterError(
            "this artefact has no account of a plan",
            where=str(folder),
            mend="Train with how.parallel: {plan: FILE}, a file of `shunter plan -o`.",
        )
    data = {key: value for key, value in told["plan"].items() if key not in ("format", "version")}
    plan = Plan(**data)
    plan.must_be_for(cluster=cluster)
    question, choice = asked(plan, cluster, coefficients_of(cluster))
    seconds, chosen = float(told["step_seconds"]), strategies_of(plan)
    return Run(folder.name, question, choice, seconds, tuple(plan.ranks), chosen, own_of(plan))
