"""What became of one document of a corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shunter.config.errors import ShunterError

SPLITS = ("train", "heldout")
SHOWN = 200  # characters of a kept text


def why(folder: Path, name: str) -> dict[str, Any]:
    """What became of document `name`: its record of removal, or its split, place and facts.

    The parts of a document that was taken apart are told together, under `parts`. Raises ShunterError when
    the corpus knows no such document.
    """
    told = asked(folder, name)
    if told is None:
        raise unknown(name, folder)
    return told


def unknown(name: str, folder: Path) -> ShunterError:
    """The sentence for a document that a corpus does not know."""
    path = folder / "summary.json"
    known = json.loads(path.read_text(encoding="utf-8")).get("sources", {}) if path.is_file() else {}
    sources = f"its sources are {', '.join(sorted(known)[:20])}" if known else "a summary names the sources"
    return ShunterError(
        f"no document {name!r} is in the corpus, kept or dropped",
        where=str(folder),
        mend=f"An id is SOURCE:ROW, rows counted from 0; {sources}.",
    )


def asked(folder: Path, name: str) -> dict[str, Any] | None:
    """What `why` gives, or None.

    Of texts only those that are told are read: the columns of ids are looked through.
    """
    parts: dict[str, dict[str, Any]] = {}
    if (folder / "dropped.jsonl").is_file():
        with (folder / "dropped.jsonl").open(encoding="utf-8") as file:
            for line in file:
                # Most lines are of others: a look at the text saves reading them as JSON.
                if name in line and _is(record := json.loads(line), name):
                    parts[record["id"]] = {"state": "dropped", **record}
    for split in SPLITS:
        begin = 0  # of a row group among its split's
        for path in sorted((folder / split).glob("*.parquet")):
            with pq.ParquetFile(path) as table:
                for group in range(table.num_row_groups):
                    names = table.read_row_group(group, columns=["id"]).column("id")
                    hits = pc.indices_nonzero(pc.starts_with(names, name)).to_pylist()
                    mine = [place for place in hits if _is({"id": names[place].as_py()}, name)]
                    rows = table.read_row_group(group).take(mine).to_pylist() if mine else []
                    for place, row in zip(mine, rows, strict=True):
                        text = row.pop("text")
                        told = {"state": "kept", "split": split, "place": begin + place, **row}
                        parts[row["id"]] = {**told, "text": text[:SHOWN]}
                    begin += len(names)
    if not parts:
        return None
    if list(parts) == [name]:
        return parts[name]
    return {"id": name, "parts": [parts[key] for key in sorted(parts, key=_order)]}


def texts(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The texts of these documents, by id, as far as a corpus keeps them."""
    found: dict[str, str] = {}
    wanted = pa.array(names, pa.string())
    for split in SPLITS:
        for path in sorted((folder / split).glob("*.parquet")):
            with pq.ParquetFile(path) as table:
                for group in range(table.num_row_groups):
                    ids = table.read_row_group(group, columns=["id"]).column("id")
                    hits = pc.indices_nonzero(pc.is_in(ids, wanted))
                    if len(hits):
                        column = table.read_row_group(group, columns=["text"]).column("text")
                        mine = ids.take(hits).to_pylist(), column.take(hits).to_pylist()
                        found |= dict(zip(*mine, strict=True))
    return found


def _is(record: dict[str, Any], name: str) -> bool:
    return bool(record["id"] == name or record["id"].startswith(f"{name}."))


def _order(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition(".")
    return (head, int(tail)) if tail.isdigit() else (name, -1)
