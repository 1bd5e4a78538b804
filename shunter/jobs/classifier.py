"""The job `classifier`: two sets of texts, the wanted and others, become a model that scores documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from shunter.data import checks
from shunter.data.curation.pages import Pages
from shunter.data.curation.quality import Classifier, ranking
from shunter.data.sources import Problem, SourceConfig, documents, files
from shunter.jobs.languages import pieces
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

HELD = 5  # one text in so many is held out for the figures


class ClassifierConfig(JobConfig):
    """Learns to tell wanted texts from others by their words."""

    wanted: list[SourceConfig] = Field([], description="Texts of the kind that is wanted.")
    others: list[SourceConfig] = Field(
        [], description="Texts as they come, or of the kind that is not wanted."
    )
    wanted_corpora: Annotated[list[str], Input("corpus")] = Field(
        [], description="Jobs whose corpora are wanted; their train parts are read."
    )
    other_corpora: Annotated[list[str], Input("corpus")] = Field([], description="The same for others.")
    chars: int = Field(3000, ge=20, description="Texts are cut at line feeds into pieces of about so many.")
    limit: int = Field(0, ge=0, description="Most pieces of each side; 0: all.")
    bits: int = Field(18, ge=8, le=24, description="There are two to this power weights.")
    grams: int = Field(2, ge=1, le=4, description="Words in the longest feature; fastText in DCLM: 2.")
    epochs: int = Field(5, ge=1, description="Passes over the texts.")

    @model_validator(mode="after")
    def _both(self) -> ClassifierConfig:
        if not (self.wanted or self.wanted_corpora) or not (self.others or self.other_corpora):
            raise ValueError("give texts of both kinds: wanted or wanted_corpora, others or other_corpora")
        return self


class ClassifierJob:
    """Writes classifier.json and classifier.safetensors."""

    kind: ClassVar[str] = "classifier"
    produces: ClassVar[str] = "classifier"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = ClassifierConfig

    def check(self, config: ClassifierConfig, base: Path) -> Sequence[str]:
        for source in (*config.wanted, *config.others):
            checks.check(source, base)
        return []

    def reads(self, config: ClassifierConfig, base: Path) -> Sequence[Path]:
        sources = (*config.wanted, *config.others)
        return list(dict.fromkeys(path for source in sources for path in files(source, base)))

    def run(self, context: JobContext[ClassifierConfig]) -> dict[str, Any]:
        config = context.config
        texts: list[str] = []
        sides: list[bool] = []
        places: list[int] = []
        for side, sources, corpora in (
            (True, config.wanted, "wanted_corpora"),
            (False, config.others, "other_corpora"),
        ):
            for number, piece in _some(_texts(context, sources, corpora), config.chars, config.limit):
                texts.append(piece)
                sides.append(side)
                places.append(number)
        wanted = np.array(sides, bool)
        options = {"bits": config.bits, "grams": config.grams, "epochs": config.epochs, "seed": config.seed}
        held = np.array(places, np.int64) % HELD == HELD - 1  # whole texts: pieces of one are alike
        found: dict[str, Any] = {
            "texts": len(texts),
            "wanted": int(wanted.sum()),
            "heldout_texts": int(held.sum()),
        }
        if len(np.unique(wanted[held])) == 2 and len(np.unique(wanted[~held])) == 2:
            asked, truth = [t for t, h in zip(texts, held.tolist(), strict=True) if h], wanted[held]
            taught = [t for t, h in zip(texts, held.tolist(), strict=True) if not h]
            scores = Classifier.train(taught, wanted[~held], **options).scores(Pages(asked))
            right = (np.nan_to_num(scores) > 0.5) == truth
            found["heldout_accuracy"] = float((right[truth].mean() + right[~truth].mean()) / 2)
            found["heldout_ranking"] = ranking(np.nan_to_num(scores), truth)
        Classifier.train(texts, wanted, **options).save(context.out)
        return found


def _texts(context: JobContext[ClassifierConfig], sources: list[SourceConfig], corpora: str) -> Iterator[str]:
    from shunter.data import corpus

    def report(problem: Problem) -> None:
        context.events.write("problem", **vars(problem))

    for source in sources:
        for document in documents(source, context.base, report):
            yield document.text
    for artefact in context.many(corpora) if getattr(context.config, corpora) else []:
        for text in corpus.texts(artefact.path / "train"):
            yield text.text
        if context.control.stop_requested():
            raise Stopped


def _some(texts: Iterator[str], chars: int, limit: int) -> Iterator[tuple[int, str]]:
    """Pieces of the texts with the texts' numbers, at most `limit` if not 0."""
    count = 0
    for number, text in enumerate(texts):
        for piece in pieces(text, chars):
            if limit and count >= limit:
                return
            count += 1
            yield number, piece


JOB = ClassifierJob()
"""The kind `classifier`."""
