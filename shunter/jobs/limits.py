"""The job `limits`: filters' limits and stopwords, fitted to languages from reference texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.data import checks
from shunter.data.curation.kinds import AnyOperator, preset
from shunter.data.curation.operators import Filter
from shunter.data.curation.precision import AFFINITY, own_words
from shunter.data.curation.stopwords import LEAST, SHARE, counted, stopwords
from shunter.data.curation.thresholds import ADAPTED, Method, adapt, measured
from shunter.data.sources import SourceConfig, files
from shunter.jobs.languages import labelled
from shunter.recipe.job import Input, JobConfig, JobContext


class LimitsConfig(JobConfig):
    """Fits what FineWeb2 fits to each language (arXiv 2506.20920, section 3.4)."""

    sources: list[SourceConfig] = Field(
        [], description="Clean texts by language: a source's name is the language's label."
    )
    corpora: Annotated[list[str], Input("corpus")] = Field(
        [], description="Jobs whose corpora have the languages as sources; their train parts are read."
    )
    english: str = Field(description="The source for whose language the filters' own limits were made.")
    operators: list[AnyOperator] = Field(
        [], description="Filters that are fitted; default: those of the preset fineweb2."
    )
    methods: dict[str, Method] = Field({}, description="Filter -> method, in place of the paper's choice.")
    chars: int = Field(
        3000, ge=20, description="Texts are cut at line feeds into documents of about so many."
    )
    limit: int = Field(5000, ge=0, description="Most documents of each source; 0: all.")
    stopword_share: float = Field(
        SHARE, gt=0, le=1, description="A stopword is at least this share of words."
    )
    affinity: float = Field(
        AFFINITY, gt=0, le=1, description="A language's own word is said in it this share of all times."
    )
    stopwords: int = Field(LEAST, ge=1, description="Fewest stopwords: the share falls until they are there.")


class LimitsJob:
    """Writes limits.json: `limits` (filter -> language -> reason -> limit), `stopwords`, `own_words`."""

    kind: ClassVar[str] = "limits"
    produces: ClassVar[str] = "limits"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = LimitsConfig

    def check(self, config: LimitsConfig, base: Path) -> Sequence[str]:
        for source in config.sources:
            checks.check(source, base)
        return []

    def reads(self, config: LimitsConfig, base: Path) -> Sequence[Path]:
        return list(dict.fromkeys(path for source in config.sources for path in files(source, base)))

    def run(self, context: JobContext[LimitsConfig]) -> dict[str, Any]:
        config = context.config
        texts, labels, _ = labelled(context, config.chars, config.limit)
        by_language: dict[str, list[str]] = {}
        for text, label in zip(texts, labels, strict=True):
            by_language.setdefault(label, []).append(text)
        if config.english not in by_language:
            raise ShunterError(
                f"no text is of {config.english!r}; there is {', '.join(by_language) or 'none'}",
                mend="Name the source whose language the filters' own limits were made for.",
            )
        filters = [
            o for o in config.operators or preset("fineweb2") if isinstance(o, Filter) and o.name in ADAPTED
        ]
        english = {o.name: measured(o, by_language[config.english]) for o in filters}
        limits: dict[str, dict[str, dict[str, float | None]]] = {o.name: {} for o in filters}
        words = {}
        for language, mine in by_language.items():
            words[language] = counted(mine)
            for operator in filters:
                if language != config.english:
                    method = config.methods.get(operator.name)
                    found = adapt(operator, english[operator.name], measured(operator, mine), method)
                    limits[operator.name][language] = found
        chosen = {
            language: stopwords(counts, config.stopword_share, config.stopwords)
            for language, counts in words.items()
            if language != config.english
        }
        told = {"limits": limits, "stopwords": chosen, "own_words": own_words(words, config.affinity)}
        (context.out / "limits.json").write_text(
            json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        off = sum(v is None for f in limits.values() for one in f.values() for v in one.values())
        return {"languages": len(by_language), "documents": len(texts), "rules_turned_off": off}


JOB = LimitsJob()
"""The kind `limits`."""
