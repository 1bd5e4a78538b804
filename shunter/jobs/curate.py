"""The job `curate`: sources of any format become one corpus of clean documents."""

from __future__ import annotations

import difflib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.data import checks
from shunter.data.cleaning import normalise
from shunter.data.curation.badwords import BadWords
from shunter.data.curation.chain import stages
from shunter.data.curation.decontaminate import Decontaminate
from shunter.data.curation.gopher import GopherQuality
from shunter.data.curation.kinds import AnyOperator, Preset, preset
from shunter.data.curation.language import FILES as MODEL_FILES
from shunter.data.curation.language import ConfidenceCut, Language, LanguageModel
from shunter.data.curation.operators import Filter, Operator
from shunter.data.curation.precision import PrecisionFilter
from shunter.data.curation.quality import Perplexity, Quality
from shunter.data.curation.refine import Refine
from shunter.data.curation.repair import RepairText
from shunter.data.curation.urls import UrlRules
from shunter.data.guarded import SECONDS
from shunter.data.meter import Meter
from shunter.data.sources import (
    Document,
    SourceConfig,
    documents,
    files,
    has_urls,
    holds_pages,
    left_out,
)
from shunter.jobs.curate_names import Names
from shunter.jobs.curate_output import Output
from shunter.launch import ray_cluster
from shunter.recipe.job import How, Input, JobConfig, JobContext, Stopped

RECORDS = ("summary.json", "dropped.jsonl", "samples.jsonl", "problems.jsonl")


class CurateHow(How):
    """How a chain of operators is worked off."""

    workers: int = Field(
        0, ge=0, description="Processes that run operators; 0: one a core, of all nodes with Ray."
    )
    runner: Literal["processes", "ray"] = Field(
        "processes", description="Where operators run: processes of this machine, or a Ray cluster."
    )
    address: str = Field(
        "",
        description="Of the Ray cluster: HOST:PORT of its head, or auto for the one that this machine is a "
        "node of; empty: one of this machine alone, made for the job.",
    )
    chunk_chars: int = Field(
        4_000_000,
        ge=1,
        description="Characters of the documents that a worker takes at once, and loses if killed.",
    )
    memory_mb: int = Field(
        256,
        ge=1,
        description="What finding duplicates may hold, in MB; what is more is done in parts, on disk.",
    )

    @model_validator(mode="after")
    def _an_address_is_of_ray(self) -> CurateHow:
        if self.address and self.runner != "ray":
            raise ValueError("address is that of a Ray cluster; set runner: ray, or leave it out")
        return self


PACKED = (".gz", ".zst", ".parquet", ".zip")
SWELLS = 4  # of such files about so many times their size is text


class CurateConfig(JobConfig):
    """Reads sources, cleans them, drops what is too short, too long or there twice, and splits."""

    sources: list[SourceConfig] = Field([], description="Where the documents come from.")
    corpora: Annotated[list[str], Input("corpus")] = Field(
        [], description="Jobs whose corpora are read after the sources, train part before held-out part."
    )
    earlier: Annotated[list[str], Input("corpus")] = Field(
        [], description="Jobs whose corpora are there already: near-duplicates of their documents leave."
    )
    languages: Annotated[str | None, Input("languages")] = Field(
        None, description="Job that made the language model of `language` operators."
    )
    limits: Annotated[str | None, Input("limits")] = Field(
        None, description="Job that fitted filters' limits and stopwords to languages."
    )
    ngrams: Annotated[str | None, Input("ngrams")] = Field(
        None, description="Job that made the model of runs of `perplexity` operators."
    )
    classifier: Annotated[str | None, Input("classifier")] = Field(
        None, description="Job that made the classifier of `quality` operators."
    )
    refiner: Annotated[str | None, Input("model")] = Field(
        None,
        exclude_if=lambda value: value is None,  # jobs without are those that they were before there was any
        description="Job whose model writes the programs of `refine` operators.",
    )
    rehydrate: Annotated[int, Field(ge=0, le=100)] | Literal["readme"] = Field(
        0,
        description="Most copies of a document, by how little filters removed of clusters as large; readme: "
        "by the older table of FineWeb2's README; 0: off.",
    )
    heldout: float = Field(
        0.03, ge=0, le=0.5, description="Share of documents held out, chosen by the digest of their text."
    )
    normalise: bool = Field(
        True, description="NFC, line feeds, no control characters, trailing spaces or runs of blank lines."
    )
    min_chars: int = Field(1, ge=1, description="Shorter documents are dropped.")
    max_chars: int = Field(10_000_000, ge=1, description="Longer documents are dropped.")
    page_seconds: float = Field(
        SECONDS, gt=0, description="Web pages whose main text takes more processor time to find are dropped."
    )
    deduplicate: bool = Field(True, description="Keep the first of documents with equal text.")
    section_chars: int = Field(
        0,
        ge=0,
        description="Longer documents are taken apart at paragraphs into sections of about this many "
        "characters, each held out or not by itself; 0: never.",
    )
    limit: int = Field(0, ge=0, description="Documents to read from each source; 0: all.")
    language: Literal["auto"] | None = Field(
        None,
        description="auto: the chain begins with labels of languages and a cut of each, by `languages`, or "
        "by lingua where there is no such job.",
    )
    preset: Preset | None = Field(None, description="A published chain of operators; `operators` follow it.")
    operators: list[AnyOperator] = Field([], description="What judges and edits documents, in this order.")
    excluded: bool = Field(
        False, description="Also write the texts that operators drop, with operator and reason, to excluded/."
    )
    how: CurateHow = Field(default_factory=CurateHow, description="Choices that must not change the result.")

    @property
    def chain(self) -> list[Operator]:
        """The operators of the preset and those after it."""
        own = Language(by="own" if self.languages else "lingua") if self.language else Language()
        labelled = self.language is not None or self.languages is not None
        published = preset(self.preset, labelled, own) if self.preset else []
        if self.language and self.preset != "fineweb2":
            published = [own, ConfidenceCut(), *published]
        return [*published, *self.operators]

    @property
    def repairs(self) -> bool:
        """Whether `repair-text` will see the documents: then what it needs must stay until there."""
        return any(isinstance(operator, RepairText) for operator in self.chain)

    @property
    def against(self) -> list[SourceConfig]:
        """Evaluation sets that operators keep out."""
        return [s for operator in self.chain if isinstance(operator, Decontaminate) for s in operator.against]

    @model_validator(mode="after")
    def _names_differ(self) -> CurateConfig:
        twice = [name for name, n in Counter(source.label for source in self.sources).items() if n > 1]
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}; give each a name of its own")
        if not self.sources and not self.corpora:
            raise ValueError("give sources, corpora or both")
        kinds = [operator.name for operator in self.chain]
        if self.rehydrate and "near-duplicates" not in kinds:
            raise ValueError("rehydrate needs near-duplicates among the operators: it counts their clusters")
        if self.earlier and "near-duplicates" not in kinds:
            raise ValueError("earlier needs near-duplicates among the operators: it looks for copies of them")
        self._labels_come_first()
        if (self.limits or self.languages) and "language" not in kinds:
            given = "limits" if self.limits else "languages"
            raise ValueError(f"{given} serve documents whose language is known; add the operator language")
        if not self.limits and any(isinstance(o, PrecisionFilter) and not o.words for o in self.chain):
            raise ValueError("precision needs `words`, or `limits`, a job that finds them")
        labelling = [operator for operator in self.chain if isinstance(operator, Language)]
        models = [operator.model or operator.by == "lingua" for operator in labelling]
        if self.language and len(labelling) > 1:
            raise ValueError("language: auto labels documents already; leave the operator language out")
        if any(operator.by == "lingua" and operator.model for operator in labelling):
            raise ValueError("a language operator by lingua has no model; leave one out")
        if self.languages and all(models):
            raise ValueError("no language operator uses languages: each has a model of its own")
        if self.corpora and self.section_chars:
            raise ValueError("documents of corpora are not taken apart again; leave section_chars out")
        if self.corpora and not self.chain:
            raise ValueError("corpora are read by a chain of operators; give preset or operators")
        if not all(models) and self.languages is None:
            raise ValueError("a language operator needs `languages`, a job that makes a model, or `model`")
        for kind, job, name in (
            (Perplexity, self.ngrams, "ngrams"),
            (Quality, self.classifier, "classifier"),
            (Refine, self.refiner, "refiner"),
        ):
            mine = [operator for operator in self.chain if isinstance(operator, kind)]
            if job is None and not all(operator.model for operator in mine):
                raise ValueError(f"{mine[0].name} needs `{name}`, a job that makes a model, or `model`")
            if job is not None and not mine:
                raise ValueError(f"{name} serves an operator that is not there; add {kind.__name__.lower()}")
        if self.max_chars < self.min_chars:
            raise ValueError(f"max_chars {self.max_chars} is below min_chars {self.min_chars}")
        return self

    def _labels_come_first(self) -> None:
        """What hangs on a document's language stands after what tells it."""
        for operator in self.chain:
            if isinstance(operator, Language):
                return
            name = operator.name
            if isinstance(operator, ConfidenceCut | PrecisionFilter):
                raise ValueError(f"{name} needs language before it")
            if isinstance(operator, BadWords) and operator.needs_labels:
                raise ValueError(f"{name} has lists of several languages and needs language before it")
            own = isinstance(operator, GopherQuality) and operator.stopwords_by_language
            if isinstance(operator, Filter) and (operator.by_language or own):
                raise ValueError(f"{name} has limits by language and needs language before it")
            if self.limits and isinstance(operator, Filter) and "language" in {o.name for o in self.chain}:
                raise ValueError(f"limits serve {name} only after language; put language before it")


class CurateJob:
    """Writes train/ and heldout/ (Parquet), dropped.jsonl, problems.jsonl and summary.json."""

    kind: ClassVar[str] = "curate"
    produces: ClassVar[str] = "corpus"
    version: ClassVar[int] = 3
    Config: ClassVar[type[JobConfig]] = CurateConfig

    def check(self, config: CurateConfig, base: Path) -> Sequence[str]:
        if config.how.runner == "ray":
            ray_cluster.ready("Curating on a Ray cluster")
        passed = [
            told for source in (*config.sources, *config.against) for told in checks.check(source, base)
        ]
        for source in config.sources:
            if config.section_chars and holds_pages(source, base):
                raise ShunterError(
                    f"source {source.label!r} has web pages, which are not taken apart",
                    mend="Leave section_chars out, or read the corpus that is made by another job.",
                )
        for operator in config.chain:
            operator.ready()
            own_files(operator, base)
            if isinstance(operator, Language) and operator.model:
                known_languages(operator, LanguageModel.load(base / operator.model).labels)
            elif isinstance(operator, Language) and operator.by == "lingua":
                known_languages(operator, operator.labels())
            known = config.corpora or any(has_urls(source, base) for source in config.sources)
            if isinstance(operator, UrlRules) and not known:
                raise ShunterError("url-rules needs addresses", mend="Give a source's `url: FIELD`.")
        missing = [source.label for source in config.sources if source.licence is None]
        warnings = passed + ([f"no licence is given for {', '.join(missing)}"] if missing else [])
        for source in config.sources:
            if others := left_out(source, base):
                told = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
                warnings.append(f"source {source.label} leaves out files of kinds that are not read: {told}")
        return warnings

    def reads(self, config: CurateConfig, base: Path) -> Sequence[Path]:
        sources = (*config.sources, *config.against)
        models = [base / operator.model for operator in config.chain if isinstance(operator, Language)]
        return [
            *dict.fromkeys(path for source in sources for path in files(source, base)),
            *(folder / name for folder in models if folder != base for name in MODEL_FILES),
            *(path for operator in config.chain for path in own_files(operator, base)),
        ]

    def disk_bytes(self, config: CurateConfig, base: Path) -> int:
        # A chain keeps what each of its stages left, uncompressed, until the corpus is published, and what
        # finds duplicates has keys on disk, which for stretches of words are several times the text.
        copies = 1 + (2 * len(stages(config.chain)) if config.chain else 0)
        return copies * sum(
            path.stat().st_size * (SWELLS if path.name.lower().endswith(PACKED) else 1)
            for path in self.reads(config, base)
        )

    def run(self, context: JobContext[CurateConfig]) -> dict[str, Any]:
        if context.config.chain or any(holds_pages(s, context.base) for s in context.config.sources):
            from shunter.jobs import curate_chain

            summary = curate_chain.run(context)
        else:
            summary = self._plain(context)
        others = {source.label: left_out(source, context.base) for source in context.config.sources}
        summary["left_out"] = {label: counts for label, counts in others.items() if counts}
        (context.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        if summary["train"]["documents"] == 0:
            for name in RECORDS:  # what is staged goes when a job fails; its log stays
                if (context.out / name).is_file():
                    shutil.copyfile(context.out / name, context.log / name)
            raise _nothing(summary, context.log)
        return {
            "documents": summary["train"]["documents"],
            "bytes": summary["train"]["bytes"],
            "heldout_documents": summary["heldout"]["documents"],
            "heldout_bytes": summary["heldout"]["bytes"],
            "dropped": sum(summary["dropped"].values()),
            "problems": summary["problems"],
        }

    def _plain(self, context: JobContext[CurateConfig]) -> dict[str, Any]:
        """Without operators: from the sources straight to the corpus."""
        labels = [source.label for source in context.config.sources]
        with (
            Output(context.out, context.work / "seen") as output,
            closing(Names(context.work / "names.bin")) as names,
        ):
            for number, document in enumerate(read(context, output), 1):
                text = normalise(document.text) if context.config.normalise else document.text
                parts = sections(text, context.config.section_chars)
                output.read += 1
                for index, part in enumerate(parts):
                    place = names.add(
                        labels.index(document.source), document.row, -1 if len(parts) == 1 else index
                    )
                    reason, facts = output.reason(part, place, context.config)
                    name = names.id(place, labels)
                    if reason is None:
                        output.keep(document, name, part, context.config)
                        continue
                    if "of" in facts:
                        facts["of"] = names.id(facts["of"], labels)
                    record = {"id": name, "operator": "reading", "reason": reason, **facts}
                    output.drop(document.source, record)
                if number % 256 == 0 and context.control.stop_requested():
                    raise Stopped
                context.events.progress(number, None, "documents")
        return output.summary({source.label: source.licence for source in context.config.sources})


def own_files(operator: Operator, base: Path) -> list[Path]:
    """The files of a person's that an operator reads. Raises ShunterError for one that is not there."""
    paths = [base / path for path in operator.files()]
    if absent := [path for path in paths if not path.is_file()]:
        what = f"a file of {operator.name} is not there"
        raise ShunterError(what, where=str(absent[0]), mend=operator.hint or None)
    return paths


def _nothing(summary: Mapping[str, Any], log: Path) -> ShunterError:
    """Why there is nothing to train on, with what the records in `log` tell."""
    if summary["read"]:
        return ShunterError(
            f"none of {summary['read']} documents is left to train on: {summary['dropped']}",
            where=str(log),
            mend="dropped.jsonl there has the reasons: lower min_chars or heldout, or give more text.",
        )
    told = "; the sources are empty"
    with (log / "problems.jsonl").open(encoding="utf-8") as file:
        if line := file.readline():
            first = json.loads(line)
            place = f"{first['file']}:{first['line']}" if first["line"] else first["file"]
            told = f": {summary['problems']} could not be read, the first at {place}: {first['problem']}"
    return ShunterError(
        f"no document could be read{told}",
        where=str(log),
        mend="problems.jsonl there has each: correct the sources, such as their `field`.",
    )


def sections(text: str, limit: int) -> list[str]:
    """The text in parts of at most about `limit` characters: whole paragraphs, else lines, else as it is.

    Joined by what stood between them, they are the text again; 0 takes nothing apart.
    """
    if not limit or len(text) <= limit:
        return [text]
    for mark in ("\n\n", "\n"):
        pieces = text.split(mark)
        if len(pieces) > 1:
            break
    count = -(-len(text) // limit)  # parts of like length, no short rest
    parts: list[list[str]] = [[]]
    size = 0
    for piece in pieces:
        if parts[-1] and size + len(piece) / 2 > len(text) / count:
            parts.append([])
            size = 0
        parts[-1].append(piece)
        size += len(piece) + len(mark)
    joined = [mark.join(part) for part in parts]
    if mark == "\n":
        return joined
    # A paragraph longer than the limit is taken apart at its lines.
    return [line for part in joined for line in (sections(part, limit) if "\n\n" not in part else [part])]


def read(context: JobContext[CurateConfig], output: Output, meter: Meter | None = None) -> Iterator[Document]:
    """Every document of the sources, in order; what cannot be read is recorded. meter: says how far it is."""
    for source in context.config.sources:
        for document in documents(source, context.base, output.problem, as_pages=True, meter=meter):
            if context.config.limit and document.row >= context.config.limit:
                break
            yield document


def known_languages(operator: Operator, labels: Sequence[str]) -> None:
    """Refuse an operator that asks for languages which the model never tells."""
    asked: list[str] = []
    if isinstance(operator, Language):
        asked = [*(operator.keep or []), *operator.cuts]
    elif isinstance(operator, PrecisionFilter):
        asked = [operator.language]
    if unknown := [name for name in asked if name not in labels]:
        near = difflib.get_close_matches(unknown[0], labels, 1)
        shown = f" such as {near[0]!r}" if near else f": {', '.join(labels[:20])}"
        raise ShunterError(
            f"the language model does not tell {unknown[0]!r}, which {operator.name} asks for",
            mend=f"Name languages that it tells{shown}.",
        )


JOB = CurateJob()
