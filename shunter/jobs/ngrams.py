"""The job `ngrams`: reference texts become a model of runs, whose perplexity filters others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from shunter.data import checks
from shunter.data.curation.ngrams import NGramModel, Unit, kinds_of
from shunter.data.curation.pages import Pages
from shunter.data.sources import SourceConfig, files
from shunter.jobs.languages import labelled
from shunter.recipe.job import Input, JobConfig, JobContext

HELD = 20  # one text in so many is kept out of a first model, for the figure
BATCH = 256  # texts that are counted at once


class NgramsConfig(JobConfig):
    """Counts runs of words or characters of good texts, with Kneser-Ney smoothing."""

    sources: list[SourceConfig] = Field([], description="Texts of the kind that is wanted.")
    corpora: Annotated[list[str], Input("corpus")] = Field(
        [], description="Jobs whose corpora are such texts; their train parts are read."
    )
    order: int = Field(5, ge=1, le=8, description="Tokens in the longest run; CCNet and KenLM: 5.")
    unit: Unit = Field("word", description="What a token is: `word` or `character`, folded.")
    least: list[int] = Field(
        [1, 1, 2],
        min_length=1,
        description="Fewest counts of runs of 1, 2, 3... tokens; the last for longer.",
    )
    chars: int = Field(3000, ge=20, description="Texts are cut at line feeds into pieces of about so many.")
    limit: int = Field(0, ge=0, description="Most pieces of each source; 0: all.")


class NgramsJob:
    """Writes ngrams.json and ngrams.safetensors."""

    kind: ClassVar[str] = "ngrams"
    produces: ClassVar[str] = "ngrams"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = NgramsConfig

    def check(self, config: NgramsConfig, base: Path) -> Sequence[str]:
        for source in config.sources:
            checks.check(source, base)
        return []

    def reads(self, config: NgramsConfig, base: Path) -> Sequence[Path]:
        return list(dict.fromkeys(path for source in config.sources for path in files(source, base)))

    def run(self, context: JobContext[NgramsConfig]) -> dict[str, Any]:
        config = context.config
        texts, _, _ = labelled(context, config.chars, config.limit)
        held = texts[HELD - 1 :: HELD]
        found: dict[str, Any] = {"texts": len(texts), "heldout_texts": len(held)}
        if held:
            taught = [text for place, text in enumerate(texts) if place % HELD != HELD - 1]
            first = NGramModel.train(_batches(taught), config.order, config.unit, config.least)
            logs = first.logs(Pages(held))[0]
            found["heldout_perplexity"] = float(np.exp(-logs.mean())) if len(logs) else float("nan")
        model = NGramModel.train(_batches(texts), config.order, config.unit, config.least)
        model.save(context.out)
        return {**found, "vocabulary": model.vocabulary, **kinds_of(model)}


def _batches(texts: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(texts), BATCH):
        yield texts[at : at + BATCH]


JOB = NgramsJob()
"""The kind `ngrams`."""
