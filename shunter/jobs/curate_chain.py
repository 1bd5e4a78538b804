"""The job `curate` with operators: read here, judged in workers, published here in the order of reading."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from shunter.data import corpus
from shunter.data import sources as places
from shunter.data.cleaning import normalise
from shunter.data.curation import rehydration
from shunter.data.curation.chain import Documents
from shunter.data.curation.decontaminate import Decontaminate
from shunter.data.curation.extract import ExactDuplicates, Extract
from shunter.data.curation.gopher import GopherQuality
from shunter.data.curation.language import Language
from shunter.data.curation.licences import LicenceTiers
from shunter.data.curation.local import RepeatedBeginnings, RepeatedEdges, RepeatedSentences
from shunter.data.curation.operators import Filter, Operator
from shunter.data.curation.quality import Perplexity, Quality
from shunter.data.curation.runner import Done, Runner
from shunter.data.curation.safety import KeywordSafety
from shunter.data.sources import Document, Problem, SourceConfig
from shunter.jobs.curate import SPLITS, CurateConfig, Output, read, sections
from shunter.recipe.job import JobContext, Stopped

FORMAT = 2  # of the files in the work folder; another number begins anew
NAMES = np.dtype([("source", "<i4"), ("row", "<i8"), ("part", "<i4")])


def run(context: JobContext[CurateConfig]) -> dict[str, Any]:
    """Write the corpus and its records into `context.out`; returns the summary."""
    config = context.config
    operators = bound(context)
    stated = json.dumps(
        [FORMAT, config.how.chunk_chars, config.excluded, [o.model_dump() for o in operators]], default=str
    )
    folder = context.work / f"chain-{hashlib.blake2b(stated.encode(), digest_size=8).hexdigest()}"
    for other in context.work.glob("chain-*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    workers = config.how.workers or len(os.sched_getaffinity(0))
    runner = Runner(folder, operators, workers, _Watch(context), config.excluded)
    has_url = any(places.has_urls(source, context.base) for source in config.sources)
    facts = {**({"url": pa.string()} if has_url else {}), **_facts(operators)}
    if config.rehydrate:
        facts["copies"] = pa.int32()
    with Output(context.out, facts) as output:
        with _Reading(folder, context, output, _given(has_url, operators)) as reading:
            runner.run(reading.chunks())
        labels = reading.labels
        table = _copies(runner, config.rehydrate) if config.rehydrate else {}
        languages = _publish(runner, folder, context, output, labels, table)
        output.read = reading.documents
    summary = output.summary(reading.licences)
    if table:
        summary["copies"] = {str(size): count for size, count in table.items()}
    summary["operators"] = [{"operator": name, **tally.data()} for name, tally in runner.tallies()]
    if languages:
        summary["languages"] = {name: dict(sorted(languages[name].items())) for name in sorted(languages)}
    names = _names(folder)
    with (context.out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for sample in runner.samples():
            shown = _told(sample, names, labels)
            file.write(json.dumps(shown, ensure_ascii=False) + "\n")
    return summary


def bound(context: JobContext[CurateConfig]) -> list[Operator]:
    """The chain with the model and the limits that upstream jobs made."""
    config = context.config
    model = str(context.one("languages").path) if config.languages else ""
    found: dict[str, Any] = {"limits": {}, "stopwords": {}}
    if config.limits:
        found = json.loads((context.one("limits").path / "limits.json").read_text(encoding="utf-8"))
    operators: list[Operator] = []
    if any(places.holds_pages(source, context.base) for source in config.sources):
        limits = {name: getattr(config, name) for name in ("normalise", "min_chars", "max_chars")}
        operators.append(Extract(kind="extract", **limits))
        operators += [ExactDuplicates(kind="exact-duplicates")] if config.deduplicate else []
    for chosen in config.chain:
        operator = chosen.rooted(context.base)
        update: dict[str, Any] = {}
        if isinstance(operator, Language):
            update["model"] = str(context.base / operator.model) if operator.model else model
        if isinstance(operator, Perplexity) and not operator.model:
            update["model"] = str(context.one("ngrams").path)
        if isinstance(operator, Quality) and not operator.model:
            update["model"] = str(context.one("classifier").path)
        if isinstance(operator, Filter) and not operator.by_language:
            update["by_language"] = found["limits"].get(operator.name, {})
        if isinstance(operator, GopherQuality) and not operator.stopwords_by_language:
            update["stopwords_by_language"] = found["stopwords"]
        if isinstance(operator, Decontaminate):
            texts = (text for source in operator.against for text in _texts(source, context))
            operator = operator.keep(texts, context.work / "evaluation")
        operators.append(operator.model_copy(update=update))
    return operators


def _texts(source: SourceConfig, context: JobContext[CurateConfig]) -> Iterator[str]:
    def report(problem: Problem) -> None:
        context.events.write("problem", **vars(problem))

    for document in places.documents(source, context.base, report):
        yield document.text


def _given(has_url: bool, operators: list[Operator]) -> set[str]:
    """Facts of documents that operators or the corpus need from the start."""
    found = {"url"} if has_url else set()
    found |= {"extract"} if any(isinstance(o, Extract) for o in operators) else set()
    of_source = (LicenceTiers, KeywordSafety, RepeatedBeginnings, RepeatedSentences, RepeatedEdges)
    return found | ({"source"} if any(isinstance(o, of_source) for o in operators) else set())


class _Reading:
    """Documents from sources and corpora, numbered; what leaves here already is written down beside.

    labels: the sources' names by their number; licences: what is known of each.
    """

    def __init__(
        self, folder: Path, context: JobContext[CurateConfig], output: Output, given: set[str]
    ) -> None:
        self.context, self.output, self.folder, self.given = context, output, folder, given
        self.documents = 0
        self.licences = {source.label: source.licence for source in context.config.sources}
        self.labels = list(self.licences)

    def __enter__(self) -> _Reading:
        self._names: IO[bytes] = (self.folder / "names.bin").open("wb")
        self._dropped: IO[str] = (self.folder / "dropped.jsonl").open("w", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._names.close()
        self._dropped.close()

    def chunks(self) -> Iterator[Documents]:
        """Cut by characters, wherever files end."""
        config, number = self.context.config, 0
        known = {label: place for place, label in enumerate(self.labels)}
        texts: list[str] = []
        numbers: list[int] = []
        told: list[dict[str, str]] = []
        held = 0
        for document, part_of in self._all():
            self.documents += 1
            if self.documents % 256 == 0 and self.context.control.stop_requested():
                raise Stopped
            if document.source not in known:
                known[document.source] = len(self.labels)
                self.labels.append(document.source)
                self.licences.setdefault(document.source, None)
            # Of a page nothing is known before its text is found: `extract` does the same in a worker.
            page = bool(document.extract)
            text = normalise(document.text) if config.normalise and not page else document.text
            parts = [text] if page else sections(text, config.section_chars)
            for index, part in enumerate(parts):
                name = (known[document.source], document.row, part_of if len(parts) == 1 else index)
                self._names.write(np.array(name, NAMES).tobytes())
                reason, facts = (None, {}) if page else self.output.reason(part, config)
                if reason is None:
                    numbers.append(number)
                    texts.append(part)
                    told.append({"url": document.url, "source": document.source, "extract": document.extract})
                    held += len(part)
                else:
                    record = {"number": number, "operator": "reading", "reason": reason, **facts}
                    self._dropped.write(json.dumps(record) + "\n")
                number += 1
            if held >= config.how.chunk_chars:
                yield self._chunk(numbers, texts, told)
                texts, numbers, told, held = [], [], [], 0
        if texts:
            yield self._chunk(numbers, texts, told)
        self._names.flush()
        self._dropped.flush()

    def _chunk(self, numbers: list[int], texts: list[str], told: list[dict[str, str]]) -> Documents:
        facts = {name: np.array([each[name] for each in told], np.str_) for name in sorted(self.given)}
        return Documents(np.array(numbers, np.int64), texts, facts)

    def _all(self) -> Iterator[tuple[Document, int]]:
        """Documents with the part of a document that they are, or -1."""
        for document in read(self.context, self.output):
            yield document, -1
        for artefact in self.context.many("corpora") if self.context.config.corpora else []:
            known = json.loads((artefact.path / "summary.json").read_text(encoding="utf-8")).get(
                "sources", {}
            )
            self.licences.update({label: counts.get("licence") for label, counts in known.items()})
            for split in SPLITS:
                for text in corpus.texts(artefact.path / split):
                    row, _, part = text.id.rpartition(":")[2].partition(".")
                    yield Document(text.source, int(row), text.text), int(part or -1)


class _Watch:
    """Progress, and the request to stop, between two chunks."""

    def __init__(self, context: JobContext[CurateConfig]) -> None:
        self.context = context
        self.begin = time.perf_counter()
        self.stage = -1
        self.counts: dict[int, int] = {}
        self.documents = self.kept = self.characters = 0

    def __call__(self, stage: int, done: Done) -> None:
        if self.context.control.stop_requested():
            raise Stopped
        if stage != self.stage:
            self.stage, self.begin = stage, time.perf_counter()
            self.documents = self.kept = self.characters = 0
        self.counts[stage] = self.counts.get(stage, 0) + 1
        seen = done.tallies[0].documents if done.tallies else done.documents
        self.documents += seen
        self.kept += done.documents
        self.characters += done.tallies[0].characters if done.tallies else 0
        seconds = max(time.perf_counter() - self.begin, 1e-9)
        shown: dict[str, float | int | str] = {
            "stage": stage + 1,
            "MB/s": round(self.characters / 1e6 / seconds, 2),
            "kept": f"{self.kept / max(self.documents, 1):.0%}",
        }
        if stage:  # how many chunks there are is known once all are read
            left = self.counts[0] - self.counts[stage]
            shown["seconds left"] = round(seconds / self.counts[stage] * left)
        self.context.events.progress(self.documents, None, "documents", **shown)


def _copies(runner: Runner, most: int) -> dict[int, int]:
    """Copies by size of cluster, from what the operators after the near-duplicates removed."""
    before: Counter[int] = Counter()
    after: Counter[int] = Counter()
    for stage in range(len(runner.stages)):
        dropped = (record for record in runner.dropped(stage) if "of" not in record)
        before.update(record["cluster_size"] for record in dropped if "cluster_size" in record)
    for documents in runner.left():
        after.update(documents.facts["cluster_size"].tolist() if len(documents) else [])
    return rehydration.copies(before + after, after, most)


def _publish(
    runner: Runner,
    folder: Path,
    context: JobContext[CurateConfig],
    output: Output,
    labels: list[str],
    table: dict[int, int],
) -> dict[str, Counter[str]]:
    """Write what is left and what left, each in the order of reading; counts by language."""
    names = _names(folder)
    languages: dict[str, Counter[str]] = {}
    early = (json.loads(line) for line in (folder / "dropped.jsonl").open(encoding="utf-8"))
    streams = [early, *(runner.dropped(stage) for stage in range(len(runner.stages)))]
    reasons = {"operator": pa.string(), "reason": pa.string()}
    excluded = corpus.Writer(context.out / "excluded", reasons) if context.config.excluded else None
    for record in heapq.merge(*streams, key=lambda record: int(record["number"])):
        name = names[record["number"]]
        source = labels[int(name["source"])]
        text = record.pop("text", None)
        if excluded is not None and text is not None:
            why = (record["operator"], record["reason"])
            excluded.write(_id(name, labels), source, int(name["row"]), text, *why)
        output.drop(source, _told(record, names, labels))
        if "language" in record:
            languages.setdefault(record["language"], Counter())[f"dropped: {record['reason']}"] += 1
    if excluded is not None:
        excluded.close()
    for documents in runner.left():
        if context.control.stop_requested():
            raise Stopped
        if table and len(documents):
            sizes = documents.facts["cluster_size"].tolist()
            documents.facts["copies"] = np.array([rehydration.of(size, table) for size in sizes], np.int32)
        facts = [documents.facts[name].tolist() for name in output.facts or {}] if len(documents) else []
        for place, text in enumerate(documents.texts):
            name = names[documents.number[place]]
            document = Document(labels[int(name["source"])], int(name["row"]), text)
            own = [column[place] for column in facts]
            output.keep(document, _id(name, labels), text, context.config, *own)
            if "language" in documents.facts:
                counts = languages.setdefault(str(documents.facts["language"][place]), Counter())
                counts["documents"] += 1
                counts["bytes"] += len(text.encode())
    return languages


def _told(record: dict[str, Any], names: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """A record of removal with ids for numbers."""
    told = {"id": _id(names[record["number"]], labels), **record}
    del told["number"]
    if "of" in told:
        told["of"] = _id(names[told["of"]], labels)
    return told


def _id(name: Any, labels: list[str]) -> str:
    part = int(name["part"])
    return f"{labels[int(name['source'])]}:{int(name['row'])}" + ("" if part < 0 else f".{part}")


def _names(folder: Path) -> np.ndarray:
    path = folder / "names.bin"
    return np.memmap(path, NAMES, "r") if path.stat().st_size else np.zeros(0, NAMES)


def _facts(operators: list[Operator]) -> dict[str, pa.DataType]:
    """Columns that the chain gives to every document."""
    found: dict[str, pa.DataType] = {}
    for operator in operators:
        found.update({name: pa.type_for_alias(kind) for name, kind in operator.columns().items()})
    return found
