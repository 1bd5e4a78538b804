"""The job `languages`: texts of known languages become a model that labels others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from shunter.data import checks
from shunter.data.curation.language import HELD, LanguageModel
from shunter.data.sources import Problem, SourceConfig, documents, files
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped


class LanguagesConfig(JobConfig):
    """Learns to tell languages apart by their runs of letters."""

    sources: list[SourceConfig] = Field([], description="Texts by language: a source's name is the label.")
    corpora: Annotated[list[str], Input("corpus")] = Field(
        [], description="Jobs whose corpora have the languages as sources; their train parts are read."
    )
    chars: int = Field(
        500, ge=20, description="Texts are cut at line feeds into pieces of about so many characters."
    )
    limit: int = Field(2000, ge=0, description="Most pieces of each source; 0: all.")
    bits: int = Field(16, ge=8, le=22, description="The table has two to this power rows.")


class LanguagesJob:
    """Writes languages.json and languages.safetensors."""

    kind: ClassVar[str] = "languages"
    produces: ClassVar[str] = "languages"
    version: ClassVar[int] = 2
    Config: ClassVar[type[JobConfig]] = LanguagesConfig

    def check(self, config: LanguagesConfig, base: Path) -> Sequence[str]:
        for source in config.sources:
            checks.check(source, base)
        return []

    def reads(self, config: LanguagesConfig, base: Path) -> Sequence[Path]:
        return list(dict.fromkeys(path for source in config.sources for path in files(source, base)))

    def run(self, context: JobContext[LanguagesConfig]) -> dict[str, Any]:
        config = context.config
        texts, labels, origins = labelled(context, config.chars, config.limit)
        # A fifth is held out for the figure; the model that is kept has learnt from all.
        asked, fits = (held_out(labels, origins, fold) for fold in (0, 1))
        taught = np.flatnonzero(~asked).tolist()
        model = LanguageModel.train(
            [texts[place] for place in taught], [labels[place] for place in taught], config.bits, fits[taught]
        )
        places = np.flatnonzero(asked).tolist()
        best = model.scores([texts[place] for place in places]).argmax(axis=1).tolist()
        right = sum(model.labels[b] == labels[place] for b, place in zip(best, places, strict=True))
        LanguageModel.train(texts, labels, config.bits, fits).save(context.out)
        return {
            "languages": len(model.labels),
            "texts": len(texts),
            "least_texts": min(Counter(labels).values()),
            "heldout_texts": len(places),
            "heldout_accuracy": right / max(len(places), 1),
        }


def labelled(context: JobContext[Any], chars: int, limit: int) -> tuple[list[str], list[str], list[int]]:
    """Pieces of the texts of the job's sources and corpora, in order; for each the name of its source and
    the number of the document that it is of.

    At most `limit` of each source, if not 0. Problems of reading go to the event log.
    """
    from shunter.data import corpus

    def report(problem: Problem) -> None:
        context.events.write("problem", **vars(problem))

    def every() -> Iterator[tuple[str, str]]:
        for source in context.config.sources:
            for document in documents(source, context.base, report):
                yield source.label, document.text
        for artefact in context.many("corpora") if context.config.corpora else []:
            for text in corpus.texts(artefact.path / "train"):
                yield text.source, text.text

    texts: list[str] = []
    labels: list[str] = []
    origins: list[int] = []
    counts: Counter[str] = Counter()
    for number, (label, text) in enumerate(every()):
        if context.control.stop_requested():
            raise Stopped
        for piece in pieces(text, chars):
            if limit and counts[label] >= limit:
                break
            counts[label] += 1
            texts.append(piece)
            labels.append(label)
            origins.append(number)
    return texts, labels, origins


def held_out(labels: Sequence[str], origins: Sequence[int], fold: int) -> np.ndarray:
    """bool per piece: whether it is in this fold, of five. What is held out has no piece of a document that
    teaches; of a language with fewer than five documents it is a fifth of the pieces that follow each
    other, of one with fewer than five pieces nothing.
    """
    held = np.zeros(len(labels), bool)
    names, origin = np.array(labels, object), np.array(origins, np.int64)
    for label in sorted(set(labels)):
        mine = np.flatnonzero(names == label)
        documents, inverse = np.unique(origin[mine], return_inverse=True)
        if len(documents) >= HELD:
            held[mine] = inverse % HELD == fold
        elif len(mine) >= HELD:
            held[mine] = np.arange(len(mine)) * HELD // len(mine) == fold
    return held


def pieces(text: str, chars: int) -> list[str]:
    """Lines put together to about `chars` characters; what holds nothing is left out."""
    found, held, size = [], list[str](), 0
    for line in text.split("\n"):
        held.append(line)
        size += len(line) + 1
        if size >= chars:
            found.append("\n".join(held))
            held, size = [], 0
    found.append("\n".join(held))
    return [piece for piece in found if piece.strip()]


JOB = LanguagesJob()
"""The kind `languages`."""
