"""lm-evaluation-harness runs local tasks on our models; its numbers are the model's own."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

from shunter.config.errors import ShunterError
from shunter.evaluate import lm_eval
from shunter.evaluate.config import LmEvalTask
from shunter.evaluate.lm_eval import HarnessModel
from tests.evaluate.small import a_subject, a_text, a_tokenizer, no_tick, reference

CHOICES = """
task: what_follows
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITING = """
task: writes
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def subject(tmp_path):
    return a_subject(a_tokenizer(tmp_path / "tokenizer"), context=64)


@pytest.fixture
def folder(tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "what_follows.yaml").write_text(CHOICES)
    (tasks / "writes.yaml").write_text(WRITING)
    lines = [
        {"question": f"the people {n}", "choices": ["peace", "the union", "work"], "answer": n % 3}
        for n in range(9)
    ]
    (tasks / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tasks


def asked(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def test_likelihoods_are_those_of_the_model(subject):
    model = HarnessModel(subject, no_tick)
    encode, start = subject.tokenizer.encode, subject.start
    pairs = [("the people", " of this nation"), ("the people ", "work"), ("", "peace")]
    found = model.loglikelihood(asked(*pairs))
    for (context, after), (value, likeliest) in zip(pairs, found, strict=True):
        before = [start, *encode(context.rstrip())]
        ids = [*before, *encode(context[len(context.rstrip()) :] + after)]
        assert value == pytest.approx(reference(subject.decoder, ids, len(before)), abs=1e-4)
        assert likeliest is False
    text = a_text(1, 12)
    (whole,) = model.loglikelihood_rolling(asked((text,)))
    assert whole == pytest.approx(reference(subject.decoder, [start, *encode(text)]), abs=1e-3)
    long, short = model.loglikelihood_rolling(asked((a_text(2, 200),), (text,)))
    assert long < short == pytest.approx(whole, abs=1e-4)
    model.loglikelihood(asked((a_text(3, 200), " peace")))
    assert model.shortened == 1


def test_local_tasks_give_scores_and_items(subject, folder):
    task = LmEvalTask(kind="lm-eval", path="tasks", tasks=["what_follows"])
    found = lm_eval.run(task, subject, folder.parent, 0, no_tick)
    scores = {score["metric"]: score for score in found["scores"]}
    assert set(scores) >= {"acc", "acc_norm"}
    assert scores["acc"]["n"] == len(found["items"]) == 9
    assert scores["acc"]["baseline"] == {"name": "chance", "value": pytest.approx(1 / 3)}
    start = [subject.start]
    right = 0
    for n in range(9):
        before = [*start, *subject.tokenizer.encode(f"the people {n}")]
        sums = [
            reference(subject.decoder, [*before, *subject.tokenizer.encode(f" {c}")], len(before))
            for c in ("peace", "the union", "work")
        ]
        right += sums.index(max(sums)) == n % 3
    assert scores["acc"]["value"] == pytest.approx(right / 9)
    assert found["items"][0]["prompt"] == "the people 0"
    with pytest.raises(ShunterError, match=r"no task 'other' for lm-eval.* There are: what_follows, writes"):
        lm_eval.run(task.model_copy(update={"tasks": ["other"]}), subject, folder.parent, 0, no_tick)


def test_answers_end_at_the_tasks_stop_strings(subject, folder, monkeypatch):
    def generate(model, prompts, config, stop_ids, seed):
        assert config.max_new_tokens == 6
        assert prompts[0][0] == subject.start
        ids = subject.tokenizer.encode("peace. And more")
        return [SimpleNamespace(ids=ids, logprobs=[], stop_reason="length")]

    for module, name, value in (
        ("config", "SamplingConfig", SimpleNamespace),
        ("engine", "generate", generate),
    ):
        fake = ModuleType(f"shunter.generate.{module}")
        setattr(fake, name, value)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    task = LmEvalTask(kind="lm-eval", path="tasks", tasks=["writes"], limit=6)
    found = lm_eval.run(task, subject, folder.parent, 0, no_tick)
    assert found["scores"][0]["metric"].startswith("exact_match")
    assert found["scores"][0]["value"] == pytest.approx(1 / 3)
    assert [item["score"] for item in found["items"]] == [1.0, 0.0, 0.0] * 2
