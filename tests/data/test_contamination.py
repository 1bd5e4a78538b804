"""Planted overlaps are found and nothing else; of what is asked, not of what is answered."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data.contamination import Contamination, words
from shunter.jobs import conversations, evaluate
from shunter.jobs.practice import PHRASES
from tests.jobs.conftest import Work, work
from tests.jobs.test_post_jobs import model, talks

__all__ = ["model", "talks", "work"]  # fixtures

letters = st.sampled_from([f"w{i}" for i in range(6)])


def share(asked: list[str], said: list[str], size: int) -> float:
    """By its definition: each word of the question, and whether some run that holds it stands in the text."""
    length = min(size, len(asked))
    runs = {tuple(said[i : i + length]) for i in range(len(said) - length + 1)}
    held = [
        any(
            tuple(asked[begin : begin + length]) in runs
            for begin in range(max(0, i - length + 1), min(i, len(asked) - length) + 1)
        )
        for i in range(len(asked))
    ]
    return sum(held) / len(asked)


@settings(max_examples=40)
@given(
    st.lists(st.lists(letters, min_size=1, max_size=7), min_size=1, max_size=3),
    st.lists(letters, max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)
def test_the_share_is_what_it_is_defined_to_be(
    asked: list[list[str]], said: list[str], size: int, most: float
) -> None:
    index = Contamination({"test": [" ".join(one) for one in asked]}, size, most)
    found = index.worst(" ".join(said))
    best = max(share(one, said, size) for one in asked)
    assert (found.share if found else 0.0) == (best if best > most else 0.0)


def test_words_are_compared_without_case_and_signs_stand_alone() -> None:
    assert words("What's 3+4?") == words("what ' s 3 + 4 ?")
    index = Contamination({"a": ["What is 12 + 7?"], "b": ["Name a river."]}, 3)
    found = index.worst("Tell me, WHAT IS 12+7?")
    assert found is not None
    assert (found.evaluation, found.share) == ("a", 1.0)
    assert index.worst("What is 12 minus 7?") is None, "a run of three, of seven words"


def test_planted_questions_leave_and_nothing_else(work: Work, talks: Path, tmp_path: Path) -> None:
    asked = [json.loads(line) for line in (talks / "heldout.jsonl").read_text().splitlines()]
    own = [{"prompt": f"Is {n} a large number, do you think?", "response": "no"} for n in range(20)]
    own += [{"prompt": talk["messages"][0]["content"], "response": "planted"} for talk in asked[:3]]
    own += [{"prompt": "Repeat.", "response": asked[3]["messages"][0]["content"]}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    left = {"against": ["sums"], "words": 4}
    config = {"sources": [{"path": "own.jsonl"}], "heldout": 0.0, "decontaminate": left}
    out, metrics = work(conversations.JOB, config, inputs={"decontaminate.against": [talks]}, base=tmp_path)
    assert (metrics["train"], metrics["contaminated"]) == (21, 3)
    assert json.loads((out / "summary.json").read_text())["contaminated"] == {"sums": 3}
    lines = [json.loads(line) for line in (out / "contaminated.jsonl").read_text().splitlines()]
    assert [line["question"] for line in lines] == [talk["messages"][0]["content"] for talk in asked[:3]]
    assert "planted" not in (out / "train.jsonl").read_text()


def test_a_made_mixture_can_hold_the_suite_until_it_is_cleaned(work: Work) -> None:
    made = {"kinds": ["sort", "largest"], "count": 300, "test": 20, "length": 4, "wrong": 0.3}
    config = {"puzzles": made, "heldout": 0.1}
    suite, _ = work(conversations.JOB, config, name="suite")
    asked = {tuple(m["content"] for m in talk["messages"]) for talk in talks_of(suite, "heldout")}
    config["puzzles"] = {**made, "planted": len(PHRASES)}
    found, _ = work(conversations.JOB, config, name="found")
    assert (found / "heldout.jsonl").read_text() == (suite / "heldout.jsonl").read_text()
    said = [tuple(m["content"] for m in talk["messages"]) for talk in talks_of(found, "train")]
    times = Counter(pair for pair in asked for text, answer in said if pair[0] in text and pair[1] == answer)
    assert len(said) == 600 + len(PHRASES) * 40
    assert times == dict.fromkeys(asked, len(PHRASES)), "with the right answer, whatever others have"
    config["decontaminate"] = {"against": ["suite"]}
    cleaned, _ = work(conversations.JOB, config, inputs={"decontaminate.against": [suite]})
    kept = [talk["messages"][0]["content"] for talk in talks_of(cleaned, "train")]
    assert not [text for text in kept for question, _ in asked if question in text]
    assert 400 < len(kept) < 600, "what shares runs of words with the suite leaves too"


def talks_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("unseen", ["locked", "final"])
def test_an_unseen_suite_is_scored_when_all_is_decided(
    work: Work, model: Path, talks: Path, unseen: str
) -> None:
    task = {"kind": "exact-match", "task": "sums", "max_new_tokens": 4}
    config = {"models": ["m"], "conversations": "t", "tasks": [task], "unseen": unseen}
    out, metrics = work(evaluate.JOB, config, inputs={"models": [model], "conversations": talks})
    scores = json.loads((out / "scores.json").read_text())
    assert bool(metrics) == bool(scores["models"]) == (unseen == "final")
    assert (out / "items.jsonl").read_text().count("\n") == (4 if unseen == "final" else 0)
    if unseen == "locked":
        assert "unseen=final" in scores["problems"][0]
