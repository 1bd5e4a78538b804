"""A script from its first step to its last: metrics, checkpoints, requests to stop.

The controller keeps no weights. A checkpoint is those of the roles that learn, each in its own folder, and
last a small file that says which step they are of: what is newer than that file is done anew.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shunter.config.errors import ShunterError
from shunter.models.hf import read_spec
from shunter.post.config import RlHow
from shunter.post.course import is_largest, placing
from shunter.post.gathering import Flat
from shunter.post.reinforce import MOMENTS, SHOWN
from shunter.post.roles import scripts
from shunter.post.roles.flow import Flow, Future
from shunter.post.roles.placement import Placement
from shunter.post.roles.rows import strings
from shunter.post.roles.stage import Play, stage
from shunter.post.watched import Watch
from shunter.recipe.job import Stopped
from shunter.record.track import open_trackers
from shunter.train.loop import Place

STATE = "placed.json"


@dataclass
class Told:
    """What a run has to tell. done: steps. prompts: that there are, without the too_long. flat: groups that
    taught nothing (`Flat.state`). watch: what was told (`Watch.state`). not_graded: answers that a rule could
    not grade, of this attempt. moved: bytes from worker to worker, control: to and from the controller, both
    of this attempt."""

    done: int = 0
    rewards: list[float] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    most_gap: float = 0.0
    skipped: int = 0
    flat: list[float] = field(default_factory=lambda: Flat().state())
    watch: dict[str, Any] = field(default_factory=dict)
    prompts: int = 0
    too_long: int = 0
    not_graded: int = 0
    moved: int = 0
    control: int = 0


def rehearsed(play: Play, placement: Placement, how: RlHow, place: Place) -> Told:
    """Run a play; the model that was learnt stands in `written` of the work folder then. Raises Stopped after
    saving on request."""
    assert how.placement is not None
    workers = sum(placement.pools.values())
    # Where bits must be the same for any number of processes, so must be the threads of each.
    cores = len(os.sched_getaffinity(0))
    threads = how.threads or (1 if how.deterministic else max(1, cores // workers))
    tracker = open_trackers(how.track, place.log / "track", place.name, play.train.model_dump(mode="json"))
    try:
        with Flow(
            placement.pools, place.work, backend=how.placement.backend, address=how.placement.address,
            timeout=how.placement.timeout, threads=threads, exact=how.deterministic,
        ) as flow:  # fmt: skip
            return _Run(flow, play, placement, how, place, tracker).whole()
    finally:
        tracker.close()


class _Run:
    def __init__(
        self, flow: Flow, play: Play, placement: Placement, how: RlHow, place: Place, tracker: Any
    ) -> None:
        self.flow, self.play, self.how, self.place, self.tracker = flow, play, how, place, tracker
        assert how.placement is not None
        self.parts = how.placement.parts
        self.cast = stage(flow, placement, play, parts=self.parts)
        self.learners = [role for role in (self.cast.actor, self.cast.critic) if role is not None]
        self.script = scripts.ppo if play.policy.algorithm == "ppo" else scripts.grpo
        self.updates = scripts.Updates(play.policy.epochs, play.policy.updates)
        self.ahead: scripts.Ahead | None = None
        if play.staleness:
            self.ahead = scripts.Ahead(self.cast, play.staleness, play.train.steps)
        self.file = place.work / STATE
        self.told, self.watch = Told(), Watch(read_spec(play.model).vocab_size)
        self.since: dict[str, list[float]] = {}

    def whole(self) -> Told:
        self._resume()
        steps = self.play.train.steps
        if self.ahead is not None:
            self.ahead.begin(self.told.done)
        while self.told.done < steps:
            self._heed()
            number = self.told.done
            rows, cast = None, self.cast
            if self.ahead is not None:
                rows, cast = self.ahead.rows, self.ahead.cast
            with placing(self.place.name, number + 1):
                (step,) = self.script(cast, range(number, number + 1), self.updates, rows)
                if self.ahead is None:
                    self.flow.wait()
                else:
                    self.ahead.after(number + 1)
                values = self._values(step)
            self._keep(number, step)
            self.told.done += 1
            for name, value in values.items():
                self.since.setdefault(name, []).append(value)
            last = self.told.done == steps
            if last or self.told.done % self.how.log_every == 0:
                self._log()
            self.place.events.progress(self.told.done, steps, "steps", reward=values["rl/reward"])
            if last or self.told.done % self.how.checkpoint_every == 0:
                self._save()
        self.cast.actor.write(folder=str(self.place.work / "written")).wait()
        self.told.moved, self.told.control = self.flow.moved, self.flow.count.control
        return self.told

    def _values(self, step: Mapping[str, Future]) -> dict[str, float]:
        actor, graded, asked = (step[name].told() for name in ("actor", "reward", "asked"))
        if (long := int(asked["too_long"])) > self.told.too_long:
            self.place.events.write("problem", problem=f"{long} prompts are too long and left out")
        self.told.prompts, self.told.too_long = int(asked["prompts"]), long
        self.told.not_graded = int(graded["not_graded"])
        self.told.rewards.append(graded["reward"])
        flat = Flat()
        flat.restore(self.told.flat)
        last = self.told.done + 1 == self.play.train.steps
        said = flat.step(graded["flat_groups"], self.told.rewards, last=last)
        self._say(said if self.play.policy.compares else None)
        self.told.flat = flat.state()
        self._say(self.watch.step(step["judge"].told()["surprise"], self.told.rewards))
        if "clipped" in actor:  # of the first update
            gap = actor["off_policy" if self.play.staleness else "gap"]
            update = {"gap": gap, "clipped": actor["clipped"]}
            self._say(self.watch.update(update, fresh=not self.play.staleness))
        self.told.watch = self.watch.state()
        self.told.most_gap = max(self.told.most_gap, actor.get("largest_gap", 0.0))
        self.told.skipped += actor.get("updated") == 0.0
        found = {f"rl/{name}": value for name, value in {**graded, **actor}.items() if name != "grad_norm"}
        if "grad_norm" in actor:
            found["train/grad_norm"] = actor["grad_norm"]
        if "critic" in step:
            found |= {
                f"rl/{name}": value for name, value in step["critic"].told().items() if name[:5] == "value"
            }
        if reused := step["written"].told_in_all("reused"):
            self.place.events.write("reused", step=self.told.done, answers=int(reused))
        return {**found, "rl/moved_mb": self.flow.moved / 1e6}

    def _say(self, said: str | None) -> None:
        if said is not None:
            self.place.events.write("problem", problem=said)

    def _log(self) -> None:
        means = {}
        for name, values in self.since.items():
            finite = [value for value in values if math.isfinite(value)]
            if finite:
                means[name] = max(finite) if is_largest(name) else sum(finite) / len(finite)
            if len(finite) < len(values):  # in no mean, but seen
                means["train/not_finite"] = means.get("train/not_finite", 0.0) + len(values) - len(finite)
        self.place.events.metrics(self.told.done, **means)
        self.tracker.metrics(self.told.done, means)
        self.since = {}

    def _keep(self, number: int, step: Mapping[str, Future]) -> None:
        """Answers of five steps, for people to read; fetched, so they pass through this process."""
        steps = self.play.train.steps
        if number not in {round(i * (steps - 1) / max(1, MOMENTS - 1)) for i in range(MOMENTS)}:
            return
        asked, graded = step["asked"].fetch(), step["reward"].fetch()
        for at in range(min(SHOWN, len(asked))):
            row = at * graded.unit
            self.told.samples.append(
                {
                    "task": f"step {number + 1}",
                    "id": strings([asked["id"][at]])[0],
                    "model": self.place.name,
                    "prompt": strings([asked["text"][at]])[0],
                    "response": strings([graded["text"][row]])[0],
                    "target": strings([asked["target"][at]])[0],
                    "score": float(graded["reward"][row][0]),
                }
            )

    def _save(self) -> None:
        if self.ahead is not None:
            self.ahead.settle(self.told.done)
        saved = [role.save(step=self.told.done) for role in self.learners]
        for future in saved:
            future.wait()
        state = {**asdict(self.told), "since": self.since, "parts": self.parts, "version": 1}
        aside = self.file.with_suffix(".tmp")
        with aside.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.file)
        writer = self.cast.actor if self.ahead is None else self.cast.writer
        writer.kept(step=self.told.done)  # only now: until then an older state counts

    def _resume(self) -> None:
        if not self.file.exists():
            for role in self.learners:
                role.forget(after=-1).wait()
            return
        state = json.loads(self.file.read_text(encoding="utf-8"))
        if state.pop("version") != 1:
            raise ShunterError("this state is of another version of shunter", where=str(self.file))
        if (parts := state.pop("parts")) != self.parts:
            raise ShunterError(
                f"the actor was kept in {parts} parts and is to go on in {self.parts}",
                where="how.placement.parts",
                mend=f"Set it to {parts}, or run the job anew with --redo.",
            )
        self.since = state.pop("since")
        self.told = Told(**state)
        if self.told.watch:
            self.watch.restore(self.told.watch)
        for role in self.learners:
            role.forget(after=self.told.done).wait()
            role.restore(step=self.told.done)
        self.flow.wait()
        self.place.events.write("resume", step=self.told.done)

    def _heed(self) -> None:
        if self.place.control.stop_requested():
            self._save()
            self.place.events.write("saved", step=self.told.done, why="stop")
            raise Stopped
        if self.place.control.take_save_request():
            self._save()
            self.place.events.write("saved", step=self.told.done, why="request")
