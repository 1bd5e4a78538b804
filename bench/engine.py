"""The loop over chunks beside Daft, with the same functions: CPU seconds and time on one core.

Both sides read one Parquet file, judge its documents by the chain of quality filters, batch by batch with the
same code, and write those that stay. Ours also writes the record of each chunk, by which a job that was
killed goes on. Daft's checkpoints, which are of chains that only map rows, are not used. Beside it, the
signatures of near-duplicates: ours against Daft's own `minhash`, which compares words between spaces as they
are, where ours folds case, marks and digits and finds words first.

Daft is no part of shunter. Make an environment with it and run this there:
    python -m venv peers
    peers/bin/pip install daft numpy pyarrow pydantic PyYAML regex
    PYTHONPATH=. peers/bin/python -m bench.engine       # 20 MB, five rounds, keeps the result
    PYTHONPATH=. peers/bin/python -m bench.engine 0.5   # MB, one round, to try it; keeps nothing
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.curate import batches, clean, resampled
from bench.measure import alternate, machine, save
from shunter.data.curation.c4 import C4Quality
from shunter.data.curation.chain import Documents, Stage, run, stages
from shunter.data.curation.fineweb import FineWebQuality
from shunter.data.curation.gopher import GopherQuality, GopherRepetition
from shunter.data.curation.minhash import NearDuplicates
from shunter.data.curation.pages import Pages
from shunter.data.curation.runner import Runner

MEGABYTES, ROUNDS = 20.0, 5
ROWS = 1024  # documents that a function sees at once, on both sides
CHAIN = (GopherRepetition(), GopherQuality(), C4Quality(), FineWebQuality())


def ours(source: Path, folder: Path) -> Callable[[], None]:
    """The job's way: chunks, records, then the corpus."""

    def chunks() -> Iterator[Documents]:
        begin = 0
        with pq.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                texts = batch.column("text").to_pylist()
                yield Documents(np.arange(begin, begin + len(texts)), texts)
                begin += len(texts)

    def work() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        runner = Runner(folder, CHAIN, 1, lambda stage, done: None)
        runner.run(chunks())
        schema = pa.schema([("number", pa.int64()), ("text", pa.string())])
        with pq.ParquetWriter(folder / "left.parquet", schema, compression="zstd") as writer:
            for left in runner.left():
                writer.write_table(pa.table({"number": left.number, "text": left.texts}, schema=schema))

    return work


def theirs(source: Path, folder: Path) -> Callable[[], None]:
    """Daft's native engine with the same functions, in this process."""
    import daft

    (stage,) = stages(CHAIN)

    @daft.func.batch(return_dtype=daft.DataType.string(), use_process=False, batch_size=ROWS)
    def judged(texts: Any) -> pa.Array:
        return pa.array(kept(stage, texts.to_pylist()), pa.large_string())

    def work() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        table = daft.read_parquet(str(source))
        table = table.with_column("text", judged(table["text"]))
        table.where(table["text"].not_null()).write_parquet(str(folder), compression="zstd")

    return work


def kept(stage: Stage, texts: list[str]) -> list[str | None]:
    """The text that is left of each, None where it leaves."""
    left = run(stage, Documents(np.arange(len(texts)), texts), None).left
    found: list[str | None] = [None] * len(texts)
    for number, text in zip(left.number.tolist(), left.texts, strict=True):
        found[number] = text
    return found


def signatures(source: Path, texts: list[str]) -> tuple[Callable[[], None], Callable[[], None]]:
    """112 least values of runs of five words of each document; ours and Daft's own, in Rust."""
    import daft

    operator, cut = NearDuplicates(), batches(texts)

    def mine() -> None:
        for part in cut:
            operator.minima(Pages(part))

    table = daft.read_parquet(str(source)).select("text").collect()

    def other() -> None:
        column = table["text"].minhash(num_hashes=112, ngram_size=5, hash_function="xxhash")
        table.select(column.alias("least")).collect()

    return mine, other


def texts_in(folder: Path) -> list[str]:
    """Of all Parquet files there."""
    return [
        text
        for path in sorted(folder.glob("*.parquet"))
        for text in pq.read_table(path, columns=["text"]).column("text").to_pylist()
    ]


def main() -> int:
    """Measure, print, keep. Returns 0; what is slower stands in the table."""
    os.environ["DO_NOT_TRACK"] = "1"
    try:
        import daft
    except ImportError:
        print("daft is not here: the head of this file says how to run it. Skipped.")
        return 0
    daft.set_runner_native()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tiny = len(sys.argv) > 1
    texts = resampled(clean(), float(sys.argv[1]) if tiny else MEGABYTES, 0)
    size = sum(len(text.encode()) for text in texts) / 1e6
    rounds, found = 1 if tiny else ROUNDS, dict[str, Any]()
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source.parquet"
        pq.write_table(pa.table({"number": np.arange(len(texts)), "text": texts}), source)
        a, b = ours(source, Path(place) / "ours"), theirs(source, Path(place) / "theirs")
        timed = {"chain of filters": alternate(a, b, rounds, 1, limit=600)}
        left = texts_in(Path(place) / "ours")
        assert left == texts_in(Path(place) / "theirs"), "the same functions leave the same texts"
        timed["signatures"] = alternate(*signatures(source, texts), rounds, 1, limit=600)
    for name, told in timed.items():
        rate = {side: size / float(np.median(told[key])) for side, key in (("ours", "a"), ("Daft", "b"))}
        found[name] = {
            "mb_per_second": rate,
            "ratio": told["ratio_median"],
            "ratio_interval": [told["ratio_low"], told["ratio_high"]],
            "cpu_ratio": told["cpu_ratio_median"],
            "others": told["others"],
        }
        print(
            f"{name:<18}{rate['ours']:>7.1f} MB/s, Daft {rate['Daft']:.1f}; {told['ratio_median']:.2f} times "
            f"[{told['ratio_low']:.2f}, {told['ratio_high']:.2f}], CPU {told['cpu_ratio_median']:.2f} times"
        )
    if not tiny:
        result: dict[str, Any] = {
            "what": "a chain of filters and signatures, our loop and Daft's engine, one core"
        }
        result |= {"daft": importlib.metadata.version("daft"), "text_mb": size, "documents": len(texts)}
        save("engine", {**result, "left": len(left), "cases": found, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
