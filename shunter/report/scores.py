"""Scores as rows: each value with its interval, unit, count and baseline; each pair with its difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shunter.report.numbers import number

# Levels of scores.json that group and do not name anything.
_GROUPS = {"models", "tasks", "scores"}


@dataclass(frozen=True)
class Baseline:
    """Another way to get the same number, measured in the same run: `xz -9`, chance, a majority answer."""

    name: str
    value: float


@dataclass(frozen=True)
class Score:
    """One measured value. `low` and `high` bound its 95 % interval."""

    model: str
    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    unit: str
    n: int | None
    baselines: tuple[Baseline, ...] = ()
    seen_in_part: int = 0  # items that are sections of texts of which others are trained on


@dataclass(frozen=True)
class Pair:
    """`b` minus `a` on the same items, with the 95 % interval of the mean paired difference."""

    a: str
    b: str
    task: str
    metric: str
    difference: float
    low: float
    high: float
    unit: str
    n: int | None

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass
class Scores:
    """All of one scores artefact."""

    scores: list[Score] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    def tasks(self) -> list[tuple[str, str]]:
        """(task, metric) in the order first seen."""
        return list(dict.fromkeys((score.task, score.metric) for score in self.scores))


def parse(data: Any, *, model: str = "") -> Scores:
    """Read the content of a scores.json. `model` names the model where the file itself does not.

    Whatever has `metric` and `value` is a score; whatever has `difference`, `low` and `high` is a
    paired comparison. The names of a score are the keys on the way to it.
    """
    result = Scores()
    for path, node in _walk(data, ()):
        if "difference" in node:
            pair = _pair(path, node)
            if pair is not None:
                result.pairs.append(pair)
        elif "metric" in node and "value" in node:
            score = _score(path, node, model)
            if score is not None:
                result.scores.append(score)
    return result


def _walk(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    if len(path) > 8:
        return
    if isinstance(node, Mapping):
        if "difference" in node or ("metric" in node and "value" in node):
            yield path, node
            return
        for key, child in node.items():
            yield from _walk(child, path if key in _GROUPS else (*path, str(key)))
    elif isinstance(node, list):
        for child in node:
            yield from _walk(child, path)


def _score(path: tuple[str, ...], node: Mapping[str, Any], model: str) -> Score | None:
    value = number(node["value"])
    if value is None:
        return None
    return Score(
        model=str(node.get("model") or (path[-2] if len(path) > 1 else model)),
        task=str(node.get("task") or (path[-1] if path else node["metric"])),
        metric=str(node["metric"]),
        value=value,
        low=number(node.get("low")),
        high=number(node.get("high")),
        unit=str(node.get("unit") or ""),
        n=_whole(node.get("n")),
        baselines=tuple(_baselines(node)),
        seen_in_part=_whole(node.get("seen_in_part")) or 0,
    )


def _baselines(node: Mapping[str, Any]) -> Iterator[Baseline]:
    """`baseline: {name, value}`, or `baselines: {name: value}`, or a list of the former."""
    found = [node.get("baseline"), node.get("baselines")]
    for item in found:
        for entry in item if isinstance(item, list) else [item]:
            if not isinstance(entry, Mapping):
                continue
            if "value" in entry:
                value = number(entry["value"])
                if value is not None:
                    yield Baseline(str(entry.get("name", "baseline")), value)
            else:
                for name, raw in entry.items():
                    value = number(raw)
                    if value is not None:
                        yield Baseline(str(name), value)


def _pair(path: tuple[str, ...], node: Mapping[str, Any]) -> Pair | None:
    difference, low, high = (number(node.get(key)) for key in ("difference", "low", "high"))
    if difference is None or low is None or high is None:
        return None
    return Pair(
        a=str(node.get("a", "")),
        b=str(node.get("b", "")),
        task=str(node.get("task") or (path[-1] if path else "")),
        metric=str(node.get("metric", "")),
        difference=difference,
        low=low,
        high=high,
        unit=str(node.get("unit") or ""),
        n=_whole(node.get("n")),
    )


def _whole(item: Any) -> int | None:
    found = number(item)
    return None if found is None else int(found)
