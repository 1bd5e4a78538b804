"""What decontamination found, over a whole corpus: documents by evaluation set, and how sure they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

HELD = 0.5  # of an evaluation text's words, from which on a document holds it


class Leaks:
    """Counts records of removal.

    A document that left because of some runs in common may hold an evaluation text or only quote what that
    text quotes too. precision: of the documents that left, the share that hold at least half of the words of
    one evaluation text, in runs in common.
    """

    def __init__(self) -> None:
        self.documents = self.holding = 0
        self.sets: dict[str, Counter[str]] = {}
        self._items: set[str] = set()

    def add(self, record: Mapping[str, Any]) -> None:
        """Look at a record; those of other operators count nothing."""
        if record["operator"] != "decontaminate" or "item" not in record:
            return
        holds = record["covered"] >= HELD
        mine = self.sets.setdefault(record["item"].rpartition(":")[0], Counter())
        fresh = record["item"] not in self._items
        self._items.add(record["item"])
        self.documents += 1
        self.holding += holds
        mine.update({"documents": 1, "holding": int(holds), "items": int(fresh)})

    def data(self) -> dict[str, Any]:
        """As JSON values; empty when nothing left."""
        if not self.documents:
            return {}
        sets = {name: dict(self.sets[name]) for name in sorted(self.sets)}
        precision = self.holding / self.documents
        return {
            "documents": self.documents, "holding": self.holding, "precision": precision, "sets": sets,
        }  # fmt: skip
