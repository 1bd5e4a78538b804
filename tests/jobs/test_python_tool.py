"""Programs that a policy asks for while it answers: in a training and an evaluation, and ended with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shunter.data.tokenizer import Tokenizer
from shunter.generate.rollout import RolloutEngine
from shunter.generate.toolbox import Toolbox
from shunter.jobs import evaluate, rl
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from shunter.models.init import init_weights
from shunter.post.reinforce import Reinforcement
from shunter.post.rewards import Grader
from shunter.post.sandbox.box import Sandbox
from shunter.record import events
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, spec, talks
from tests.post.sandbox.running import or_skip

__all__ = ["model", "talks"]  # fixtures

TOOLS = {"tools": ["python"], "form": "json", "most": 1, "room": 12}


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[Sandbox]:
    """All that are opened."""
    with or_skip():
        Sandbox(slots=1).close()
    found: list[Sandbox] = []
    start = Sandbox.__init__

    def opened(self: Sandbox, **more: Any) -> None:
        start(self, **more)
        found.append(self)

    monkeypatch.setattr(Sandbox, "__init__", opened)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every turn asks for the same program: a random model asks for none."""

    def asks(self: Toolbox, done: Any) -> list[int] | None:
        if done.turns > self.config.most:
            return None
        self.count(1, 0)
        return self._said([{"role": "tool", "content": self._answer("python", "print(6 * 7)")}])

    monkeypatch.setattr(Toolbox, "__call__", asks)


@pytest.fixture
def longer(model: Path, tmp_path: Path) -> Path:
    """A model whose context holds two calls."""
    tokenizer = Tokenizer.load(model)
    decoder = Decoder(spec(tokenizer.vocab_size).model_copy(update={"max_positions": 400}))
    init_weights(decoder, 0)
    place = tmp_path / "longer" / "out"
    save_model(decoder, place, tokenizer_folder=model, eos_token_id=tokenizer.stop_ids)
    return place


def test_a_policy_learns_beside_programs(
    work: Work, model: Path, talks: Path, boxes: list[Sandbox], asked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = list(range(0, Tokenizer.load(model).vocab_size, 3))  # some turns end
    monkeypatch.setattr(rl, "stops", lambda folder: stops)
    out, metrics = reinforce(work, model, talks, tools=TOOLS, max_new_tokens=9)
    samples = [json.loads(line)["response"] for line in (out / "samples.jsonl").read_text().splitlines()]
    assert any("<|tool|>42<|end|><|assistant|>" in text for text in samples)
    assert metrics["largest_gap"] < 1e-5
    assert [box._process for box in boxes] == [None]


def test_what_a_policy_writes_is_read_and_run(
    work: Work, longer: Path, talks: Path, boxes: list[Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token, what is drawn is replaced by a call, one that fails, and an answer. So the trainer's
    log-probabilities are others, which `max_gap` allows."""
    tokenizer, write = Tokenizer.load(longer), RolloutEngine._write
    turns = [
        tokenizer.encode(f"<tool_call>{json.dumps({'name': 'python', 'arguments': arguments})}</tool_call>")
        for arguments in ({"code": "for n in range(2):\n    print('<', n * 7, '\\x0099\\x00')"}, {"code": 1})
    ]
    script = [[*ids, tokenizer.special("<|end|>")] for ids in (*turns, tokenizer.encode("abc"))]

    def scripted(self: RolloutEngine, rows: Sequence[int], tokens: Sequence[int], *more: Any) -> None:
        texts = [self.running[row].rollout for row in rows]
        begun = [
            len(one.ids) - max((i + 1 for i, w in enumerate(one.wrote) if not w), default=0) for one in texts
        ]
        write(self, rows, [script[one.turns - 1][at] for one, at in zip(texts, begun, strict=True)], *more)

    monkeypatch.setattr(RolloutEngine, "_write", scripted)
    tools = {**TOOLS, "most": 2, "room": 64}
    more: dict[str, Any] = {
        "max_new_tokens": 250,
        "max_gap": 99.0,
        "train": {"steps": 2, "lr": 1e-3},
        "tools": tools,
    }
    out, _ = reinforce(work, longer, talks, **more)
    said = json.loads((out / "samples.jsonl").read_text().splitlines()[0])["response"]
    assert "<|tool|>< 0 \x0099\x00\n< 7 \x0099\x00<|end|><|assistant|>" in said
    assert said.endswith("<|tool|>error: the call has no code<|end|><|assistant|>abc")
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert [(row["rl/tool_calls"], row["rl/tool_failures"]) for row in rows] == [(2.0, 0.5)] * 2
    assert [row["rl/reward"] for row in rows] == [1.0] * 2
    assert [box._process for box in boxes] == [None]


def test_another_process_has_the_tools(work: Work, model: Path, talks: Path, boxes: list[Sandbox]) -> None:
    """And ends with them. What the model is told there is not seen here: a random one asks for nothing."""
    out, metrics = reinforce(work, model, talks, tools=TOOLS, how={**HOW, "writer": "process"})
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert [row["rl/tool_calls"] for row in rows] == [0.0] * 5
    assert metrics["largest_gap"] < 1e-5
    assert not boxes


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
    with pytest.raises(ValueError, match="programs may print the time"):
        reinforce(work, model, talks, tools=TOOLS, how={**HOW, "deterministic": True})


def test_a_model_is_evaluated_with_programs(
    work: Work, model: Path, talks: Path, boxes: list[Sandbox], asked: None
) -> None:
    task = {"kind": "verified", "task": "sums", "rewards": [{"kind": "number"}], "max_new_tokens": 6}
    config = {"models": ["m"], "conversations": "t", "tasks": [{**task, "tools": TOOLS}]}
    out, _ = work(evaluate.JOB, config, inputs={"models": [model], "conversations": talks})
    assert json.loads((out / "scores.json").read_text())["models"]
    assert [box._process for box in boxes] == [None]
