"""Rules of answer and target alone, applied in a process of their own: `python -m shunter.post.aside`.

A thread that grades while the main one learns cannot end a rule that takes for ever, and would hold the main
one up by each line of Python that it runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from shunter.post.answering import Answering
from shunter.post.config import RewardConfig
from shunter.post.rewards import RULE_SECONDS, TARGETS, Item, Rule, rule

WAIT = 30.0 + 10 * RULE_SECONDS  # seconds by the clock for one answer: then the process is given up


class Aside:
    """The rule of a configuration, from any thread. Its canaries are made here."""

    def __init__(self, config: RewardConfig, made: Rule) -> None:
        """made: the same rule in this process."""
        self.name, self.made = made.name, made
        self.mend = getattr(made, "mend", TARGETS)
        path = os.pathsep.join(each for each in sys.path if each)
        command = ["-m", __name__, config.model_dump_json()]
        self.answering = Answering(command, WAIT, {**os.environ, "PYTHONPATH": path})

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        found = self.answering.ask_all([[item.answer, item.target] for item in items])
        return ["the process that applies the rule gave no answer" if one is None else one for one in found]

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        return self.made.canaries(like)

    def close(self) -> None:
        """End the process."""
        self.answering.close()


def _serve(config: str) -> None:
    made = rule(RewardConfig.model_validate_json(config))
    for line in sys.stdin.buffer:
        (found,) = made.grade([Item("", *json.loads(line))])
        sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
