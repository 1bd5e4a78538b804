"""What became of one document of a corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    parts: dict[str, dict[str, Any]] = {}
    with (folder / "dropped.jsonl").open(encoding="utf-8") as file:
        for line in file:
            # Most lines are of others: a look at the text saves reading them as JSON.
            if name in line and _is(record := json.loads(line), name):
                parts[record["id"]] = {"state": "dropped", **record}
    for split in SPLITS:
        begin = 0  # of a file among its split's
        for path in sorted((folder / split).glob("*.parquet")):
            with pq.ParquetFile(path) as table:
                facts = [c for c in table.schema_arrow.names if c != "text"]
                for batch in table.iter_batches(batch_size=4096):
                    hits = pc.starts_with(batch.column("id"), name)
                    for place, hit in enumerate(hits.to_pylist()):
                        if not hit:
                            continue
                        row = batch.slice(place, 1).to_pylist()[0]
                        if _is(row, name):
                            told = {fact: row[fact] for fact in facts}
                            parts[row["id"]] = {
                                "state": "kept",
                                "split": split,
                                "place": begin + place,
                                **told,
                                "text": row["text"][:SHOWN],
                            }
                    begin += batch.num_rows
    if not parts:
        raise ShunterError(
            f"no document {name!r} is in the corpus, kept or dropped",
            where=str(folder),
            mend="An id is SOURCE:ROW, rows counted from 0; summary.json names the sources.",
        )
    if list(parts) == [name]:
        return parts[name]
    return {"id": name, "parts": [parts[key] for key in sorted(parts, key=_order)]}


def _is(record: dict[str, Any], name: str) -> bool:
    return bool(record["id"] == name or record["id"].startswith(f"{name}."))


def _order(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition(".")
    return (head, int(tail)) if tail.isdigit() else (name, -1)
