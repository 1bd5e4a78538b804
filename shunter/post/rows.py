"""Rows of answers in the state of a store: as JSON values, and without steps of which a part was had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from shunter.generate.rollout import Rollout
from shunter.post.rewards import Graded


def whole_steps(store: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The state of a sample store in which reward and reference have had each step of `count` rows as a
    whole, or not at all: of a step that an attempt without `deterministic` left in between, what they said
    is taken out, since who takes whole steps alone would wait for the rest."""
    cells = [[row, dict(each)] for row, each in store["cells"]]
    done = {task: set(rows) for task, rows in store["done"].items()}
    for task in ("reward", "reference"):
        had = Counter(each["step"] for _, each in cells if task in each)
        for row, each in cells:
            if 0 < had[each["step"]] < count:
                each.pop(task, None)
                done.get(task, set()).discard(row)
    return {**store, "cells": cells, "done": {task: sorted(rows) for task, rows in done.items()}}


def plain(cells: Mapping[str, Any]) -> dict[str, Any]:
    """A row's cells as JSON values."""
    found = {**cells, "answer": vars(cells["answer"])}
    if "reward" in cells:
        graded = cells["reward"]
        found["reward"] = [graded.total, dict(graded.parts), list(graded.failed), list(graded.unasked)]
    if "reference" in cells:
        found["reference"] = cells["reference"].tolist()
    return found


def made(cells: Mapping[str, Any]) -> dict[str, Any]:
    """What `plain` was given, of an attempt before this one."""
    found = {**cells, "answer": Rollout(**cells["answer"]), "again": True}
    if "reward" in cells:
        found["reward"] = Graded(*cells["reward"])
    if "reference" in cells:
        found["reference"] = np.asarray(cells["reference"], dtype=np.float64)
    return found
