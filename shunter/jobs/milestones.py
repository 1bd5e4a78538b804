"""Milestones of a training: benchmark score and samples beside the loss, aligned by tokens seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from shunter.config.base import Config
from shunter.evaluate.config import DerivedChoices, MultipleChoiceTask
from shunter.record.events import EventLog

if TYPE_CHECKING:
    from shunter.models.decoder import Decoder
    from shunter.train.loop import Milestone


class Milestones(Config):
    """What to look at during a training besides its loss (arXiv 2412.13335)."""

    every: int = Field(250, ge=1, description="Steps between milestones; a multiple of validate_every.")
    prompts: list[str] = Field([], description="Beginnings that the model continues each time.")
    max_new_tokens: int = Field(60, ge=1, description="Tokens of each continuation.")
    temperature: float = Field(0.0, ge=0, description="Of sampling; 0: always the likeliest token.")
    questions: int = Field(
        0, ge=0, description="Multiple-choice questions made of held-out documents; 0: none."
    )
    choices: DerivedChoices = Field(default_factory=DerivedChoices, description="How they are made.")


def tracker(
    config: Milestones, decoder: Decoder, tokens: Path, events: EventLog, seed: int, last: int
) -> Milestone:
    """A function for the training loop: `(step, tokens seen) -> metrics`; samples go to the log.

    accuracy:   share of questions whose true continuation is the likeliest.
    distinct_2: different pairs of tokens among all pairs of the samples.
    repetition: share of tokens in the samples that repeat the four before them elsewhere.
    """
    from shunter.data.tokenizer import Tokenizer
    from shunter.evaluate import choices, multiple_choice
    from shunter.evaluate.heldout import HeldOut
    from shunter.evaluate.subject import Subject
    from shunter.generate.config import SamplingConfig
    from shunter.generate.engine import generate

    tokenizer = Tokenizer.load(tokens / "tokenizer")
    task = MultipleChoiceTask(kind="multiple-choice", derived=config.choices, items=config.questions)
    questions = choices.of(task, Path(), HeldOut(tokens), seed) if config.questions else []
    prompts = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in config.prompts]
    sampling = SamplingConfig(temperature=config.temperature, max_new_tokens=config.max_new_tokens)

    def look(step: int, seen: int) -> Mapping[str, float]:
        if step % config.every and step != last:
            return {}
        values: dict[str, float] = {}
        if questions:
            subject = Subject("model", decoder, tokenizer, decoder.head_weight.device)
            found = multiple_choice.run("choices", subject, questions, lambda *_: None)
            values["milestone/accuracy"] = float(found["scores"][0]["value"])
        if prompts:
            done = generate(decoder, prompts, sampling, tokenizer.stop_ids, seed)
            ids = [completion.ids for completion in done]
            for text, written in zip(config.prompts, ids, strict=True):
                answer = tokenizer.decode(written, skip_special=True)
                events.write("sample", step=step, tokens=seen, prompt=text, text=answer)
            values["milestone/distinct_2"] = distinct(ids, 2)
            values["milestone/repetition"] = repetition(ids, 4)
        return values

    return look


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams among all n-grams of the texts (arXiv 1510.03055); 0 when there is none."""
    grams = [tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[Sequence[int]], n: int) -> float:
    """Share of n-grams that stood in the same text before; 0 when there is none."""
    repeated = total = 0
    for ids in texts:
        seen: set[tuple[int, ...]] = set()
        for i in range(len(ids) - n + 1):
            gram = tuple(ids[i : i + n])
            repeated += gram in seen
            total += 1
            seen.add(gram)
    return repeated / total if total else 0.0
