"""Multiple choice: honest questions, and the likeliest answer by the model's own probabilities."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from shunter.config.errors import ShunterError
from shunter.evaluate import multiple_choice
from shunter.evaluate.choices import Question, derive, from_file
from shunter.evaluate.config import DerivedChoices
from shunter.evaluate.heldout import HeldOut
from tests.evaluate.small import a_subject, a_text, a_tokenizer, no_tick, reference, rows

WISHES = DerivedChoices(prompt_chars=60, answer_chars=40, per_document=2, choices=3)


@pytest.fixture
def documents(tmp_path):
    texts = {f"{source}:{n}": a_text(n, 120) for source in ("a", "b") for n in range(5)}
    return HeldOut(rows(tmp_path / "rows", texts)).documents


def test_derived_questions_ask_for_what_really_follows(documents):
    questions = derive(documents, WISHES, seed=0)
    texts = {document.id: document.text for document in documents}
    assert len(questions) >= 15
    for question in questions:
        source = question.id.split("#")[0]
        true = question.choices[question.answer]
        assert question.prompt + true in texts[source]
        assert len(set(question.choices)) == 3
        for number, choice in enumerate(question.choices):
            assert choice.startswith(" ")
            assert 25 <= len(choice) <= 40
            assert choice.strip()
            if number != question.answer:
                assert any(
                    choice in text for name, text in texts.items() if name != source and name[0] == source[0]
                ), "a distractor stands in another document of the same source"
    positions = {question.answer for question in questions}
    assert positions == {0, 1, 2}, "the right answer has no fixed place"


def test_derived_questions_depend_on_documents_and_seed_alone(documents):
    assert derive(documents, WISHES, seed=0) == derive(list(documents), WISHES, seed=0)
    assert derive(documents, WISHES, seed=0) != derive(documents, WISHES, seed=1)
    only = derive(documents, WISHES.model_copy(update={"sources": ["a"]}), seed=0)
    assert {question.id[0] for question in only} == {"a"}


def test_too_little_text_for_questions_is_a_sentence(documents):
    with pytest.raises(ShunterError, match="no question can be made of 2 held-out documents"):
        derive(documents[:2], WISHES, seed=0)
    unknown = [replace(document, text=None) for document in documents]
    with pytest.raises(ShunterError, match="no question"):
        derive(unknown, WISHES, seed=0)


def test_questions_from_a_file(tmp_path):
    path = tmp_path / "q.jsonl"
    line = {"question": "2 + 2?", "choices": ["3", " 4"], "answer": 1}
    path.write_text(json.dumps(line) + "\n\n" + json.dumps({**line, "id": "x"}) + "\n")
    found = from_file(path, "Q: {question}\nA:")
    assert found[0] == Question("1", "Q: 2 + 2?\nA:", [" 3", " 4"], 1)
    assert found[1].id == "x"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "q.jsonl:2: not JSON"),
        ("[1]", "q.jsonl:2: no text under 'question'"),
        ('{"question": "a", "choices": ["b"], "answer": 0}', "at least two texts"),
        ('{"question": "a", "choices": ["b", "c"], "answer": 2}', "'answer' is 2; .* 0 to 1"),
        ('{"question": "a", "choices": ["b", "c"], "answer": true}', "'answer' is True"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "choices": ["b", "c"], "answer": 1}\n' + line + "\n")
    with pytest.raises(ShunterError, match=message):
        from_file(path, "{question}")


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(ShunterError, match="cannot be read"):
        from_file(tmp_path / "no.jsonl", "{question}")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ShunterError, match="holds no question"):
        from_file(tmp_path / "empty.jsonl", "{question}")


def test_the_likeliest_choice_is_the_models_own(tmp_path):
    subject = a_subject(a_tokenizer(tmp_path))
    encode, start = subject.tokenizer.encode, subject.tokenizer.end_of_text
    questions = [
        Question(
            str(n),
            f"the people {n}",
            [f" {a_text(n + k, k)[9:]}" + "\u00e9" * (n * k % 7) for k in range(1, 5)],
            n % 4,
        )
        for n in range(60)
    ]
    found = multiple_choice.run("mc", subject, questions, no_tick)
    winners = []
    for question, item in zip(questions, found["items"], strict=True):
        prompt, choices = [start, *encode(question.prompt)], question.choices
        sums = [reference(subject.decoder, [*prompt, *encode(c)], len(prompt)) for c in choices]
        assert item["logprobs"] == pytest.approx(sums, abs=1e-4)
        best = [
            max(range(4), key=[x / n for x, n in zip(sums, sizes, strict=True)].__getitem__)
            for sizes in (
                [len(c.encode()) for c in choices],
                [1] * 4,
                [len(c.split()) for c in choices],
                [len(encode(c)) for c in choices],
                [len(c) for c in choices],
            )
        ]
        winners.append(best)
        assert item["response"] == choices[best[0]]
        assert item["score"] == (best[0] == question.answer)
        assert item["score_sum"] == (best[1] == question.answer)
        assert item["prompt"] == question.prompt
    for other in (1, 2, 3, 4):
        assert any(best[0] != best[other] for best in winners), "here the ways of counting disagree"
    first, second = found["scores"]
    assert first["value"] == sum(item["score"] for item in found["items"]) / 60
    assert first["baseline"] == {"name": "chance", "value": 0.25}
    assert (first["metric"], second["metric"], first["shortened"]) == ("accuracy", "accuracy_sum", 0)


def test_a_prompt_that_does_not_fit_loses_its_beginning_and_is_counted(tmp_path):
    tokenizer = a_tokenizer(tmp_path)
    subject = a_subject(tokenizer, context=12)
    long = [Question("a", a_text(1), [" peace", " the union"], 0), Question("b", "the", [" a", " b"], 0)]
    found = multiple_choice.run("mc", subject, long, no_tick)
    assert found["scores"][0]["shortened"] == 1
    room = 12 - max(len(tokenizer.encode(c)) for c in long[0].choices)
    ids = [tokenizer.end_of_text, *tokenizer.encode(long[0].prompt)[-room:]]
    expected = reference(subject.decoder, [*ids, *tokenizer.encode(" peace")], len(ids))
    assert found["items"][0]["logprobs"][0] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ShunterError, match="longer than the context"):
        multiple_choice.run("mc", subject, [Question("c", "x", [a_text(2), " b"], 0)], no_tick)
