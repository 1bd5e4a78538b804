"""The job `languages`: texts of known languages become a model that labels others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from shunter.data import checks
from shunter.data.curation.language import HELD, LanguageModel
from shunter.data.sources import Problem, SourceConfig, documents, files
from shunter.recipe.job import JobConfig, JobContext, Stopped


class LanguagesConfig(JobConfig):
    """Learns to tell languages apart by their runs of letters."""

    sources: list[SourceConfig] = Field(
        min_length=2, description="Texts by language: a source's name is the label; several may share one."
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
        texts, labels = labelled(config.sources, context, config.chars, config.limit)
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


def labelled(
    sources: Sequence[SourceConfig], context: JobContext[Any], chars: int, limit: int
) -> tuple[list[str], list[str]]:
    """Pieces of texts and the names of their sources, in order. Problems of reading go to the event log."""
    texts: list[str] = []
    labels: list[str] = []

    def report(problem: Problem) -> None:
        context.events.write("problem", **vars(problem))

    for source in sources:
        count = 0
        for document in documents(source, context.base, report):
            if context.control.stop_requested():
                raise Stopped
            for piece in pieces(document.text, chars):
                if limit and count >= limit:
                    break
                texts.append(piece)
                labels.append(source.label)
                count += 1
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
