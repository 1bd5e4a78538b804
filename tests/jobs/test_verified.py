"""Rules as a measure, languages as files, tools in a training: what the jobs make of them.

Models are random, so nothing here shows that one learns; the recipes and the papers' experiments do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.data.tokenizer import Tokenizer
from shunter.evaluate import verified
from shunter.generate.toolbox import Toolbox
from shunter.jobs import accepted, evaluate, rl, taught
from shunter.post.config import RewardConfig
from shunter.post.prompts import read_prompts
from shunter.post.rewards import Grader, Verified
from shunter.post.sandbox.box import Sandbox
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import model, reinforce, talks
from tests.post.sandbox.running import or_skip

__all__ = ["model", "talks"]  # fixtures


def measured(
    work: Work, model: Path, talks: Path, **task: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    asked = {"kind": "verified", "task": "sums", "max_new_tokens": 6, **task}
    config = {"models": ["m"], "conversations": "t", "tasks": [asked]}
    out, _ = work(evaluate.JOB, config, inputs={"models": [model], "conversations": talks})
    scores = json.loads((out / "scores.json").read_text())
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    return next(iter(scores["models"].values()))["tasks"], items


def test_pass_at_1_is_a_mean_over_questions_of_shares(work: Work, model: Path, talks: Path) -> None:
    letter = {"kind": "format", "pattern": ".*[a-m].*"}
    tasks, items = measured(work, model, talks, rewards=[letter], samples=8, temperature=1.0)
    assert (tasks["sums"]["metric"], tasks["sums"]["n"], tasks["sums"]["answers"]) == ("pass@1", 4, 32)
    assert tasks["sums"]["value"] == pytest.approx(sum(item["score"] for item in items) / 4)
    assert all(item["score"] * 8 == int(item["score"] * 8) for item in items)
    assert 0 < tasks["sums"]["value"] < 1
    assert tasks["sums reward"]["value"] == pytest.approx(tasks["sums"]["value"])


def test_a_checker_of_ones_own_grades_as_the_pattern_that_it_is(
    work: Work, model: Path, talks: Path, tmp_path: Path
) -> None:
    """The same letters by a program in the sandbox and by a pattern: the same answers pass."""
    (tmp_path / "letters.py").write_text(
        "import json\nprint(int(any(c in 'abcdefghijklm' for c in json.loads(input())['answer'])))\n"
    )
    with or_skip():
        Sandbox(slots=1).close()
    known = [{"answer": "a", "score": 1}, {"answer": "z", "score": 0}]
    own = {"kind": "checker", "file": "letters.py", "known": known}
    letter = {"kind": "format", "pattern": ".*[a-m].*"}
    found = [
        [
            item["score"]
            for item in measured(work, model, talks, rewards=[rule], samples=4, temperature=1.0)[1]
        ]
        for rule in (own, letter)
    ]
    assert found[0] == found[1]
    assert 0 < sum(found[0]) < len(found[0])
    with pytest.raises(ShunterError, match="the checker cannot be read"):
        measured(work, model, talks, rewards=[{**own, "file": "none.py"}])


def test_what_meets_one_of_two_rules_has_not_passed(work: Work, model: Path, talks: Path) -> None:
    rules = [{"kind": "format", "pattern": ".*", "weight": 0.5}, {"kind": "number"}]
    tasks, _ = measured(work, model, talks, rewards=rules)
    assert tasks["sums"]["value"] == 0.0
    assert tasks["sums reward"]["value"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"rewards": [{"kind": "number"}], "samples": 3}, "one and the same"),
        ({"rewards": [{"kind": "model"}]}, "measures nothing"),
        ({"rewards": []}, "at least 1"),
    ],
)
def test_what_measures_nothing_is_refused(
    work: Work, model: Path, talks: Path, task: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        measured(work, model, talks, **task)


def test_a_languages_prefix_stands_in_training_alone(model: Path, talks: Path, tmp_path: Path) -> None:
    (tmp_path / "polish.yaml").write_text(
        "name: polish\nfilename: a.pre\nexecute: warm /toys/prefix.py {file}\nprompt: 'In front. '\n"
    )
    reward = RewardConfig(kind="code", language="polish.yaml")
    assert taught.prefix([reward, RewardConfig(kind="number")], tmp_path) == "In front. "
    tokenizer = Tokenizer.load(model)
    plain, told = (read_prompts(talks / "train.jsonl", tokenizer, None, 40, p) for p in ("", "In front. "))
    assert [item.text.replace("In front. ", "") for item in told.items] == [item.text for item in plain.items]
    assert all("<|user|>In front. What" in item.text for item in told.items)
    assert told.digest != plain.digest
    config = rl.RlConfig.model_validate(
        {"kind": "rl", "model": "m", "prompts": "t", "rewards": [reward.model_dump()], "train": {"steps": 1}}
    )
    assert rl.JOB.reads(config, tmp_path) == [tmp_path / "polish.yaml"]
    task = {"kind": "verified", "task": "sums", "rewards": [reward.model_dump()]}
    asked = evaluate.EvaluateConfig.model_validate(
        {"kind": "evaluate", "models": ["m"], "conversations": "t", "tasks": [task]}
    )
    assert evaluate.JOB.reads(asked, tmp_path) == [tmp_path / "polish.yaml"]


def test_no_prefix_of_a_language_is_asked_where_it_is_measured(
    work: Work, model: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model is given, and what items.jsonl shows of it. Programs are graded by no sandbox here."""
    (tmp_path / "polish.yaml").write_text(
        "name: polish\nfilename: a.pre\nexecute: warm /toys/prefix.py {file}\nprompt: 'In front. '\n"
        "sample: {program: '1', input: '', output: '1'}\n"
    )
    cases = '[{"input": "", "output": "1"}]'
    for path in talks.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["messages"][-1]["content"] = cases
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given: list[str] = []
    tokenizer, write = Tokenizer.load(model), verified.write

    def told(subject: Any, prompts: Any, **more: Any) -> Any:
        given.extend(tokenizer.decode(ids) for ids in prompts)
        return write(subject, prompts, **more)

    monkeypatch.setattr(verified, "write", told)
    never = Verified("code", lambda answer, target: 0.0)
    monkeypatch.setattr(taught, "grader", lambda *given, **more: Grader([(never, 1.0)]))
    reward = {"kind": "code", "language": "polish.yaml"}
    _, items = measured(work, model, talks, rewards=[reward])
    plain = read_prompts(talks / "heldout.jsonl", tokenizer, None, 40)
    assert sorted(item["prompt"] for item in items) == sorted(each.text for each in plain.items)
    assert sorted(given) == sorted(tokenizer.decode(each.ids) for each in plain.items)


TOOLS = {"tools": ["calculator"], "form": "note", "most": 2, "room": 12}


def test_a_training_with_tools_learns_from_what_the_model_wrote(
    work: Work, model: Path, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are put into the model's mouth: each turn but the second is answered. The gap between trainer and
    generator, measured in every step, is that of one turn, and interrupted the run ends the same."""

    def answered(self: Toolbox, done: Any) -> list[int] | None:
        return self._said([{"role": "tool", "content": "7"}]) if done.turns < 3 else None

    monkeypatch.setattr(Toolbox, "__call__", answered)
    # Every third token ends a turn, so that there are some.
    stops = list(range(0, Tokenizer.load(model).vocab_size, 3))
    monkeypatch.setattr(rl, "stops", lambda folder: stops)
    more = {"tools": TOOLS, "max_new_tokens": 9}
    out, metrics = reinforce(work, model, talks, **more)
    assert metrics["largest_gap"] < 1e-5
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert all(0.5 < row["rl/tool_calls"] <= 2 for row in rows)
    assert all(row["rl/length"] <= 9 for row in rows)
    samples = [json.loads(line)["response"] for line in (out / "samples.jsonl").read_text().splitlines()]
    assert any("<|tool|>7<|end|><|assistant|>" in text for text in samples)


def test_a_template_that_cannot_go_on_is_refused(work: Work, model: Path, talks: Path) -> None:
    template = "{% for m in messages %}{{ loop.length }}{% generation %}{{ m.content }}{% endgeneration %}"
    folder = model.parent / "other"
    if not folder.exists():
        import shutil

        shutil.copytree(model, folder)
        (folder / "chat_template.jinja").write_text(template + "{% endfor %}")
    with pytest.raises(ShunterError, match="writes an answer otherwise when more follows"):
        reinforce(work, folder, talks, tools=TOOLS)


def test_answers_that_are_worth_enough_become_conversations(work: Work, model: Path, talks: Path) -> None:
    letter = {"kind": "format", "pattern": ".*[a-m].*"}
    config = {"model": "m", "prompts": "t", "rewards": [letter], "per_prompt": 6, "max_new_tokens": 30}
    out, metrics = work(accepted.JOB, config, inputs={"model": model, "prompts": talks})
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert metrics["answers"] == 12 * 6
    assert 0 < metrics["kept"] == len(lines) <= metrics["passed"] < 12 * 6
    asked = {json.loads(line)["messages"][0]["content"] for line in (talks / "train.jsonl").open()}
    for line in lines:
        question, answer = line["messages"]
        assert question["content"] in asked
        assert any(letter in answer["content"] for letter in "abcdefghijklm")
    pairs = [(line["messages"][0]["content"], line["messages"][1]["content"]) for line in lines]
    assert len(set(pairs)) == len(pairs)
    more = {**config, "least": 2.0, "count": 4}
    with pytest.raises(ShunterError, match="of 24 answers none is worth 2"):
        work(accepted.JOB, more, inputs={"model": model, "prompts": talks}, name="none")
