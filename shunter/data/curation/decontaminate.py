"""Evaluation sets are kept out of what is trained on (MixtureVitae, arXiv 2509.25531, section on
decontamination: 13-grams, at least three)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.data.curation.operators import Facts, Operator, Rule, Verdicts, decide
from shunter.data.curation.pages import Pages
from shunter.data.sources import SourceConfig


class Decontaminate(Operator):
    """Drops documents that have runs of words in common with given texts, in the folded form.

    Texts with fewer different runs than the hits that are wanted are looked for whole; one of them counts as
    that many.
    """

    kind: Literal["decontaminate"] = Field("decontaminate", description="Drops what evaluation sets hold.")
    against: list[SourceConfig] = Field(
        min_length=1, description="The evaluation texts; each file is part of the job's identity."
    )
    words: int = Field(13, ge=3, description="Words in a run.")
    hits: int = Field(3, ge=1, description="Different runs in common from which a document leaves.")
    least: int = Field(5, ge=1, description="Texts with fewer words are not looked for.")
    table: str = Field("", description="Where the job keeps the hashed runs; leave it out.")

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        found = self.common(pages, _table(self.table))
        return decide([Rule("in an evaluation set", "runs", high=self.hits - 1)], {"runs": found}, len(pages))

    def common(self, pages: Pages, table: dict[int, np.ndarray]) -> np.ndarray:
        """int64 per document: different runs in common; a text that is looked for whole counts `hits`."""
        folded = pages.folded()
        words = folded.words
        total = np.zeros(len(pages), np.int64)
        for key, known in table.items():
            size = abs(key)
            starts = np.arange(max(0, len(words) - size + 1))
            starts = starts[starts + size <= words.first[1:][words.document[starts]]]
            grams = words.sequence.of(starts, starts + size)
            at = np.searchsorted(known, grams)
            at[at == len(known)] = 0
            hits = np.flatnonzero(known[at] == grams) if len(known) else np.zeros(0, np.int64)
            pairs = np.unique(np.stack([words.document[starts[hits]], at[hits]]), axis=1)
            weight = 1 if key > 0 else self.hits
            total += weight * np.bincount(pairs[0], minlength=len(pages))
        folded.forget()
        return total

    def runs(self, texts: Iterable[str]) -> dict[int, np.ndarray]:
        """Length of a run -> sorted hashes of the runs of the evaluation texts; minus the length of whole
        texts -> their hashes."""
        found: dict[int, set[int]] = {}
        for text in texts:
            words = Pages([text]).folded().words
            size = len(words)
            if size < self.least:
                continue
            runs = set(words.sequence.grams(self.words).tolist()) if size >= self.words else set()
            if len(runs) < self.hits:  # they could never be enough
                found.setdefault(-size, set()).update(words.sequence.grams(size).tolist())
            else:
                found.setdefault(self.words, set()).update(runs)
        return {size: np.array(sorted(values), np.uint64) for size, values in sorted(found.items())}

    def keep(self, texts: Iterable[str], folder: Path) -> Decontaminate:
        """This operator with the runs of the texts in a file. Raises ShunterError when there are none."""
        table = self.runs(texts)
        if not table:
            raise ShunterError("the evaluation sets of decontaminate have no text that is long enough")
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()
        path = folder / f"{name}.npz"
        np.savez(path, **{str(size): values for size, values in table.items()})  # type: ignore[arg-type]
        return self.model_copy(update={"table": str(path)})


_TABLES: dict[str, dict[int, np.ndarray]] = {}


def _table(path: str) -> dict[int, np.ndarray]:
    """The runs in a file, read once a process."""
    if path not in _TABLES:
        with np.load(path, allow_pickle=False) as file:
            _TABLES[path] = {int(size): file[size] for size in file.files}
    return _TABLES[path]
