"""How far reading is, told beside it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shunter.data.meter import Meter
from shunter.data.sources import SourceConfig, documents, files


def test_what_is_read_grows_to_all_there_is(tmp_path: Path) -> None:
    """Files of several kinds; within a long one it grows with its documents."""
    rows = [{"text": f"{n} " + "some words of it " * 40} for n in range(400)]
    (tmp_path / "a.txt").write_text("some text " * 100)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in rows))
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    source, meter = SourceConfig(path="."), Meter()
    total = sum(path.stat().st_size for path in files(source, tmp_path))
    told = [meter.read for _ in documents(source, tmp_path, lambda problem: None, meter=meter)]
    assert meter.read == total
    assert told == sorted(told)
    size, begin = (tmp_path / "b.jsonl").stat().st_size, told[0]
    for part in (0.25, 0.5, 0.75):
        assert abs(told[1 + int(part * 400)] - begin - part * size) < 0.06 * size
