"""A job that is laid out by a plan: watched while it trains, and planned anew where steps drift away from it.

The process that started the ranks decides; they only save, stop and are started again. Where a job was
killed after a change, it goes on under the plan that it had come to. Imports without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.jobs import foretold
from shunter.jobs.drift import SAID, Drift, Drifted
from shunter.jobs.foretold import Foretold
from shunter.recipe import disk
from shunter.recipe.job import JobContext
from shunter.record.events import EventLog
from shunter.train.config import Parallel

if TYPE_CHECKING:
    from shunter.plan.anew import Measured
    from shunter.plan.plan import Plan

MOST = 64  # ranks that are watched one by one
ALIKE = 1.25  # a watched step that took as much longer, or shorter, tells nothing about those that drifted
STATE = "replanned.json"  # in the job's work folder, which survives a kill


class Course:
    """The layout that a job's ranks have, what it was planned to take, and how it has changed.

    given: as the recipe has it. parallel: with what its plan says. changes: what `account` tells of each.
    """

    def __init__(self, context: JobContext[Any], given: Parallel, parallel: Parallel) -> None:
        self.context, self.given, self.parallel = context, given, parallel
        self.since, self.changes = 0, list[dict[str, Any]]()
        self.plan: Plan | None = None
        self._next: tuple[Plan, Path] | None = None
        self._saved = 0
        self._shares: list[dict[str, float]] = []
        self._foretold: Foretold | None = None
        if parallel.plan is None:
            self._foretold = foretold.of_run(context)
            return
        from shunter.plan.plan import Plan  # with numpy, which no command needs to start

        # Without a listener: whoever follows the log shows its lines.
        self._log = EventLog(context.events.path, attempt=context.events.attempt)
        self._mark = hashlib.sha256(Path(parallel.plan).read_bytes()).hexdigest()
        self.plan = Plan.load(Path(parallel.plan))
        self._restore()
        self._drift = Drift(self.plan.step_seconds, given.replan or SAID)

    def see(self, event: Mapping[str, Any]) -> bool:
        """One event of rank 0. True where its ranks shall save and stop, since there is a better layout."""
        if event.get("event") == "saved":
            self._saved = int(event["step"])
        if self.plan is None or self._next is not None:
            return False
        if event.get("event") == "ranks":
            self._shares = event["ranks"]
        found = self._drift.see(event)
        if found is None:
            return False
        self._log.write(
            "drift",
            step=found.step,
            measured=round(found.seconds, 6),
            predicted=round(self.plan.step_seconds, 6),
            ratio=round(found.ratio, 3),
        )
        if self.given.replan is None or len(self.changes) >= self.given.replans:
            return False
        try:
            return self._plan_anew(found)
        except ShunterError as error:
            why = f"not possible: {error.what}"
            self._log.write("replan", step=found.step, was=_told(self.plan), why=why)
            self.changes.append({"step": found.step, "ratio": found.ratio, "why": error.what})
            return False

    def turned(self) -> Parallel | None:
        """After the ranks have stopped: the layout to go on with, or None where nobody asked for another."""
        if self._next is None:
            return None
        self.plan, path = self._next
        self._next = None
        self._shares = []
        self.since = self.changes[-1]["resumed"] = self._saved
        self._keep(path)
        self.parallel = self._located(path)
        self._drift.expect(self.plan.step_seconds)
        return self.parallel

    def account(self) -> dict[str, Any]:
        """Of the layout that the job ended with, and how it came to it; without a plan's file, of the layout
        as it was written."""
        if self._foretold is not None:
            return foretold.account(self.context, self._foretold, self.parallel)
        if self.plan is None:
            return {}  # the job tells it itself
        from shunter.jobs.account import account, layout_says

        held: list[dict[str, float]] = []
        if self.plan.devices <= MOST and (train := getattr(self.context.config, "train", None)) is not None:
            held = layout_says(self.plan, self.parallel, train.optimizer)
        found = account(self.plan, self.context.log / "events.jsonl", self.since, held)
        return {"account": found | ({"changes": self.changes} if self.changes else {})}

    def close(self) -> None:
        if self.plan is not None:
            self._log.close()

    def _plan_anew(self, found: Drifted) -> bool:
        from shunter.plan.anew import anew

        assert self.plan is not None
        number = len(self.changes) + 1
        source = f"fitted to {self.context.name} at step {found.step}"
        compiled = self.context.config.how.compile
        new = anew(self.plan, self._measured(found), source, compiled=compiled)
        change = {
            "step": found.step,
            "ratio": round(found.ratio, 3),
            "was": _told(self.plan),
            "is": _told(new.plan),
            "measured": round(new.before, 6),
            "predicted": round(new.plan.step_seconds, 6),
        }
        path = self.context.log.absolute() / f"plan-{number}.yaml"
        if new.changed:
            new.plan.save(path)
            self._check(self._located(path))
            change["why"] = f"a step is to take {new.plan.step_seconds:.3g} s, not {new.before:.3g} s"
        else:
            change["why"] = "no layout is better by what was measured"
        self._log.write("replan", **change)
        self.changes.append(change)
        if not new.changed:
            self.plan = new.plan
            self._drift.expect(new.plan.step_seconds)
            return False
        self._next = new.plan, path
        self._keep(path)
        return True

    def _measured(self, found: Drifted) -> Measured:
        """With the shares of the watched step, where it was like those that drifted."""
        from shunter.plan.anew import Measured

        busiest = max(self._shares, key=lambda each: each["compute"], default=None)
        if busiest is None or not 1 / ALIKE <= found.seconds / busiest["seconds"] <= ALIKE:
            return Measured(found.seconds)
        part = found.seconds / busiest["seconds"]
        return Measured(found.seconds, busiest["compute"] * part, busiest["communication"] * part)

    def _located(self, path: Path) -> Parallel:
        return self.given.model_copy(update={"plan": str(path)}).located(self.context.base)

    def _check(self, parallel: Parallel) -> None:
        """Raise ShunterError where this training cannot have the layout."""
        from shunter.jobs.training import check_parallel

        config = self.context.config
        if (train := getattr(config, "train", None)) is not None:
            check_parallel(config.how, parallel, train, getattr(config, "model", None))

    def _keep(self, path: Path) -> None:
        state = {"of": self._mark, "plan": path.name, "changes": self.changes}
        aside = self.context.work / f"{STATE}.part"
        aside.write_text(json.dumps(state), encoding="utf-8")
        os.replace(aside, self.context.work / STATE)

    def _restore(self) -> None:
        """The layout that an earlier attempt had come to, unless the recipe names another plan by now."""
        from shunter.plan.plan import Plan

        file = self.context.work / STATE
        state = disk.read_json(file) if file.is_file() else None
        if not isinstance(state, dict) or state.get("of") != self._mark:
            return
        path = self.context.log.absolute() / str(state["plan"])
        if not path.is_file():
            return
        self.plan, self.parallel = Plan.load(path), self._located(path)
        self.changes = list(state["changes"])
        self.since = int(self.changes[-1].get("resumed", self.changes[-1]["step"]))


def _told(plan: Plan) -> str:
    """`pp 2, microbatches 4, schedule 1f1b`."""
    return ", ".join(f"{key} {value}" for key, value in plan.parallel().items() if key != "cut") or "one rank"
