"""Questions with a few possible answers, from a file or made of held-out documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.evaluate.config import DerivedChoices, MultipleChoiceTask
from shunter.evaluate.heldout import Document, HeldOut, choose


@dataclass(frozen=True)
class Question:
    """`prompt` goes on with one of `choices`; `answer` is the number of the right one."""

    id: str
    prompt: str
    choices: list[str]
    answer: int


def of(task: MultipleChoiceTask, base: Path, held: HeldOut | None, seed: int) -> list[Question]:
    """The questions of a task, as many as it asks for. `base` is the recipe's folder."""
    if task.path is not None:
        everything = from_file(base / task.path, task.prompt)
    else:
        assert task.derived is not None
        assert held is not None
        everything = derive(held.documents, task.derived, seed)
    return [everything[i] for i in choose(len(everything), task.items, task.name, seed=seed)]


def from_file(path: Path, form: str) -> list[Question]:
    """One JSON object a line: question (text), choices (list of texts), answer (number from 0), id if any."""
    found: list[Question] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ShunterError(f"the questions cannot be read ({error.strerror})", where=str(path)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise ShunterError(f"not JSON ({error.msg})", where=where) from error
        question = fields.get("question") if isinstance(fields, dict) else None
        if not isinstance(question, str):
            raise ShunterError("no text under 'question'", where=where)
        choices, answer = fields.get("choices"), fields.get("answer")
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
            raise ShunterError("'choices' must be a list of at least two texts", where=where)
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise ShunterError(
                f"'answer' is {answer!r}; it must be the number of a choice, 0 to {len(choices) - 1}",
                where=where,
            )
        prompt = form.replace("{question}", question)
        # A byte-level tokenizer puts the space before a word into the word's token.
        follow = [c if c[:1].isspace() else f" {c}" for c in choices]
        found.append(Question(str(fields.get("id", number)), prompt, follow, answer))
    if not found:
        raise ShunterError("the file holds no question", where=str(path))
    return found


def derive(documents: Sequence[Document], config: DerivedChoices, seed: int) -> list[Question]:
    """Which of these texts goes on from here?

    The true continuation stands among pieces of other held-out documents, of the same source where it
    has enough: otherwise the sort of text alone would tell. All pieces begin at a space and have the
    same length in characters, but for the last word. The same documents and seed give the same
    questions whatever the model.
    """
    texts = [
        d for d in documents if d.text is not None and (not config.sources or d.source in config.sources)
    ]
    need = config.prompt_chars + config.answer_chars
    long = [d for d in texts if d.text is not None and len(d.text) >= need + 2]
    found: list[Question] = []
    for document in long:
        others = [d for d in long if d.source == document.source and d.id != document.id]
        if len(others) < config.choices - 1:
            others = [d for d in long if d.id != document.id]
        if len(others) < config.choices - 1:
            continue
        assert document.text is not None
        places = min(config.per_document, max(1, len(document.text) // (2 * need)))
        for number in range(places):
            generator = np.random.default_rng(derive_seed(seed, "derived", document.id, number))
            at = int(generator.integers(len(document.text) - need - 1))
            border = document.text.find(" ", at + config.prompt_chars)
            true = _piece(document.text, border, config.answer_chars)
            chosen = generator.permutation(len(others))[: config.choices - 1]
            pieces = [true]
            for other in chosen.tolist():
                text = others[other].text
                assert text is not None
                place = text.find(" ", int(generator.integers(len(text) - config.answer_chars - 1)))
                pieces.append(_piece(text, place, config.answer_chars))
            if None in pieces or len(set(pieces)) < len(pieces):
                continue  # no space where one was needed, or two texts alike: not a question
            order = generator.permutation(len(pieces)).tolist()
            begin = document.text.rfind(" ", 0, at + 1) + 1
            found.append(
                Question(
                    f"{document.id}#{number}",
                    document.text[begin:border],
                    [str(pieces[i]) for i in order],
                    order.index(0),
                )
            )
    if not found:
        raise ShunterError(
            f"no question can be made of {len(documents)} held-out documents",
            mend=f"At least {config.choices} must be longer than {need} characters; ask for fewer choices "
            "or shorter pieces.",
        )
    return found


def _piece(text: str, border: int, length: int) -> str | None:
    """From the space at `border` on, `length` characters less a broken last word; None if too short."""
    if border < 0 or border + length > len(text):
        return None
    piece = text[border : border + length]
    if border + length < len(text) and not text[border + length].isspace():
        piece = piece[: piece.rfind(" ")] if piece.rfind(" ") > 0 else piece
    return piece if piece.strip() else None
