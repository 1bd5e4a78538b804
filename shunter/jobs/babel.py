"""The job `babel`: a made-up web, or clean reference texts, in made-up languages, as a corpus."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from shunter.recipe.job import JobConfig, JobContext


class BabelConfig(JobConfig):
    """Writes texts of which everything is known, to try curation on."""

    what: Literal["web", "reference"] = Field(
        "web", description="web: with noise and copies; reference: clean texts."
    )
    languages: list[Literal["aa", "bb", "cc", "dd"]] = Field(
        ["aa", "bb", "cc", "dd"], min_length=1, description="Which languages."
    )
    texts: int = Field(300, ge=1, description="Texts of each language before copies.")
    heldout: float = Field(0.0, ge=0, le=0.9, description="Share of the texts that are held out.")


class BabelJob:
    """Writes a corpus whose sources are languages and whose column `quality` says what a text is."""

    kind: ClassVar[str] = "babel"
    produces: ClassVar[str] = "corpus"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = BabelConfig

    def check(self, config: BabelConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[BabelConfig]) -> dict[str, Any]:
        import pyarrow as pa

        from shunter.data import babel, corpus

        config = context.config
        counts: Counter[str] = Counter()
        splits = {split: corpus.Writer(context.out / split, {"quality": pa.string()}) for split in SPLITS}
        for language in babel.languages():
            if language.name not in config.languages:
                continue
            make = babel.web if config.what == "web" else babel.reference
            texts = list(make(language, config.texts, config.seed))
            held = int(len(texts) * config.heldout)
            for row, (text, quality) in enumerate(texts):
                split = "heldout" if row < held else "train"
                splits[split].write(f"{language.name}:{row}", language.name, row, text, quality)
                counts[quality] += 1
        for writer in splits.values():
            writer.close()
        summary = {
            "read": sum(counts.values()),
            **{split: {"documents": w.documents, "bytes": w.bytes} for split, w in splits.items()},
            "dropped": {},
            "sources": {name: {"licence": "made up"} for name in config.languages},
        }
        (context.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (context.out / "dropped.jsonl").touch()
        return {"documents": splits["train"].documents, "bytes": splits["train"].bytes, **counts}


SPLITS = ("train", "heldout")
JOB = BabelJob()
