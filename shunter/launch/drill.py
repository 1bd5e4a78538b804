"""A drill: a recipe is run with faults, then to its end, and compared with an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.launch.inject import VARIABLE, Fault, Plan
from shunter.recipe.store import Store

Tell = Callable[[str], None]


@dataclass
class Outcome:
    """What came of a drill.

    attempts: how each attempt with a fault ended.  code: exit code of the last, undisturbed run.
    equal:    for each job whether its content is that of the uninterrupted run; empty without one.
    """

    attempts: list[dict[str, Any]] = field(default_factory=list)
    code: int = 0
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    equal: dict[str, bool] = field(default_factory=dict)

    @property
    def survived(self) -> bool:
        """The recipe ended well, and nothing differs."""
        return self.code == 0 and all(self.equal.values())


def drill(
    recipe: Path,
    overrides: Sequence[str],
    store: Path,
    faults: Sequence[Fault],
    *,
    seed: int = 0,
    compare: Path | None = None,
    tell: Tell = print,
) -> Outcome:
    """Run `recipe` once for each fault, then without any; each run continues the one before.

    compare: a store that holds the same recipe's artefacts, made without faults.
    Raises ShunterError when that store lacks a job's artefact.
    """
    outcome = Outcome()
    command = [
        sys.executable,
        "-m",
        "shunter.cli.main",
        "run",
        str(recipe),
        *overrides,
        "--store",
        str(store),
    ]
    for fault in faults:
        plan = Plan(seed=seed, faults=[fault, *follow_up(fault)])
        text = json.dumps(plan.model_dump(exclude_none=True))
        done = subprocess.run(
            command,
            env={**os.environ, VARIABLE: text},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        struck = f"injected {fault.kind} at {fault.point}" in done.stderr
        attempt = {
            "fault": fault.model_dump(exclude_none=True),
            "struck": struck,
            "ended": ended(done.returncode),
        }
        outcome.attempts.append(attempt)
        if not struck and done.returncode not in (0, -signal.SIGKILL):
            raise ShunterError(_refusal(done.stderr) or f"without a fault the run {ended(done.returncode)}")
        if not struck:
            tell(f"{describe(fault)}: not reached, the run {ended(done.returncode)}")
        else:
            tell(f"{describe(fault)}: the run {ended(done.returncode)}")
    tell("now without faults, to the end")
    last = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    outcome.code = last.returncode
    if last.returncode:
        tell(last.stderr.strip()[-400:])
        return outcome
    record = Store(store).run(recipe)
    for name, job in record.data["jobs"].items():
        artefact = Store(store).get(Store(store).path / "artefacts" / job["artefact"])
        attempts = artefact.manifest.attempts
        outcome.jobs[name] = {"state": job["state"], "content": artefact.content, "attempts": len(attempts)}
        if compare is not None and artefact.type != "report":  # a report tells when it was made
            other = Store(compare).find(name, artefact.id)
            if other is None:
                raise ShunterError(
                    f"{name} was not made there with this configuration",
                    where=str(compare),
                    mend="Run the same recipe in it first.",
                )
            outcome.equal[name] = other.content == artefact.content
    return outcome


def follow_up(fault: Fault) -> list[Fault]:
    """Nobody reads a checkpoint without need: one that was torn is looked at after a kill."""
    if fault.kind != "truncate":
        return []
    return [Fault(kind="kill", point="checkpoint.prune", step=fault.step, job=fault.job, hit=fault.hit)]


def _refusal(said: str) -> str:
    """The sentences with which a run was refused, without what `error:` adds; empty for a crash."""
    lines = said.splitlines()
    return "\n".join(line.removeprefix("error: ") for line in lines if line.startswith("error: "))


def describe(fault: Fault) -> str:
    """`kill at train.step, step 12`."""
    parts = [f"{fault.kind} at {fault.point}"]
    if fault.job is not None:
        parts.append(f"of {fault.job}")
    if fault.step is not None:
        parts.append(f"step {fault.step}")
    if fault.hit > 1:
        parts.append(f"passage {fault.hit}")
    if fault.probability < 1:
        parts.append(f"chance {fault.probability}")
    parts += [f"then {each.kind} at {each.point}" for each in follow_up(fault)]
    return ", ".join(parts)


def ended(code: int) -> str:
    """How a process ended, for people."""
    if code == 0:
        return "went on to its end"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
