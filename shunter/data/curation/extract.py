"""Web pages become texts, in the workers: finding the main text is dearer than reading the file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from shunter.data import extraction
from shunter.data.cleaning import normalise
from shunter.data.curation.operators import Barrier, Facts, Keys, Operator, Verdicts
from shunter.data.curation.pages import Pages


class Extract(Operator):
    """Finds the main text of documents that are web pages; others pass. A `curate` job adds it by itself.

    What other documents meet when they are read, pages meet here: cleaning and the limits of length.
    """

    kind: Literal["extract"] = Field("extract", description="Markup to main text.")
    normalise: bool = Field(True, description="Clean the text as the job does.")
    min_chars: int = Field(1, ge=0, description="Shorter texts go.")
    max_chars: int = Field(10_000_000, ge=1, description="Longer texts go.")

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        size = len(pages)
        reason, value, limit = np.full(size, -1, np.int16), np.zeros(size), np.zeros(size)
        texts, counts = list(pages.texts), Counter[str]()
        methods = facts["extract"].tolist() if size else []
        for place, method in enumerate(methods):
            if not method:
                continue
            found = extraction.extract(texts[place], method)
            text = normalise(found.text) if self.normalise else found.text
            counts[f"pages by {found.by}"] += 1
            texts[place] = text
            length = len(text)
            for number, fails, bound in (
                (0, bool(found.error), 0),
                (1, not text, 0),
                (2, length < self.min_chars, self.min_chars),
                (3, length > self.max_chars, self.max_chars),
            ):
                if fails:
                    reason[place], value[place], limit[place] = number, length, bound
                    break
        return Verdicts(REASONS, reason, value, limit, texts=texts, counts=dict(counts))


REASONS = ["the extractor failed", "no main text", "too short", "too long"]


class ExactDuplicates(Barrier):
    """Keeps the first of documents whose texts are equal. 24 bytes a document, on disk and when settled."""

    kind: Literal["exact-duplicates"] = Field("exact-duplicates", description="Equal texts, but the first.")

    def keys(self, pages: Pages) -> Keys:
        digests = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16) for text in pages.texts
        ]
        both = np.frombuffer(b"".join(digest.digest() for digest in digests), np.uint64).reshape(-1, 2)
        return {"high": both[:, 0], "low": both[:, 1]}

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """root: int64 per document, the number of the first that is equal."""
        high, low, number = (np.asarray(keys[name]) for name in ("high", "low", "number"))
        order = np.lexsort((low, high))  # stable: of equal ones the first comes first
        high, low = high[order], low[order]
        fresh = np.ones(len(order), bool)
        fresh[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        heads = np.flatnonzero(fresh)
        first = order[np.repeat(heads, np.diff(np.append(heads, len(order))))] if len(order) else order
        root = np.empty(len(order), np.int64)
        root[order] = number[first]
        return {"root": root}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        root, zeros = settled["root"], np.zeros(len(pages))
        reason = np.where(root == settled["number"], -1, 0).astype(np.int16)
        return Verdicts(["duplicate"], reason, zeros, zeros, of=np.where(reason < 0, -1, root))
