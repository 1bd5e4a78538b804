"""One pipeline for every language (arXiv 2506.20920): step by step on a made-up web of four languages.

Everything is known of that web: which texts are clean, which are noise that filters can see, which are words
in no order that they cannot see, and that what is copied often is oftener good, as the paper found. A small
model reads the corpus of each step for as many tokens; bits per byte are of clean texts. Beside it: how many
clean texts English limits and fitted ones keep in languages unlike English, and what the precision filter
does for a language among whose texts are many of a close relative.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from shunter.papers.experiment import Arm, Experiment, Samples

RECIPES = Path(__file__).parents[2] / "recipes" / "papers"
LABELLED = "{kind: language}, {kind: confidence-cut}"
ENGLISH = "English limits"
FOREIGN = ("bb", "cc", "dd")  # languages other than the one that English limits were made for
AFFINITIES = (0.85, 0.95)  # the paper's, and the stricter one that it also releases
CLOSE, RELATIVE, SHARE = "cc", "aa", 0.4  # a contaminated language, its relative, and its own share


def _arms(seed: int, short: bool) -> Mapping[str, Sequence[str]]:
    quick = ["jobs.web.texts=120"]
    steps = ["jobs.base.train.steps=12", "jobs.base.train.warmup=2", *quick] if short else []
    whole = ["jobs.corpus.preset=fineweb2", "jobs.corpus.operators=[]"]
    return {
        "labelled": [*steps, f"jobs.corpus.operators=[{LABELLED}]"],
        "deduplicated": [*steps, f"jobs.corpus.operators=[{LABELLED}, {{kind: near-duplicates}}]"],
        "filtered": [*steps, *whole],
        "rehydrated": [*steps, *whole, "jobs.corpus.rehydrate=10"],
        ENGLISH: quick if short else [],
    }


def _measure(arms: Mapping[str, Arm]) -> Mapping[str, Samples]:
    found: dict[str, Samples] = {}
    for name, arm in arms.items():
        found[name] = dict(_qualities(arm))
        if "scores" in arm:
            found[name] = {"bits": _bits(arm), **found[name]}
    return {**found, **_precision(arms["filtered"])}


def _bits(arm: Arm) -> float:
    scores = json.loads((arm["scores"].path / "scores.json").read_text(encoding="utf-8"))
    return float(scores["models"]["base"]["tasks"]["heldout"]["value"])


def _qualities(arm: Arm) -> Samples:
    """Shares of what the model is shown, and of the clean groups of copies that are kept."""
    truth = {name: (language, quality) for name, language, quality, _ in _web(arm)}
    table = pq.read_table(arm["corpus"].path / "train")
    names = table.column("id").to_pylist()
    copies = table.column("copies").to_pylist() if "copies" in table.column_names else [1] * len(names)
    shown: Counter[str] = Counter()
    for name, count in zip(names, copies, strict=True):
        shown[truth[name][1]] += count
    dropped = (arm["corpus"].path / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in dropped]
    lost = Counter(
        truth[r["id"]]
        for r in records
        if r["operator"] not in ("near-duplicates", "confidence-cut", "language")
    )
    kept = Counter(truth[name] for name in names)
    clean_kept = sum(kept[language, "clean"] for language in FOREIGN)
    clean_lost = sum(lost[language, "clean"] for language in FOREIGN)
    total = sum(shown.values())
    return {
        "clean": shown["clean"] / total,
        "unordered": shown["scrambled"] / total,
        "noise": shown["noise"] / total + shown["banner"] / total,
        "recall": clean_kept / max(clean_kept + clean_lost, 1),
        "documents": float(len(names)),
    }


def _precision(arm: Arm) -> Mapping[str, Samples]:
    """A language of which three texts in five are a relative's, before and after the precision filter."""
    from shunter.data import corpus
    from shunter.data.curation.pages import Pages
    from shunter.data.curation.precision import PrecisionFilter, contamination, own_words
    from shunter.data.curation.stopwords import counted

    references: dict[str, list[str]] = {}
    for each in corpus.texts(arm["reference"].path / "train"):
        references.setdefault(each.source, []).append(each.text)
    counts = {language: counted(texts) for language, texts in references.items()}
    by_language: dict[str, list[str]] = {CLOSE: [], RELATIVE: []}
    for _, language, quality, text in _web(arm):
        if language in by_language and quality in ("clean", "scrambled"):
            by_language[language].append(text)
    own = by_language[CLOSE]
    others = by_language[RELATIVE][: round(len(own) * (1 - SHARE) / SHARE)]
    own = own[: round(len(others) * SHARE / (1 - SHARE))]
    pages = Pages([*own, *others])
    facts = {"language": np.array([CLOSE] * len(pages))}
    found: dict[str, Samples] = {"contaminated": {"precision": len(own) / len(pages), "recall": 1.0}}
    for affinity in AFFINITIES:
        words = own_words(counts, affinity)[CLOSE]
        kept = PrecisionFilter(language=CLOSE, words=words).judge_with(pages, facts).kept
        right = int(kept[: len(own)].sum())
        found[f"affinity {affinity}"] = {
            "precision": right / max(int(kept.sum()), 1),
            "recall": right / len(own),
            "contamination": contamination(pages, words),
        }
    return found


def _web(arm: Arm) -> list[tuple[str, str, str, str]]:
    table = pq.read_table(arm["web"].path / "train")
    columns = [table.column(name).to_pylist() for name in ("id", "source", "quality", "text")]
    return list(zip(*columns, strict=True))


def _notes(verdicts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    notes = [
        "clean, unordered, noise: shares of the documents that the model is shown; copies count.",
        "recall: clean documents of bb, cc and dd that the filters keep, of those that reach them.",
        "The web is made so that often copied texts are oftener good; that is the paper's finding, not ours.",
    ]
    outside = [name for name, verdict in verdicts.items() if not verdict["holds"]]
    return [*notes, f"Not shown here: {', '.join(outside)}."] if outside else notes


EXPERIMENT = Experiment(
    slug="fineweb2",
    recipe=RECIPES / "fineweb2.yaml",
    recipes={ENGLISH: RECIPES / "fineweb2-corpus.yaml"},
    arms=_arms,
    seeds=(0, 1, 2, 3, 4),
    measure=_measure,
    table={
        "bits": "bits/byte of clean held-out text",
        "clean": "share shown",
        "unordered": "share shown",
        "noise": "share shown",
        "recall": "of clean documents",
        "precision": "share of its own language",
        "documents": "kept",
        "contamination": "share without an own word",
    },
    notes=_notes,
)
