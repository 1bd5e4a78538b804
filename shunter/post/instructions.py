"""Demands on an answer that can be checked by counting, read from data under the names that it gives them.

Four forms are read, all of them JSON:
- {"words_at_most": "50"}: own names (`verifiers.CONSTRAINTS`);
- {"instruction_id_list": [...], "kwargs": [...]}: IFEval (arXiv 2311.07911);
- [{"instruction_id": [...], "kwargs": [...]}]: the same, in sets with several demands each;
- {"func_name": ..., ...}: RLVR-IFeval (arXiv 2411.15124).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from shunter.config.nearest import nearest
from shunter.post import ifeval, ifeval_functions
from shunter.post.demand import LIBRARY, Kind
from shunter.post.verifiers import CONSTRAINTS


@dataclass(frozen=True)
class Demand:
    """name: as the data has it. met: whether an answer does what is asked."""

    name: str
    met: Callable[[str], bool]


def share(answer: str, target: str) -> float:
    """The share of the demands of a target that an answer meets; an empty answer meets none. Raises
    ValueError for a target that cannot be read."""
    wanted = instructions(target)
    if not wanted:
        return 1.0
    if not answer.strip():
        return 0.0
    return sum(demand.met(answer) for demand in wanted) / len(wanted)


@lru_cache(maxsize=4096)  # every prompt has several answers
def instructions(target: str) -> tuple[Demand, ...]:
    """The demands of a target. Raises ValueError with a sentence for what is none, for an unknown name, for
    values that are missing or wrong, and for what would need a library of languages."""
    told = _read(target)
    if isinstance(told, list):
        if not told or not all(isinstance(each, dict) for each in told):
            raise ValueError("the target is no list of objects of constraints")
        return tuple(demand for each in told for demand in _of(each))
    if not isinstance(told, dict):
        raise ValueError("the target is no JSON object of constraints")
    return tuple(_of(told))


def _read(target: str) -> Any:
    try:
        return json.loads(target)
    except (ValueError, RecursionError) as error:
        try:  # some published sets hold such lists as Python writes them
            return ast.literal_eval(target)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise ValueError(f"the target is no JSON object of constraints ({error})") from None


def _of(told: Mapping[str, Any]) -> list[Demand]:
    for ids, values in (("instruction_id_list", "kwargs"), ("instruction_id", "kwargs")):
        if ids in told:
            return _listed(_inner(told[ids]), _inner(told.get(values)), ids)
    if "func_name" in told:
        rest = {name: value for name, value in told.items() if name != "func_name"}
        return [_made(told["func_name"], rest, ifeval_functions.KINDS, "function")]
    found = []
    for name, value in told.items():
        if name not in CONSTRAINTS:
            raise ValueError(_unknown("constraint", name, CONSTRAINTS))
        found.append(Demand(name, partial(_own, name, str(value))))
    return found


def _own(name: str, value: str, answer: str) -> bool:
    return CONSTRAINTS[name](answer, value)


def _inner(value: Any) -> Any:
    """A list, which tables may hold as text."""
    return _read(value) if isinstance(value, str) and value.lstrip()[:1] == "[" else value


def _listed(ids: Any, values: Any, field: str) -> list[Demand]:
    if not isinstance(ids, list) or not ids:
        raise ValueError(f"{field} is no list of names")
    if values is None:
        values = [None] * len(ids)
    if not isinstance(values, list) or len(values) != len(ids):
        raise ValueError(f"{field} has {len(ids)} names, and kwargs is no list of as many")
    return [
        _made(name, given or {}, ifeval.KINDS, "instruction") for name, given in zip(ids, values, strict=True)
    ]


def _made(name: Any, given: Any, kinds: Mapping[str, Kind], what: str) -> Demand:
    if not isinstance(name, str) or not isinstance(given, dict):
        raise ValueError(f"the {what} {name!r} has {given!r} instead of values by name")
    if name in LIBRARY:
        raise ValueError(f"the {what} {name!r} needs {LIBRARY[name]}, and cannot be checked by counting")
    if name not in kinds:
        raise ValueError(_unknown(what, name, [*kinds, *LIBRARY]))
    kind = kinds[name]
    present = {key: value for key, value in given.items() if value is not None}
    for key in present:
        if key not in kind.needs:
            takes = ", ".join(kind.needs) or "nothing"
            raise ValueError(f"the {what} {name!r} has no {key!r}; it takes {takes}")
    values = {}
    for key, read in kind.needs.items():
        if key not in present:
            raise ValueError(f"the {what} {name!r} needs {key!r}")
        try:
            values[key] = read(present[key])
        except ValueError as error:
            raise ValueError(f"{key} of the {what} {name!r} is {present[key]!r}, {error}") from None
    return Demand(name, partial(_met, kind, values))


def _met(kind: Kind, values: Mapping[str, Any], answer: str) -> bool:
    return bool(kind.check(answer, **values))


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    every: Sequence[str] = list(known)
    near = nearest(name, every)
    return f"there is no {what} {name!r}. " + (
        f"Did you mean {near}?" if near else f"There are {', '.join(every)}."
    )
