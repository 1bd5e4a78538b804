"""The job `commons`: a made-up web with terms of use, a reference and sums, to try curation on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from shunter.recipe.job import JobConfig, JobContext


class CommonsConfig(JobConfig):
    """Writes texts of which is known who may use them."""

    sources: dict[Literal["web", "reference", "sums"], int] = Field(
        {"web": 600, "reference": 150, "sums": 150}, min_length=1, description="Source -> number of texts."
    )
    heldout: float = Field(0.0, ge=0, le=0.9, description="Share of each source's texts that is held out.")


class CommonsJob:
    """Writes a corpus with the columns `terms` (free, unfree or silent) and `copy`."""

    kind: ClassVar[str] = "commons"
    produces: ClassVar[str] = "corpus"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = CommonsConfig

    def check(self, config: CommonsConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[CommonsConfig]) -> dict[str, Any]:
        import pyarrow as pa

        from shunter.data import commons, corpus

        config = context.config
        counts: Counter[str] = Counter()
        facts = {"terms": pa.string(), "copy": pa.bool_()}
        splits = {split: corpus.Writer(context.out / split, facts) for split in SPLITS}
        for source, count in config.sources.items():
            held = int(count * config.heldout)
            for row, item in enumerate(commons.MAKERS[source](count, config.seed)):
                split = "heldout" if row < held else "train"
                splits[split].write(f"{source}:{row}", source, row, item.text, item.terms, item.copy)
                counts[item.terms] += 1
        for writer in splits.values():
            writer.close()
        summary = {
            "read": sum(counts.values()),
            **{split: {"documents": w.documents, "bytes": w.bytes} for split, w in splits.items()},
            "dropped": {},
            "sources": {name: {"licence": "made up"} for name in config.sources},
        }
        (context.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (context.out / "dropped.jsonl").touch()
        return {"documents": splits["train"].documents, "bytes": splits["train"].bytes, **counts}


SPLITS = ("train", "heldout")
JOB = CommonsJob()
"""The kind `commons`."""
