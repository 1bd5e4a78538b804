"""The job `curate` with operators: read here, judged in workers, published here in the order of reading."""

from __future__ import annotations

import bisect
import hashlib
import heapq
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa

from shunter.config.errors import ShunterError
from shunter.data import corpus
from shunter.data import sources as places
from shunter.data.cleaning import normalise
from shunter.data.curation import rehydration
from shunter.data.curation.chain import SAMPLE_CHARS, Documents
from shunter.data.curation.decontaminate import Decontaminate
from shunter.data.curation.extract import ExactDuplicates, Extract
from shunter.data.curation.gopher import GopherQuality
from shunter.data.curation.language import Language
from shunter.data.curation.licences import LicenceTiers
from shunter.data.curation.local import RepeatedBeginnings, RepeatedEdges, RepeatedSentences
from shunter.data.curation.minhash import NearDuplicates
from shunter.data.curation.operators import Filter, Operator
from shunter.data.curation.precision import PrecisionFilter
from shunter.data.curation.quality import Perplexity, Quality
from shunter.data.curation.refine import Refine
from shunter.data.curation.repair import RepairText
from shunter.data.curation.runner import Done, Hands, Runner
from shunter.data.curation.safety import KeywordSafety
from shunter.data.meter import Meter
from shunter.data.sources import Document, Problem, SourceConfig
from shunter.jobs.curate import CurateConfig, known_languages, read, sections
from shunter.jobs.curate_corpora import Corpora, Given, twice
from shunter.jobs.curate_earlier import Earlier
from shunter.jobs.curate_leaks import Leaks
from shunter.jobs.curate_names import Names, id_of, names_in
from shunter.jobs.curate_output import SPLITS, Output
from shunter.jobs.refiner import ModelWriter
from shunter.launch.ray_cluster import Cluster
from shunter.launch.ray_hands import RayHands
from shunter.recipe.job import JobContext, Stopped

FORMAT = 4  # of the files in the work folder; another number begins anew
KEPT = 10  # documents that stay of which the beginning is shown
CHUNK_DOCUMENTS = 50_000  # of a chunk at most, however short they are


def run(context: JobContext[CurateConfig]) -> dict[str, Any]:
    """Write the corpus and its records into `context.out`; returns the summary."""
    how = context.config.how
    cores = len(os.sched_getaffinity(0))
    if how.runner == "processes":
        return _run(context, how.workers or cores, None)
    with Cluster(how.address, how.workers or cores) as cluster:
        sight = cluster.sees(context.work)
        nodes = [{"node": node.name, "cpus": node.cpus} for node in cluster.nodes()]
        context.events.write("ray", nodes=nodes)
        return _run(context, how.workers or cluster.cpus, lambda workers: RayHands(cluster, sight))


def _run(
    context: JobContext[CurateConfig], workers: int, hands: Callable[[int], Hands] | None
) -> dict[str, Any]:
    """workers: how many chunks are worked on at once; hands: by whom."""
    config = context.config
    operators, earlier = bound(context)
    stated = json.dumps(
        [FORMAT, config.how.chunk_chars, config.excluded, [o.model_dump() for o in operators]], default=str
    )
    folder = context.work / f"chain-{hashlib.blake2b(stated.encode(), digest_size=8).hexdigest()}"
    for other in context.work.glob("chain-*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    corpora = Corpora(context.many("corpora") if config.corpora else [])
    watch = _Watch(context, _bytes(context, corpora))
    memory = config.how.memory_mb
    runner = Runner(folder, operators, workers, watch, config.excluded, watch.begins, memory, hands)
    has_url = (
        any(places.has_urls(source, context.base) for source in config.sources) or "url" in corpora.facts
    )
    facts = {**({"url": pa.string()} if has_url else {}), **_facts(operators)}
    if config.rehydrate:
        facts["copies"] = pa.int32()
    made = set(facts)
    facts.update({name: kind for name, kind in corpora.facts.items() if name not in made})
    with Output(context.out, context.work / "seen", facts) as output:
        for problem in corpora.problems:
            output.problem(problem)
        given = _given(made | (set(facts) - made and {"carried"}), operators)
        with _Reading(folder, context, output, corpora, given, made, watch.meter) as reading:
            runner.run(reading.chunks())
        labels = reading.labels
        table = _copies(runner, config.rehydrate) if config.rehydrate else {}
        leaks = Leaks()
        languages = _publish(runner, folder, context, output, labels, table, leaks, earlier)
        output.read = reading.documents
    summary = output.summary(reading.licences)
    if table:
        summary["copies"] = {str(size): count for size, count in table.items()}
    summary["operators"] = [{"operator": name, **tally.data()} for name, tally in runner.tallies()]
    if told := leaks.data():
        summary["decontamination"] = told
    if languages:
        summary["languages"] = {name: dict(sorted(languages[name].items())) for name in sorted(languages)}
    names = names_in(folder / "names.bin")
    with (context.out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for sample in runner.samples():
            shown = _told(sample, names, labels, earlier)
            file.write(json.dumps(shown, ensure_ascii=False) + "\n")
    return summary


def bound(context: JobContext[CurateConfig]) -> tuple[list[Operator], Earlier | None]:
    """The chain with the models, limits and earlier documents that upstream jobs made; and the last apart."""
    config = context.config
    earlier: Earlier | None = None
    model = str(context.one("languages").path) if config.languages else ""
    found: dict[str, Any] = {"limits": {}, "stopwords": {}}
    if config.limits:
        found = json.loads((context.one("limits").path / "limits.json").read_text(encoding="utf-8"))
    operators: list[Operator] = []
    labels: Sequence[str] | None = None
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // (config.how.workers or cores))
    if any(places.holds_pages(source, context.base) for source in config.sources):
        limits = {name: getattr(config, name) for name in ("normalise", "min_chars", "max_chars")}
        limits |= {"seconds": config.page_seconds, "broken": config.repairs}
        operators.append(Extract(kind="extract", **limits))
        operators += [ExactDuplicates(kind="exact-duplicates")] if config.deduplicate else []
    for chosen in config.chain:
        operator = chosen.rooted(context.base)
        update: dict[str, Any] = {}
        if isinstance(operator, Language):
            if operator.by == "own":
                update["model"] = str(context.base / operator.model) if operator.model else model
            labels = operator.model_copy(update=update).labels()
        if labels is not None:
            known_languages(operator, labels)
        if isinstance(operator, Perplexity) and not operator.model:
            update["model"] = str(context.one("ngrams").path)
        if isinstance(operator, Quality) and not operator.model:
            update["model"] = str(context.one("classifier").path)
        if isinstance(operator, Refine):
            update["model"] = operator.model or str(context.one("refiner").path)
            writer = ModelWriter(update["model"], operator.max_new_tokens, operator.batch, threads)
            operator = operator.written_by(writer)
        if isinstance(operator, Filter) and not operator.by_language:
            update["by_language"] = found["limits"].get(operator.name, {})
        if isinstance(operator, GopherQuality) and not operator.stopwords_by_language:
            update["stopwords_by_language"] = found["stopwords"]
        if isinstance(operator, Decontaminate):
            texts = (text for source in operator.against for text in _texts(source, context))
            operator = operator.keep(texts, context.work / "evaluation")
        if isinstance(operator, NearDuplicates) and config.earlier:
            folders = [artefact.path for artefact in context.many("earlier")]
            earlier = Earlier(context, folders, operator, context.work / "earlier")
            update["earlier"] = str(earlier.folder)
        if isinstance(operator, PrecisionFilter) and not operator.words:
            update["words"] = found.get("own_words", {}).get(operator.language)
            if not update["words"]:
                raise ShunterError(
                    f"limits found no word of {operator.language!r} alone, which precision asks for",
                    mend="Give its `words`, or more text of it to the `limits` job.",
                )
        if isinstance(operator, RepairText):
            update["normalise"] = config.normalise
        operators.append(operator.model_copy(update=update))
    return operators, earlier


def _bytes(context: JobContext[CurateConfig], corpora: Corpora) -> int:
    """Of the files that are read; 0 where they are not read to their end."""
    if context.config.limit and context.config.sources:
        return 0
    paths = (path for source in context.config.sources for path in places.files(source, context.base))
    return sum(path.stat().st_size for path in paths) + corpora.bytes()


def _texts(source: SourceConfig, context: JobContext[CurateConfig]) -> Iterator[tuple[str, str]]:
    """Id and text of the documents of an evaluation set."""

    def report(problem: Problem) -> None:
        context.events.write("problem", **vars(problem))

    for document in places.documents(source, context.base, report):
        yield document.id, document.text


def _given(facts: set[str], operators: list[Operator]) -> set[str]:
    """Facts of documents that operators or the corpus need from the start."""
    found = facts & {"url", "carried"}
    found |= {"extract"} if any(isinstance(o, Extract) for o in operators) else set()
    of_source = (LicenceTiers, KeywordSafety, RepeatedBeginnings, RepeatedSentences, RepeatedEdges)
    return found | ({"source"} if any(isinstance(o, of_source) for o in operators) else set())


class _Reading:
    """Documents from sources and corpora, numbered; what leaves here already is written down beside.

    labels: the sources' names by their number; licences: what is known of each. made: columns that the job
    makes itself. meter: is told how far the sources are read.
    """

    def __init__(
        self,
        folder: Path,
        context: JobContext[CurateConfig],
        output: Output,
        corpora: Corpora,
        given: set[str],
        made: set[str],
        meter: Meter,
    ) -> None:
        self.context, self.output, self.folder, self.meter = context, output, folder, meter
        self.corpora, self.given, self.made = corpora, given, made
        self.documents = 0
        self.licences = {source.label: source.licence for source in context.config.sources}
        self.labels = list(self.licences)
        self._begins: list[tuple[int, str]] = [(0, "the sources")]  # numbers from which on they are of these
        told = dict.fromkeys(self.licences, "here")
        for label, licence, where in corpora.licences():
            if self.licences.setdefault(label, licence) != licence:
                raise ShunterError(
                    f"source {label!r} has the licence {licence} in {where} and {self.licences[label]} "
                    f"{told[label] if told[label] == 'here' else f'in {told[label]}'}",
                    mend="Give sources that are not the same different names.",
                )
            told.setdefault(label, where)

    def __enter__(self) -> _Reading:
        self._names = Names(self.folder / "names.bin")
        self._dropped: IO[str] = (self.folder / "dropped.jsonl").open("w", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._names.close()
        self._dropped.close()

    def chunks(self) -> Iterator[Documents]:
        """Cut by characters and documents, wherever files end."""
        config = self.context.config
        known = {label: place for place, label in enumerate(self.labels)}
        texts: list[str] = []
        numbers: list[int] = []
        told: list[dict[str, str]] = []
        held, repairs = 0, config.repairs
        for given in self._all():
            document = given.document
            self.documents += 1
            if self.documents % 256 == 0 and self.context.control.stop_requested():
                raise Stopped
            if document.source not in known:
                known[document.source] = len(self.labels)
                self.labels.append(document.source)
                self.licences.setdefault(document.source, None)
            # Of a page nothing is known before its text is found: `extract` does the same in a worker.
            page = bool(document.extract)
            clean = config.normalise and not page
            text = normalise(document.text, repairs) if clean else document.text
            parts = [text] if page else sections(text, config.section_chars)
            for index, part in enumerate(parts):
                part_of = given.part if len(parts) == 1 else index
                number = self._names.add(known[document.source], document.row, part_of, given.split)
                reason, facts = (None, {}) if page else self.output.reason(part, number, config)
                if reason is None:
                    numbers.append(number)
                    texts.append(part)
                    told.append(
                        {
                            "url": document.url,
                            "source": document.source,
                            "extract": document.extract,
                            "carried": given.carried,
                        }
                    )
                    held += len(part) + len(document.url) + len(given.carried)
                else:
                    record = {"number": number, "operator": "reading", "reason": reason, **facts}
                    self._dropped.write(json.dumps(record) + "\n")
            if held >= config.how.chunk_chars or len(texts) >= CHUNK_DOCUMENTS:
                yield self._chunk(numbers, texts, told)
                texts, numbers, told, held = [], [], [], 0
        if texts:
            yield self._chunk(numbers, texts, told)
        self._names.flush()
        self._dropped.flush()
        self.output.seen.forget()  # 75 MB, and barriers are still to come
        if self.corpora.artefacts:
            self._no_id_twice()

    def _chunk(self, numbers: list[int], texts: list[str], told: list[dict[str, str]]) -> Documents:
        facts = {name: np.array([each[name] for each in told], object) for name in sorted(self.given)}
        return Documents(np.array(numbers, np.int64), texts, facts)

    def _all(self) -> Iterator[Given]:
        """Documents with what is known of them."""
        for document in read(self.context, self.output, self.meter):
            yield Given(document)
        for where, given in self.corpora.documents(self.made, self.meter):
            if self._begins[-1][1] != where:
                self._begins.append((self._names.count, where))
            yield given

    def _no_id_twice(self) -> None:
        """Refuse two documents of one name: nobody could tell what became of which."""
        names = names_in(self.folder / "names.bin")
        if (found := twice(names, self.labels)) is None:
            return
        name, same = found
        places = [where for _, where in self._begins]
        begins = [begin for begin, _ in self._begins]
        there = [places[bisect.bisect_right(begins, number) - 1] for number in same]
        raise ShunterError(
            f"two documents have the id {name}: in {there[0]} and in {there[1]}",
            mend="Give their sources different names.",
        )


class _Watch:
    """Progress, and the request to stop, between two chunks.

    Speed is of what this attempt has done since the stage began, in characters; the share that is kept is
    of all. How long a stage still takes is told by its chunks, once it is known how many there are; of the
    first stage, which finds them, by the bytes of the sources that are read: a little short at its end, as
    reading is some chunks ahead. Chunks of an earlier attempt cost no time, so they count for nothing.

    total: bytes of all that is read; 0: nobody knows.
    """

    def __init__(self, context: JobContext[CurateConfig], total: int = 0) -> None:
        self.context, self.total, self.meter = context, total, Meter()
        self.begins(-1)
        self.chunks = 0

    def begins(self, stage: int) -> None:
        """A stage begins."""
        self.begin = self.later = time.perf_counter()  # later: when what is fresh began
        self.seen = self.fresh = self.documents = self.kept = self.characters = self.before = 0

    def __call__(self, stage: int, done: Done) -> None:
        if self.context.control.stop_requested():
            raise Stopped
        now = time.perf_counter()
        self.seen += 1
        self.chunks += stage == 0
        tally = done.tallies[0] if done.tallies else None
        self.documents += tally.documents if tally else done.documents
        self.kept += done.documents
        if done.fresh:
            self.fresh += 1
            self.characters += tally.characters if tally else 0
        elif not self.fresh:
            self.later, self.before = now, self.meter.read
        seconds = max(now - self.begin, 1e-9)
        shown: dict[str, float | int | str] = {
            "stage": stage + 1,
            "MB/s": round(self.characters / 1e6 / seconds, 2),
            "kept": f"{self.kept / max(self.documents, 1):.0%}",
        }
        read = self.meter.read
        if stage and self.fresh:
            shown["seconds left"] = round(seconds / self.fresh * (self.chunks - self.seen))
        elif self.fresh and self.total and read > self.before:
            left = (now - self.later) * (self.total - read) / (read - self.before)
            shown["seconds left"] = round(max(left, 0.0))
        self.context.events.progress(self.documents, None, "documents", **shown)


def _copies(runner: Runner, most: int | Literal["readme"]) -> dict[int, int]:
    """Copies by size of cluster, from what the operators after near-duplicates removed, or as published."""
    if most == "readme":
        return rehydration.README
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
    leaks: Leaks,
    earlier: Earlier | None,
) -> dict[str, Counter[str]]:
    """Write what is left and what left, each in the order of reading; counts by language."""
    names = names_in(folder / "names.bin")
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
            excluded.write(id_of(name, labels), source, int(name["row"]), text, *why)
        output.drop(source, _told(record, names, labels, earlier))
        leaks.add(record)
        if "language" in record:
            languages.setdefault(record["language"], Counter())[f"dropped: {record['reason']}"] += 1
    if excluded is not None:
        excluded.close()
    shown: list[tuple[bytes, str, str]] = []  # those of the least digests: drawn, and the same every time
    for documents in runner.left():
        if context.control.stop_requested():
            raise Stopped
        if table and len(documents):
            sizes = documents.facts["cluster_size"].tolist()
            documents.facts["copies"] = np.array([rehydration.of(size, table) for size in sizes], np.int32)
        facts = list(_columns(documents, list(output.facts or {})))
        for place, text in enumerate(documents.texts):
            name = names[documents.number[place]]
            document = Document(labels[int(name["source"])], int(name["row"]), text)
            own = [column[place] for column in facts]
            split = SPLITS[int(name["split"])] if name["split"] >= 0 else None
            own_id = id_of(name, labels)
            output.keep(document, own_id, text, context.config, split, *own)
            digest = hashlib.blake2b(own_id.encode(), digest_size=8).digest()
            if len(shown) < KEPT or digest < shown[-1][0]:
                shown = sorted([*shown, (digest, own_id, text[:SAMPLE_CHARS])])[:KEPT]
            if "language" in documents.facts:
                counts = languages.setdefault(str(documents.facts["language"][place]), Counter())
                counts["documents"] += 1
                counts["bytes"] += len(text.encode())
    with (context.out / "kept.jsonl").open("w", encoding="utf-8") as file:
        for _, own_id, begin in shown:
            file.write(json.dumps({"id": own_id, "text": begin}, ensure_ascii=False) + "\n")
    return languages


def _columns(documents: Documents, names: Sequence[str]) -> Iterator[list[Any]]:
    """A value of each fact for each document; of what is not known of it, nothing, and one copy."""
    if not len(documents):
        return
    told = documents.facts.get("carried", np.full(len(documents), "", object))
    carried = [json.loads(each) if each else {} for each in told.tolist()]
    for name in names:
        if name in documents.facts:
            yield documents.facts[name].tolist()
        else:
            missing = 1 if name == "copies" else None
            yield [facts.get(name, missing) for facts in carried]


def _told(
    record: dict[str, Any], names: np.ndarray, labels: list[str], earlier: Earlier | None
) -> dict[str, Any]:
    """A record of removal with ids for numbers."""
    told = {"id": id_of(names[record["number"]], labels), **record}
    del told["number"]
    if "of" in told:
        first = told["of"]
        told["of"] = earlier.id(first) if earlier and first < 0 else id_of(names[first], labels)
    return told


def _facts(operators: list[Operator]) -> dict[str, pa.DataType]:
    """Columns that the chain gives to every document."""
    found: dict[str, pa.DataType] = {}
    for operator in operators:
        found.update({name: pa.type_for_alias(kind) for name, kind in operator.columns().items()})
    return found
