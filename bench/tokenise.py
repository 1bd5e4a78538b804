"""From a corpus to packed rows, as the job `tokens` does it, against the tokenizers library alone.

Ours reads Parquet, tokenises, puts documents between end-of-text tokens, writes, digests every file, plans
the rows and writes the index. The baseline is one call of the library on all texts, which are in memory
already, and its result stays inside the library. Both sides use its encode_batch_fast, which keeps no
offsets; beside it stands the ratio to encode_batch, its default, which does. MB are of UTF-8 text.

`python -m bench.tokenise 1 2` measures corpora of these sizes (MB) only, and keeps nothing.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import ROOT, alternate, interval, rounded, save
from shunter.data import corpus, sources, tokenizer
from shunter.data.tokens import TokenWriter
from shunter.jobs.tokens import ahead, documents

GOAL = 0.9
SIZES_MB, SEEDS, VOCAB, ROW_LENGTH = (1, 2, 6), (0, 1, 2), 4096, 256
WIDTH, LIMIT, ROUNDS = 0.04, 10.0, 6
STARTER = [
    sources.SourceConfig(name="state-union", path="data/state_union.zip", members="*.txt"),
    sources.SourceConfig(name="problems", path="data/gsm8k_train.jsonl.gz", field="question"),
]


def pool() -> list[str]:
    """Paragraphs of the shipped text."""
    found: list[str] = []
    for source in STARTER:
        for document in sources.documents(source, ROOT / "recipes", lambda problem: None):
            found += [part for part in document.text.split("\n\n") if part.strip()]
    return found


def write_corpus(folder: Path, paragraphs: list[str], megabytes: int, seed: int) -> list[str]:
    """Documents of 1 to 20 paragraphs, drawn at random, as a corpus split; returns their texts."""
    draw = np.random.default_rng(seed)
    writer, texts = corpus.Writer(folder), []
    while writer.bytes < megabytes * 10**6:
        chosen = draw.integers(0, len(paragraphs), int(draw.integers(1, 21)))
        texts.append("\n\n".join(paragraphs[i] for i in chosen))
        writer.write(f"drawn:{len(texts)}", "drawn", len(texts), texts[-1])
    writer.close()
    return texts


def ours(source: Path, out: Path, kept: tokenizer.Tokenizer) -> Callable[[], None]:
    """The job's way through one split."""

    def work() -> None:
        shutil.rmtree(out, ignore_errors=True)
        writer = TokenWriter(out, vocab_size=kept.vocab_size)
        for part in ahead(documents(source, kept)):
            writer.append(part.tokens, part.ids, part.text_bytes)
        writer.finish(ROW_LENGTH, "concat", pad=kept.pad)

    return work


def main() -> int:
    """Measure, print, keep. Returns 0; what is not reached stands in the table."""
    chosen = tuple(map(int, sys.argv[1:])) or SIZES_MB
    paragraphs = pool()
    cases: dict[str, Any] = {}
    print(
        f"{'case':<12}{'ours MB/s':>10}{'library':>9}{'ratio':>8}  interval      cpu   others"
        "   to encode_batch"
    )
    with tempfile.TemporaryDirectory() as place:
        engine = tokenizer.train(paragraphs, VOCAB)
        tokenizer.save(engine, Path(place) / "tokenizer", max_length=ROW_LENGTH)
        kept = tokenizer.Tokenizer.load(Path(place) / "tokenizer")
        library = kept.engine
        for megabytes in chosen:
            for seed in SEEDS:
                source = Path(place) / f"{megabytes}-{seed}"
                texts = write_corpus(source, paragraphs, megabytes, seed)
                size = sum(len(text.encode()) for text in texts) / 1e6
                work = ours(source, Path(place) / "out", kept)
                same = partial(library.encode_batch_fast, texts, add_special_tokens=False)
                offsets = partial(library.encode_batch, texts, add_special_tokens=False)
                found = alternate(work, same, ROUNDS, 1, width=WIDTH, limit=LIMIT)
                other = alternate(work, offsets, ROUNDS, 1, width=WIDTH, limit=LIMIT / 2)
                speeds = {key: size / float(np.median(found[side])) for key, side in SIDES.items()}
                name = f"{megabytes}MB-seed{seed}"
                cases[name] = {
                    "megabytes": size,
                    "documents": len(texts),
                    "mb_per_second": speeds,
                    "ratio": found["ratio_median"],
                    "interval": [found["ratio_low"], found["ratio_high"]],
                    "cpu_ratio": found["cpu_ratio_median"],
                    "others": found["others"],
                    "to_encode_batch": {
                        "ratio": other["ratio_median"],
                        "interval": [other["ratio_low"], other["ratio_high"]],
                        "cpu_ratio": other["cpu_ratio_median"],
                        "others": other["others"],
                    },
                    "seconds": {key: rounded(found[side]) for key, side in SIDES.items()},
                }
                print(
                    f"{name:<12}{speeds['ours']:>10.2f}{speeds['baseline']:>9.2f}"
                    f"{found['ratio_median']:>8.3f}  {found['ratio_low']:.2f}-{found['ratio_high']:.2f}"
                    f"     {found['cpu_ratio_median']:.3f} {found['others']:.2f}"
                    f"   {other['ratio_median']:.3f}",
                    flush=True,
                )
                shutil.rmtree(source)
    middle, low, high = interval([case["ratio"] for case in cases.values()])
    print(f"median of the cases {middle:.3f} ({low:.3f}-{high:.3f}), goal {GOAL}")
    if chosen != SIZES_MB:
        return 0
    save(
        "tokenise",
        {
            "what": "MB/s of the way from Parquet to packed, digested rows, by that of encode_batch_fast",
            "how": "alternating in one process; medians of the ratios of rounds, 95 % bootstrap",
            "note": "Other work may have shared the cores; the machine's load is told.",
            "goal": GOAL,
            "ratio": middle,
            "interval": [low, high],
            "reached": all(case["ratio"] >= GOAL for case in cases.values()),
            "cases": cases,
        },
    )
    return 0


SIDES = {"ours": "a", "baseline": "b"}

if __name__ == "__main__":
    sys.exit(main())
