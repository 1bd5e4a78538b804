"""The job `by-site`: documents of one site stand together, or become one (MixtureVitae, arXiv 2509.25531,
section on domain-aware packing)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.data.curation.addresses import hostname
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

SPLITS = ("train", "heldout")
BETWEEN = "\n\n"  # what stands between two documents that are joined


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
    dropped.jsonl has a record for each that became a part of another. Holds a split's texts in memory."""

    kind: ClassVar[str] = "by-site"
    produces: ClassVar[str] = "corpus"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = BySiteConfig

    def check(self, config: BySiteConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[BySiteConfig]) -> dict[str, Any]:
        import pyarrow as pa

        from shunter.data import corpus

        config, folder = context.config, context.one("corpus").path
        told: dict[str, Any] = {}
        counts: dict[str, Counter[str]] = {}
        joined = sites = 0
        with (context.out / "dropped.jsonl").open("w", encoding="utf-8") as dropped:
            for split in SPLITS:
                rows, same = _rows(folder / split, config.same)
                places = grouped([row["url"] for row in rows])
                sites += len({hostname(row["url"]) for row in rows} - {""}) if split == "train" else 0
                facts = {"url": pa.string(), "parts": pa.list_(pa.string()), **same}
                writer = corpus.Writer(context.out / split, facts)
                for part in joins(places, rows, config.chars, list(same)):
                    if context.control.stop_requested():
                        raise Stopped
                    first = rows[part[0]]
                    text = BETWEEN.join(rows[place]["text"] for place in part)
                    names = [rows[place]["id"] for place in part]
                    own = [first[name] for name in same]
                    writer.write(first["id"], first["source"], first["row"], text, first["url"], names, *own)
                    here = counts.setdefault(first["source"], Counter())
                    here[f"{split} documents"] += 1
                    here[f"{split} bytes"] += len(text.encode())
                    for name in names[1:]:
                        record = {"id": name, "operator": "by-site", "reason": "joined", "of": first["id"]}
                        dropped.write(json.dumps(record, ensure_ascii=False) + "\n")
                        joined += 1
                writer.close()
                told[split] = {"documents": writer.documents, "bytes": writer.bytes}
        before = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("sources", {})
        sources = {
            name: {"licence": known.get("licence"), **counts.get(name, {})} for name, known in before.items()
        }
        summary = {"read": joined + sum(part["documents"] for part in told.values()), **told}
        summary |= {"dropped": {"joined": joined} if joined else {}, "sources": sources}
        (context.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return {**told["train"], "sites": sites, "joined": joined}


def grouped(urls: Sequence[str]) -> list[int]:
    """The places of documents, those of a site together, sites by their first; without an address: as they
    stand, each by itself."""
    first: dict[str, int] = {}
    keys = []
    for place, url in enumerate(urls):
        host = hostname(url)
        keys.append(first.setdefault(host, place) if host else place)
    return sorted(range(len(urls)), key=lambda place: (keys[place], place))


def joins(
    places: Sequence[int], rows: Sequence[dict[str, Any]], chars: int, same: Sequence[str] = ()
) -> Iterator[list[int]]:
    """Places in groups that become one document each: of one site and source, alike in the columns `same`, at
    most `chars` characters, or one document that is longer."""
    part: list[int] = []
    size = 0
    for place in places:
        row = rows[place]
        host, length = hostname(row["url"]), len(row["text"])
        fits = (
            part
            and host
            and host == hostname(rows[part[0]]["url"])
            and all(row[name] == rows[part[0]][name] for name in ("source", *same))
            and size + len(BETWEEN) + length <= chars
        )
        if part and not fits:
            yield part
            part, size = [], 0
        size += length + (len(BETWEEN) if part else 0)
        part.append(place)
    if part:
        yield part


def _rows(folder: Path, same: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The documents, and the types of the columns of `same` that are there."""
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = []
    kept: dict[str, Any] = {}
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            if "url" not in file.schema_arrow.names:
                raise ShunterError(
                    "the corpus has no column 'url'",
                    where=str(folder),
                    mend="Give the addresses of its sources: `url: FIELD`, or read web archives.",
                )
            schema = file.schema_arrow
            kept = {name: schema.field(name).type for name in same if name in schema.names}
            columns = ["id", "source", "row", "text", "url", *kept]
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                found += batch.to_pylist()
    return found, kept


JOB = BySiteJob()
"""The kind `by-site`."""
