"""What an answer is compared with: fields of conversations, by reward. Imports without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.data import chat
from shunter.post.config import RewardConfig
from shunter.post.instructions import instructions
from shunter.post.lines import lines

OWN = frozenset({"id", "task", "messages"})


class Wanted:
    """The targets of rewards, looked for in one conversation after the other.

    A conversation that has nothing for a reward is not graded by it (its part of the sum is 0): sets are
    often mixed, with an answer here and constraints there. That none has anything is a mistake.
    """

    def __init__(self, rewards: Sequence[RewardConfig]) -> None:
        self.rewards = [each for each in rewards if each.compares]
        by_label: dict[str, list[str]] = {}
        for each in self.rewards:
            if by_label.setdefault(each.label, each.columns) != each.columns:
                raise ShunterError(
                    f"two rewards are called {each.label}, and compare with different fields",
                    mend="Give each a `name` of its own.",
                )
        self.found = {each.label: 0 for each in self.rewards}
        self.bad: dict[str, list[str]] = {each.label: [] for each in self.rewards}
        self.fields: set[str] = set()
        self.seen = 0

    def of(self, talk: Mapping[str, Any], said: str | None) -> dict[str, str | None]:
        """By reward: the text to compare with, None where there is none. A reward that takes what the
        assistant said, `said`, has no entry where it said something."""
        self.seen += 1
        self.fields |= talk.keys() - OWN
        targets: dict[str, str | None] = {}
        for reward in self.rewards:
            if reward.columns:
                targets[reward.label] = _joined([(name, talk.get(name)) for name in reward.columns])
            elif said is None:
                targets[reward.label] = None
            target = targets.get(reward.label, said)
            if target is not None:
                self.found[reward.label] += 1
                self._try(reward, str(talk.get("id")), target)
        return targets

    def check(self, where: Path) -> list[str]:
        """What people should know. Raises ShunterError for a reward that has nothing to compare with, or
        nothing that it could read."""
        told = []
        for reward in self.rewards if self.seen else ():
            label, count = reward.label, self.found[reward.label]
            if not count:
                raise _nothing(reward, self.fields, where)
            bad = self.bad[label]
            if len(bad) == count:
                raise ShunterError(f"the reward {label} can read no target ({bad[0]})", where=str(where))
            if bad:
                told.append(
                    f"{len(bad)} of {count} targets cannot be read by the reward {label}, first {bad[0]}; "
                    "answers to these count as the worst by it"
                )
            if count < self.seen:
                told.append(
                    f"{self.seen - count} of {self.seen} prompts have nothing that the reward {label} "
                    "compares answers with; it says nothing of them"
                )
        return told

    def _try(self, reward: RewardConfig, name: str, target: str) -> None:
        """Read demands and cases before anything is answered: what is none is a mistake in the data."""
        try:
            if reward.kind == "constraints":
                instructions(target)
            elif reward.kind == "code":
                from shunter.post.sandbox.code import cases

                cases(target)
        except ValueError as error:
            self.bad[reward.label].append(f"{name}: {error}")


def survey(path: Path, task: str | None, rewards: Sequence[RewardConfig]) -> list[str]:
    """What people should know of the targets in a split's JSONL, without encoding any. Raises as `Wanted`."""
    wanted = Wanted(rewards)
    for talk in lines(path, "id", "messages"):
        messages, said = chat.asked(talk["messages"])
        if messages and (task is None or talk.get("task") == task):
            wanted.of(talk, said)
    return wanted.check(path)


def _joined(found: Sequence[tuple[str, Any]]) -> str | None:
    """One field as text, several as a JSON object; None where one is missing or null."""
    if any(value is None for _, value in found):
        return None
    if len(found) > 1:
        return json.dumps(dict(found), ensure_ascii=False)
    value = found[0][1]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _nothing(reward: RewardConfig, fields: set[str], where: Path) -> ShunterError:
    if not reward.columns:
        return ShunterError(
            f"the reward {reward.label} compares with what the assistant said, and it answers nowhere",
            where=str(where),
            mend="Name the field to compare with: `target:` of the reward, `columns:` of the conversations.",
        )
    missing = next((name for name in reward.columns if name not in fields), None)
    if missing is None:
        return ShunterError(
            f"no conversation has all of {', '.join(reward.columns)} that the reward {reward.label} compares "
            "with", where=str(where), mend="Fill them in, or name other fields in `target`.",
        )  # fmt: skip
    near = nearest(missing, fields)
    there = f"There are: {', '.join(sorted(fields))}." if fields else "Name it in their `columns`."
    return ShunterError(
        f"no conversation has the field {missing!r} that the reward {reward.label} compares with",
        where=str(where),
        mend=f"Did you mean {near}?" if near else there,
    )
