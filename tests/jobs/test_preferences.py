"""Why the job preferences has no pair: the sentence, and the list that is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.jobs import preferences
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import model, talks

__all__ = ["model", "talks"]  # fixtures


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            ['{"prompt": "a", "chosen": "b"}', "{", '{"prompt": "a", "chosen": "b", "rejetced": "c"}'],
            ["3 could not be used", "own.jsonl:1: no field rejected", "2 no field rejected", "rejected`"],
        ),
        (
            ['{"prompt": "a", "chosen": "b", "rejected": "b"}'],
            ["1 could not be used, the first at own.jsonl:1: both answers are the same. "],
        ),
        ([], ["the sources are empty"]),
    ],
    ids=["lacking", "equal", "empty"],
)
def test_why_there_is_no_pair_is_told(work: Work, tmp_path: Path, lines: list[str], says: list[str]) -> None:
    (tmp_path / "own.jsonl").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(ShunterError, match="there is no pair to learn from") as caught:
        work(preferences.JOB, {"sources": [{"path": "own.jsonl"}]})
    assert all(each in str(caught.value) for each in says), str(caught.value)
    assert "temperature" not in str(caught.value)
    kept = Path(str(caught.value.where)) / "problems.jsonl"
    assert len(kept.read_text().splitlines()) == len(lines)


def test_why_models_answers_make_no_pair_is_told(work: Work, model: Path, talks: Path) -> None:
    sampled = {
        "models": ["a"], "prompts": "t", "rewards": [{"kind": "format", "pattern": ".*"}], "per_prompt": 2,
        "max_new_tokens": 2,
    }  # fmt: skip
    inputs = {"sampled.models": [model], "sampled.prompts": talks}
    with pytest.raises(ShunterError, match="no pair") as caught:
        work(preferences.JOB, {"sampled": sampled}, inputs=inputs)
    assert "16 prompts have answers that are all worth the same" in str(caught.value)
    assert "temperature" in str(caught.value)


def test_pairs_that_are_all_held_out_are_told(work: Work, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    with pytest.raises(ShunterError, match="1 is held out"):
        work(preferences.JOB, {"sources": [{"path": "own.jsonl"}], "heldout": 0.5})
