"""A chain of operators over batches of documents: what of one batch is done in one go.

A chain is cut into stages at its barriers: a stage begins with the verdicts of the barrier before it, runs
the operators that judge documents one by one, and ends with the keys of the barrier after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shunter.data.curation.operators import Barrier, Filter, Keys, Operator, Verdicts
from shunter.data.curation.pages import Pages

BATCH_CHARS = 1 << 18  # of one batch: its arrays then stay in a core's own cache
SAMPLES, SAMPLE_CHARS = 3, 400
EMPTIED = "nothing is left"


@dataclass
class Documents:
    """Columns of equal length. number: place among all documents of the job, rising.

    Facts that are strings are arrays of objects: one long address must not make all the others as long.
    """

    number: np.ndarray
    texts: list[str]
    facts: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def only(self, kept: np.ndarray) -> Documents:
        """Those for which `kept` (bool) is true."""
        if kept.all():
            return self
        places = np.flatnonzero(kept).tolist()
        facts = {name: values[kept] for name, values in self.facts.items()}
        return Documents(self.number[kept], [self.texts[i] for i in places], facts)

    def batches(self) -> Iterator[slice]:
        """Cuts of about BATCH_CHARS characters. No result depends on where they fall."""
        begin = size = 0
        for at, text in enumerate(self.texts):
            size += len(text) + 1
            if size >= BATCH_CHARS:
                yield slice(begin, at + 1)
                begin, size = at + 1, 0
        if begin < len(self):
            yield slice(begin, len(self))


@dataclass
class Tally:
    """What one operator did: documents, characters and bytes of UTF-8 in and out, reasons, edits."""

    documents: int = 0
    characters: int = 0
    kept: int = 0
    kept_characters: int = 0
    bytes: int = 0
    kept_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Add another part's counts."""
        self.documents += other.documents
        self.characters += other.characters
        self.kept += other.kept
        self.kept_characters += other.kept_characters
        self.bytes += other.bytes
        self.kept_bytes += other.kept_bytes
        self.reasons += other.reasons
        self.edits += other.edits

    def data(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            **vars(self),
            "reasons": dict(sorted(self.reasons.items())),
            "edits": dict(sorted(self.edits.items())),
        }

    @staticmethod
    def of(data: dict[str, Any]) -> Tally:
        """`data` back."""
        return Tally(**{**data, "reasons": Counter(data["reasons"]), "edits": Counter(data["edits"])})


@dataclass(frozen=True)
class Stage:
    """opens: the barrier whose verdicts come first; closes: the one whose keys are taken at the end.

    first: the number in the chain of the operator that the stage begins with. excluded: records of removal
    keep the text.
    """

    opens: Barrier | None
    operators: Sequence[Operator]
    closes: Barrier | None
    first: int
    excluded: bool = False

    @property
    def names(self) -> list[str]:
        """Of the operators whose verdicts this stage gives."""
        opening = [self.opens] if self.opens is not None else []
        return [operator.name for operator in [*opening, *self.operators]]


def stages(operators: Sequence[Operator], excluded: bool = False) -> list[Stage]:
    """The chain cut at its barriers; at least one stage."""
    found: list[Stage] = []
    opens: Barrier | None = None
    inside: list[Operator] = []
    first = 0
    for operator in operators:
        if isinstance(operator, Barrier):
            found.append(Stage(opens, inside, operator, first, excluded))
            first += len(inside) + (opens is not None)
            opens, inside = operator, []
        else:
            inside.append(operator)
    return [*found, Stage(opens, inside, None, first, excluded)]


@dataclass
class Result:
    """What a stage makes of some documents."""

    left: Documents
    dropped: list[dict[str, Any]]
    tallies: list[Tally]
    keys: Keys
    samples: list[dict[str, Any]]


def run(stage: Stage, documents: Documents, settled: Keys | None) -> Result:
    """Run one stage over documents, a batch at a time.

    settled: their part of what the opening barrier settled, one row a document unless the barrier's keys
    had `rows`, then with `rows` too.
    """
    tallies = [Tally() for _ in stage.names]
    dropped: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    left: list[Documents] = []
    keys: list[Keys] = []
    for cut in documents.batches():
        batch = Documents(
            documents.number[cut],
            documents.texts[cut],
            {name: values[cut] for name, values in documents.facts.items()},
        )
        part = None if settled is None else _part(settled, cut, batch.number)
        batch, pages = _batch(stage, batch, part, tallies, dropped, samples)
        left.append(batch)
        if stage.closes is not None:
            keys.append(stage.closes.keys_with(pages, batch.facts))
        pages.forget()
    if stage.closes is not None and not keys:
        keys.append(stage.closes.keys_with(Pages([]), {}))
    names = keys[0] if keys else {}
    together = {name: np.concatenate([part[name] for part in keys]) for name in names}
    dropped.sort(key=lambda record: record["number"])
    return Result(_joined(left), dropped, tallies, together, samples)


def _batch(
    stage: Stage,
    batch: Documents,
    settled: Keys | None,
    tallies: list[Tally],
    dropped: list[dict[str, Any]],
    samples: list[dict[str, Any]],
) -> tuple[Documents, Pages]:
    """One batch through a stage. Words and hashes are shared by operators until a text changes."""
    pages = Pages(batch.texts)
    alive = np.ones(len(batch), bool)
    opening = [stage.opens] if stage.opens is not None else []
    for tally, operator in zip(tallies, [*opening, *stage.operators], strict=True):
        if not isinstance(operator, Filter) and not alive.all():
            # What edits is shown only what is left, so that its counts hang on no batch.
            batch = batch.only(alive)
            pages.forget()
            pages, alive = Pages(batch.texts), np.ones(len(batch), bool)
        if isinstance(operator, Barrier):
            assert settled is not None, "a barrier opens its stage: every document is there"
            verdicts = operator.judge_settled(pages, settled)
        else:
            verdicts = operator.judge_with(pages, batch.facts)
        if verdicts.texts is not None:
            verdicts = _emptied(verdicts, batch.texts)
        fails = alive & ~verdicts.kept
        batch.facts.update(verdicts.facts)
        tally.documents += int(alive.sum())
        tally.characters += int(pages.lengths[alive].sum())
        tally.bytes += int(pages.sizes[alive].sum())
        for place in np.flatnonzero(fails).tolist():
            record = _record(operator, verdicts, batch, place)
            dropped.append(record)
            tally.reasons[record["reason"]] += 1
            if tally.reasons[record["reason"]] <= SAMPLES:
                samples.append({**record, "text": batch.texts[place][:SAMPLE_CHARS]})
            if stage.excluded:
                record["text"] = batch.texts[place]
        alive &= ~fails
        tally.edits.update(verdicts.counts)
        if verdicts.texts is not None:
            chosen = [text for text, keep in zip(verdicts.texts, alive.tolist(), strict=True) if keep]
            batch = batch.only(alive)
            batch.texts = chosen
            pages.forget()
            pages, alive = Pages(chosen), np.ones(len(chosen), bool)
        tally.kept += int(alive.sum())
        tally.kept_characters += int(pages.lengths[alive].sum())
        tally.kept_bytes += int(pages.sizes[alive].sum())
    if not alive.all():
        batch = batch.only(alive)
        pages.forget()
        pages = Pages(batch.texts)
    return batch, pages


def _emptied(verdicts: Verdicts, before: Sequence[str]) -> Verdicts:
    """The same, and what an operator has left without a word goes."""
    assert verdicts.texts is not None
    left = zip(verdicts.texts, before, verdicts.kept.tolist(), strict=True)
    blank = np.array([kept and new != old and not new.strip() for new, old, kept in left], bool)
    if not blank.any():
        return verdicts
    reasons = [*verdicts.reasons, EMPTIED]
    reason = np.where(blank, len(reasons) - 1, verdicts.reason).astype(np.int16)
    value, limit = np.where(blank, 0.0, verdicts.value), np.where(blank, 0.0, verdicts.limit)
    return replace(verdicts, reasons=reasons, reason=reason, value=value, limit=limit)


def _record(operator: Operator, verdicts: Verdicts, batch: Documents, place: int) -> dict[str, Any]:
    """Why a document leaves."""
    record = {
        "number": int(batch.number[place]),
        "operator": operator.name,
        "reason": verdicts.reasons[int(verdicts.reason[place])],
        "value": float(f"{verdicts.value[place]:.6g}"),
        "limit": float(f"{verdicts.limit[place]:.6g}"),
    }
    if verdicts.of is not None:
        record["of"] = int(verdicts.of[place])
    if verdicts.told is not None:
        record.update(verdicts.told[place])
    for name in ("language", "cluster_size", "licence_rule"):
        if name in batch.facts:
            record[name] = batch.facts[name].item(place)
    return record


def _part(settled: Keys, cut: slice, number: np.ndarray) -> Keys:
    """The rows of a batch."""
    if "rows" not in settled:
        return {"number": number, **{name: values[cut] for name, values in settled.items()}}
    ends = np.cumsum(settled["rows"])
    begin = int(ends[cut.start - 1]) if cut.start else 0
    end = int(ends[cut.stop - 1]) if cut.stop else 0
    others = {name: values[begin:end] for name, values in settled.items() if name != "rows"}
    return {"number": number, **others}


def _joined(parts: list[Documents]) -> Documents:
    """One after another; facts that not all have are left out of none: chains give them to all or none."""
    if not parts:
        return Documents(np.zeros(0, np.int64), [])
    facts = {name: np.concatenate([part.facts[name] for part in parts]) for name in parts[0].facts}
    texts = [text for part in parts for text in part.texts]
    return Documents(np.concatenate([part.number for part in parts]), texts, facts)
