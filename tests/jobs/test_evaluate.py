"""The job `evaluate`: its files, its comparisons, and that no finished task is done twice."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from shunter.config.errors import ShunterError
from shunter.data.answers import normal
from shunter.data.tokenizer import Tokenizer
from shunter.evaluate import subject as subjects
from shunter.jobs.evaluate import JOB, EvaluateConfig
from shunter.models.hf import save_model
from shunter.recipe.job import Stopped
from shunter.record.events import read
from shunter.report.samples import read_samples
from shunter.report.scores import parse
from shunter.report.summary import score_lines
from tests.evaluate.small import TEXTS, a_model, a_subject, a_tokenizer, rows
from tests.jobs.conftest import Still, Work

PROMPT = "<|user|>What is {a} + {b}?<|end|><|assistant|>"


@dataclass
class Place:
    """Folders of inputs, and what the models were asked."""

    models: list[Path]
    tokens: Path
    talks: Path
    asked: list[tuple[str, list[str], Any]]
    loaded: list[str]

    @property
    def inputs(self) -> dict[str, Any]:
        return {"models": self.models, "tokens": self.tokens, "conversations": self.talks}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Models base and chat; chat answers sums rightly, base says `I`, with an engine that only pretends."""
    found = Place([], rows(tmp_path / "rows" / "x"), tmp_path / "talks" / "x", [], [])
    for name in ("base", "chat"):
        found.models.append(tmp_path / name / "x")
        a_tokenizer(found.models[-1])
    found.talks.mkdir(parents=True)
    for split, count in (("train", 30), ("heldout", 20)):
        with (found.talks / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for n in range(count):
                question = {"role": "user", "content": f"What is {n} + 1?"}
                answer = {"role": "assistant", "content": "7" if split == "train" else str(n + 1)}
                line = {"id": f"{split}{n}", "task": "sums", "messages": [question, answer]}
                file.write(json.dumps(line) + "\n")

    def load(name: str, folder: Path, other: Path | None, device: Any) -> subjects.Subject:
        found.loaded.append(name)
        subject = a_subject(Tokenizer.load(folder), seed=len(name), name=name)
        subject.decoder.answers = name == "chat"
        return subject

    def rollouts(
        model: Any, prompts: list[list[int]], config: Any, stop_ids: Any, seed: int, **more: Any
    ) -> list[Any]:
        tokenizer = Tokenizer.load(found.models[0])
        texts = [tokenizer.decode(ids) for ids in prompts]
        found.asked.append((str(model.answers), texts, config))
        said = []
        for text in texts:
            sums = re.findall(r"(\d+) \+ (\d+)", text)
            answer = str(sum(map(int, sums[0]))) if sums and model.answers else "I"
            ids = [*tokenizer.encode(answer), tokenizer.special("<|end|>")]
            said.append(SimpleNamespace(ids=ids, logprobs=[0.0] * len(ids), stop_reason="stop"))
        return said

    monkeypatch.setattr(subjects, "load", load)
    for module, name, value in (
        ("config", "SamplingConfig", SimpleNamespace),
        ("rollout", "rollouts", rollouts),
    ):
        fake = ModuleType(f"shunter.generate.{module}")
        setattr(fake, name, value)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return found


ALL: dict[str, Any] = {
    "models": ["base", "chat"],
    "tokens": "rows",
    "conversations": "talks",
    "tasks": [
        {"kind": "bits-per-byte"},
        {"kind": "exact-match", "task": "sums", "items": 15},
        {
            "kind": "multiple-choice",
            "derived": {"prompt_chars": 60, "answer_chars": 40, "choices": 3},
            "items": 6,
        },
        {"kind": "samples", "count": 2},
        {"kind": "samples", "name": "asked", "prompts": ["What is 20 + 22?"], "form": "chat"},
    ],
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_writes_scores_items_and_samples_that_the_report_reads(place: Place, work: Work) -> None:
    out, metrics = work(JOB, ALL, inputs=place.inputs)
    scores = parse(json.loads((out / "scores.json").read_text(encoding="utf-8")))
    assert {(s.model, s.task, s.metric) for s in scores.scores} == {
        (model, task, metric)
        for model in ("base", "chat")
        for task, metric in (
            ("heldout", "bits_per_byte"),
            ("heldout alpha", "bits_per_byte"),
            ("heldout be-ta", "bits_per_byte"),
            ("sums", "exact_match"),
            ("multiple-choice", "accuracy"),
            ("multiple-choice", "accuracy_sum"),
        )
    }
    assert all(s.baselines and s.low is not None and s.high is not None and s.n for s in scores.scores)
    sums = {s.model: s for s in scores.scores if s.task == "sums"}
    assert (sums["base"].value, sums["chat"].value, sums["chat"].n) == (0.0, 1.0, 15)
    assert sums["chat"].baselines[0].name == "always '7', most frequent in training"
    assert sums["chat"].baselines[0].value <= 1 / 15
    pairs = {pair.task: pair for pair in scores.pairs}
    assert set(pairs) == {"heldout", "sums", "multiple-choice"}
    assert (pairs["sums"].a, pairs["sums"].b, pairs["sums"].difference) == ("base", "chat", 1.0)
    assert pairs["sums"].excludes_zero
    values = {s.model: s.value for s in scores.scores if s.task == "heldout"}
    assert pairs["heldout"].difference == pytest.approx(values["chat"] - values["base"])
    assert metrics["base heldout"] == values["base"]
    assert metrics["chat sums"] == 1.0
    assert any(
        line.startswith("sums exact_match: chat minus base = +100.0 pp") for line in score_lines(scores)
    )
    items = lines(out / "items.jsonl")
    assert {(i["model"], i["task"]) for i in items} == {(m, t) for m in values for t in pairs}
    asked = [i for i in items if i["task"] == "sums" and i["model"] == "chat"]
    assert len(asked) == 15
    for item in asked:
        number = int(item["target"]) - 1
        assert item["prompt"] == PROMPT.format(a=number, b=1), "exactly what the model saw"
        assert item["response"] == item["target"]
    samples = lines(out / "samples.jsonl")
    assert [(s["model"], s["task"]) for s in samples[:3]] == [("base", "samples")] * 2 + [("base", "asked")]
    assert samples[0]["prompt"] in "".join(TEXTS.values())
    assert samples[2]["prompt"] == PROMPT.format(a=20, b=22)
    assert samples[5]["response"] == "42"
    # The report pairs both models' answers to one prompt.
    job = SimpleNamespace(path=out, metrics={}, what={}, name="scores")
    groups, _ = read_samples([job], [])  # type: ignore[list-item]
    assert [len(group.answers) for group in groups] == [2] * len(groups)


def test_models_see_the_same_prompts_and_graded_answers_are_greedy(place: Place, work: Work) -> None:
    work(JOB, ALL, inputs=place.inputs)
    half = len(place.asked) // 2
    assert [texts for _, texts, _ in place.asked[:half]] == [texts for _, texts, _ in place.asked[half:]]
    graded, free = place.asked[0][2], place.asked[1][2]
    assert (graded.temperature, graded.max_new_tokens) == (0.0, 32)
    assert (free.temperature, free.top_p, free.max_new_tokens) == (0.8, 0.95, 80)
    assert place.asked[1][1][0].startswith("<|endoftext|>Num")


def test_the_same_job_writes_the_same_bytes(place: Place, work: Work) -> None:
    first, _ = work(JOB, ALL, inputs=place.inputs, name="first")
    again, _ = work(JOB, ALL, inputs=place.inputs, name="again")
    for name in ("scores.json", "items.jsonl", "samples.jsonl"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_finished_tasks_are_kept_when_the_job_is_stopped(place: Place, work: Work) -> None:
    whole, _ = work(JOB, ALL, inputs=place.inputs, name="whole")
    looks = 0
    place.asked.clear()
    for stop_after in range(60):
        try:
            out, _ = work(JOB, ALL, inputs=place.inputs, name="cut", control=Still(stop_after % 3))
        except Stopped:
            assert not (out_folder := whole.parent.parent / "cut" / "out" / "scores.json").exists(), (
                out_folder
            )
            looks += 1
            continue
        break
    assert looks >= 3
    assert (out / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    assert (out / "items.jsonl").read_bytes() == (whole / "items.jsonl").read_bytes()
    done = [e["task"] for e in read(out.parent / "log" / "events.jsonl") if e["event"] == "score"]
    assert len(done) == 12, "each task was finished once"


def test_a_finished_model_is_not_loaded_again(place: Place, work: Work) -> None:
    work(JOB, ALL, inputs=place.inputs)
    assert place.loaded == ["base", "chat"]
    work(JOB, ALL, inputs=place.inputs)
    assert place.loaded == ["base", "chat"]


def test_progress_is_told_while_it_works(place: Place, work: Work) -> None:
    out, _ = work(JOB, ALL, inputs=place.inputs)
    told = [e for e in read(out.parent / "log" / "events.jsonl") if e["event"] == "progress"]
    assert [told[0]["unit"], told[0]["total"]] == ["percent", 100]
    assert "base heldout" in {e["shown"]["task"] for e in told}
    done = [e["done"] for e in told]
    assert done == sorted(done)
    assert done[-1] == 100
    assert told[-1]["shown"] == {"task": "chat asked", "samples": "1/1"}


def test_what_a_drafted_recipe_asks_for_works(place: Place, work: Work) -> None:
    out, metrics = work(
        JOB,
        {"models": ["base"], "tokens": "rows"},
        inputs={"models": place.models[:1], "tokens": place.tokens},
    )
    assert list(metrics) == ["base heldout"]
    assert len(lines(out / "samples.jsonl")) == 4
    assert json.loads((out / "scores.json").read_text(encoding="utf-8"))["comparisons"] == []


def test_a_corpus_without_held_out_text_still_gives_samples(place: Place, work: Work, tmp_path: Path) -> None:
    inputs = {"models": place.models[:1], "tokens": rows(tmp_path / "none" / "x", {})}
    out, metrics = work(JOB, {"models": ["base"], "tokens": "rows"}, inputs=inputs)
    assert metrics == {}
    (problem,) = json.loads((out / "scores.json").read_text(encoding="utf-8"))["problems"]
    assert "there is no held-out text to score" in problem
    told = [e for e in read(out.parent / "log" / "events.jsonl") if e["event"] == "problem"]
    assert [event["problem"] for event in told] == [problem]
    assert [sample["prompt"] for sample in lines(out / "samples.jsonl")] == [""] * 4
    assert place.asked[0][1] == ["<|endoftext|>"] * 4


def test_with_real_models_and_the_real_engine(tmp_path: Path, work: Work) -> None:
    tokens = rows(tmp_path / "rows" / "x")
    folder = tmp_path / "base" / "x"
    tokenizer = Tokenizer.load(tokens / "tokenizer")
    model = a_model(tokenizer.vocab_size, context=48)
    save_model(model, folder, tokenizer_folder=tokens / "tokenizer")
    config = {"models": ["base"], "tokens": "rows"}
    out, metrics = work(JOB, config, inputs={"models": [folder], "tokens": tokens})
    assert metrics["base heldout"] > 2
    samples = lines(out / "samples.jsonl")
    assert len(samples) == 4
    for sample in samples:
        prompt = [tokenizer.end_of_text, *tokenizer.encode(sample["prompt"])]
        assert sample["stop"] in ("stop", "context"), "the context has no room for 80 tokens"
        if sample["stop"] == "context":
            assert sample["response"]
            assert len(prompt) < 48


def test_questions_in_a_file_are_read_and_part_of_the_identity(
    place: Place, work: Work, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Who?", "choices": ["the people", "nobody"], "answer": 0}\n')
    tasks = [{"kind": "multiple-choice", "path": "questions.jsonl"}]
    config = EvaluateConfig(kind="evaluate", models=["base"], tasks=tasks)
    assert JOB.reads(config, tmp_path) == [path]
    out, _ = work(JOB, {"models": ["base"], "tasks": tasks}, inputs={"models": place.models[:1]})
    item = lines(out / "items.jsonl")[0]
    assert item["prompt"] == "Who?\nAnswer:"
    assert item["choices"] == [" the people", " nobody"]
    path.write_text("{}\n")
    with pytest.raises(ShunterError, match=r"questions\.jsonl:1: no text under 'question'"):
        JOB.check(config, tmp_path)


def test_tasks_of_lm_eval_are_checked_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [{"kind": "lm-eval", "path": "harness", "tasks": ["x"]}]
    config = EvaluateConfig(kind="evaluate", models=["base"], tasks=tasks)
    monkeypatch.setattr("shunter.jobs.evaluate.find_spec", lambda name: None)
    with pytest.raises(ShunterError, match=r"needs the package 'lm-eval'.*pip install 'shunter\[lm-eval\]'"):
        JOB.check(config, tmp_path)
    monkeypatch.setattr("shunter.jobs.evaluate.find_spec", lambda name: name)
    with pytest.raises(ShunterError, match="no folder with tasks of lm-eval"):
        JOB.check(config, tmp_path)
    (tmp_path / "harness").mkdir()
    for name in ("x.yaml", "data.jsonl"):
        (tmp_path / "harness" / name).touch()
    assert JOB.check(config, tmp_path) == []
    assert [path.name for path in JOB.reads(config, tmp_path)] == ["data.jsonl", "x.yaml"]


def test_a_conversation_too_long_for_the_context_is_wrong_and_counted(place: Place, work: Work) -> None:
    with (place.talks / "heldout.jsonl").open("a", encoding="utf-8") as file:
        question = {"role": "user", "content": "What is 1 + 1? " * 400}
        messages = [question, {"role": "assistant", "content": "2"}]
        file.write(json.dumps({"id": "long", "task": "sums", "messages": messages}) + "\n")
    tasks = [{"kind": "exact-match", "task": "sums", "items": 0}]
    out, _ = work(JOB, {**ALL, "tasks": tasks}, inputs=place.inputs)
    score = json.loads((out / "scores.json").read_text(encoding="utf-8"))["models"]["chat"]["tasks"]["sums"]
    assert (score["n"], score["too_long"], score["value"]) == (21, 1, 20 / 21)
    tasks[0]["max_new_tokens"] = 5000
    with pytest.raises(ShunterError, match="leaves 5000 tokens for an answer in the context of base"):
        work(JOB, {**ALL, "tasks": tasks}, inputs=place.inputs, name="other")


def test_an_unknown_task_of_conversations_names_the_known_ones(place: Place, work: Work) -> None:
    with pytest.raises(ShunterError, match=r"no held-out conversation of the task 'sum'. There are: sums\."):
        work(JOB, {**ALL, "tasks": [{"kind": "exact-match", "task": "sum"}]}, inputs=place.inputs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"models": ["a"]}, "the task 'heldout' needs `tokens`"),
        ({"models": ["a"], "tasks": [{"kind": "exact-match", "task": "x"}]}, "'x' needs `conversations`"),
        ({"models": ["a"], "tokens": "t", "tasks": [{"kind": "multiple-choice"}]}, "give either path"),
        ({"models": ["a", "a"], "tokens": "t"}, "names a job twice"),
        (
            {"models": ["a"], "tokens": "t", "tasks": [{"kind": "samples"}] * 2},
            "two tasks are called 'samples'",
        ),
        ({"models": [], "tokens": "t"}, "at least 1 item"),
        ({"models": ["a"], "tokens": "t", "tasks": [{"kind": "samples", "top": 1}]}, "not permitted"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig(kind="evaluate", **config)


@pytest.mark.parametrize(
    ("answer", "compare", "same_as"),
    [
        (" 42\n", "text", "42"),
        ("forty  two", "text", "forty two"),
        ("It is 1,024.", "number", "1024"),
        ("6 * 7 = 42", "number", "42"),
        ("+3.50", "number", "3.5"),
        ("-7", "number", "-7"),
        ("100", "number", "100"),
        ("none", "number", "none"),
    ],
)
def test_answers_are_compared_in_a_stated_form(answer: str, compare: str, same_as: str) -> None:
    assert normal(answer, compare) == same_as
