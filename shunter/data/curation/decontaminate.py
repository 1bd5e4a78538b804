"""Evaluation sets are kept out of what is trained on (MixtureVitae, arXiv 2509.25531, section on
decontamination: 13-grams, at least three)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.data.curation.operators import Facts, Operator, Rule, Verdicts, decide
from shunter.data.curation.pages import Pages
from shunter.data.sources import SourceConfig

MATCHES, SHOWN = 5, 300  # stretches that a record of removal tells of, and characters of each


@dataclass(frozen=True)
class Places:
    """The runs of one length in evaluation texts: an entry for each place at which one stands, by their hash.

    hashes: uint64, sorted. item: int32, the text's number; at: int32, the run's first word in it.
    """

    hashes: np.ndarray
    item: np.ndarray
    at: np.ndarray

    def of(self, run: int) -> tuple[list[int], list[int]]:
        """Texts and first words at which a run stands."""
        low, high = (int(np.searchsorted(self.hashes, np.uint64(run), side)) for side in ("left", "right"))
        return self.item[low:high].tolist(), self.at[low:high].tolist()


@dataclass(frozen=True)
class Table:
    """Evaluation texts. places: by length of a run; by minus the length of texts that are looked for whole.

    names: ids of the texts; words: int32, how many each has.
    """

    places: Mapping[int, Places]
    names: list[str]
    words: np.ndarray


class Decontaminate(Operator):
    """Drops documents that have runs of words in common with given texts, in the folded form.

    Texts with fewer different runs than the hits that are wanted are looked for whole; one of them counts as
    that many. The record of removal names the text of which a document has most (`item`), the share of that
    text's words that stand in common runs (`covered`), and the stretches in common (`matches`): as they stand
    in the document, with their place in its characters, the first word in the text, and the number of runs.
    """

    source: ClassVar[str] = "MixtureVitae, arXiv 2509.25531, section on decontamination"
    ours: ClassVar[tuple[str, ...]] = ("least",)

    kind: Literal["decontaminate"] = Field("decontaminate", description="Drops what evaluation sets hold.")
    against: list[SourceConfig] = Field(
        min_length=1, description="The evaluation texts; each file is part of the job's identity."
    )
    words: int = Field(13, ge=3, description="Words in a run.")
    hits: int = Field(3, ge=1, description="Different runs in common from which a document leaves.")
    least: int = Field(5, ge=1, description="Texts with fewer words are not looked for.")
    table: str = Field("", description="Where the job keeps the hashed runs; leave it out.")

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        table = _table(self.table)
        folded = pages.folded()
        found = self._found(folded, table)
        rules = [Rule("in an evaluation set", "runs", high=self.hits - 1)]
        verdicts = decide(rules, {"runs": self._counted(folded, found)}, len(pages))
        fails = np.flatnonzero(~verdicts.kept).tolist()
        if fails:
            told: list[dict[str, Any]] = [{} for _ in range(len(pages))]
            for document in fails:
                told[document] = self._told(pages, folded, found, table, document)
            verdicts.told = told
        folded.forget()
        return verdicts

    def common(self, pages: Pages, table: Table) -> np.ndarray:
        """int64 per document: different runs in common; a text that is looked for whole counts `hits`."""
        folded = pages.folded()
        total = self._counted(folded, self._found(folded, table))
        folded.forget()
        return total

    def _found(self, folded: Pages, table: Table) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """For each length: the first words of runs in common, rising, and their hashes."""
        words, found = folded.words, {}
        for key, places in table.places.items():
            size, known = abs(key), places.hashes
            starts = np.arange(max(0, len(words) - size + 1))
            starts = starts[starts + size <= words.first[1:][words.document[starts]]]
            grams = words.sequence.of(starts, starts + size)
            at = np.searchsorted(known, grams)
            at[at == len(known)] = 0
            hits = np.flatnonzero(known[at] == grams) if len(known) else np.zeros(0, np.int64)
            found[key] = (starts[hits], grams[hits])
        return found

    def _counted(self, folded: Pages, found: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        total = np.zeros(len(folded), np.int64)
        for key, (starts, runs) in found.items():
            _, number = np.unique(runs, return_inverse=True)
            pairs = np.unique(np.stack([folded.words.document[starts], number]), axis=1)
            total += (1 if key > 0 else self.hits) * np.bincount(pairs[0], minlength=len(folded))
        return total

    def _told(
        self,
        pages: Pages,
        folded: Pages,
        found: Mapping[int, tuple[np.ndarray, np.ndarray]],
        table: Table,
        document: int,
    ) -> dict[str, Any]:
        """What the record of a document says."""
        words = folded.words
        first, last = words.first[document : document + 2].tolist()
        hits: dict[int, list[tuple[int, int, int]]] = {}  # text -> (word here, word there, words)
        for key, (starts, runs) in found.items():
            low, high = np.searchsorted(starts, (first, last)).tolist()
            for start, run in zip(starts[low:high].tolist(), runs[low:high].tolist(), strict=True):
                for item, at in zip(*table.places[key].of(run), strict=True):
                    hits.setdefault(item, []).append((start, at, abs(key)))
        share = {item: _covered(mine) / int(table.words[item]) for item, mine in hits.items()}
        best = max(share, key=lambda item: (share[item], -item))
        matches = []
        for begin, end, at, count in _stretches(hits[best])[:MATCHES]:
            # To what follows the last word: its later digits and marks are not in the folded form.
            places = folded.unfolded(np.array([words.begins[begin], words.ends[end - 1]]))
            low, high = (places - pages.begins[document]).tolist()
            text = pages.texts[document][low:high]
            matches.append({"text": text[:SHOWN], "chars": [low, high], "word": at, "runs": count})
        others = {"other_items": len(share) - 1} if len(share) > 1 else {}
        return {"item": table.names[best], "covered": round(share[best], 4), "matches": matches, **others}

    def runs(self, items: Iterable[tuple[str, str]]) -> Table:
        """The runs of evaluation texts, given by name and text."""
        found: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        names: list[str] = []
        lengths: list[int] = []
        for name, text in items:
            words = Pages([text]).folded().words
            size = len(words)
            if size < self.least:
                continue
            runs = words.sequence.grams(self.words)  # none of a text that is shorter
            key = self.words
            if len(np.unique(runs)) < self.hits:  # they could never be enough
                key, runs = -size, words.sequence.grams(size)
            at = np.arange(len(runs), dtype=np.int32)
            found.setdefault(key, []).append((runs, np.full(len(runs), len(names), np.int32), at))
            names.append(name)
            lengths.append(size)
        places = {}
        for key, parts in sorted(found.items()):
            runs, item, at = (np.concatenate(column) for column in zip(*parts, strict=True))
            order = np.argsort(runs, kind="stable")
            places[key] = Places(runs[order], item[order], at[order])
        return Table(places, names, np.array(lengths, np.int32))

    def keep(self, items: Iterable[tuple[str, str]], folder: Path) -> Decontaminate:
        """This operator with the runs of the texts in a file. Raises ShunterError when there are none."""
        table = self.runs(items)
        if not table.names:
            raise ShunterError("the evaluation sets of decontaminate have no text that is long enough")
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()
        path = folder / f"{name}.npz"
        arrays = {
            f"{key}.{part}": getattr(places, part)
            for key, places in table.places.items()
            for part in ("hashes", "item", "at")
        }
        np.savez(path, names=np.array(table.names, np.str_), words=table.words, **arrays)
        return self.model_copy(update={"table": str(path)})


def _covered(hits: list[tuple[int, int, int]]) -> int:
    """Words of a text that stand in runs in common."""
    return len({word for _, at, size in hits for word in range(at, at + size)})


def _stretches(hits: list[tuple[int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Runs that overlap and go on alike here and there, as one: [begin, end) of words here, the first word
    there, the number of runs; the longest first."""
    found: list[list[int]] = []
    for start, at, size in sorted(hits, key=lambda hit: (hit[0] - hit[1], hit[0])):
        last = found[-1] if found else None
        if last is not None and last[0] - last[2] == start - at and start <= last[1]:
            last[1], last[3] = max(last[1], start + size), last[3] + 1
        else:
            found.append([start, start + size, at, 1])
    found.sort(key=lambda each: (each[0] - each[1], each[0]))
    return [(begin, end, at, count) for begin, end, at, count in found]


_TABLES: dict[str, Table] = {}


def _table(path: str) -> Table:
    """The runs in a file, read once a process."""
    if path not in _TABLES:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        keys = sorted({int(name.partition(".")[0]) for name in arrays if "." in name})
        parts = ("hashes", "item", "at")
        places = {key: Places(*(arrays[f"{key}.{part}"] for part in parts)) for key in keys}
        _TABLES[path] = Table(places, arrays["names"].tolist(), arrays["words"])
    return _TABLES[path]
