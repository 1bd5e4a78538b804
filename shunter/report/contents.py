"""Tables on what data artefacts hold: documents, bytes, what was dropped and why, what could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter.report import numbers
from shunter.report.chart import Chart, Series, line_chart
from shunter.report.facts import Facts, JobFacts, read_json, read_lines

MAX_ROWS = 20
DATA_TYPES = ("corpus", "conversations", "tokenizer", "tokens")


@dataclass
class Table:
    """A small table; the first cell of a row is its header. `align`: `num` or empty for text."""

    title: str
    rows: list[list[str]]
    head: list[str] = field(default_factory=list)
    align: str = ""


@dataclass
class DataSection:
    """Tables and remarks on one data artefact."""

    name: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)


def describe_data(facts: Facts) -> list[DataSection]:
    """A section for each finished data artefact."""
    sections = []
    for job in facts.jobs:
        if job.path is None or job.type not in DATA_TYPES:
            continue
        section = DataSection(job.name)
        if job.type == "corpus":
            _corpus(job, job.path, section, facts.problems)
        if job.type == "conversations":
            _conversations(job.path, section, facts.problems)
        headline = _flat_rows(job.metrics)
        if headline:
            section.tables.append(Table(f"Headline metrics ({job.type})", headline, align="num"))
        if section.tables:
            sections.append(section)
    return sections


def _corpus(job: JobFacts, path: Path, section: DataSection, problems: list[str]) -> None:
    summary = read_json(path / "summary.json", problems) if (path / "summary.json").is_file() else None
    splits = []
    for split in ("train", "heldout"):
        told = summary.get(split) if isinstance(summary, Mapping) else None
        documents, size = _parquet(path / split, told if isinstance(told, Mapping) else {}, problems)
        if documents is not None:
            splits.append([split, numbers.count(documents), numbers.size(size)])
    if splits:
        section.tables.append(Table("Documents", splits, ["Split", "Documents", "Text (UTF-8)"], "num"))
    if isinstance(summary, Mapping):
        section.tables += [*_sources(summary), *funnel(path, summary, problems)]
        chart = _left_after(summary.get("operators", []))
        section.charts += [chart] if chart is not None else []
    if isinstance(summary, Mapping) and not job.metrics:
        section.tables.append(Table("Summary", _flat_rows(summary), align="num"))
    told = summary.get("dropped") if isinstance(summary, Mapping) else None
    # All that left is one of the largest files: it is read only where nobody has counted it.
    reasons = (
        Counter(told) if isinstance(told, Mapping) else _count(path / "dropped.jsonl", "reason", problems)
    )
    if reasons:
        section.tables.append(_counted("Dropped documents by reason", "Reason", reasons))
    if samples := _samples(path / "samples.jsonl", problems):
        section.tables.append(samples)
    if kept := [
        [str(line.get("id")), str(line.get("text"))[:160]] for line in _lines(path / "kept.jsonl", problems)
    ]:
        section.tables.append(Table("Samples of what stayed", kept[:MAX_ROWS], ["Document", "Begins"]))
    places = _count(path / "problems.jsonl", "problem", problems)
    if places:
        section.tables.append(_counted("Problems in the sources", "Problem", places))
        first = next(read_lines(path / "problems.jsonl", problems), {})
        section.notes.append(
            f"First: {first.get('file', '?')}, line {first.get('line', '?')}: {first.get('problem', '?')}. "
            "All are in problems.jsonl of the artefact."
        )
    if (path / "dropped.jsonl").is_file() and not reasons:
        section.notes.append("No document was dropped.")
    if (path / "problems.jsonl").is_file() and not places:
        section.notes.append("No problem was found in the sources.")


def _sources(summary: Mapping[str, Any]) -> list[Table]:
    """What came of each source, and under which licence."""
    rows = []
    for name, told in list(summary.get("sources", {}).items())[:MAX_ROWS]:
        kept = [int(told.get(f"{split} documents", 0)) for split in ("train", "heldout")]
        size = sum(int(told.get(f"{split} bytes", 0)) for split in ("train", "heldout"))
        gone = {key: n for key, n in told.items() if key.startswith("dropped: ")}
        first = max(gone, key=lambda key: gone[key]).removeprefix("dropped: ") if gone else ""
        cells = [*map(numbers.count, kept), numbers.size(size), numbers.count(sum(gone.values()))]
        rows.append([name, str(told.get("licence") or "not given"), *cells, first])
    head = ["Source", "Licence", "train", "heldout", "Text (UTF-8)", "Dropped", "Most often for"]
    return [Table("Sources", rows, head)] if rows else []


def funnel(path: Path, summary: Mapping[str, Any], problems: list[str]) -> list[Table]:
    """What reading and each operator let through, what decontamination found, and what became of each
    language; nothing for a corpus without operators."""
    return _funnel(summary, _read(path / "dropped.jsonl", summary, problems))


def _read(path: Path, summary: Mapping[str, Any], problems: list[str]) -> list[str]:
    """The row of the funnel for what reading did before the first operator."""
    if (known := summary.get("dropped_by_reading")) is not None:
        reasons = Counter(known)
    else:  # the corpus is older than that
        lines = _lines(path, problems)
        reasons = Counter(str(each.get("reason")) for each in lines if each.get("operator") == "reading")
    first = (summary.get("operators") or [{}])[0]
    told = [f"{reason} {numbers.count(count)}" for reason, count in reasons.most_common(4)]
    out, before = int(first.get("documents", 0)), int(summary.get("read", 0))
    # A document that is taken apart comes out as several.
    share = f"{out / before:.1%}" if before >= out and before else ""
    size = numbers.size(first.get("bytes", 0))
    return ["reading", numbers.count(before), numbers.count(out), share, "", "", size, ", ".join(told)]


def _funnel(summary: Mapping[str, Any], read: list[str]) -> list[Table]:
    tables = []
    rows = [read] if summary.get("operators") else []
    for step in summary.get("operators", []):
        reasons = sorted(step["reasons"].items(), key=lambda item: -item[1])
        told = [f"{reason} {numbers.count(count)}" for reason, count in reasons[:4]]
        told += [f"{name} {numbers.count(count)}" for name, count in step["edits"].items()]
        share = step["kept"] / step["documents"] if step["documents"] else 1.0
        letters = step["kept_characters"] / step["characters"] if step["characters"] else 1.0
        rows.append(
            [
                step["operator"],
                numbers.count(step["documents"]),
                numbers.count(step["kept"]),
                f"{share:.1%}",
                f"{letters:.1%}",
                numbers.size(step.get("bytes", 0)),
                numbers.size(step.get("kept_bytes", 0)),
                ", ".join(told),
            ]
        )
    if rows:
        head = [
            "Operator",
            "Documents in",
            "out",
            "of documents",
            "of characters",
            "Text in (UTF-8)",
            "out",
            "Removed, edited",
        ]
        tables.append(Table("Funnel", rows, head))
    if leaks := summary.get("decontamination"):
        rows = [
            [name, *(numbers.count(counts.get(key, 0)) for key in ("documents", "holding", "items"))]
            for name, counts in list(leaks["sets"].items())[:MAX_ROWS]
        ]
        title = (
            f"Decontamination: {leaks['precision']:.0%} of what left hold half of an evaluation text or more"
        )
        tables.append(Table(title, rows, ["Evaluation set", "Documents", "Holding half", "Texts"], "num"))
    languages = summary.get("languages", {})
    order = sorted(languages, key=lambda name: -languages[name].get("documents", 0))
    rows = []
    for name in order[:MAX_ROWS]:
        counts = languages[name]
        gone = {key: n for key, n in counts.items() if key.startswith("dropped: ")}
        first = max(gone, key=lambda key: gone[key]).removeprefix("dropped: ") if gone else ""
        kept, left = counts.get("documents", 0), sum(gone.values())
        cells = [numbers.count(kept), numbers.size(counts.get("bytes", 0)), numbers.count(left)]
        rows.append([name, *cells, f"{kept / max(kept + left, 1):.1%}", first])
    if rows:
        head = ["Language", "Documents", "Text (UTF-8)", "Dropped", "Kept", "Most often for"]
        tables.append(Table("Languages", rows, head))
    return tables


def _left_after(operators: Sequence[Mapping[str, Any]]) -> Chart | None:
    """What is left after each operator, of documents and of characters; nothing for a chain of one."""
    if len(operators) < 2:
        return None
    series = []
    for color, (name, before, after) in enumerate(
        (("documents", "documents", "kept"), ("characters", "characters", "kept_characters"))
    ):
        whole = operators[0][before] or 1
        points = [(0.0, 100.0)]
        points += [(float(n), 100 * step[after] / whole) for n, step in enumerate(operators, 1)]
        series.append(Series(name, points, color=color, dots=True))
    return line_chart(
        "Left after each operator of the funnel", "%", series, from_zero=True, x_name="operator"
    )


def _lines(path: Path, problems: list[str]) -> Iterator[Mapping[str, Any]]:
    if path.is_file():
        yield from read_lines(path, problems)


def _samples(path: Path, problems: list[str]) -> Table | None:
    """Beginnings of removed documents, one for each operator and reason."""
    shown: dict[tuple[str, str], list[str]] = {}
    if path.is_file():
        for line in read_lines(path, problems):
            key = (str(line.get("operator")), str(line.get("reason")))
            value = f"{line.get('value')} (limit {line.get('limit')})"
            shown.setdefault(key, [*key, str(line.get("id")), value, str(line.get("text"))[:160]])
    rows = list(shown.values())[:MAX_ROWS]
    head = ["Operator", "Reason", "Document", "Value", "Begins"]
    return Table("Samples of what was removed", rows, head) if rows else None


def _conversations(path: Path, section: DataSection, problems: list[str]) -> None:
    splits = {split: _count(path / f"{split}.jsonl", "task", problems) for split in ("train", "heldout")}
    tasks = list(dict.fromkeys(task for counts in splits.values() for task in counts))
    if tasks:
        rows = [
            [task, *(numbers.count(counts.get(task, 0)) for counts in splits.values())]
            for task in tasks[:MAX_ROWS]
        ]
        section.tables.append(Table("Conversations by task", rows, ["Task", "train", "heldout"], "num"))


def _parquet(folder: Path, told: Mapping[str, Any], problems: list[str]) -> tuple[int | None, int | None]:
    """Documents and bytes of text of a split.

    told: the same by whoever made it. Where its documents are not those that are there, all text is read, one
    row group at a time.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        return None, None
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    documents = size = 0
    readable = []
    for file in files:
        try:
            documents += pq.ParquetFile(file).metadata.num_rows
            readable.append(file)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors derive from these
            problems.append(f"{folder.parent.name}/{folder.name}/{file.name} cannot be read: {error}")
    if told.get("documents") == documents and isinstance(told.get("bytes"), int):
        return documents, told["bytes"]
    for file in readable:
        try:
            for batch in pq.ParquetFile(file).iter_batches(columns=["text"]):
                size += pc.sum(pc.binary_length(batch.column(0))).as_py() or 0
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{folder.parent.name}/{folder.name}/{file.name} cannot be read: {error}")
    return documents, size


def _count(path: Path, key: str, problems: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    if path.is_file():
        for line in read_lines(path, problems):
            counts[str(line.get(key, "not given"))[:120]] += 1
    return counts


def _counted(title: str, name: str, counts: Counter[str]) -> Table:
    rows = [[key, numbers.count(number)] for key, number in counts.most_common(MAX_ROWS)]
    rest = sum(counts.values()) - sum(number for _, number in counts.most_common(MAX_ROWS))
    if rest:
        rows.append([f"{len(counts) - MAX_ROWS} other", numbers.count(rest)])
    return Table(title, rows, [name, "Count"], "num")


def _flat_rows(tree: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Scalars of a nested mapping as rows of (dotted name, value); lists and long texts are left to
    the configuration section."""
    rows = []
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows.extend(_flat_rows(value, f"{prefix}{key}: "))
        elif isinstance(value, bool | str):
            rows.append([name, str(value)[:200]])
        elif isinstance(value, int | float):
            rows.append([name, show(name, value)])
    return rows


def show(name: str, number: float) -> str:
    """A metric by its name: bytes and seconds in their units, whole numbers grouped, others short."""
    if name.endswith("seconds"):
        return numbers.duration(number)
    if isinstance(number, int):
        return numbers.size(number) if name.endswith("bytes") else numbers.count(number)
    return numbers.value(number)


def environment_table(attempts: Iterable[Mapping[str, Any]]) -> Table | None:
    """What the jobs ran on. A value that changed between jobs is shown as the list of its values."""
    seen: dict[str, dict[str, None]] = {}
    for attempt in attempts:
        for part in ("environment", "code"):
            tree = attempt.get(part)
            for name, text in _flat_rows(tree if isinstance(tree, Mapping) else {part: tree} if tree else {}):
                seen.setdefault(name, {})[text] = None
    rows = [[name, ", then ".join(list(values)[:4])] for name, values in seen.items()]
    return Table("Recorded with each attempt", rows) if rows else None
