"""The main text of web pages: how right and how fast, beside trafilatura and resiliparse.

Pages, truth and measure are those of scrapinghub/article-extraction-benchmark (181 news and blog pages,
MIT): per page, runs of four words in common with the true article body; precision and recall are means over
pages, F1 is theirs. The rules of `fast` were written while looking at the pages with even numbers in the
order of their names (`seen`); those with odd numbers (`unseen`) were scored only. All sides get the same
decoded text and one core.

The pages are no part of the project. Get them and run:
    python -m bench.extract FOLDER              # with html/*.html.gz and ground-truth.json; keeps the result
    python -m bench.extract FOLDER 20           # so many pages, keeps nothing
"""

from __future__ import annotations

import gzip
import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trafilatura

from bench.measure import _version, alternate, machine, save
from shunter.data import article, extraction, guarded

GOAL = 1.5  # times trafilatura's pages a second, at no lower F1 than its best setting
_WORD = re.compile(r"\w+")
Extractor = Callable[[str], str]
# trafilatura's settings; the first is what its authors give to the benchmark.
PEERS: Mapping[str, Mapping[str, Any]] = {
    "trafilatura": {},
    "trafilatura, precision": {"favor_precision": True},
    "trafilatura, recall": {"favor_recall": True},
    "trafilatura, no tables": {"include_tables": False},
    "trafilatura, fast": {"fast": True},
}


def sides() -> dict[str, Extractor]:
    """Every extractor by name."""

    def peer(options: Mapping[str, Any]) -> Extractor:
        return lambda html: trafilatura.extract(html, include_comments=False, **options) or ""

    return {
        "fast": lambda html: extraction.extract(html, "fast").text,
        "fast, alone": lambda html: article.main_text(html).text,
        "resiliparse": lambda html: extraction.extract(html, "resiliparse").text,
        **{name: peer(options) for name, options in PEERS.items()},
    }


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """Runs of four words, or the whole of a shorter text (`_all_shingles` of the benchmark)."""
    words = _WORD.findall(text)
    return Counter(tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3)) if words)


def compared(true: str, found: str) -> tuple[float, float, float]:
    """Shares of true positives, false positives and false negatives."""
    a, b = shingles(true), shingles(found)
    parts = [sum((a & b).values()), sum((b - a).values()), sum((a - b).values())]
    whole = sum(parts)
    return tuple(part / whole if whole else 0.0 for part in parts)  # type: ignore[return-value]


def scored(pages: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """F1, precision and recall of some pages, as the benchmark's `metrics_from_tp_fp_fns`."""

    def part(right: float, wrong: float, other: float) -> float:
        if wrong == other == 0:
            return 1.0
        return right / (right + wrong) if right else 0.0

    precision = statistics.mean(part(tp, fp, fn) for tp, fp, fn in pages if tp + fp > 0)
    recall = statistics.mean(part(tp, fn, fp) for tp, fp, fn in pages if tp + fn > 0)
    return {"f1": 2 * precision * recall / (precision + recall), "precision": precision, "recall": recall}


def measure(folder: Path, count: int | None) -> dict[str, Any]:
    """All figures. count: of pages, None for all."""
    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    names = sorted(truth)[:count]
    html = [gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes()).decode() for name in names]
    bodies = [truth[name].get("articleBody", "") for name in names]
    quality: dict[str, Any] = {}
    for name, extract in sides().items():
        pages = [compared(true, extract(page)) for true, page in zip(bodies, html, strict=True)]
        quality[name] = {
            "all": scored(pages),
            "seen": scored(pages[0::2]),
            "unseen": scored(pages[1::2]) if len(pages) > 1 else None,
        }
        print(f"{name:<24} F1 " + "  ".join(f"{k} {v['f1']:.4f}" for k, v in quality[name].items() if v))
    best = max(PEERS, key=lambda name: quality[name]["all"]["f1"])
    asked = sum(extraction.extract(page, "fast").by != "fast" for page in html)
    result: dict[str, Any] = {
        "pages": len(html),
        "megabytes": sum(len(page.encode()) for page in html) / 1e6,
        "quality": quality,
        "best_peer": best,
        "pages_that_fell_back": asked,
        "goal": GOAL,
        "speed": {},
    }
    ours = sides()["fast"]
    for name in dict.fromkeys([best, "trafilatura, fast", "resiliparse"]):
        other = sides()[name]
        timed = alternate(
            lambda: [ours(page) for page in html],
            lambda other=other: [other(page) for page in html],  # type: ignore[misc]
            rounds=6 if count is None else 2,
            warmup=1,
        )
        rate = len(html) / statistics.median(timed["a"])
        result["speed"][name] = {
            "pages_per_second": rate,
            "peer_pages_per_second": len(html) / statistics.median(timed["b"]),
            **{
                key: timed[key]
                for key in ("ratio_median", "ratio_low", "ratio_high", "cpu_ratio_median", "others")
            },
        }
        times, cpu = timed["ratio_median"], timed["cpu_ratio_median"]
        print(f"fast {rate:.0f} pages/s, {times:.2f} times {name} (CPU {cpu:.2f})")
    timed = alternate(
        lambda: [guarded.extract(page, "fast").text for page in html],
        lambda: [ours(page) for page in html],
        rounds=6 if count is None else 2,
        warmup=1,
    )
    rate = len(html) / statistics.median(timed["a"])
    result["in_a_process_beside"] = {"pages_per_second": rate, "ratio_median": timed["ratio_median"]}
    print(f"in a process beside, as in a job: {rate:.0f} pages/s, {timed['ratio_median']:.2f} times as fast")
    result["reached"] = (
        quality["fast"]["all"]["f1"] >= quality[best]["all"]["f1"]
        and result["speed"][best]["ratio_low"] >= GOAL
    )
    return result


def main() -> int:
    """Print all; keep it when all pages were used."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    count = int(sys.argv[2]) if len(sys.argv) > 2 else None
    result = measure(Path(sys.argv[1]), count)
    told = machine()
    told["versions"] |= {name: _version(name) for name in ("trafilatura", "resiliparse", "lxml")}
    print(f"goal reached: {result['reached']}")
    if count is None:
        print(save("extract", {**result, "machine": told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
