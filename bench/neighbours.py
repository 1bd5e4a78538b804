"""Near-duplicates end to end, from documents in memory to those that stay, against datatrove's four stages.

One core each, in alternating rounds, 14 buckets of 8 hashes, runs of 5 words. The corpus has copies of its
documents with words changed at several rates; recall and precision of pairs are against exact Jaccard
similarity of at least 0.8 within families of copies. The baseline runs with its default splitter (spaCy's),
and with white space as the splitter, the fastest that it can have. Two sizes: about that of the English that
it is made of, and 20 MB. `--draws` times nothing: it tells recall and precision over draws of the hash
functions, as of one draw a few pairs near the threshold decide.

Run it where datatrove is: the head of bench/curate.py says how.
    PYTHONPATH=. peers/bin/python -m bench.neighbours --text tinyshakespeare.txt   # both, keeps the result
    PYTHONPATH=. peers/bin/python -m bench.neighbours --text tinyshakespeare.txt --draws 20   # likewise
    PYTHONPATH=. peers/bin/python -m bench.neighbours 0.3                          # MB; keeps nothing
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.curate import clean
from bench.measure import alternate, machine, save
from shunter.data.curation.chain import Documents
from shunter.data.curation.minhash import NearDuplicates
from shunter.data.curation.pages import Pages
from shunter.data.curation.runner import Runner

GOAL, SIMILAR = 40.0, 0.8
SIZES = (3.9, 20.0)  # MB
CHUNK = 4_000_000
RATES = (0.002, 0.01, 0.03, 0.08)  # of words changed in a copy


def families(megabytes: float, seed: int, files: Sequence[Path] = ()) -> tuple[list[str], np.ndarray]:
    """Documents and the number of the original of each, in no order."""
    draw = np.random.default_rng(seed)
    paragraphs = [part for text in clean(files) for part in text.split("\n\n") if len(part) > 200]
    words = sorted({word for part in paragraphs[:400] for word in part.split()})
    texts: list[str] = []
    origin: list[int] = []
    size, family = 0, 0
    while size < megabytes * 1e6:
        first = "\n\n".join(
            paragraphs[i] for i in draw.integers(0, len(paragraphs), int(draw.integers(2, 7)))
        )
        found = [first]
        if draw.random() < 0.3:
            for rate in RATES[: int(draw.integers(1, len(RATES) + 1))]:
                parts = first.split(" ")
                for place in np.flatnonzero(draw.random(len(parts)) < rate).tolist():
                    parts[place] = words[int(draw.integers(0, len(words)))]
                found.append(" ".join(parts))
        texts += found
        origin += [family] * len(found)
        size += sum(map(len, found))
        family += 1
    order = draw.permutation(len(texts))
    return [texts[i] for i in order.tolist()], np.array(origin)[order]


def ours(texts: list[str], folder: Path, seed: int = 1) -> Callable[[], list[int]]:
    """The job's way, one worker."""

    def work() -> list[int]:
        shutil.rmtree(folder, ignore_errors=True)
        chunks, begin, size = [], 0, 0
        for at, text in enumerate(texts, 1):
            size += len(text)
            if size > CHUNK or at == len(texts):
                chunks.append(Documents(np.arange(begin, at), texts[begin:at]))
                begin, size = at, 0
        runner = Runner(folder, [NearDuplicates(seed=seed)], 1, lambda stage, done: None)
        runner.run(chunks)
        return [int(number) for left in runner.left() for number in left.number]

    return work


def theirs(
    texts: list[str],
    folder: Path,
    words: str,
    seed: int = 1,
    known: dict[str, np.ndarray] | None = None,
) -> Callable[[], list[int]]:
    """datatrove's four stages, one task. known: hashes of each text's runs, kept for other seeds."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.hashing import HashConfig

    config = minhash.MinhashConfig(hash_config=HashConfig(precision=64), seed=seed)

    def work() -> list[int]:
        shutil.rmtree(folder, ignore_errors=True)
        documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
        places = [str(folder / name) for name in ("signatures", "buckets", "clusters")]
        signature = minhash.MinhashDedupSignature(places[0], config=config)
        if words == "spaces":
            signature.word_tokenizer = _Spaces()
        if known is not None:
            signature.get_shingles = _Remembered(signature.get_shingles, known)
        signature.run(documents, 0, 1)
        for bucket in range(config.num_buckets):
            minhash.MinhashDedupBuckets(places[0], places[1], config=config).run(
                None, bucket, config.num_buckets
            )
        minhash.MinhashDedupCluster(places[1], places[2], config=config).run(None, 0, 1)
        left = minhash.MinhashDedupFilter(places[2]).run(iter(documents), 0, 1)
        return [int(document.id) for document in left]

    return work


class _Spaces:
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


class _Remembered:
    def __init__(self, find: Callable[[str], np.ndarray], known: dict[str, np.ndarray]) -> None:
        self.find, self.known = find, known

    def __call__(self, text: str) -> np.ndarray:
        if text not in self.known:
            self.known[text] = self.find(text)
        return self.known[text]


Pairs = set[tuple[int, int]]


def similar(texts: list[str], origin: np.ndarray) -> Pairs:
    """Documents of a family whose runs of five folded words have a Jaccard similarity of at least SIMILAR."""
    pages = Pages(texts).folded().words
    grams = pages.sequence.grams(5)
    sets = [
        set(grams[low : max(low, high - 4)].tolist())
        for low, high in itertools.pairwise(pages.first.tolist())
    ]
    near: Pairs = set()
    for family in np.unique(origin).tolist():
        for a, b in itertools.combinations(np.flatnonzero(origin == family).tolist(), 2):
            if len(sets[a] & sets[b]) / max(len(sets[a] | sets[b]), 1) >= SIMILAR:
                near.add((a, b))
    return near


def scored(near: Pairs, count: int, kept: list[int]) -> dict[str, float]:
    """Of similar pairs: of how many one left; of those that left: how many have a similar one."""
    gone = set(range(count)) - set(kept)
    touched = {number for pair in near for number in pair}
    found = sum(a in gone or b in gone for a, b in near)
    return {
        "pairs": len(near),
        "recall": found / max(len(near), 1),
        "precision": len(gone & touched) / max(len(gone), 1),
        "removed": len(gone),
    }


def drawn(megabytes: float, files: Sequence[Path], draws: int) -> dict[str, Any]:
    """Recall and precision over draws of the hash functions: means with 95 % intervals, and of the
    difference, draw by draw."""
    texts, origin = families(megabytes, 0, files)
    near = similar(texts, origin)
    found: dict[str, list[dict[str, float]]] = {"ours": [], "datatrove, spaCy": []}
    known: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(1, draws + 1):
            mine = ours(texts, Path(place) / "ours", seed)
            other = theirs(texts, Path(place) / "theirs", "spaCy", seed, known)
            for side, work in zip(found, (mine, other), strict=True):
                found[side].append(scored(near, len(texts), work()))
    told: dict[str, Any] = {"documents": len(texts), "pairs": len(near), "draws": draws}
    for name in ("recall", "precision"):
        values = [np.array([each[name] for each in side]) for side in found.values()]
        told[name] = {side: mean(each) for side, each in zip(found, values, strict=True)}
        told[name]["difference"] = mean(values[0] - values[1])
        print(f"{megabytes:g} MB, {draws} draws, {name:<10}{told[name]}", flush=True)
    return told


def mean(values: np.ndarray) -> list[float]:
    """Mean, and the ends of its 95 % interval."""
    spread = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    middle = float(values.mean())
    return [middle, middle - spread, middle + spread]


def measured(megabytes: float, files: Sequence[Path]) -> dict[str, Any]:
    """One size."""
    texts, origin = families(megabytes, 0, files)
    near = similar(texts, origin)
    size = sum(len(text.encode()) for text in texts) / 1e6
    cases: dict[str, Any] = {"documents": len(texts), "megabytes": size}
    print(f"{len(texts)} documents, {size:.2f} MB; similar: Jaccard {SIMILAR}")
    with tempfile.TemporaryDirectory() as place:
        mine = ours(texts, Path(place) / "ours")
        for words in ("spaCy", "spaces"):
            peer = theirs(texts, Path(place) / "theirs", words)
            last: dict[str, list[int]] = {}

            def a(last: Any = last) -> None:
                last["ours"] = mine()

            def b(last: Any = last, peer: Any = peer) -> None:
                last["theirs"] = peer()

            timed = alternate(a, b, 3, 1, limit=600)  # the first time compiles, or loads a splitter
            if "ours" not in cases:
                cases["ours"] = scored(near, len(texts), last["ours"])
                print(f"ours             {cases['ours']}")
            cases[f"datatrove, {words}"] = {
                **scored(near, len(texts), last["theirs"]),
                "mb_per_second": {
                    "ours": size / float(np.median(timed["a"])),
                    "datatrove": size / float(np.median(timed["b"])),
                },
                "ratio": timed["ratio_median"],
                "ratio_interval": [timed["ratio_low"], timed["ratio_high"]],
                "cpu_ratio": timed["cpu_ratio_median"],
                "others": timed["others"],
            }
            print(f"datatrove, {words:<6}{cases[f'datatrove, {words}']}", flush=True)
    return cases


def main() -> int:
    """Measure, print, keep. Returns 0; what is not reached stands in the table."""
    parser = argparse.ArgumentParser(description="Near-duplicates beside datatrove's four stages.")
    parser.add_argument("megabytes", nargs="*", type=float, help="sizes, to try it; default: 3.9 20")
    parser.add_argument("--draws", type=int, default=0, help="of the hash functions; nothing is timed")
    parser.add_argument("--text", nargs="*", type=Path, default=[], help="more English, as text files")
    chosen = parser.parse_args()
    try:
        import datatrove  # noqa: F401
    except ImportError:
        print("datatrove is not here: the head of bench/curate.py says how to run this. Skipped.")
        return 0
    sizes = chosen.megabytes or SIZES
    if chosen.draws:
        by_size = {f"{size:g} MB": drawn(size, chosen.text, chosen.draws) for size in sizes}
        if not chosen.megabytes:
            what = "recall and precision of near-duplicates, over draws of the hash functions"
            save("neighbours_draws", {"what": what, "similar": SIMILAR, "sizes": by_size})
        return 0
    found = {f"{size:g} MB": measured(size, chosen.text) for size in sizes}
    if chosen.megabytes:
        return 0
    result = {"what": "near-duplicates end to end, one core", "goal": GOAL, "sizes": found}
    save("neighbours", {**result, "machine": machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
