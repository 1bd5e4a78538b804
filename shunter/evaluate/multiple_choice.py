"""Multiple choice by likelihood: the answer is the choice that the model finds likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shunter.config.errors import ShunterError
from shunter.evaluate.choices import Question
from shunter.evaluate.intervals import wilson
from shunter.evaluate.likelihood import token_logprobs
from shunter.evaluate.subject import Subject, Tick


def run(name: str, subject: Subject, questions: Sequence[Question], tick: Tick) -> dict[str, Any]:
    """Two scores and one item a question.

    The first score takes the log-probability of a choice a byte of it, so that long choices have a
    chance; the second (`accuracy_sum`) takes the plain sum. A prompt that does not fit before the
    longest choice loses its beginning, which is counted (`shortened`).
    """
    sequences, begins, shortened = [], [], 0
    for question in questions:
        prompt = subject.tokenizer.encode(question.prompt)
        answers = [subject.tokenizer.encode(choice) for choice in question.choices]
        # The last token of a choice is predicted and not seen: context + 1 tokens fit.
        room = subject.context - max(map(len, answers))
        if room < 0:
            raise ShunterError(
                f"a choice of question {question.id} is longer than the context of {subject.name}, "
                f"{subject.context} tokens"
            )
        shortened += len(prompt) > room
        prompt = prompt[max(0, len(prompt) - room) :]
        for answer in answers:
            if not answer:
                raise ShunterError(f"a choice of question {question.id} is empty")
            sequences.append([subject.start, *prompt, *answer])
            begins.append(1 + len(prompt))
    subject.check_ids(sequences)
    total = sum(len(s) - b for s, b in zip(sequences, begins, strict=True))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tick(done, total, "tokens of choices")

    sums = [float(part.sum()) for part in token_logprobs(subject.decoder, sequences, begins, tick=advance)]
    items, at = [], 0
    for question in questions:
        logprobs = sums[at : at + len(question.choices)]
        at += len(question.choices)
        per_byte = [x / len(c.encode()) for x, c in zip(logprobs, question.choices, strict=True)]
        picked, plain = _likeliest(per_byte), _likeliest(logprobs)
        items.append(
            {
                "task": name,
                "id": question.id,
                "metric": "accuracy",
                "unit": "fraction",
                "prompt": question.prompt,
                "choices": question.choices,
                "response": question.choices[picked],
                "target": question.choices[question.answer],
                "score": float(picked == question.answer),
                "score_sum": float(plain == question.answer),
                "logprobs": logprobs,
            }
        )
    chance = sum(1 / len(question.choices) for question in questions) / len(questions)
    scores = [
        {
            "task": name,
            "metric": metric,
            **proportion([float(str(item[field])) for item in items]),
            "baseline": {"name": "chance", "value": chance},
            "shortened": shortened,
        }
        for metric, field in (("accuracy", "score"), ("accuracy_sum", "score_sum"))
    ]
    return {"scores": scores, "items": items}


def proportion(scores: Sequence[float]) -> dict[str, Any]:
    """Share of ones among zeros and ones with Wilson's interval, as fields of a score."""
    right = int(sum(scores))
    low, high = wilson(right, len(scores))
    return {
        "value": right / len(scores),
        "low": low,
        "high": high,
        "unit": "fraction",
        "n": len(scores),
        "interval": "95 % Wilson",
    }


def _likeliest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: values[i])
