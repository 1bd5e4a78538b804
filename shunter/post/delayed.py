"""Reinforcement learning whose answers are written by weights up to some steps old, through a store of rows.

After AsyncFlow (arXiv 2507.01663, section 4). An answer is a row: a writer makes it, the reward and the
reference add their cells as soon as it is there, and a step learns from its own rows when all are ready. So
writing goes on while the policy learns, and so does grading, on a thread of its own; the reference, which
computes on the learner's own device, speaks while the learner has nothing to do. Where the algorithm allows,
the learner takes the gradient of a step's groups as they come, and moves the weights when all are there.

The gate: answers of step k are begun when the weights of step k - staleness are with the writer, which may
take newer ones in the midst of an answer. So no token of step k is older than that, and the store never holds
more than the rows of staleness + 1 steps: who writes waits for who learns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data.loader import Loader
from shunter.generate.rollout import Rollout
from shunter.models.decoder import Decoder
from shunter.post.advantages import Array
from shunter.post.batch import Sample
from shunter.post.cores import Cores
from shunter.post.judged import judge
from shunter.post.meanwhile import NEVER, Meanwhile
from shunter.post.preferences import of_each
from shunter.post.prompts import Prompt
from shunter.post.reinforce import Reinforcement
from shunter.post.rewards import Graded, Grader
from shunter.post.room import must_hold
from shunter.post.rows import made, plain, whole_steps
from shunter.post.samplers import Sampler, by_step
from shunter.post.step import Gradient, Scorer
from shunter.post.store import SampleStore
from shunter.post.writers import HELD, Here, Weights, Writer, load, snapshot, trained

COLUMNS = ("step", "number", "group", "again", "answer", "reward", "reference")
ROW = COLUMNS[:5]  # of a row that is written; `again`: by an attempt before this one, or begun by it
TASKS = ("reward", "reference", "gradient", "learner")
ENDING = 10.0  # seconds in which what is being graded may come to its end


class Delayed(Reinforcement):
    """As `Reinforcement`; answers of a step are begun with weights at most `staleness` steps old.

    Where bits must be the same (`how.deterministic`), they are written by the oldest weights that may, whole
    steps at a time: then nothing depends on who is how fast."""

    newest = False
    grader: Grader  # in parts, and on another thread

    def __init__(
        self,
        *given: Any,
        staleness: int,
        beside: Callable[[Delayed], Writer] | None = None,
        early: bool = False,
        theirs: int = 0,
        cores: Cores | None = None,
        whole: Callable[[Decoder], Decoder] | None = None,
        **more: Any,
    ) -> None:
        """given, more: as of `Reinforcement`. beside: makes a writer that is not this process, which tells
        `hear` what it has written; theirs: bytes of this machine's memory that it holds. early: take
        gradients before a step is complete, where that can be. cores: that this process shares with those
        that write; None: each has its own. whole: an ordinary model that computes as the policy's does, which
        is what a writer of another process is handed; None: the policy's is one."""
        super().__init__(*given, **more)
        self.staleness, self._beside, self._theirs, self.cores = staleness, beside, theirs, cores
        self._whole = whole
        if cores is not None:
            for pupil in self.pupils.values():
                pupil.scorer.between = cores.take
        self.exact = self.course.how.deterministic
        self.count = self.group * self.per_step
        self.parts = early and not self.exact and self._in_parts()
        self.store = SampleStore(COLUMNS, TASKS, capacity=self.count * (staleness + 1))
        # Parts of a step are graded, perhaps in vain; the whole is looked at, and counted, when it is learnt.
        self.grader.patient = self.grader.later = True
        self.grader.every = self.count
        self.writer: Writer | None = None
        self.meanwhile = Meanwhile(self.store)
        # Between the threads: rows of the store and places in `missing` are one.
        self._lock = threading.RLock()
        self.floors: dict[int, int] = {}  # step -> updates before it, of steps whose weights may have written
        self.now = 0  # the step to learn next
        self.missing: set[tuple[int, int]] = set()  # (step, place) of what the writer owes
        self._continued: set[tuple[int, int]] = set()  # what an attempt before this one had begun
        self.kept: dict[int, Weights] = {}  # by version
        self.shadow: Scorer | None = None  # computes as the trainer does, with weights that were kept
        self._ahead = Loader(self.prompts, derive_seed(self.seed, "order"))
        self._chosen: dict[int, list[Prompt]] = {}
        self._taken: list[dict[str, Any]] = []
        self._oldest = self._waited = 0.0
        self._fresh = False  # the weights as they are now wrote what is learnt from

    def step(self, number: int) -> Mapping[str, float]:
        """Learn from a step's rows, and let those be written that its weights allow."""
        if self.writer is None:
            decoder = self.policy.decoder
            size = sum(value.nbytes for value in trained(decoder).values())
            merged = decoder.spec.num_parameters * decoder.embed.weight.itemsize
            must_hold(
                size, self.staleness, None if self._beside is None else self._theirs,
                whole=sum(value.nbytes for value in decoder.state_dict().values()),
                handed=size if self._whole is None else merged,
            )  # fmt: skip
            if self._beside is None:
                self.writer = Here(self.engine, self.seed, self.journal, self.exact, self.hear)
            else:
                self.writer = self._beside(self)
            self._advance(number, number)
            if not self.grader.computes:
                self.meanwhile.begin(self._reward_next)
            if self.writer.beside:
                self.meanwhile.begin(lambda: self._begun_writer().listen(wait=True))
        told = super().step(number)
        self.phases.writer = self.writer.memory
        self._advance(number + 1, number + 1 + self.staleness)
        return {**told, "rl/max_staleness": self._oldest, "rl/waited": self._waited}

    def close(self) -> None:
        self.meanwhile.over()
        try:
            if self.writer is not None:
                self.writer.close()
            self.meanwhile.end(ENDING)
        finally:
            super().close()

    def _in_parts(self) -> bool:
        """Whether a step's gradient is the sum of its groups', each known by itself: one update, in which no
        groups wait for others; advantages that need the group alone; terms that are means over answers; no
        share of a step's tokens."""
        config, alone = self.config, self.config.algorithm in ("grpo", "dr_grpo", "rloo", "gspo")
        once = config.updates == config.epochs == config.least_groups == 1
        once = once and self.policy.decoder.spec.experts is None
        return alone and once and self.objective.settings.by_sequences

    def _begun_writer(self) -> Writer:
        assert self.writer is not None
        return self.writer

    def _advance(self, number: int, first: int) -> None:
        """The weights of step `number` are there: hand them on, and ask for steps from `first` on."""
        self.now = number
        if number == self.course.train.steps:
            if self.missing or self.store.live:
                raise RuntimeError(f"{self.store.live} rows were learnt from by nobody")
            return
        kept = {step: updates for step, updates in self.floors.items() if step >= number - self.staleness}
        self.floors = {**kept, number: self.updates}
        oldest = min(self.floors.values())
        self.kept = {version: weights for version, weights in self.kept.items() if version >= oldest}
        assert self.writer is not None
        if self.updates not in self.kept:
            mine = self.kept[self.updates] = snapshot(self.policy.decoder)
            self.writer.renew(self.updates, mine if self._whole is None else self._merged(self._whole))
        steps = range(first, min(number + self.staleness + 1, self.course.train.steps))
        self._chosen |= {step: self._prompts(step) for step in steps}
        for step in steps:
            self._ask(step)

    def _merged(self, whole: Callable[[Decoder], Decoder]) -> Weights:
        """What who writes is handed where the policy has adapters: nobody else's, so it is not copied."""
        made = trained(whole(self.policy.decoder))
        return {name: value.detach() for name, value in made.items()}

    def _ask(self, step: int) -> None:
        """Have the answers of a step written that are not there, or on disk."""
        assert self.writer is not None
        there = {cells["number"] for cells in self.store.rows() if cells["step"] == step}
        left = [at for at in range(self.count) if at not in there]
        if left:
            oldest = self.floors[max(step - self.staleness, min(self.floors))]
            found = self._known(step, left, oldest)
            self._put(step, found, again=True)
            left = [at for at in left if at not in found]
        if left:
            prompts = {at: self._chosen[step][at // self.group].ids for at in left}
            begun = self._begun(step, left, oldest)
            with self._lock:
                self.missing |= {(step, at) for at in left}
                self._continued |= {(step, at) for at in begun}
            self.writer.ask(step, prompts, begun)

    def _newest(self, number: int) -> int:
        """Where bits may differ, the version that a step's weights will have if no step before it is idle: a
        killed attempt had come so far, and its writer took newer weights in the midst of answers."""
        if self.exact:
            return self.updates
        return self.updates + (number - self.now) * self.config.updates * self.config.epochs

    def _prompts(self, step: int) -> list[Prompt]:
        self._ahead.position = step * self.per_step
        return [self.prompts.items[int(i)] for i in self._ahead.take(self.per_step)]

    def hear(self, step: int, fresh: Mapping[int, Rollout]) -> None:
        """Answers have come, which are on disk. Raises RuntimeError for one that nobody waits for, as one
        that comes twice."""
        come = {(step, at) for at in fresh}
        with self._lock:
            if not come <= self.missing:
                raise RuntimeError(f"answers {sorted(come - self.missing)} came that nobody waits for")
            self.missing -= come
            for again in (True, False):
                some = {at: one for at, one in fresh.items() if ((step, at) in self._continued) == again}
                self._put(step, some, again=again)
            self._continued -= come

    def _put(self, step: int, answers: Mapping[int, Rollout], *, again: bool) -> None:
        self.meanwhile.look()
        rows = []
        for at, one in answers.items():
            self._finite(float(np.sum(np.abs(one.logprobs))))
            group = step * self.per_step + at // self.group
            rows.append({"step": step, "number": at, "group": group, "again": again, "answer": one})
        self.store.insert(rows, timeout=0.0)  # the gate has seen to it that there is room

    def _rows(
        self, number: int, chosen: Sequence[Prompt]
    ) -> tuple[list[Rollout], list[Graded], list[Array] | None]:
        """Until all rows of the step are there, let the reference speak on those that are, of any step."""
        refers = self._asks_reference(number)
        columns = [*ROW, "reward", *(["reference"] if refers else [])]
        mine = by_step(self.group, lambda step: step == number, whole=True)
        self._waited = 0.0
        self._drop()
        while True:
            seen = self.store.changes
            self.meanwhile.look()
            if not self._begun_writer().beside:
                self._begun_writer().listen(wait=False)
            if taken := self.store.poll("learner", columns, self.count, mine):
                break  # before anything is done for later steps: who writes may wait for what is learnt
            if (
                self._refer_some(lambda step: step == number)
                or self._reward_some(lambda step: step == number)
                or self._learn_some(number, columns)
                or self._refer_some(lambda step: step > number, one=True)
                or self._reward_some(lambda step: step > number, one=True)
            ):
                continue
            begin = time.perf_counter()
            with nullcontext() if self.cores is None else self.cores.waiting():
                self._wait(seen)
            self._waited += time.perf_counter() - begin
        self._taken = list(taken.values())
        self.store.done("learner", list(taken))
        self.store.clear(taken)
        if self._chosen.pop(number) != list(chosen):
            raise RuntimeError(f"other prompts were asked than those of step {number}")
        graded = [row["reward"] for row in self._taken]
        self.grader.check(graded)
        prompts = [chosen[row["number"] // self.group] for row in self._taken]
        self._complain(number, prompts, graded)
        far = [row["reference"] for row in self._taken] if refers else None
        return [row["answer"] for row in self._taken], graded, far

    def _wait(self, seen: int) -> None:
        """Until something has changed in the store since it was `seen`: more is written, or graded."""
        if self.missing and not self._begun_writer().beside:
            self._begun_writer().listen(wait=True)
            return
        with self._lock:
            idle = not self.missing and all("reward" in cells for cells in self.store.rows())
        if idle and self.store.changes == seen:
            raise RuntimeError("all that was asked for is written and graded, and something is waited for")
        self.store.await_change(seen)

    def _reward_next(self) -> None:
        """Grade the whole groups that are ready, of the first step that has any; waits for some. On a thread
        of its own: what it takes is lent to it, so a crash has it graded again, and counted once."""
        ready = by_step(self.group, whole=self.exact)
        self._reward(self.store.take("reward", ROW, self.count, ready, timeout=NEVER))

    def _reward_some(self, fits: Callable[[int], bool], *, one: bool = False) -> bool:
        """The same where a rule computes as the learner does, and on the same device: side by side, both
        would be slower, and the writer too. fits, one: as of `_refer_some`."""
        if not self.grader.computes:
            return False
        taken = self.store.poll("reward", ROW, self.count, self._groups(fits, one))
        if taken:
            self._take_cores()
            with self.phases.timed("grading"):
                self._reward(taken)
        return bool(taken)

    def _reward(self, taken: Mapping[int, Mapping[str, Any]]) -> None:
        rows = list(taken.values())
        prompts = [self._chosen[row["step"]][row["number"] // self.group] for row in rows]
        graded = self._grade(prompts, [row["answer"] for row in rows])
        self.store.done("reward", {row: {"reward": g} for row, g in zip(taken, graded, strict=True)})

    def _refer_some(self, fits: Callable[[int], bool], *, one: bool = False) -> bool:
        """What the reference says of whole groups that are ready, of steps that fit; whether there were any.
        one: of one group alone, as the learner may be waited for."""
        mine = self._groups(lambda step: fits(step) and self._asks_reference(step), one)
        taken = self.store.poll("reference", ROW, self.count, mine)
        if taken:
            self._take_cores()
            with self.phases.timed("preparation"):
                far = self._refer([row["answer"] for row in taken.values()])
            self.store.done("reference", {row: {"reference": f} for row, f in zip(taken, far, strict=True)})
        return bool(taken)

    def _take_cores(self) -> None:
        if self.cores is not None:
            self.cores.take()

    def _groups(self, fits: Callable[[int], bool], one: bool) -> Sampler:
        """Whole groups of the first step that has any, or one of them. Where bits must be the same, a step as
        a whole."""
        ready = by_step(self.group, fits, whole=self.exact)
        return lambda rows, count: ready(rows, count)[: self.group if one and not self.exact else None]

    def _learn_some(self, number: int, columns: Sequence[str]) -> bool:
        """Take the gradient of whole groups of step `number` that have all cells; whether there were any. It
        lives in memory alone: weights move, and rows are had, when the step is complete."""
        if not self.parts:
            return False
        mine = by_step(self.group, lambda step: step == number)
        taken = self.store.poll("gradient", columns, self.count, mine)
        if taken:
            rows = list(taken.values())
            far = [row["reference"] for row in rows] if "reference" in columns else None
            done, rewards = [row["answer"] for row in rows], [row["reward"].total for row in rows]
            groups = [row["group"] for row in rows]
            samples = judge(self.config, done, rewards, groups, far, masks=self.masks)
            if self.early is None:
                self.early = Gradient.early(self.policy.scorer, self.objective, self.count)
            with self.phases.timed("learning"):
                batches = self._batches(self._speaking(samples))
                for batch in batches:
                    self.early.add(batch)
            self.phases.updates.part(batches)
            self.had |= {row["number"] for row in rows}
            self.store.done("gradient", list(taken))
        return bool(taken)

    def _drop(self) -> None:
        """Begin a step without a gradient of the one before, which nobody has learnt from."""
        if self.early is not None:
            self.policy.optimizers.zero_grad()
        self.early, self.had = None, set()

    def _stale(self, done: Sequence[Rollout]) -> float:
        """How many updates old the weights are that wrote the tokens, in the mean. Raises ShunterError for a
        token that is older than the gate allows, or newer than the policy. An attempt before this one may
        have made more updates until this step, as its steps need not have been the idle ones: what it wrote
        has no age below 0."""
        ages = np.concatenate(
            [
                np.maximum(ages, 0) if row["again"] and not self.exact else ages
                for row, one in zip(self._taken, done, strict=True)
                for ages in [self.updates - np.asarray(one.versions)[np.asarray(one.wrote)]]
            ]
        )
        most = self.updates - min(self.floors.values())
        self._oldest = float(ages.max())
        if ages.min() < 0 or ages.max() > most:
            wrong = ages.min() if ages.min() < 0 else ages.max()
            raise ShunterError(
                f"answers were written by weights that are {wrong} updates old, and may be {most} at most",
                where=self.course.place.name,
                mend="The writer must take new weights after every step.",
            )
        return float(ages.mean())

    def _learn(self, number: int, samples: Sequence[Sample]) -> dict[str, float]:
        """What the policy differs from `old` by is how far it has moved; the gap is looked for beside it, but
        where the policy has not moved."""
        self._fresh = self._by_newest()
        held = {} if self._fresh else self._hold(number, samples)
        if self.parts:
            held["rl/early"] = len(self.had) / len(samples)
        told = super()._learn(number, samples)
        gap, most = told.pop("rl/gap"), told.pop("rl/largest_gap")
        if self._fresh:
            held |= {"rl/gap": gap, "rl/largest_gap": most}
        return {**told, "rl/off_policy": gap, **held}

    def _by_newest(self) -> bool:
        """Whether the weights as they are now wrote all that is learnt from at once: then it is no distance
        that the policy has moved, but the gap itself."""
        mine = all(row["answer"].versions == [self.updates] * len(row["answer"].ids) for row in self._taken)
        again = any(row["again"] for row in self._taken)  # of other weights by the same number, perhaps
        return mine and self.config.updates == 1 and (self.exact or not again)

    def _guard(self, told: Mapping[str, float]) -> None:
        if self._fresh:
            super()._guard(told)
        self._finite(told["gap"])

    def _renew(self) -> None:
        """Weights are handed on when a step is done."""

    def _hold(self, number: int, samples: Sequence[Sample]) -> dict[str, float]:
        """The gap between generator and trainer: some groups against the weights that wrote them. What an
        attempt before this one wrote is left out, as its weights may be other ones by the same number."""
        exact = {i for i, row in enumerate(self._taken) if self.exact or not row["again"]}
        groups = [g for g in range(self.per_step) if all(i in exact for i in self._of(g))]
        draw = np.random.Generator(np.random.Philox(derive_seed(self.seed, "held", number)))
        some = draw.permutation(groups)[: -(-self.per_step // HELD)]
        apart: list[Array] = []
        rows = [i for g in some.tolist() for i in self._of(g)]
        versions = {}
        for i in rows:
            one = self._taken[i]["answer"]
            versions[i] = np.asarray(one.versions)[np.asarray(one.wrote)]
        for version in sorted({int(v) for each in versions.values() for v in each} & self.kept.keys()):
            mine = [i for i in rows if version in versions[i]]
            then, theirs = self._as_it_was(version), [samples[i] for i in mine]
            says = of_each(then, theirs, self.course.how.micro_tokens, cut=self._batches)
            for i, each in zip(mine, says, strict=True):
                apart.append(np.abs(each - samples[i].known["old"])[versions[i] == version])
        if not apart:
            return {}
        gaps = np.concatenate(apart)
        super()._guard({"gap": float(gaps.mean())})
        return {"rl/gap": float(gaps.mean()), "rl/largest_gap": float(gaps.max())}

    def _of(self, group: int) -> range:
        return range(group * self.group, (group + 1) * self.group)

    def _as_it_was(self, version: int) -> Scorer:
        """The trainer's model with the weights of a version."""
        policy = self.policy.scorer
        if self.shadow is None:
            self.shadow = Scorer(
                deepcopy(policy.decoder), policy.device, policy.precision, temperature=policy.temperature
            )
            self.shadow.decoder.requires_grad_(False)
            self.shadow.between = policy.between
        load(self.shadow.decoder, self.kept[version])
        return self.shadow

    def _asked(self, done: Sequence[Rollout]) -> dict[str, float]:
        """Failures are of the calls that were heard of since the last step, of whatever step they are."""
        if self.tools is None:
            return {}
        calls, failed = self.tools.taken()
        return {**super()._asked(done), "rl/tool_failures": failed / max(1, calls)}

    def state(self) -> dict[str, Any]:
        """With the rows that are there. Where bits must be the same, with all that older weights write, which
        a later attempt does not have; and without steps of which a part is there, as the weights that write
        them are the newest, and a step is written as a whole."""
        while self.exact and self.writer is not None:
            seen = self.store.changes
            self.meanwhile.look()
            with self._lock:
                if not any(step < self.now + self.staleness for step, _ in self.missing):
                    break
            self._wait(seen)
        with self._lock:
            parts = {step for step, _ in self.missing} if self.exact else set()
            store = self.store.state()
        cells = [[row, plain(each)] for row, each in store["cells"] if each["step"] not in parts]
        there = {row for row, _ in cells}
        done = {task: [row for row in rows if row in there] for task, rows in store["done"].items()}
        floors = [[step, updates] for step, updates in self.floors.items()]
        return {
            **super().state(),
            "store": {"next": store["next"], "cells": cells, "done": done},
            "floors": floors,
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if "store" not in state:  # of a training in turns, which with a staleness of 0 is the same
            return
        store = whole_steps(state["store"], self.count) if self.exact else state["store"]
        self.store.restore({**store, "cells": [[row, made(cells)] for row, cells in store["cells"]]})
        self.floors = {int(step): int(updates) for step, updates in state["floors"]}
