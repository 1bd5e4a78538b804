"""Named points that a run passes, where a fault can be injected.

A point costs one attribute load when nothing is installed. The injector (`shunter.launch.inject`)
installs a hook; the rooms only name where they are, so that no room knows about faults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Every point of the product with the moment it marks. The drills enumerate this table, and a test
# checks that each name is reached by some line of code and that no code reaches an unnamed point.
POINTS: dict[str, str] = {
    "run.begin": "a run's record is written, no job has started",
    "job.begin": "a job's attempt is recorded, its work has not started",
    "job.done": "a job's work is complete in its staging folder",
    "publish.manifest": "all files are fsynced, the manifest is not yet written",
    "publish.rename": "the manifest is written, the artefact is not yet visible",
    "publish.done": "the artefact is visible, its working folder still exists",
    "train.step": "an optimizer step is about to begin (directive: nan)",
    "train.update": "gradients are complete, the optimizer has not stepped",
    "checkpoint.reserve": "a staging folder for the checkpoint exists",
    "checkpoint.part": "a rank of several is about to write its part of a checkpoint",
    "checkpoint.shard": "a shard of the checkpoint is written (directive: truncate)",
    "checkpoint.manifest": "all shards are fsynced, the checkpoint's manifest is not yet written",
    "checkpoint.rename": "the checkpoint is complete, not yet visible",
    "checkpoint.prune": "the checkpoint is visible, older ones still exist",
}

Hook = Callable[[str, dict[str, Any]], str | None]
_hook: Hook | None = None


def install(hook: Hook | None) -> None:
    """Call `hook(point, facts)` at every point from now on; None removes it."""
    global _hook
    _hook = hook


def reach(point: str, **facts: Any) -> str | None:
    """Pass a named point. Returns a directive ("nan", "truncate") that the caller acts on, or None."""
    if _hook is None:
        return None
    return _hook(point, facts)
