"""How much more memory a larger corpus takes: chains that find duplicates, on two made-up corpora.

Texts are drawn from made-up sentences: a tenth are copies, a tenth near-copies, and a tenth have a paragraph
of another. The job runs in a process of its own with its workers. Every fifth of a second the memory of all
of them is read from /proc: `held` is what is theirs alone and what they share, parted among them (Pss);
`anonymous` is that without pages of files, which the system takes back when it needs them. The figure is the
growth of the peak by the growth of the text.

    python -m bench.curate_memory            # 1 and 4 GB, keeps the result
    python -m bench.curate_memory 0.02 0.08  # for trying; keeps nothing
    python -m bench.curate_memory --chain others   # what the first chain has not: stretches, sentences, ...
    python -m bench.curate_memory --shared 0.9     # so many documents have one paragraph in common
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import ROOT, machine, save

GOAL = 0.1  # MB a MB
SENTENCES, PARAGRAPHS, EACH = 50_000, 6, 8  # of the vocabulary; of a document, of a paragraph
SHARED = "This site keeps small files on your machine to know that it is you. Read more, or go on."
RECIPE = """
version: 1
name: memory
seed: 0
jobs:
  corpus:
    kind: curate
    preset: fineweb2
    operators: [{kind: repeated-paragraphs, unit: UNIT}]
    sources: [{name: web, path: "web/*.jsonl", licence: made up}]
    how: {workers: WORKERS}
"""

CHAIN = """    preset: fineweb2
    operators: [{kind: repeated-paragraphs, unit: UNIT}]
"""
# Last what leaves little: the sentences are soon all said.
OTHERS = """    deduplicate: false
    operators:
      - {kind: exact-duplicates}
      - {kind: repeated-beginnings}
      - {kind: repeated-edges}
      - {kind: repeated-stretches}
      - {kind: repeated-sentences}
"""


def write(folder: Path, size: float, seed: int, shared: float = 0.0) -> tuple[int, int]:
    """Files of JSON lines of together `size` bytes of text. Returns documents and characters.

    shared: share of the documents that begin with one and the same paragraph.
    """
    draw = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["the", "of", "and", "to", "that", "with"]
    words += ["".join(draw.choice(syllables, int(n))) for n in draw.integers(1, 5, 4000)]
    lengths = draw.integers(6, 14, SENTENCES)
    weights = 1 / np.arange(1, len(words) + 1) ** 0.7
    picks = draw.choice(len(words), (SENTENCES, 14), p=weights / weights.sum())
    sentences = [
        " ".join(words[w] for w in row[:n].tolist()).capitalize() + "."
        for row, n in zip(picks, lengths.tolist(), strict=True)
    ]
    folder.mkdir(parents=True)
    recent: list[list[str]] = []  # documents as paragraphs
    documents = characters = 0
    file = None
    while characters < size:
        if documents % 50_000 == 0:
            if file is not None:
                file.close()
            file = (folder / f"{documents // 50_000:04}.jsonl").open("w", encoding="utf-8")
        kind = int(draw.integers(0, 10)) if len(recent) == 500 else 9
        fresh = draw.integers(0, SENTENCES, (PARAGRAPHS, EACH))
        parts = [" ".join([sentences[n] for n in row]) for row in fresh.tolist()]
        if kind < 3:
            old = recent[int(draw.integers(0, 500))]
            parts = [[*old], [*old, sentences[int(fresh[0, 0])]], [old[0], *parts]][kind]
        elif len(recent) < 500:
            recent.append(parts)
        else:
            recent[documents % 500] = parts
        if shared and draw.random() < shared:
            parts = [SHARED, *parts]
        text = "\n\n".join(parts)
        assert file is not None
        file.write(json.dumps({"text": text}) + "\n")
        documents += 1
        characters += len(text)
    assert file is not None
    file.close()
    return documents, characters


def held(root: int) -> tuple[int, int]:
    """Bytes of a process and all below it: proportional, and those of them that are of no file."""
    whole = anonymous = 0
    todo = [root]
    while todo:
        number = todo.pop()
        try:
            told = Path(f"/proc/{number}/smaps_rollup").read_text(encoding="ascii")
            for task in Path(f"/proc/{number}/task").iterdir():
                todo += map(int, (task / "children").read_text(encoding="ascii").split())
        except (OSError, ValueError):
            continue
        for line in told.splitlines():
            name, _, rest = line.partition(":")
            if name == "Pss":
                whole += int(rest.split()[0]) * 1024
            elif name == "Pss_Anon":
                anonymous += int(rest.split()[0]) * 1024
    return whole, anonymous


def stored(folder: Path) -> int:
    """Bytes of the files below a folder, from which others come and go."""
    sizes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            sizes += path.lstat().st_size
    return sizes


def measured(folder: Path, size: float, workers: int, unit: str, chain: str, shared: float) -> dict[str, Any]:
    """One corpus curated."""
    documents, characters = write(folder / "web", size, 0, shared)
    (folder / "recipe.yaml").write_text(
        RECIPE.replace(CHAIN, CHAIN if chain == "first" else OTHERS)
        .replace("WORKERS", str(workers))
        .replace("UNIT", unit),
        encoding="utf-8",
    )
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "shunter.cli.main", "run", "recipe.yaml", "--store", "store"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    peaks, disk, looks = [0, 0], 0, 0
    while process.poll() is None:
        peaks = [max(pair) for pair in zip(peaks, held(process.pid), strict=True)]
        if looks % 20 == 0:  # it looks at thousands of files
            disk = max(disk, stored(folder / "store"))
        looks += 1
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.perf_counter() - begin
    found = {
        "documents": documents,
        "text_mb": characters / 1e6,
        "held_mb": peaks[0] / 1e6,
        "anonymous_mb": peaks[1] / 1e6,
        "disk_mb": disk / 1e6,
        "seconds": round(seconds, 1),
    }
    print(
        f"{characters / 1e6:>10.0f} MB{documents:>11,} documents{peaks[0] / 1e6:>9.0f} MB held"
        f"{peaks[1] / 1e6:>9.0f} MB anonymous{disk / 1e6:>9.0f} MB on disk{seconds:>8.0f} s",
        flush=True,
    )
    return found


def main() -> int:
    """Measure, print, keep. Returns 0; what is not reached stands in the table."""
    parser = argparse.ArgumentParser(description="Memory of curation by size of corpus.")
    parser.add_argument("gigabytes", nargs="*", type=float, help="sizes of the corpora; default: 1 4")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unit", choices=["paragraph", "line"], default="paragraph")
    parser.add_argument("--chain", choices=["first", "others"], default="first")
    parser.add_argument("--shared", type=float, default=0.0, help="share of documents with one paragraph")
    parser.add_argument(
        "--folder", help="where there is room for six times the text; default: a temporary one"
    )
    chosen = parser.parse_args()
    cases = []
    for size in chosen.gigabytes or [1.0, 4.0]:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            how = (chosen.workers, chosen.unit, chosen.chain, chosen.shared)
            cases.append(measured(Path(folder), size * 1e9, *how))
    first, last = cases[0], cases[-1]
    grown = {
        name: (last[name] - first[name]) / max(last["text_mb"] - first["text_mb"], 1e-9)
        for name in ("held_mb", "anonymous_mb")
    }
    print(
        f"growth: {grown['held_mb']:.3f} MB held a MB of text, {grown['anonymous_mb']:.3f} anonymous "
        f"(wanted: {GOAL} at most)"
    )
    if not chosen.gigabytes:
        save(
            "curate_memory" + "_others" * (chosen.chain != "first") + "_shared" * bool(chosen.shared),
            {
                "what": "peak memory of a curate job that finds "
                + (
                    "near-duplicates, repeated paragraphs, copies"
                    if chosen.chain == "first"
                    else "copies, beginnings, edges, stretches and sentences that are repeated"
                ),
                "how": "Pss of all its processes, read five times a second; growth from first to last",
                "goal": {"MB a MB": GOAL},
                "workers": chosen.workers,
                "unit": chosen.unit,
                "documents with one paragraph in common": chosen.shared,
                "cases": cases,
                "growth": grown,
                "machine": machine(),
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
