"""An operator whose edits a model writes: programs that delete, or whole texts (RefineX, arXiv 2507.03253).

A text that does not fit the model is shown in chunks of whole lines. Each chunk's lines are numbered from 0;
what its program names is counted from the document's beginning before anything is deleted, so calls of all
chunks mean the original. Where chunks overlap, what either deletes is deleted.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field, PrivateAttr

from shunter.config.errors import ShunterError
from shunter.data.curation.edits import Call, RemoveLines, execute, numbered, parse, shifted, words, written
from shunter.data.curation.operators import Facts, Operator, Verdicts
from shunter.data.curation.pages import Pages

FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Written:
    """What a model answered. tokens: that it wrote. ended: whether it ended by itself."""

    text: str
    tokens: int
    ended: bool


class Writer(Protocol):
    """A model that is shown texts and answers each. It is sent to workers, so it must pickle."""

    def room(self) -> int:
        """Tokens that a text may have."""
        ...

    def sizes(self, lines: Sequence[str]) -> list[int]:
        """Tokens of each."""
        ...

    def write(self, shown: Sequence[str]) -> list[Written]:
        """The answer to each text. It does not depend on which others are asked, but for rounding."""
        ...


class Refine(Operator):
    """Lets a model write an edit program for each document, and runs it; a document that is left empty goes.

    writes: program deletes only. text: the model writes the document anew, as an expert does that is to be
    learnt from; it may invent words, which are counted.
    """

    source: ClassVar[str] = "RefineX, arXiv 2507.03253, section 3; `max_new_tokens`: Prox-C's code"
    ours: ClassVar[tuple[str, ...]] = ("batch", "whole_words")

    kind: Literal["refine"] = Field("refine", description="Edits by a model's programs.")
    model: str = Field(
        "", description="Folder of a model with one file of weights; default: the job's `refiner`."
    )
    writes: Literal["program", "text"] = Field(
        "program", description="What the model answers: an edit program, or the refined text itself."
    )
    prompt: str = Field(
        "",
        description="What the model is told before each text, if it was not tuned to refine; such as an "
        "expert, which is asked for its reason and then for the text.",
    )
    tag: str = Field(
        "",
        pattern=r"^[\w-]*$",
        description="The answer is what stands between <tag> and </tag>; where both do not, nothing is done.",
    )
    chunk_tokens: int = Field(
        12_000,
        ge=16,
        description="Largest chunk in tokens, line numbers included; less if the model has less room.",
    )
    max_new_tokens: int = Field(256, ge=1, description="Tokens of an answer at most; Prox-C's programs: 256.")
    batch: int = Field(32, ge=1, description="Chunks that are answered together.")
    whole_words: bool = Field(
        True,
        description="Skip strings that would cut a word or join two, so that no word is invented; the paper "
        "does not.",
    )
    _writer: Writer | None = PrivateAttr(None)

    def written_by(self, writer: Writer) -> Refine:
        """The same, with the model at hand."""
        found = self.model_copy()
        found._writer = writer
        return found

    def files(self) -> list[str]:
        return [f"{self.model}/{name}" for name in FILES] if self.model else []

    def rooted(self, base: Path) -> Refine:
        return self.model_copy(update={"model": str(base / self.model)}) if self.model else self

    def columns(self) -> dict[str, str]:
        """program: what was executed, in the document's numbers; keep_all() where nothing was."""
        return {"program": "string"} if self.writes == "program" else {}

    def judge_with(self, pages: Pages, facts: Facts) -> Verdicts:
        assert self._writer is not None, "the job gives the model"
        before = list(pages.texts)
        counts: Counter[str] = Counter()
        if self.writes == "program":
            texts, programs = self._programs(before, self._writer, counts)
            told = {"program": np.array(programs, object)}
        else:
            texts, told = self._texts(before, self._writer, counts), {}
        for old, new in zip(before, texts, strict=True):
            known = set(words(old))
            counts["documents edited"] += old != new
            counts["new words"] += sum(word not in known for word in words(new))
        gone = np.array([not new.strip() for new in texts], bool)
        return Verdicts(
            ["nothing is left"],
            np.where(gone, 0, -1).astype(np.int16),
            np.where(gone, 0.0, 1.0),
            np.zeros(len(texts)),
            told,
            texts=texts,
            counts={name: count for name, count in counts.items() if count},
        )

    def _programs(
        self, texts: Sequence[str], writer: Writer, counts: Counter[str]
    ) -> tuple[list[str], list[str]]:
        room = self._room(writer)
        calls: list[list[Call]] = [[] for _ in texts]
        asked: list[tuple[int, int, str]] = []  # document, first line, what is shown
        for place, text in enumerate(texts):
            lines = text.split("\n")
            sizes = writer.sizes([f"[{number}] {line}\n" for number, line in enumerate(lines)])
            for begin, end in spread(sizes, room):
                if sum(sizes[begin:end]) > room:
                    counts["lines too long for the model"] += 1
                else:
                    asked.append((place, begin, numbered("\n".join(lines[begin:end]))))
        for (place, begin, shown), answer in zip(asked, self._asked(asked, writer, counts), strict=True):
            found, malformed = parse(self._answered(answer.text, counts) or "")
            last = shown.count("\n")  # the model has seen no line behind it
            mine = [call for call in found if _last(call) <= last]
            counts["malformed calls"] += malformed
            counts["calls skipped"] += len(found) - len(mine)
            calls[place] += shifted(mine, begin)
        found_texts, programs = [], []
        for text, told in zip(texts, calls, strict=True):
            once = list(dict.fromkeys(told))  # chunks that overlap may say one thing twice
            edited = execute(text, once, whole_words=self.whole_words)
            counts["calls"] += edited.executed
            counts["calls skipped"] += edited.skipped
            counts["characters deleted"] += edited.deleted
            found_texts.append(edited.text)
            programs.append(written(edited.applied))
        return found_texts, programs

    def _texts(self, texts: Sequence[str], writer: Writer, counts: Counter[str]) -> list[str]:
        room = self._room(writer)
        parts: list[list[str]] = [[] for _ in texts]
        asked: list[tuple[int, int, str]] = []
        for place, text in enumerate(texts):
            lines = text.split("\n")
            sizes = writer.sizes([f"{line}\n" for line in lines])
            for number, (begin, end) in enumerate(greedy(sizes, room)):
                part = "\n".join(lines[begin:end])
                parts[place].append(part)
                if sum(sizes[begin:end]) > room:  # such a line stays as it is
                    counts["lines too long for the model"] += 1
                else:
                    asked.append((place, number, part))
        for (place, number, _), answer in zip(asked, self._asked(asked, writer, counts), strict=True):
            if (found := self._answered(answer.text, counts)) is not None:
                parts[place][number] = found
        return ["\n".join(part for part in mine if part) for mine in parts]

    def _asked(
        self, asked: Sequence[tuple[int, int, str]], writer: Writer, counts: Counter[str]
    ) -> list[Written]:
        told = f"{self.prompt}\n\n" if self.prompt else ""
        answers = writer.write([told + shown for _, _, shown in asked]) if asked else []
        counts["chunks"] += len(asked)
        counts["tokens written"] += sum(answer.tokens for answer in answers)
        counts["answers cut off"] += sum(not answer.ended for answer in answers)
        return answers

    def _room(self, writer: Writer) -> int:
        told = writer.sizes([f"{self.prompt}\n\n"])[0] if self.prompt else 0
        if (found := writer.room() - told) < 1:
            raise ShunterError(
                f"the prompt of {told} tokens leaves no room for a text",
                where="refine",
                mend="Shorten `prompt`, lower `max_new_tokens`, or take a model with a longer context.",
            )
        return min(self.chunk_tokens, found)

    def _answered(self, text: str, counts: Counter[str]) -> str | None:
        """What counts of an answer; None where the tags are missing."""
        if not self.tag:
            return text
        found = re.search(rf"<{self.tag}>\n?(.*?)\n?</{self.tag}>", text, re.DOTALL)
        counts["answers without the tag"] += found is None
        return None if found is None else found[1]


def _last(call: Call) -> int:
    """The last line that a call names."""
    return call.last if isinstance(call, RemoveLines) else call.line


def greedy(sizes: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of chunks as full as they can be, one after another; an element that is larger than `room`
    is one alone."""
    begin = 0
    while begin < len(sizes):
        end, held = begin + 1, sizes[begin]
        while end < len(sizes) and held + sizes[end] <= room:
            held += sizes[end]
            end += 1
        yield begin, end
        begin = end


def spread(sizes: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of as few full chunks, which overlap about evenly: none is a short rest without context.

    Every element stands in one at least; one that is larger than `room` is alone.
    """
    count = sum(1 for _ in greedy(sizes, room))
    starts = [0, *itertools.accumulate(sizes)]
    step = (starts[-1] - room) / max(count - 1, 1)
    begin = reached = number = 0
    while reached < len(sizes):
        end = max(reached, begin + 1)
        while end < len(sizes) and starts[end + 1] - starts[begin] <= room:
            end += 1
        if end == reached:  # what is next is too large
            begin = reached
            continue
        yield begin, end
        reached = end
        number += 1
        aimed = int(np.searchsorted(starts, number * step, side="right")) - 1
        begin = min(max(aimed, begin + 1), reached)
