"""A curated corpus while it is written: its two parts, what left and why, and what could not be read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shunter.data.curation.firsts import Firsts
from shunter.data.sources import Document, Problem

if TYPE_CHECKING:
    from shunter.jobs.curate import CurateConfig

SPLITS = ("train", "heldout")


def split_of(text: str, share: float) -> str:
    """`heldout` for `share` of all texts, by their digest: no order of sources or files changes it."""
    digest = hashlib.blake2b(b"heldout:" + text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") < share * 2**64 else "train"


class Output:
    """The corpus while it is written. seen: a folder for what is needed to know duplicates."""

    def __init__(self, folder: Path, seen: Path, facts: Mapping[str, Any] | None = None) -> None:
        self.folder, self.facts = folder, facts
        shutil.rmtree(seen, ignore_errors=True)  # documents are read anew in every attempt
        self.seen = Firsts(seen)
        self.dropped: Counter[str] = Counter()
        self.reading: Counter[str] = Counter()  # those of them that no operator saw
        self.problems = self.read = 0
        self.sources: dict[str, Counter[str]] = {}

    def __enter__(self) -> Output:
        from shunter.data import corpus

        self._dropped: IO[str] = (self.folder / "dropped.jsonl").open("w", encoding="utf-8")
        self._problems: IO[str] = (self.folder / "problems.jsonl").open("w", encoding="utf-8")
        self.splits = {split: corpus.Writer(self.folder / split, self.facts) for split in SPLITS}
        return self

    def __exit__(self, *error: object) -> None:
        self._dropped.close()
        self._problems.close()
        for writer in self.splits.values():
            writer.close()

    def problem(self, problem: Problem) -> None:
        self.problems += 1
        self._problems.write(json.dumps(vars(problem), ensure_ascii=False) + "\n")

    def drop(self, source: str, record: Mapping[str, Any]) -> None:
        """Record that a document leaves: `id`, `operator`, `reason` and what decided."""
        self.dropped[record["reason"]] += 1
        self.reading[record["reason"]] += record["operator"] == "reading"
        self.sources.setdefault(source, Counter())[f"dropped: {record['reason']}"] += 1
        self._dropped.write(json.dumps(record, ensure_ascii=False) + "\n")

    def keep(
        self,
        document: Document,
        name: str,
        text: str,
        config: CurateConfig,
        split: str | None = None,
        *facts: object,
    ) -> None:
        """Write a document to its split; None: the one that its text says."""
        counts = self.sources.setdefault(document.source, Counter())
        split = split or split_of(text, config.heldout)
        counts[f"{split} documents"] += 1
        counts[f"{split} bytes"] += len(text.encode())
        self.splits[split].write(name, document.source, document.row, text, *facts)

    def reason(self, text: str, number: int, config: CurateConfig) -> tuple[str | None, dict[str, Any]]:
        """Why a document leaves before any operator, and what decided; None when it stays.

        number: its own; `of` is that of the first with the same text.
        """
        if len(text) < config.min_chars:
            return "too short", {"chars": len(text), "min_chars": config.min_chars}
        if len(text) > config.max_chars:
            return "too long", {"chars": len(text), "max_chars": config.max_chars}
        if not _encodes(text):
            return "not encodable", {}
        if config.deduplicate:
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            first = self.seen.add(digest, number)
            if first is not None:
                return "duplicate", {"of": first}
        return None, {}

    def summary(self, licences: Mapping[str, str | None]) -> dict[str, Any]:
        """Counts of documents and bytes, and per source with its licence."""
        total = {
            split: {"documents": writer.documents, "bytes": writer.bytes}
            for split, writer in self.splits.items()
        }
        return {
            "read": self.read,
            **total,
            "dropped": dict(sorted(self.dropped.items())),
            "dropped_by_reading": dict(sorted((+self.reading).items())),
            "problems": self.problems,
            "sources": {
                name: {"licence": licences.get(name), **dict(sorted(self.sources.get(name, {}).items()))}
                for name in licences
            },
        }


def _encodes(text: str) -> bool:
    """False for lone surrogates, which JSON may carry and UTF-8 may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
