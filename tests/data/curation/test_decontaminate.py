"""What evaluation sets hold is found again, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.cli.corpus import sentence
from shunter.config.errors import ShunterError
from shunter.data.curation.decontaminate import Decontaminate
from shunter.data.curation.pages import Pages
from shunter.data.curation.why import why
from shunter.data.sources import SourceConfig
from shunter.jobs import curate
from shunter.jobs.curate_leaks import Leaks
from tests.jobs.conftest import Work, work  # noqa: F401

AGAINST = [SourceConfig(path="eval.jsonl")]


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), max_size=9),
)
@settings(max_examples=60, deadline=None)
def test_runs_in_common(documents: list[list[int]], item: list[int]) -> None:
    """Against sets of tuples, with runs of three words."""
    operator = Decontaminate(against=AGAINST, words=3, hits=2, least=2)

    def text(numbers: list[int]) -> str:
        return " ".join("abcd"[number] * 3 for number in numbers)

    def runs(numbers: list[int], size: int) -> set[tuple[int, ...]]:
        return {tuple(numbers[i : i + size]) for i in range(len(numbers) - size + 1)}

    table = operator.runs([("e:0", text(item))])
    whole = len(runs(item, 3)) < 2  # it could never have two runs in common
    size = len(item) if whole else 3
    found = operator.common(Pages([text(d).title() + "!" for d in documents]), table)
    for number, document in enumerate(documents):
        common = len(runs(document, size) & runs(item, size)) if size >= 2 else 0
        assert found[number] == common * (2 if whole else 1)


@pytest.mark.parametrize("size", range(5, 18))
def test_a_text_of_any_length_is_found_whole(size: int) -> None:
    operator = Decontaminate(against=AGAINST)
    draw = np.random.default_rng(size)
    item = " ".join("".join(draw.choice(list("abcdefghij"), 6)) for _ in range(size))
    table = operator.runs([("e:0", item)])
    found = operator.common(Pages([f"Words before. {item} And after.", "Words before. And after."]), table)
    assert found[0] >= operator.hits
    assert found[1] == 0


def test_planted_items_leave_and_others_stay(tmp_path: Path, work: Work) -> None:  # noqa: F811
    draw = np.random.default_rng(0)
    vocabulary = ["".join(draw.choice(list("abcdefghij"), 5)) for _ in range(400)]
    items = [" ".join(draw.choice(vocabulary, n)) for n in (40, 25, 8)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps({"text": item}) + "\n" for item in items))
    plain = [" ".join(draw.choice(vocabulary, 80)) for _ in range(30)]
    planted = [f"{text[:100]} {items[n % 3].upper()}. {text[100:]}" for n, text in enumerate(plain[:9])]
    partly = f"{plain[0][:50]} " + " ".join(items[0].split()[:14])  # two runs of 13: one too few
    rows = [*plain, *planted, partly]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    config: dict[str, Any] = {"sources": [{"path": "web.jsonl"}], "heldout": 0.0, "how": {"workers": 1}}
    config["operators"] = [{"kind": "decontaminate", "against": [{"path": "eval.jsonl"}]}]
    out, metrics = work(curate.JOB, config)
    assert curate.JOB.reads(curate.CurateConfig(kind="curate", **config), tmp_path) == [
        tmp_path / "web.jsonl",
        tmp_path / "eval.jsonl",
    ]
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [record["id"] for record in dropped] == [f"web:{30 + n}" for n in range(9)]
    assert {record["reason"] for record in dropped} == {"in an evaluation set"}
    assert metrics["documents"] == 31
    for number, record in enumerate(dropped):
        assert (record["item"], record["covered"]) == (f"eval:{number % 3}", 1.0)
        low, high = record["matches"][0]["chars"]
        assert rows[30 + number][low:high] == items[number % 3].upper()
        assert f"100% of eval:{number % 3}; characters {low} to {high}" in sentence(why(out, record["id"]))
    told = json.loads((out / "summary.json").read_text())["decontamination"]
    assert told["sets"] == {"eval": {"documents": 9, "holding": 9, "items": 3}}
    assert told["precision"] == 1


def test_what_only_quotes_counts_against_precision() -> None:
    leaks = Leaks()
    for covered in (1.0, 0.5, 0.2, 0.1):
        leaks.add({"operator": "decontaminate", "item": f"a:{covered > 0.3:d}", "covered": covered})
    leaks.add({"operator": "gopher-quality"})
    told = leaks.data()
    assert (told["documents"], told["holding"], told["precision"]) == (4, 2, 0.5)
    assert told["sets"] == {"a": {"documents": 4, "holding": 2, "items": 2}}


def test_evaluation_sets_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match="no text that is long enough"):
        Decontaminate(against=AGAINST).keep([("e:0", "too short")], tmp_path)


def test_the_record_has_the_runs_their_places_and_the_item(tmp_path: Path) -> None:
    """Folding (case, accents, points, digits) moves places; they are told as they stand in the document."""
    draw = np.random.default_rng(1)

    def words(count: int) -> list[str]:
        return ["".join(draw.choice(list("abcdefghij"), 6)) for _ in range(count)]

    first, second = words(40), words(30)
    first[19], first[5] = "2024", "cafe\u0301"
    items = [("e:3", " ".join(first)), ("e:7", " ".join([*second, *first[:20]])), ("f:0", "x y z q")]
    operator = Decontaminate(against=AGAINST).keep(items, tmp_path)
    shown = ", ".join(word.upper() for word in first[5:25])
    text = f"Été… 12,345 — a begin. ({shown}! Then {' '.join(second[:14])} and more."
    plain = " ".join(words(60))
    verdicts = operator.judge_with(Pages([plain, text, plain]), {})
    assert verdicts.reason.tolist() == [-1, 0, -1]
    assert verdicts.value[1] == 8 + 2
    assert verdicts.told is not None
    told = verdicts.told[1]
    assert (told["item"], told["covered"], told["other_items"]) == ("e:7", 0.58, 1)
    longest, other = told["matches"]
    assert longest == {"text": ", ".join(w.upper() for w in first[5:20]), "word": 35, "runs": 3} | {
        "chars": [text.index(shown), text.index(shown) + len(", ".join(first[5:20]))]
    }
    low, high = other["chars"]
    assert text[low:high] == other["text"] == " ".join(second[:14])
    assert (other["word"], other["runs"]) == (0, 2)
