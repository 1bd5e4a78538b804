"""What to measure: one configuration a kind of task. Imports without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shunter.config.base import Config
from shunter.generate.config import ToolConfig
from shunter.post.config import RewardConfig

NAME = r"^[\w. ()-]*$"


class BitsPerByteTask(Config):
    """Bits that the model needs for a byte of held-out text, beside `xz -9` on the same text."""

    kind: Literal["bits-per-byte"] = Field("bits-per-byte", description="The kind of task.")
    name: str = Field("heldout", min_length=1, pattern=NAME, description="Name in tables.")
    window: int = Field(0, ge=0, description="Tokens that the model sees at once; 0: a row, or its context.")
    overlap: float = Field(
        0.5, ge=0, le=0.9, description="Share of a window that was predicted before and is context only."
    )
    by_source: bool = Field(True, description="Also score each source of the corpus alone.")
    documents: int = Field(0, ge=0, description="Documents to score, drawn by the seed; 0: all.")


class ExactMatchTask(Config):
    """Answers to held-out conversations, right when they equal the assistant's."""

    kind: Literal["exact-match"] = Field(description="The kind of task.")
    task: str = Field(min_length=1, description="Conversations to ask: those whose `task` has this name.")
    name: str = Field("", pattern=NAME, description="Name in tables; empty: that of the conversations' task.")
    items: int = Field(200, ge=0, description="Conversations to ask, drawn by the seed; 0: all.")
    max_new_tokens: int = Field(32, ge=1, description="Longest answer in tokens.")
    compare: Literal["text", "number"] = Field(
        "text",
        description="text: equal but for white space; "
        "number: the last number of the answer is the last of the target.",
    )
    tools: ToolConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,  # jobs without are those that they were before there were any
        description="Tools that the model may ask while it answers.",
    )


class VerifiedTask(Config):
    """Answers to held-out conversations, graded by the rules that `rl` takes as rewards."""

    kind: Literal["verified"] = Field(description="The kind of task.")
    task: str = Field(min_length=1, description="Conversations to ask: those whose `task` has this name.")
    name: str = Field("", pattern=NAME, description="Name in tables; empty: that of the conversations' task.")
    rewards: list[RewardConfig] = Field(
        min_length=1, description="Rules; an answer passes that is worth all their weights together."
    )
    items: int = Field(200, ge=0, description="Conversations to ask, drawn by the seed; 0: all.")
    samples: int = Field(1, ge=1, description="Answers to each.")
    temperature: float = Field(0.0, ge=0, description="Of sampling; 0: always the likeliest token.")
    max_new_tokens: int = Field(32, ge=1, description="Longest answer in tokens.")
    tools: ToolConfig | None = Field(None, description="Tools that the model may ask while it answers.")

    @model_validator(mode="after")
    def _consistent(self) -> VerifiedTask:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are one and the same")
        if any(reward.kind == "model" for reward in self.rewards):
            raise ValueError("a reward model measures nothing: give rules")
        return self


class DerivedChoices(Config):
    """Choices made of held-out documents: which text goes on from here?"""

    sources: list[str] = Field([], description="Names of the corpus's sources to use; empty: all.")
    choices: int = Field(4, ge=2, le=26, description="Continuations shown: the true one, others' the rest.")
    per_document: int = Field(4, ge=1, description="Most questions from one document.")
    prompt_chars: int = Field(200, ge=20, description="Characters shown, about.")
    answer_chars: int = Field(80, ge=10, description="Characters of each continuation, about.")


class MultipleChoiceTask(Config):
    """The likeliest of some answers, by the model's own probabilities."""

    kind: Literal["multiple-choice"] = Field(description="The kind of task.")
    name: str = Field("multiple-choice", min_length=1, pattern=NAME, description="Name in tables.")
    path: str | None = Field(
        None, description="JSONL of question, choices and answer (from 0), relative to the recipe."
    )
    derived: DerivedChoices | None = Field(None, description="Makes questions of held-out documents.")
    prompt: str = Field(
        "{question}\nAnswer:", description="How a file's question is put; the choice follows after a space."
    )
    items: int = Field(200, ge=0, description="Questions, drawn by the seed; 0: all.")

    @model_validator(mode="after")
    def _one_source(self) -> MultipleChoiceTask:
        if (self.path is None) == (self.derived is None):
            raise ValueError("give either path, for questions in a file, or derived")
        if "{question}" not in self.prompt:
            raise ValueError("prompt must hold {question}")
        return self


class SamplesTask(Config):
    """What the models write after fixed prompts, for people to read. Nothing is scored."""

    kind: Literal["samples"] = Field("samples", description="The kind of task.")
    name: str = Field("samples", min_length=1, pattern=NAME, description="Name in tables.")
    prompts: list[str] = Field(
        [], description="What each text begins with; empty: beginnings of held-out documents."
    )
    form: Literal["plain", "chat"] = Field(
        "plain", description="plain: the prompt is continued; chat: it is asked as a user's message."
    )
    count: int = Field(4, ge=1, le=100, description="Beginnings to take when no prompts are given.")
    prompt_chars: int = Field(60, ge=1, description="Their length in characters, about.")
    max_new_tokens: int = Field(80, ge=1, description="Longest continuation in tokens.")
    temperature: float = Field(0.8, ge=0, description="Of sampling; 0: always the likeliest token.")
    top_k: int = Field(0, ge=0, description="Sample among the k likeliest tokens; 0: among all.")
    top_p: float = Field(
        0.95, gt=0, le=1, description="Sample among the likeliest tokens that hold this share."
    )


class LmEvalTask(Config):
    """Tasks of lm-evaluation-harness with local data (needs the extra lm-eval)."""

    kind: Literal["lm-eval"] = Field(description="The kind of task.")
    name: str = Field("lm-eval", min_length=1, pattern=NAME, description="Name of this entry.")
    path: str = Field(description="Folder of the tasks' YAML files and data, relative to the recipe.")
    tasks: list[str] = Field(min_length=1, description="Names of the tasks to run.")
    fewshot: int | None = Field(
        None, ge=0, description="Examples before each question; null: the task's own."
    )
    limit: int = Field(0, ge=0, description="First items of each task to score; 0: all.")
    chat: bool = Field(False, description="Put questions by the model's chat template.")


Task = Annotated[
    BitsPerByteTask | ExactMatchTask | VerifiedTask | MultipleChoiceTask | SamplesTask | LmEvalTask,
    Field(discriminator="kind"),
]


def label(task: Task) -> str:
    """A task's name in tables."""
    return task.name or (task.task if isinstance(task, ExactMatchTask | VerifiedTask) else task.kind)
