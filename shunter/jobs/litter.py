"""The job `litter`: made-up texts with noise in them, clean, or as an expert refined them, as a corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from shunter.recipe.job import JobConfig, JobContext


class LitterConfig(JobConfig):
    """Writes texts of which is known what in them is noise, to try refining on."""

    texts: int = Field(600, ge=1, description="Number of texts; the first ones are held out.")
    version: Literal["raw", "clean", "expert"] = Field(
        "raw",
        description="raw: with noise; clean: without; expert: as one refined them who errs at times. The "
        "same seed makes the same texts, with the same ids.",
    )
    heldout: float = Field(0.0, ge=0, le=0.9, description="Share of the texts that is held out.")


class LitterJob:
    """Writes a corpus; of raw texts the column `noise` has the places of what was put in, as JSON. Texts of
    which nothing is left are not in it."""

    kind: ClassVar[str] = "litter"
    produces: ClassVar[str] = "corpus"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = LitterConfig

    def check(self, config: LitterConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[LitterConfig]) -> dict[str, Any]:
        import pyarrow as pa

        from shunter.data import corpus, litter

        config = context.config
        raw = config.version == "raw"
        facts = {"noise": pa.string()} if raw else {}
        splits = {split: corpus.Writer(context.out / split, facts) for split in SPLITS}
        held = int(config.texts * config.heldout)
        empty = 0
        with (context.out / "dropped.jsonl").open("w", encoding="utf-8") as dropped:
            for row, made in enumerate(litter.littered(config.texts, config.seed)):
                text = {"raw": made.text, "clean": made.clean, "expert": made.expert}[config.version]
                name = f"web:{row}"
                if not text:
                    empty += 1
                    record = {"id": name, "operator": "litter", "reason": "nothing is left"}
                    dropped.write(json.dumps(record) + "\n")
                    continue
                told = [json.dumps(made.noise)] if raw else []
                splits["heldout" if row < held else "train"].write(name, "web", row, text, *told)
        for writer in splits.values():
            writer.close()
        summary = {
            "read": config.texts,
            **{split: {"documents": w.documents, "bytes": w.bytes} for split, w in splits.items()},
            "dropped": {"nothing is left": empty} if empty else {},
            "sources": {"web": {"licence": "made up"}},
        }
        (context.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return {"documents": splits["train"].documents, "bytes": splits["train"].bytes}


SPLITS = ("train", "heldout")
JOB = LitterJob()
"""The kind `litter`."""
