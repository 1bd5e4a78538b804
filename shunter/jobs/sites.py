"""The job `by-site`: documents of one site stand together, or become one (MixtureVitae, arXiv 2509.25531,
section on domain-aware packing)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.data.curation.addresses import hostname
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

if TYPE_CHECKING:
    from shunter.data.units import Unit

SPLITS = ("train", "heldout")
BETWEEN = "\n\n"  # what stands between two documents that are joined
CHARS = 1 << 26  # of the documents that are written at once
FORMAT = 1  # of what units leave; another number begins anew


class BySiteConfig(JobConfig):
    """Groups documents by their address's host, and joins those of a site up to a size."""

    corpus: Annotated[str, Input("corpus")] = Field(description="Job whose corpus has the column `url`.")
    chars: int = Field(
        0,
        ge=0,
        description="Consecutive documents of a site are joined to at most so many characters; 0: not.",
    )
    same: list[str] = Field(
        ["tier", "language"],
        description="Columns that stay, where the corpus has them; joined documents agree in them.",
    )


class BySiteJob:
    """Writes a corpus in another order; with `chars`, `parts` says which documents one is made of, and
    dropped.jsonl has a record for each that became a part of another.

    Works in units, each done once whatever is killed: what is known of documents is read, their order is
    settled (about 60 bytes a document, and the names of hosts), documents are spread to where they belong, in
    files that hold every text once more, and written from there.
    """

    kind: ClassVar[str] = "by-site"
    produces: ClassVar[str] = "corpus"
    version: ClassVar[int] = 2
    Config: ClassVar[type[JobConfig]] = BySiteConfig

    def check(self, config: BySiteConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[BySiteConfig]) -> dict[str, Any]:
        folder = context.one("corpus").path
        told: dict[str, Any] = {}
        counts: dict[str, Counter[str]] = {}
        joined = sites = 0
        (context.out / "dropped.jsonl").touch()
        for split in SPLITS:
            part = _Split(context, folder / split, split)
            records = part.written()
            told[split] = {key: sum(each[key] for each in records) for key in ("documents", "bytes")}
            sites += part.sites if split == "train" else 0
            joined += sum(each["joined"] for each in records)
            for each in records:
                for source, mine in each["sources"].items():
                    counts.setdefault(source, Counter()).update(mine)
        before = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("sources", {})
        sources = {
            name: {"licence": known.get("licence"), **counts.get(name, {})} for name, known in before.items()
        }
        summary = {"read": joined + sum(part["documents"] for part in told.values()), **told}
        summary |= {"dropped": {"joined": joined} if joined else {}, "sources": sources}
        (context.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return {**told["train"], "sites": sites, "joined": joined}


class _Split:
    """One split of a corpus. sites: the hosts in it, once it is written."""

    def __init__(self, context: JobContext[BySiteConfig], folder: Path, split: str) -> None:
        import pyarrow.parquet as pq

        from shunter.data import units

        self.context, self.config, self.split = context, context.config, split
        stated = (FORMAT, CHARS, folder, context.config.model_dump())
        self.once = units.Once(context.work / "units", *stated)
        self.units = units.units(folder)
        self.sites = 0
        self.same: dict[str, Any] = {}
        for path in sorted(folder.glob("*.parquet")):
            schema = pq.read_schema(path)
            if "url" not in schema.names:
                raise ShunterError(
                    "the corpus has no column 'url'",
                    where=str(folder),
                    mend="Give the addresses of its sources: `url: FIELD`, or read web archives.",
                )
            same = context.config.same
            self.same = {name: schema.field(name).type for name in same if name in schema.names}

    def written(self) -> list[dict[str, Any]]:
        """Write the split and its records of what was joined; what each unit tells."""
        import pyarrow as pa

        from shunter.data import units

        order, counts, chars = self._settled()
        place_of = np.empty(len(order), np.int64)
        place_of[order] = np.arange(len(order))
        spread = []
        for unit in self.units:
            places = place_of[unit.begin : unit.begin + unit.rows]
            spread.append(self.once(f"spread-{unit.number:06}", partial(self._spread, unit, places)))
            self.context.events.progress(unit.begin + unit.rows, len(order), "documents put in order")
        done = []
        ends = np.concatenate([[0], np.cumsum(counts)])
        for number, (low, high) in enumerate(cuts(chars)):
            begin, end = int(ends[low]), int(ends[high])
            make = partial(self._write, spread, begin, end, counts[low:high].tolist())
            done.append(self.once(f"written-{number:06}", make))
            self.context.events.progress(end, len(order), "documents written")
        facts = {"url": pa.string(), "parts": pa.list_(pa.string()), **self.same}
        files = (place / "rows" / "00000.parquet" for place in done)
        units.gathered(files, self.context.out / self.split, facts)
        with (self.context.out / "dropped.jsonl").open("ab") as file:
            for place in done:
                with (place / "dropped.jsonl").open("rb") as mine:
                    shutil.copyfileobj(mine, file)
        return [units.record(place) for place in done]

    def _settled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64: the documents' places in the new order; of the documents that are written, of how many each
        is made, and how many characters it has."""
        import pyarrow.parquet as pq

        hosts: dict[str, int] = {}
        kinds: dict[str, int] = {}
        site, alike, length = [[np.zeros(0, np.int64)] for _ in range(3)]
        for unit in self.units:
            place = self.once(f"known-{unit.number:06}", partial(self._known, unit))
            table = pq.read_table(place / "documents.parquet")
            names, same = table.column("host").to_pylist(), table.column("same").to_pylist()
            site.append(np.array([hosts.setdefault(n, len(hosts)) if n else -1 for n in names], np.int64))
            alike.append(np.array([kinds.setdefault(each, len(kinds)) for each in same], np.int64))
            length.append(table.column("chars").to_numpy())
            self.context.events.progress(unit.begin + unit.rows, None, "documents read")
        self.sites = len(hosts)
        sites, kind, lengths = (np.concatenate(each) for each in (site, alike, length))
        order = grouped(sites)
        counts = joins(sites[order], kind[order], lengths[order], self.config.chars)
        begins = np.concatenate([[0], np.cumsum(counts)])[:-1].astype(np.int64)
        chars = np.add.reduceat(lengths[order], begins) if len(counts) else begins
        return order, counts, chars

    def _known(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Host, size and the columns that joined documents agree in, of the documents of a unit."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        hosts: list[str] = []
        same: list[str] = []
        chars: list[int] = []
        for batch in unit.batches(["text", "url", "source", *self.same]):
            if self.context.control.stop_requested():
                raise Stopped
            for row in batch.to_pylist():
                hosts.append(hostname(row["url"] or ""))
                same.append(json.dumps([row["source"], *(row[name] for name in self.same)], default=str))
                chars.append(len(row["text"]))
        columns = {"host": hosts, "same": same, "chars": pa.array(chars, pa.int64())}
        pq.write_table(pa.table(columns), folder / "documents.parquet")
        return {"documents": len(hosts)}

    def _spread(self, unit: Unit, places: np.ndarray, folder: Path) -> dict[str, Any]:
        """The documents of a unit in the order of their new places, so that a stretch of these is a slice."""
        import pyarrow as pa

        columns = ["id", "source", "row", "text", "url", *self.same]
        table = pa.Table.from_batches(list(unit.batches(columns)))
        if self.context.control.stop_requested():
            raise Stopped
        table = table.append_column("place", pa.array(places)).take(pa.array(np.argsort(places)))
        table = table.combine_chunks()
        with (
            pa.OSFile(str(folder / "documents.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as f,
        ):
            f.write_table(table)
        return {"documents": len(table)}

    def _write(
        self, spread: list[Path], begin: int, end: int, counts: list[int], folder: Path
    ) -> dict[str, Any]:
        """The documents whose new places are in [begin, end), of which `counts` become one each."""
        import pyarrow as pa

        from shunter.data import corpus

        parts = []
        for place in spread:
            with pa.memory_map(str(place / "documents.arrow")) as source:
                table = pa.ipc.open_file(source).read_all()
                low, high = np.searchsorted(table.column("place").to_numpy(), (begin, end))
                parts += [table.slice(low, high - low)] if high > low else []
        rows = iter(pa.concat_tables(parts).sort_by("place").to_pylist())
        told: dict[str, Counter[str]] = {}
        facts = {"url": pa.string(), "parts": pa.list_(pa.string()), **self.same}
        writer = corpus.Writer(folder / "rows", facts)
        joined = 0
        with (folder / "dropped.jsonl").open("w", encoding="utf-8") as dropped:
            for count in counts:
                if self.context.control.stop_requested():
                    raise Stopped
                part = [next(rows) for _ in range(count)]
                first, names = part[0], [row["id"] for row in part]
                text = BETWEEN.join(row["text"] for row in part)
                own = [first[name] for name in self.same]
                writer.write(first["id"], first["source"], first["row"], text, first["url"], names, *own)
                here = told.setdefault(first["source"], Counter())
                here[f"{self.split} documents"] += 1
                here[f"{self.split} bytes"] += len(text.encode())
                for name in names[1:]:
                    record = {"id": name, "operator": "by-site", "reason": "joined", "of": first["id"]}
                    dropped.write(json.dumps(record, ensure_ascii=False) + "\n")
                    joined += 1
        writer.close()
        return {"documents": writer.documents, "bytes": writer.bytes, "joined": joined, "sources": told}


def grouped(sites: np.ndarray) -> np.ndarray:
    """int64: the places of documents, those of a site together, sites by their first; those without an
    address (-1) as they stand, each by itself."""
    first = np.arange(len(sites))
    known = np.flatnonzero(sites >= 0)
    if len(known):
        _, begin, inverse = np.unique(sites[known], return_index=True, return_inverse=True)
        first[known] = known[begin[inverse]]
    return np.argsort(first, kind="stable")


def joins(sites: np.ndarray, alike: np.ndarray, lengths: np.ndarray, chars: int) -> np.ndarray:
    """int64: of how many consecutive documents each one is made: of one site, alike, at most `chars`
    characters with what stands between them, or one document that is longer."""
    found: list[int] = []
    size = 0
    before = (-1, -1)
    for site, kind, length in zip(sites.tolist(), alike.tolist(), lengths.tolist(), strict=True):
        if site >= 0 and (site, kind) == before and size + len(BETWEEN) + length <= chars:
            found[-1] += 1
            size += len(BETWEEN) + length
        else:
            found.append(1)
            size, before = length, (site, kind)
    return np.array(found, np.int64)


def cuts(chars: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of documents of about CHARS characters each."""
    begin = size = 0
    for at, length in enumerate(chars.tolist(), 1):
        size += length
        if size >= CHARS or at == len(chars):
            yield begin, at
            begin, size = at, 0


JOB = BySiteJob()
"""The kind `by-site`."""
