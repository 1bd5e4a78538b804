"""Roles that judge: rewards of answers, and what the policy learns from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shunter.data.tokenizer import Tokenizer
from shunter.generate.rollout import Rollout
from shunter.post.advantages import gae, leave_one_out, token_rewards, whitened
from shunter.post.config import PolicyConfig, RewardConfig
from shunter.post.judged import flat_groups, judge
from shunter.post.rewards import Grader, Item, Rule, named, rule
from shunter.post.roles.models import ENDS
from shunter.post.roles.protocol import operation
from shunter.post.roles.role import Role, Station
from shunter.post.roles.rows import Array, Rows, numbers, strings, texts
from shunter.post.watched import surprise


class Reward(Role):
    """Grades answers by rules; a second one under another name may be a cost."""

    def __init__(
        self,
        station: Station,
        *,
        rewards: Sequence[Mapping[str, Any]],
        tokenizer: str,
        reward_model: str | None = None,
        unfinished: float | None = None,
        seed: int = 0,
        base: str = ".",
        **settings: Any,
    ) -> None:
        super().__init__(station, **settings)
        self.tokenizer = Tokenizer.load(Path(tokenizer))
        self.grader: Grader | None = None
        if station.rank == 0:  # which grades all
            configs = [RewardConfig.model_validate(each) for each in rewards]
            rules = [(named(self._rule(it, reward_model, Path(base)), it), it.weight) for it in configs]
            self.grader = Grader(rules, unfinished=unfinished, seed=seed)

    def close(self) -> None:
        """End the sandboxes and processes of rules: as one process, the flow lives on with its caller."""
        if self.grader is not None:
            self.grader.close()

    def _rule(self, config: RewardConfig, reward_model: str | None, base: Path) -> Rule:
        if config.kind == "model":
            from shunter.post.reward_model import Learnt

            assert reward_model is not None
            return Learnt.load(Path(reward_model), self.station.device)
        if config.kind in ("code", "checker"):
            from shunter.post.sandbox.checker import sandboxed

            return sandboxed(config, base)
        return rule(config)

    @operation("all_to_one")
    def grade(self, asked: Rows, written: Rows) -> Rows:
        """`reward` of each answer, and `text`. Tells the mean, and each rule's. One rank grades all, so that
        a rule sees a step as a whole, with its canaries."""
        assert self.grader is not None
        prompts, targets = strings(asked["text"]), strings(asked["target"])
        others: list[Any] = [{}] * len(asked)
        if "targets" in asked.columns:
            others = [json.loads(each) for each in strings(asked["targets"])]
        items, answers = [], []
        for row in range(len(written)):
            place = int(written["place"][row][0]) // written.unit
            ids = written["ids"][row].tolist()
            finished = ENDS[int(written["stop"][row][0])] == "stop"
            answers.append(self.tokenizer.decode(ids[:-1] if finished else ids))
            whole = [*written["prompt"][row].tolist(), *ids]
            items.append(Item(prompts[place], answers[-1], targets[place], finished, whole, others[place]))
        graded = self.grader.grade(items)
        parts = {name: float(np.mean([it.parts[name] for it in graded])) for name in graded[0].parts}
        totals = [it.total for it in graded]
        groups = [row // written.unit for row in range(len(written))]
        self.tell(
            reward=float(np.mean(totals)),
            length=float(np.mean([len(ids) for ids in written["ids"]])),
            finished=float(np.mean([item.finished for item in items])),
            flat_groups=flat_groups(totals, groups),
            not_graded=float(sum(self.grader.failures.values())),
            **(parts if len(parts) > 1 else {}),
            **{name: float(count) for name, count in self.grader.ends().items()},
        )
        return Rows({"reward": numbers(totals), "text": texts(answers)}, written.unit)


class Judge(Role):
    """From rewards to advantages: plain numbers, no model."""

    def __init__(self, station: Station, *, policy: Mapping[str, Any], **settings: Any) -> None:
        super().__init__(station, **settings)
        self.config = PolicyConfig.model_validate(policy)

    @operation("all_to_one")
    def advantages(
        self, written: Rows, graded: Rows, far: Rows | None = None, values: Rows | None = None
    ) -> Rows:
        """By the algorithm of `policy`: `old`, `advantage`, with values `value` and `return`, with far
        `reference`. Tells the `surprise` of the answers."""
        done, rewards = rollouts_of(written), _rewards(graded)
        groups = [row // written.unit for row in range(len(written))]
        samples = judge(
            self.config,
            done,
            rewards,
            groups,
            None if far is None else [np.asarray(each, dtype=np.float64) for each in far["reference"]],
            None if values is None else [np.asarray(each, dtype=np.float64) for each in values["value"]],
        )
        self.tell(surprise=surprise(samples))
        known = {name: [np.asarray(s.known[name]) for s in samples] for name in samples[0].known}
        return _judged(written, known)

    @operation("all_to_one")
    def above_greedy(self, written: Rows, graded: Rows, likeliest: Rows, far: Rows | None = None) -> Rows:
        """ReMax (arXiv 2310.10505, algorithm 1): the reward less that of the likeliest answer to the prompt,
        the same at each token; with `kl`, less the divergence from the reference that is still to come."""
        base = [float(each[0]) for each in likeliest["reward"]]
        old = _floats(written["logprobs"])
        apart = old if far is None else _floats(far["reference"])
        advantages: list[Array] = []
        for row, (reward, o, f) in enumerate(zip(_rewards(graded), old, apart, strict=True)):
            after = np.cumsum((-self.config.kl * (o - f))[::-1])[::-1]
            advantages.append(np.full(len(o), reward - base[row // written.unit]) + after)
        more: dict[str, Sequence[Array]] = {} if far is None else {"reference": far["reference"]}
        return _judged(written, {"old": old, "advantage": advantages, **more})

    @operation("all_to_one")
    def safe(
        self,
        written: Rows,
        graded: Rows,
        costly: Rows,
        far: Rows,
        values: Rows,
        costs: Rows,
        *,
        weight: float,
    ) -> Rows:
        """Safe RLHF (arXiv 2310.12773, section 3.3): advantages of the reward less `weight` times those of
        the cost, over 1 + weight. The critic of the cost learns from `cost_value` and `cost_return`."""
        old, apart = _floats(written["logprobs"]), _floats(far["reference"])
        found: dict[str, list[Array]] = {}
        both = []
        for name, told, judged, sign in (("", graded, values, 1.0), ("cost_", costly, costs, -1.0)):
            # The divergence is half of each, with the sign by which each counts.
            kl = sign * self.config.kl / 2
            each = [token_rewards(r, o, f, kl) for r, o, f in zip(_rewards(told), old, apart, strict=True)]
            before = _floats(judged["value"])
            raw = [gae(r, v, self.config.gamma, self.config.lam) for r, v in zip(each, before, strict=True)]
            found[f"{name}value"] = list(before)
            found[f"{name}return"] = [a + v for a, v in zip(raw, before, strict=True)]
            both.append(raw)
        mixed = [(a - weight * c) / (1 + weight) for a, c in zip(*both, strict=True)]
        return _judged(written, {"old": old, "advantage": whitened(mixed), **found})

    @operation("all_to_one")
    def cost(self, judged: Rows) -> Rows:
        """What the critic of the cost learns from, under the names that a critic knows."""
        names = {"cost_value": "value", "cost_return": "return"}
        columns = {names.get(name, name): column for name, column in judged.columns.items()
                   if name not in names.values()}  # fmt: skip
        return Rows(columns, judged.unit)

    @operation("all_to_one")
    def above_others(self, written: Rows, graded: Rows) -> Rows:
        """The reward less the mean of the others of its group, at each token."""
        groups = [row // written.unit for row in range(len(written))]
        sums = leave_one_out(_rewards(graded), groups)
        old = _floats(written["logprobs"])
        return _judged(
            written, {"old": old, "advantage": [np.full(len(o), a) for o, a in zip(old, sums, strict=True)]}
        )


def rollouts_of(written: Rows) -> list[Rollout]:
    """Answers as the engine gives them."""
    return [
        Rollout(
            ids=written["ids"][row].tolist(),
            logprobs=written["logprobs"][row].tolist(),
            stop_reason=ENDS[int(written["stop"][row][0])],  # type: ignore[arg-type]
            number=row,
            prompt=written["prompt"][row].tolist(),
            versions=written["version"][row].tolist(),
            wrote=[True] * len(written["ids"][row]),
        )
        for row in range(len(written))
    ]


def _judged(written: Rows, known: Mapping[str, Sequence[Array]]) -> Rows:
    names = ("prompt", "ids", "place", "version", "again")
    kept = {name: written[name] for name in names if name in written.columns}
    return Rows({**kept, **known}, written.unit)


def _rewards(graded: Rows) -> list[float]:
    return [float(each[0]) for each in graded["reward"]]


def _floats(column: Sequence[Array]) -> list[Any]:
    return [np.asarray(each, dtype=np.float64) for each in column]
