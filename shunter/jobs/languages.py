"""The job `languages`: texts of known languages become a model that labels others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

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
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = LanguagesConfig

    def check(self, config: LanguagesConfig, base: Path) -> Sequence[str]:
        for source in config.sources:
            checks.check(source, base)
        return []

    def reads(self, config: LanguagesConfig, base: Path) -> Sequence[Path]:
        return list(dict.fromkeys(path for source in config.sources for path in files(source, base)))

    def run(self, context: JobContext[LanguagesConfig]) -> dict[str, Any]:
        config = context.config
        texts, labels = labelled(context, config.chars, config.limit)
        # A fifth is held out for the figure; the model that is kept has learnt from all.
        taught = [place % HELD != 0 for place in range(len(texts))]
        model = LanguageModel.train(
            [t for t, k in zip(texts, taught, strict=True) if k],
            [t for t, k in zip(labels, taught, strict=True) if k],
            config.bits,
        )
        asked = [place for place, known in enumerate(taught) if not known]
        best = model.scores([texts[place] for place in asked]).argmax(axis=1).tolist()
        right = sum(model.labels[b] == labels[place] for b, place in zip(best, asked, strict=True))
        LanguageModel.train(texts, labels, config.bits).save(context.out)
        return {
            "languages": len(model.labels),
            "texts": len(texts),
            "least_texts": min(Counter(labels).values()),
            "heldout_texts": len(asked),
            "heldout_accuracy": right / max(len(asked), 1),
        }


def labelled(context: JobContext[Any], chars: int, limit: int) -> tuple[list[str], list[str]]:
    """Pieces of the texts of the job's sources and corpora, and the names of their sources, in order.

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
    counts: Counter[str] = Counter()
    for label, text in every():
        if context.control.stop_requested():
            raise Stopped
        for piece in pieces(text, chars):
            if limit and counts[label] >= limit:
                break
            counts[label] += 1
            texts.append(piece)
            labels.append(label)
    return texts, labels


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
