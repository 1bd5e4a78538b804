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
from shunter.layout.grid import Grid
from shunter.models.spec import DecoderSpec
from shunter.plan.calibrate import Run, coefficients_of, fit, save_coefficients
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.plan import DEGREES, Plan
from shunter.plan.practice import practice
from shunter.recipe import disk
from shunter.record import events

WARM = 1  # lines of the log that are not counted: kernels are chosen, memory is taken
DRIFT = 1.15  # measured over predicted, or the other way round, beyond which a plan has to be made anew
FITTED = ("products", "links")


def account(plan: Plan, log: Path) -> dict[str, Any]:
    """Predicted and measured, and what to do where they are far apart.

    Seconds of a step: from the median rate over the lines of the log but the first. Memory: of rank 0's
    process or device, at most, beside the fullest rank's prediction.
    """
    rows = events.read_metrics(log)
    rates = [float(row["train/tokens_per_second"]) for row in rows if "train/tokens_per_second" in row]
    memory = [float(row["train/memory_mib"]) for row in rows if "train/memory_mib" in row]
    found: dict[str, Any] = {"plan_step_seconds": plan.step_seconds}
    if rates:
        seconds = plan.batch * plan.sequence / statistics.median(rates[WARM:] or rates)
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
    found["plan"] = plan.data()
    return found


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
    question = Question(
        DecoderSpec.model_validate(plan.model),
        Fabric.of(plan.part_of(cluster)),
        plan.batch,
        plan.sequence,
        practice(plan.practice),
        coefficients_of(cluster),
    )
    grid = Grid(**{name: plan.layout[name] for name in DEGREES})
    choice = Choices.one(
        grid, plan.microbatch, plan.schedule, plan.layout["chunks"], plan.layout["recompute"]
    )
    return Run(folder.name, question, choice, float(told["step_seconds"]), tuple(plan.ranks))
