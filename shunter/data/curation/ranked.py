"""Operators that give each document a score and keep the better ones: by a limit, or by a share of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from shunter.data.curation.operators import Barrier, Facts, Keys, Verdicts
from shunter.data.curation.pages import Pages

PARTS = ("head", "middle", "tail")


class Ranked(Barrier):
    """Every document's score is known before one is judged, so a share is exact over the whole corpus.

    Of equal scores the earlier document is the better one. A score that is no number is the worst.
    """

    share: float | None = Field(
        None, gt=0, le=1, description="Share of documents that stays, the best first."
    )
    limit: float | None = Field(None, description="Documents whose score is worse leave.")
    by_language: bool = Field(
        True, description="Where documents have a language, shares and parts are of each language's own."
    )

    column: ClassVar[str]
    low_is_good: ClassVar[bool] = False

    def scores(self, pages: Pages) -> np.ndarray:
        """float64 per document."""
        raise NotImplementedError

    def columns(self) -> dict[str, str]:
        return {self.column: "double", f"{self.column}_part": "string"}

    def keys_with(self, pages: Pages, facts: Facts) -> Keys:
        labels = facts["language"] if "language" in facts and len(pages) else np.array([""] * len(pages))
        return {"scores": self.scores(pages).astype(np.float64), "labels": np.asarray(labels, np.str_)}

    def settle(self, keys: Mapping[str, Any]) -> Keys:
        """score, part (0 to 2: the better, middle and worse third, as CCNet cuts), kept by share, the cut."""
        scores, labels = np.asarray(keys["scores"], np.float64), np.asarray(keys["labels"])
        part, kept = np.zeros(len(scores), np.int8), np.ones(len(scores), bool)
        cut = np.full(len(scores), np.nan)
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)] if self.by_language else []
        for group in groups or [np.arange(len(scores))]:
            badness = scores[group] if self.low_is_good else -scores[group]
            order = group[np.argsort(badness, kind="stable")]  # what is no number comes last
            part[order] = np.arange(len(order)) * 3 // max(len(order), 1)
            if self.share is not None and len(order):
                stay = int(np.floor(self.share * len(order) + 1e-9))
                kept[order[stay:]] = False
                cut[order] = scores[order[stay - 1]] if stay else np.nan
        return {"score": scores, "part": part, "kept": kept, "cut": cut}

    def judge_settled(self, pages: Pages, settled: Keys) -> Verdicts:
        score, cut = settled["score"], settled["cut"]
        reason = np.where(settled["kept"], -1, 1).astype(np.int16)
        limits = np.where(settled["kept"], 0.0, np.nan_to_num(cut))
        if self.limit is not None:
            beyond = score > self.limit if self.low_is_good else score < self.limit
            reason[beyond], limits[beyond] = 0, self.limit
        nothing = ~np.isfinite(score)
        reason[nothing], limits[nothing] = 2, 0.0
        facts = {
            self.column: score,
            f"{self.column}_part": np.array([PARTS[number] for number in settled["part"].tolist()], np.str_),
        }
        reasons = [f"{self.column} beyond the limit", f"{self.column} beyond the share", "nothing to score"]
        return Verdicts(reasons, reason, np.nan_to_num(score, nan=0.0, posinf=0.0, neginf=0.0), limits, facts)
