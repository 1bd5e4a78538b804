"""Exact match: held-out questions, answered greedily, compared with what the assistant said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.data import chat
from shunter.data.answers import normal
from shunter.evaluate.config import ExactMatchTask, label
from shunter.evaluate.heldout import choose
from shunter.evaluate.multiple_choice import proportion
from shunter.evaluate.subject import Subject, Tick
from shunter.evaluate.writing import Written, write
from shunter.post.targets import Wanted


@dataclass(frozen=True)
class Asked:
    """A conversation up to where the assistant answers; its last message is the target. targets: instead of
    it, for the rules of these names; None: nothing to compare with."""

    id: str
    messages: list[dict[str, str]]
    target: str
    targets: Mapping[str, str | None] = field(default_factory=dict)


def read(path: Path, task: str, wanted: Wanted | None = None) -> list[Asked]:
    """The conversations of one task in a split's JSONL file, in order. Raises when there is none.

    wanted: finds the targets of rules; then what nobody answers is asked too.
    """
    found: list[Asked] = []
    names: set[str] = set()
    with path.open(encoding="utf-8") as file:
        for line in file:
            talk = json.loads(line)
            names.add(talk["task"])
            messages = talk["messages"]
            if wanted is not None:
                asked, last = chat.asked(messages)
                if talk["task"] == task and asked:
                    targets = wanted.of(talk, last)
                    found.append(Asked(talk["id"], asked, last or "", targets))
                continue
            begin = chat.turn(messages)
            if talk["task"] == task and begin > 0:
                said = [message["content"] for message in messages if message["role"] == "assistant"]
                found.append(Asked(talk["id"], messages[:begin], said[-1]))
    if not found:
        known = ", ".join(sorted(names)) or "none at all"
        raise ShunterError(
            f"no held-out conversation of the task {task!r}", where=str(path), mend=f"There are: {known}."
        )
    return found


def run(task: ExactMatchTask, subject: Subject, folder: Path, seed: int, tick: Tick) -> dict[str, Any]:
    """One score and one item a conversation of heldout.jsonl in `folder`.

    The baseline always gives the answer that is most frequent in train.jsonl. A conversation that leaves
    no room for `max_new_tokens` in the model's context counts as wrong, and is counted (`too_long`).
    """
    everything = read(folder / "heldout.jsonl", task.task)
    asked = [everything[i] for i in choose(len(everything), task.items, task.task, seed=seed)]
    prompts = [subject.tokenizer.render(talk.messages, add_generation_prompt=True) for talk in asked]
    ids = [subject.tokenizer.encode_prompt(talk.messages) for talk in asked]
    fits = [len(prompt) + task.max_new_tokens <= subject.context for prompt in ids]
    if not any(fits):
        raise ShunterError(
            f"no conversation of {task.task!r} leaves {task.max_new_tokens} tokens for an answer in the "
            f"context of {subject.name}, {subject.context} tokens",
            mend="Lower max_new_tokens.",
        )
    written = write(
        subject,
        [prompt for prompt, fit in zip(ids, fits, strict=True) if fit],
        max_new_tokens=task.max_new_tokens,
        tools=task.tools,
        tick=lambda done, total: tick(done, total, "answers"),
    )
    following = iter(written)
    answers = [next(following) if fit else Written("", "too long") for fit in fits]
    items = [
        {
            "task": label(task),
            "id": talk.id,
            "metric": "exact_match",
            "unit": "fraction",
            "prompt": prompt,
            "response": answer.text,
            "target": talk.target,
            "score": float(fit and normal(answer.text, task.compare) == normal(talk.target, task.compare)),
            "stop": answer.stop,
        }
        for talk, prompt, answer, fit in zip(asked, prompts, answers, fits, strict=True)
    ]
    score = {
        "task": label(task),
        "metric": "exact_match",
        **proportion([float(str(item["score"])) for item in items]),
        "compare": task.compare,
    }
    counts = {"cut": sum(x.stop == "length" for x in written), "too_long": len(fits) - len(written)}
    score.update({name: count for name, count in counts.items() if count})
    if baseline := _most_frequent(folder / "train.jsonl", task, asked):
        score["baseline"] = baseline
    return {"scores": [score], "items": items}


def _most_frequent(path: Path, task: ExactMatchTask, asked: Sequence[Asked]) -> dict[str, Any] | None:
    try:
        counts = Counter(normal(talk.target, task.compare) for talk in read(path, task.task))
    except (OSError, ShunterError):
        return None  # nothing of this task was trained on
    answer = counts.most_common(1)[0][0]
    right = sum(normal(talk.target, task.compare) == answer for talk in asked)
    shown = answer if len(answer) <= 20 else answer[:20] + "..."
    return {"name": f"always {shown!r}, most frequent in training", "value": right / len(asked)}
