"""Fields that stay beside conversations, questions that nobody answers, and jobs that learn from both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.jobs import accepted, conversations, tokens
from shunter.post.config import TAKEN
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, weights
from tests.jobs.test_verified import measured

__all__ = ["model"]  # a fixture

RECORDS = [
    {"prompt": "What is 1 plus 1?", "truth": 2},
    {"messages": [{"role": "user", "content": "Say a."}], "truth": None, "want": {"includes": "a"}},
    {"question": "What is 2 plus 1?", "answer": "3"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                  {"role": "user", "content": "c"}], "truth": 7},
    {"messages": [{"role": "system", "content": "a"}]},
]  # fmt: skip


def collect(work: Work, base: Path, **more: Any) -> list[dict[str, Any]]:
    (base / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    config = {"sources": [{"path": "own.jsonl", "name": "own"}], "heldout": 0.0, **more}
    out, metrics = work(conversations.JOB, config, name="talks")
    assert metrics["train"] + metrics["problems"] == len(RECORDS)
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def test_questions_and_fields_are_kept_where_they_are_asked_for(work: Work, tmp_path: Path) -> None:
    plain = collect(work, tmp_path)
    assert [len(talk["messages"]) for talk in plain] == [2, 3]
    assert all(talk.keys() == {"id", "task", "messages"} for talk in plain)
    found = collect(work, tmp_path, columns=["truth", "want"], unanswered=True)
    assert [len(talk["messages"]) for talk in found] == [1, 1, 2, 3]
    assert [(talk.get("truth"), talk.get("want")) for talk in found] == [
        (2, None), (None, {"includes": "a"}), (None, None), (7, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"columns": ["thruth"]}, "Did you mean truth?"),
        ({"columns": ["task"]}, "which every conversation has by itself"),
        ({"columns": ["truth", "truth"]}, "twice"),
        ({"sources": [], "puzzles": {"kinds": ["parity"]}, "unanswered": True}, "are of own records"),
    ],
)
def test_fields_that_cannot_be_kept(work: Work, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises((ShunterError, ValueError)) as caught:
        collect(work, tmp_path, **more)
    assert says in str(caught.value)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Questions alone, with two things that are known of them."""
    folder = tmp_path / "asked" / "out"
    folder.mkdir(parents=True)
    for split, numbers in (("train", range(12)), ("heldout", range(12, 16))):
        lines = []
        for n in numbers:
            messages = [{"role": "user", "content": f"What is {n} plus 1?"}]
            known = {"truth": n + 1, "kwargs": [None]} | (
                {"instruction_id_list": ["punctuation:no_comma"]} if n % 2 == 0 else {}
            )
            lines.append(json.dumps({"id": f"{n}", "task": "sums", "messages": messages, **known}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


SUM = [
    {"kind": "format", "pattern": ".*[a-m].*"},
    {"kind": "format", "pattern": ".*[n-z].*", "name": "late", "weight": 0.5},
    {"kind": "number", "target": "truth"},
    {"kind": "constraints", "name": "asked", "target": ["instruction_id_list", "kwargs"], "weight": 0.25},
]


def test_rl_learns_from_questions_that_nobody_answers_by_what_is_known_of_them(
    work: Work, model: Path, asked: Path
) -> None:
    out, metrics = reinforce(work, model, asked, rewards=SUM)
    assert weights(out) != weights(model)
    assert metrics["not_graded"] == 0
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    for row in rows:
        parts = row["rl/format"] + 0.5 * row["rl/late"] + row["rl/number"] + 0.25 * row["rl/asked"]
        assert row["rl/reward"] == pytest.approx(parts)
    mean = sum(row["rl/asked"] for row in rows) / len(rows)
    assert 0 < mean < 1, "half of the prompts, and no random text is all commas"
    told = [e["problem"] for e in events.read(out.parent / "log" / "events.jsonl") if e["event"] == "problem"]
    assert told == [
        "6 of 12 prompts have nothing that the reward asked compares answers with; it says nothing of them"
    ]


def test_placed_roles_compare_with_the_same_fields(work: Work, model: Path, asked: Path) -> None:
    found = []
    for name, how in (("plain", HOW), ("placed", {**HOW, "placement": {"backend": "inline"}})):
        out, _ = reinforce(work, model, asked, name, rewards=SUM, train={"steps": 1, "lr": 1e-3}, how=how)
        found.append(json.loads((out / "rewards.json").read_text()))
    assert found[0] == pytest.approx(found[1])


def test_no_number_of_a_step_has_a_name_that_a_reward_may_have(work: Work, model: Path, asked: Path) -> None:
    names: set[str] = set()
    for more in ({"policy": {"algorithm": "ppo", "kl": 0.1}}, {"policy": {"kl": 0.1, "entropy": 0.1}}):
        train = {"steps": 1, "lr": 1e-3}
        out, _ = reinforce(work, model, asked, f"{len(names)}", rewards=SUM[:1], train=train, **more)
        for row in events.read_metrics(out.parent / "log" / "events.jsonl"):
            names |= {key.removeprefix("rl/") for key in row if key.startswith("rl/")}
    assert names <= TAKEN
    assert {"length", "kl", "gap", "value_error"} <= names


@pytest.mark.parametrize(
    ("rewards", "says"),
    [
        ([{"kind": "number", "target": "thruth"}], "Did you mean truth?"),
        ([{"kind": "number"}], "it answers nowhere"),
        ([{"kind": "exact"}, {"kind": "exact", "target": "truth"}], "two rewards are called exact"),
    ],
)
def test_what_rewards_cannot_compare_with(
    work: Work, model: Path, asked: Path, rewards: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(ShunterError) as caught:
        reinforce(work, model, asked, rewards=rewards)
    assert says in str(caught.value)


def test_other_jobs_ask_what_nobody_answers_too(work: Work, model: Path, asked: Path) -> None:
    letters = {"kind": "format", "pattern": ".*[a-m].*"}
    rules = [letters, {"kind": "constraints", "target": ["instruction_id_list", "kwargs"]}]
    tasks, _ = measured(work, model, asked, rewards=rules, samples=4, temperature=1.0)
    assert tasks["sums"]["n"] == 4
    assert tasks["sums"]["value"] > 0, "where the second rule is not asked, the first is all"
    config = {"model": "m", "prompts": "t", "rewards": [letters], "per_prompt": 6, "max_new_tokens": 30}
    out, _ = work(accepted.JOB, config, inputs={"model": model, "prompts": asked}, name="kept")
    kept = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert all([m["role"] for m in one["messages"]] == ["user", "assistant"] for one in kept)
    assert kept


def test_rows_to_imitate_leave_out_what_nobody_answers(work: Work, model: Path, asked: Path) -> None:
    with (asked / "train.jsonl").open("a") as file:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        file.write(json.dumps({"id": "x", "task": "sums", "messages": messages}) + "\n")
    config = {"conversations": "t", "tokenizer": "m", "row_length": 32}
    out, _ = work(tokens.JOB, config, inputs={"conversations": asked, "tokenizer": model}, name="rows")
    told = [e["problem"] for e in events.read(out.parent / "log" / "events.jsonl") if e["event"] == "problem"]
    assert told[0].startswith("12 conversations of train have no answer")
    index = json.loads((out / "train" / "index.json").read_text())
    assert index["documents"] == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ('{"id": 1}', "no 'messages'"),
        ('{"id": 1, "messages": [{"role": "user"}]}', "no text under 'content'"),
    ],
)
@pytest.mark.parametrize("placement", [None, {"backend": "inline"}], ids=["plain", "placed"])
def test_a_line_that_cannot_be_read_is_named(
    work: Work, model: Path, asked: Path, line: str, says: str, placement: Any
) -> None:
    with (asked / "train.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ShunterError) as caught:
        reinforce(work, model, asked, rewards=SUM, how={**HOW, "placement": placement})
    assert says in str(caught.value)
    assert "train.jsonl:13" in str(caught.value)
