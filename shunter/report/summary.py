"""The scores in a few lines of plain text, for the end of a run and for `shunter report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shunter.report import numbers
from shunter.report.scores import Score, Scores, parse


def score_lines(scores: Any) -> list[str]:
    """One line for each score and each paired comparison, in columns.

    scores: the content of a scores.json (or an already parsed `Scores`). Each line names the model, the
    task, the metric, the value with its 95 % interval and unit, the number of items, and the baselines.
    """
    parsed = scores if isinstance(scores, Scores) else parse(scores)
    rows = [(score.task, score.metric, score.model, _value(score), _beside(score)) for score in parsed.scores]
    lines = _columns(rows)
    for pair in parsed.pairs:
        verdict = "excludes" if pair.excludes_zero else "includes"
        low, high = numbers.signed(pair.low, pair.unit), numbers.signed(pair.high, pair.unit)
        difference = numbers.signed(pair.difference, pair.unit)
        lines.append(
            f"{pair.task} {pair.metric}: {pair.b} minus {pair.a} = {difference} "
            f"[{low}, {high}]{_unit(pair.unit)}{_items(pair.n, ' paired items')}; "
            f"the interval {verdict} zero"
        )
    return lines


def _value(score: Score) -> str:
    text = numbers.value(score.value, score.unit)
    if score.low is not None and score.high is not None:
        text += f" [{numbers.value(score.low, score.unit)}, {numbers.value(score.high, score.unit)}]"
    return text + _unit(score.unit) + _items(score.n, " items")


def _beside(score: Score) -> str:
    said = [f"{b.name}: {numbers.value(b.value, score.unit)}" for b in score.baselines]
    if score.seen_in_part:
        said.append(seen_in_part(score.seen_in_part))
    return "; ".join(said)


def seen_in_part(count: int) -> str:
    """What must stand beside a score on texts that the model knows other sections of."""
    return f"{count} of them sections of texts seen in part"


def _unit(unit: str) -> str:
    return "" if unit in ("", "fraction") else f" {unit}"


def _items(n: int | None, noun: str) -> str:
    return "" if n is None else f", {n}{noun}"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
