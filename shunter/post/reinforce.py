"""Reinforcement learning, one step after the other: write, grade, compare, learn.

Generator and trainer are one model in one process, so what is written comes from the newest weights.
Everything is drawn from (seed, step), so a run that was killed writes the same again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data.loader import Loader
from shunter.data.tokenizer import Tokenizer
from shunter.data.tokens import IGNORE
from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Engine, Rollout, RolloutEngine
from shunter.generate.toolbox import Toolbox
from shunter.models.decoder import Decoder
from shunter.models.footprint import BLOCK, cache_tokens
from shunter.models.spec import DecoderSpec
from shunter.post.advantages import Array
from shunter.post.batch import Answers, Sample, grouped, lay_out, micro_batches, sharing, targets
from shunter.post.config import PolicyConfig
from shunter.post.course import Course, Pupil
from shunter.post.gathering import Flat, Gathering
from shunter.post.journal import Journal
from shunter.post.judged import flat_groups, judge, settings
from shunter.post.policy import Policy, Value
from shunter.post.preferences import of_each
from shunter.post.prompts import Prompt, Read
from shunter.post.rewards import Graded, Grading, ungraded
from shunter.post.spent import Phases
from shunter.post.step import Gradient, Scorer
from shunter.post.watched import Watch, agree, finite, surprise
from shunter.post.writers import submit, written
from shunter.train.device import writes_in

SHOWN = 3  # answers of a step that are kept for people to read
MOMENTS = 5  # steps whose answers are


class Reinforcement:
    """The lessons of `rl`. `rewards` holds the mean reward of each step so far."""

    newest = True  # weights write what is learnt from
    copies = False  # what writes is a copy, in the place of what learns
    _fresh = True  # the weights as they are now wrote what a step begins to learn from
    leaves_out = True  # of the gradient, answers that have no part in it

    def __init__(
        self,
        course: Course,
        policy: Pupil,
        reference: Callable[[], Scorer] | None,
        critic: Pupil | None,
        prompts: Read,
        tokenizer: Tokenizer,
        grader: Grading,
        config: PolicyConfig,
        sampling: SamplingConfig,
        *,
        group: int,
        per_step: int,
        max_gap: float,
        seed: int,
        stop_ids: Sequence[int] = (),
        tools: Toolbox | None = None,
        engine: Engine | None = None,
        block: int = BLOCK,
        cache: int = 0,
        masks: bool = False,
    ) -> None:
        """reference: makes what tells how likely the first model finds answers, when it is first asked.
        None: it never is, which needs a `kl` of 0. group: answers to each prompt. per_step: prompts of a
        step. max_gap: nats, mean over tokens. tools: that the policy may ask between two turns of an answer.
        engine: that writes in the place of our own, with the policy's weights. block, cache: tokens of a
        block of our own's cache, and of all of it (0: room for all that is written side by side). masks:
        as of `judge`."""
        if reference is None and config.kl:
            raise ValueError("a divergence that counts needs what it is a divergence from")
        self.course, self.policy, self._reference, self.critic = course, policy, reference, critic
        self.prompts, self.tokenizer, self.grader = prompts, tokenizer, grader
        self.config, self.group, self.per_step = config, group, per_step
        self.max_gap, self.seed = max_gap, seed
        self.tools, self.masks = tools, masks
        self.pupils: Mapping[str, Pupil] = {"policy": policy} | ({"critic": critic} if critic else {})
        self.objective = Policy(settings(config, sampling.max_new_tokens))
        self.value = Value(config.value_clip, config.value_weight)
        self.loader = Loader(prompts, derive_seed(seed, "order"))
        self.stops = {*tokenizer.stop_ids, *stop_ids}
        self.sampling, self._engine, self.block, self.cache = sampling, engine, block, cache
        self.room = room_of(prompts, sampling, policy.decoder.spec, tools)
        self.journal = Journal(course.place.work / "rollouts")
        self.updates = 0  # of the policy: the version of its weights
        self.early: Gradient | None = None  # of answers of the step at hand, by their place: those in `had`
        self.had: set[int] = set()
        self.phases = Phases(resident=course.device.type == "cpu")
        self.rewards: list[float] = []
        self.samples: list[dict[str, Any]] = []
        self.most_gap = 0.0
        self.gathering = Gathering()  # where an update needs more than one group
        self.flat, self.watch = Flat(), Watch(policy.decoder.spec.vocab_size)

    @cached_property
    def engine(self) -> Engine:
        """What writes, with the policy's own weights."""
        return self._engine or self._writing(self.policy.decoder, self.sampling)

    def _writing(self, model: Decoder, sampling: SamplingConfig) -> RolloutEngine:
        """What writes with a model of this process."""
        return RolloutEngine(
            model,
            sampling,
            self.stops,
            size=self.block,
            tokens=cache_tokens(sampling.batch, self.room, self.block, self.cache),
            tempered=True,
            reply=self.tools,
            rounded=writes_in(self.course.device, self.policy.scorer.precision),
        )

    @cached_property
    def reference(self) -> Scorer:
        """What the first model says of answers."""
        assert self._reference is not None
        return self._reference()

    @property
    def scored_tokens(self) -> int:
        """Tokens that are scored together, without gradients."""
        return self.course.how.micro_tokens

    def step(self, number: int) -> Mapping[str, float]:
        """Write, grade, learn."""
        begin = time.perf_counter()
        self.phases.last = {}
        chosen = [self.prompts.items[int(i)] for i in self.loader.take(self.per_step)]
        done, graded, far = self._rows(number, chosen)
        self.phases.wrote(done)
        groups = [i // self.group for i in range(len(done))]
        rewards = [one.total for one in graded]
        values = None
        if self.critic is not None:
            with self.phases.timed("preparation"):
                values = self._says(self.critic.scorer, done, "value")
        samples = judge(self.config, done, rewards, groups, far, values, masks=self.masks)
        stale = self._stale(done)
        with self.phases.timed("learning"):
            told = self._learn(number, samples)
        self.most_gap = max(self.most_gap, told.get("rl/largest_gap", 0.0))
        self.rewards.append(float(np.mean(rewards)))
        self._keep(number, chosen, done, graded)
        ends, flat = self.grader.ends(), flat_groups(rewards, groups)
        said = self.flat.step(flat, self.rewards, last=number + 1 == self.course.train.steps)
        self._say(said if self.config.compares else None)
        self._say(self.watch.step(surprise(samples), self.rewards))
        parts = {f"rl/{name}": _mean([g.parts[name] for g in graded]) for name in graded[0].parts}
        return {
            "rl/reward": self.rewards[-1],
            **(parts if len(parts) > 1 else {}),
            "rl/length": _mean([one.count for one in done]),
            **self._asked(done),
            "rl/finished": _mean([one.stop_reason == "stop" for one in done]),
            "rl/flat_groups": flat,
            "rl/staleness": stale,
            **{f"rl/{name}": float(count) for name, count in ends.items()},
            **told,
            **{f"rl/{name}_seconds": seconds for name, seconds in self.phases.last.items()},
            "train/step_seconds": time.perf_counter() - begin,
        }

    def _rows(
        self, number: int, chosen: Sequence[Prompt]
    ) -> tuple[list[Rollout], list[Graded], list[Array] | None]:
        """A step's answers in order, what they are worth, and where it is asked, what the reference says."""
        with self.phases.timed("writing"):
            done = self._write(number, chosen)
        prompts = [chosen[at // self.group] for at in range(len(done))]
        with self.phases.timed("grading"):
            graded = self._grade(prompts, done)
        self._complain(number, prompts, graded)
        if not self._asks_reference(number):
            return done, graded, None
        with self.phases.timed("preparation"):
            return done, graded, self._refer(done)

    def _asks_reference(self, number: int) -> bool:
        """Without a weight it is only shown: a forward pass for each line of the log is enough."""
        if self._reference is None:
            return False
        last = number + 1 == self.course.train.steps
        return bool(self.config.kl) or number == 0 or last or (number + 1) % self.course.how.log_every == 0

    def _refer(self, done: Sequence[Rollout]) -> list[Array]:
        """Of each token written, what the reference says."""
        return self._says(self.reference, done)

    def _says(self, scorer: Scorer, done: Sequence[Rollout], what: str = "logprob") -> list[Array]:
        def cut(samples: Sequence[Sample]) -> list[Answers]:
            batches = self._scored(samples)
            self.phases.prepared += sum(batch.tokens.size for batch in batches)
            return batches

        return of_each(scorer, unknown(done), self.scored_tokens, what, cut)

    def _scored(self, samples: Sequence[Sample]) -> list[Answers]:
        """Micro-batches of what is looked at without gradients."""
        return self._batches(samples)

    def _stale(self, done: Sequence[Rollout]) -> float:
        """How many updates old the weights were that wrote, by our own count of updates. Here they are the
        newest: an engine that has others, or says so, stops the run."""
        ages = [self.updates - version for one in done for version in one.versions]
        if any(ages):
            raise ShunterError(
                f"answers were written by weights that are {max(ages, key=abs)} updates old, and are to be "
                "learnt from as if the newest had written them",
                where=self.course.place.name,
                mend="The engine must take new weights after every update (`new_weights`).",
            )
        return _mean(ages)

    def _asked(self, done: Sequence[Rollout]) -> dict[str, float]:
        """How often tools were asked in an answer, and the share of calls that they could not answer."""
        if self.tools is None:
            return {}
        calls = sum(one.turns - 1 for one in done)
        _, failed = self.tools.taken()
        return {"rl/tool_calls": calls / len(done), "rl/tool_failures": failed / max(1, calls)}

    def _text(self, one: Rollout) -> str:
        """What the model says at last: of several turns the one after all tools."""
        if self.tools is not None:
            return self.tools.last(one)
        return self.tokenizer.decode(one.ids[:-1] if one.stop_reason == "stop" else one.ids)

    def state(self) -> dict[str, Any]:
        return {
            "loader": self.loader.state(),
            "rewards": self.rewards,
            "samples": self.samples,
            "version": self.updates,
            "failures": self.grader.failures,
            "canaries": self.grader.canaries,
            "most_gap": self.most_gap,
            "flat": self.flat.state(),
            "watch": self.watch.state(),
            "gathering": self.gathering.state(),
        }

    def close(self) -> None:
        """Give back what is held besides memory."""
        self.grader.close()
        if self.tools is not None:
            self.tools.close()

    def saved(self, oldest: int) -> None:
        self.journal.forget(oldest)

    def restore(self, state: dict[str, Any]) -> None:
        self.loader.restore(state["loader"])
        self.rewards, self.samples = list(state["rewards"]), list(state["samples"])
        self.updates = int(state["version"])
        self._renew()
        self.grader.failures, self.grader.canaries = dict(state["failures"]), int(state["canaries"])
        self.most_gap = float(state["most_gap"])
        if "gathering" in state:  # of a checkpoint from before there was one
            self.flat.restore(state["flat"])
            self.gathering.restore(state["gathering"])
        if "watch" in state:  # likewise
            self.watch.restore(state["watch"])

    def _renew(self) -> None:
        """The policy's weights have changed."""
        self.engine.new_weights(self.updates)

    def _write(self, number: int, chosen: Sequence[Prompt]) -> list[Rollout]:
        """`group` answers to each prompt, in order. Those that a killed attempt had finished are read.

        Fewer answers side by side round otherwise: where bits must be the same, a step is read whole or
        written whole.
        """
        found = self._written(number, chosen, range(len(chosen) * self.group))
        return [found[at] for at in range(len(found))]

    def _written(self, number: int, chosen: Sequence[Prompt], places: range) -> dict[int, Rollout]:
        """Of a step's answers those at these places."""
        found = self._known(number, places)
        missing = {at: chosen[at // self.group].ids for at in places if at not in found}
        asked = submit(self.engine, self.seed, number, missing, self._begun(number, missing))
        for fresh in written(self.engine, number, asked, self.journal, self.course.how.deterministic):
            found |= fresh
        return found

    def _known(self, number: int, wanted: Collection[int], oldest: int | None = None) -> dict[int, Rollout]:
        """Of a step's answers at these places, those that a killed attempt had finished. oldest: of the
        weights that may have written them; default: the newest alone."""
        read = self.journal.read(number, self._newest(number), oldest)
        found = {at: read[at] for at in read.keys() & wanted}
        if self.course.how.deterministic and len(found) < len(wanted):
            found = {}
        self.journal.reused += len(found)
        if found:
            self.course.place.events.write("reused", step=number, answers=len(found))
        return found

    def _begun(self, number: int, wanted: Collection[int], oldest: int | None = None) -> dict[int, Rollout]:
        """What there is of answers that a killed attempt was writing; nothing where bits must be the same."""
        if self.course.how.deterministic or not wanted:
            return {}
        read = self.journal.begun(number, self._newest(number), oldest)
        found = {at: read[at] for at in read.keys() & wanted}
        if found:
            self.course.place.events.write("continued", step=number, answers=len(found))
        return found

    def _newest(self, number: int) -> int:
        """The last version of the weights that may have written what there is of a step."""
        return self.updates

    def _grade(self, prompts: Sequence[Prompt], done: Sequence[Rollout]) -> list[Graded]:
        """prompts: of each answer."""
        items = []
        for prompt, one in zip(prompts, done, strict=True):
            text = self._text(one)
            whole = [*one.prompt, *one.ids]
            items.append(prompt.item(text, one.stop_reason == "stop", whole))
        return self.grader.grade(items)

    def _complain(self, number: int, prompts: Sequence[Prompt], graded: Sequence[Graded]) -> None:
        """Write down, once a step, that answers could not be graded. prompts: of each answer."""
        if said := ungraded([prompt.id for prompt in prompts], graded):
            self.course.place.events.write("problem", problem=f"step {number + 1}: {said}")

    def _learn(self, number: int, samples: Sequence[Sample]) -> dict[str, float]:
        if self.config.least_groups == 1:
            return self._update(number, samples)
        self.gathering.add(samples, self.group)
        groups, last = self.gathering.groups, number + 1 == self.course.train.steps
        if groups and (groups >= self.config.least_groups or last):
            told = self._update(number, self.gathering.take())
        else:
            told = self._compare(samples) | {"rl/idle": 1.0}
        return told | {"rl/gathered": float(self.gathering.groups)}

    def _update(self, number: int, samples: Sequence[Sample]) -> dict[str, float]:
        """Learn from samples that the weights as they are now have written."""
        config, told, told_of_values = self.config, dict[str, float](), dict[str, float]()
        compared: dict[str, float] | None = None
        # All answers are compared before any is learnt from, not the first part's alone.
        if config.updates > 1 and self.newest:
            compared = self._compare(samples)
        for epoch in range(config.epochs):
            draw = np.random.Generator(np.random.Philox(derive_seed(self.seed, "cut", number, epoch)))
            order = draw.permutation(len(samples)) if config.updates > 1 else np.arange(len(samples))
            for part in np.array_split(order, config.updates):
                some = [samples[i] for i in part]
                mine = [samples[i] for i in part if i not in self.had]
                learnt, begun = self._speaking(mine), self.early
                if begun is None and len(learnt) < len(mine):
                    counts = self.objective.weights(lay_out(some))
                    begun = Gradient(self.policy.scorer, self.objective, counts, whole=False)
                batches = self._batches(learnt)
                first = not told
                # A part from which nothing is learnt: the optimizer's momentum would move weights without a
                # reason.
                if self._teaches(some):
                    guard = self._guard if first else None
                    result = self.policy.learn(self.objective, batches, number, guard, begun)
                    self.phases.updates.add(batches)
                    self.course.learnt(result, number)
                    self.updates += 1
                    self._renew()
                    self._say(self.watch.update(result.told, fresh=first and self._fresh))
                    if first:
                        told |= {f"rl/{n.replace('max/', 'largest_')}": v for n, v in result.told.items()}
                        # Of all tokens: those of answers that were left out are never clipped.
                        told["rl/clipped"] *= targets(self._speaking(some)) / max(1, targets(some))
                        told |= {f"rl/{name}_loss": v for name, v in result.terms.items()}
                        told |= {"train/grad_norm": result.grad_norm, "rl/idle": 0.0}
                # Equal rewards are what a critic has to learn too.
                if self.critic is not None and not all(each.masked for each in some):
                    taught = self.critic.learn(self.value, batches, number)
                    self.phases.taught += 1
                    self.course.learnt(taught, number)
                    told_of_values |= {f"rl/{name}": value for name, value in taught.told.items()}
        if not told:
            told = (compared or self._compare(samples)) | {"rl/idle": 1.0}
        return told | told_of_values

    def _teaches(self, samples: Sequence[Sample]) -> bool:
        """Whether the policy has something to learn from these."""
        if self.objective.settings.kl or self.config.entropy:
            return not all(each.masked for each in samples)
        return any(each.teaches for each in samples)

    def _speaking(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that the gradient depends on. An answer without an advantage adds 0 to it, whatever the
        policy says of it: nothing is computed for it, but where it is compared with the reference, a value
        model learns from it too, or experts are to be used alike by all tokens."""
        whole = self.objective.settings.kl or self.config.entropy or self.critic is not None
        if not self.leaves_out or whole or self.policy.decoder.spec.experts is not None:
            return list(samples)
        if any("reference" in each.known for each in samples):
            return list(samples)
        return [each for each in samples if each.teaches]

    def _batches(self, samples: Sequence[Sample]) -> list[Answers]:
        """Micro-batches."""
        tokens = self.course.how.micro_tokens
        rows = self._shared(samples, tokens)
        return (
            micro_batches([[sample] for sample in samples], tokens) if rows is None else grouped(rows, tokens)
        )

    def _shared(self, samples: Sequence[Sample], tokens: int) -> list[list[Sample]] | None:
        """Answers to one prompt share a row of so many tokens, so that the prompt is computed once. None:
        each has its own."""
        return sharing(samples, tokens, self.policy.decoder.spec, self.course.device.type)

    def _compare(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The gap between trainer and generator of answers from which nothing is learnt yet."""
        batches = self._batches([replace(each, masked=False) for each in samples])
        count = max(1, sum(batch.num_valid for batch in batches))
        gaps = [
            np.abs(says - batch.known["old"])[batch.targets != IGNORE]
            for says, batch in zip(self.policy.scorer.logprobs(batches), batches, strict=True)
        ]
        told = {
            "gap": sum(float(g.sum()) for g in gaps) / count,
            "max/gap": max(float(g.max()) for g in gaps),
        }
        self._guard(told)
        return {"rl/gap": told["gap"], "rl/largest_gap": told["max/gap"]}

    def _finite(self, gap: float) -> None:
        finite(gap, self.course.place.name)

    def _guard(self, told: Mapping[str, float]) -> None:
        agree(told["gap"], self.max_gap, self.course.place.name)

    def _say(self, said: str | None) -> None:
        """Write down what people should know, if there is anything."""
        if said is not None:
            self.course.place.events.write("problem", problem=said)

    def _keep(
        self, number: int, chosen: Sequence[Prompt], done: Sequence[Rollout], graded: Sequence[Graded]
    ) -> None:
        steps = self.course.train.steps
        moments = {round(i * (steps - 1) / max(1, MOMENTS - 1)) for i in range(MOMENTS)}
        if number not in moments:
            return
        for at in range(0, min(SHOWN, len(chosen))):
            one, prompt = done[at * self.group], chosen[at]
            ids = one.ids[:-1] if one.stop_reason == "stop" else one.ids
            # With what tools said inside it, so that people see the whole.
            self.samples.append(
                {
                    "task": f"step {number + 1}",
                    "id": prompt.id,
                    "model": self.course.place.name,
                    "prompt": prompt.text,
                    "response": self.tokenizer.decode(ids),
                    "target": prompt.shown,
                    "score": graded[at * self.group].total,
                }
            )


def room_of(prompts: Read, sampling: SamplingConfig, spec: DecoderSpec, tools: Toolbox | None) -> int:
    """Tokens of the longest text that may come to be, with what tools say in it."""
    longest = max(len(prompt.ids) for prompt in prompts.items)
    told = 0 if tools is None else tools.config.most * tools.config.room
    return min(longest + sampling.max_new_tokens + told, spec.max_positions)


def unknown(done: Sequence[Rollout]) -> list[Sample]:
    """Answers of whose tokens nothing is known yet."""
    return [Sample([*one.prompt, *one.ids], [False] * len(one.prompt) + one.wrote) for one in done]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean([float(value) for value in values])) if values else 0.0
