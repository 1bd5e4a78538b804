"""Programs that a policy asks for while it answers: in a training and an evaluation, and ended with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.data.tokenizer import Tokenizer
from shunter.generate.toolbox import Toolbox
from shunter.jobs import evaluate, rl
from shunter.post.reinforce import Reinforcement
from shunter.post.rewards import Grader
from shunter.post.sandbox.box import Sandbox
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks

__all__ = ["model", "talks"]  # fixtures

TOOLS = {"tools": ["python"], "form": "json", "most": 1, "room": 12}


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[Sandbox]:
    """All that are opened. Every turn asks for the same program: a random model asks for none."""
    try:
        Sandbox(slots=1).close()
    except ShunterError as refused:
        pytest.skip(str(refused))
    found: list[Sandbox] = []
    start = Sandbox.__init__

    def opened(self: Sandbox, **more: Any) -> None:
        start(self, **more)
        found.append(self)

    def asks(self: Toolbox, done: Any) -> list[int] | None:
        if done.turns > self.config.most:
            return None
        self.count(1, 0)
        return self._said([{"role": "tool", "content": self._answer("python", "print(6 * 7)")}])

    monkeypatch.setattr(Sandbox, "__init__", opened)
    monkeypatch.setattr(Toolbox, "__call__", asks)
    return found


def test_a_policy_learns_beside_programs(
    work: Work, model: Path, talks: Path, boxes: list[Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = list(range(0, Tokenizer.load(model).vocab_size, 3))  # some turns end
    monkeypatch.setattr(rl, "stops", lambda folder: stops)
    out, metrics = reinforce(work, model, talks, tools=TOOLS, max_new_tokens=9)
    samples = [json.loads(line)["response"] for line in (out / "samples.jsonl").read_text().splitlines()]
    assert any("<|tool|>42<|end|><|assistant|>" in text for text in samples)
    assert metrics["largest_gap"] < 1e-5
    assert [box._process for box in boxes] == [None]


def test_a_training_that_cannot_begin_leaves_nothing_behind(
    work: Work, model: Path, talks: Path, boxes: list[Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Grader] = []
    close = Grader.close

    def closes(self: Grader) -> None:
        ended.append(self)
        close(self)

    def fails(*given: Any, **more: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Reinforcement, "__init__", fails)
    monkeypatch.setattr(Grader, "close", closes)
    with pytest.raises(RuntimeError, match="out of memory"):
        reinforce(work, model, talks, tools=TOOLS)
    assert [box._process for box in boxes] == [None]
    assert len(ended) == 1


def test_programs_do_not_go_with_the_same_bits(work: Work, model: Path, talks: Path) -> None:
    with pytest.raises(ValueError, match="may print the time"):
        reinforce(work, model, talks, tools=TOOLS, how={**HOW, "deterministic": True})


def test_a_model_is_evaluated_with_programs(
    work: Work, model: Path, talks: Path, boxes: list[Sandbox]
) -> None:
    task = {"kind": "verified", "task": "sums", "rewards": [{"kind": "number"}], "max_new_tokens": 6}
    config = {"models": ["m"], "conversations": "t", "tasks": [{**task, "tools": TOOLS}]}
    out, _ = work(evaluate.JOB, config, inputs={"models": [model], "conversations": talks})
    assert json.loads((out / "scores.json").read_text())["models"]
    assert [box._process for box in boxes] == [None]
