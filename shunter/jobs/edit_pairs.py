"""The job `edit-pairs`: what an expert made of documents becomes conversations that teach a model the same.

It learns edit programs (RefineX, arXiv 2507.03253, section 3.2), or to write the text anew.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data import checks
from shunter.data.curation.differences import distil
from shunter.data.curation.edits import chunks, numbered, within, written
from shunter.data.sources import Problem, Record, SourceConfig, contents, files
from shunter.data.talks import Talk
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

SPLITS = ("train", "heldout")


class EditPairsConfig(JobConfig):
    """Makes conversations from documents and what an expert made of them."""

    raw: Annotated[str | None, Input("corpus")] = Field(
        None, description="Job whose corpus has the documents as they were."
    )
    refined: Annotated[str | None, Input("corpus")] = Field(
        None,
        description="Job whose corpus has them refined, under the same ids; what is not there was deleted.",
    )
    sources: list[SourceConfig] = Field(
        [], description="Instead: records with both texts, the document as it was in `field`."
    )
    refined_field: str = Field("refined", description="Field of `sources` that has the refined text.")
    writes: Literal["program", "text"] = Field(
        "program", description="What is to be learnt: to write edit programs, or the refined text itself."
    )
    chunk_chars: int = Field(
        4000, ge=1, description="Documents are shown in chunks of whole lines of about so many characters."
    )
    keep_all: float | None = Field(
        0.25,
        ge=0,
        lt=1,
        description="Most of the programs to learn from that may delete nothing, drawn by the seed; null: as "
        "they come.",
    )
    heldout: float = Field(
        0.05, ge=0, le=0.5, description="Share held out, of documents that are in no part."
    )

    @model_validator(mode="after")
    def _both(self) -> EditPairsConfig:
        if (self.raw is None) != (self.refined is None) or (self.raw is None) == (not self.sources):
            raise ValueError("give raw and refined, two corpora, or sources with both texts")
        return self


@dataclass(frozen=True)
class Pair:
    """split: where it belongs; None: by its id."""

    id: str
    raw: str
    refined: str
    split: str | None = None


class EditPairsJob:
    """Writes train.jsonl and heldout.jsonl (id, task, messages), dropped.jsonl, problems.jsonl and
    summary.json. Holds the refined corpus in memory, and programs that delete nothing."""

    kind: ClassVar[str] = "edit-pairs"
    produces: ClassVar[str] = "conversations"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = EditPairsConfig

    def check(self, config: EditPairsConfig, base: Path) -> Sequence[str]:
        for source in config.sources:
            checks.check(source, base, whole=True)
        return []

    def reads(self, config: EditPairsConfig, base: Path) -> Sequence[Path]:
        return list(dict.fromkeys(path for source in config.sources for path in files(source, base)))

    def run(self, context: JobContext[EditPairsConfig]) -> dict[str, Any]:
        made = _Made(context)
        for number, pair in enumerate(_pairs(context, made), 1):
            made.add(pair)
            context.events.progress(number, None, "documents")
            if number % 256 == 0 and context.control.stop_requested():
                made.close()
                raise Stopped
        counts = made.finish()
        if not counts["train"]:
            raise ShunterError(
                f"there is nothing to learn from: {dict(made.reasons)}",
                mend="See dropped.jsonl, or give more.",
            )
        return counts


class _Made:
    """What is written, while it is."""

    def __init__(self, context: JobContext[EditPairsConfig]) -> None:
        self.config, self.folder = context.config, context.out
        names = (*(f"{split}.jsonl" for split in SPLITS), "dropped.jsonl", "problems.jsonl")
        self._files: dict[str, IO[str]] = {
            name: (context.out / name).open("w", encoding="utf-8") for name in names
        }
        self.reasons: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._keeping: list[tuple[int, str, str]] = []  # programs to learn from that delete nothing

    def add(self, pair: Pair) -> None:
        """Take a document apart into conversations, or say why not."""
        self.counts["documents"] += 1
        share = derive_seed(self.config.seed, "heldout", pair.id) / 2**63
        split = pair.split or ("heldout" if share < self.config.heldout else "train")
        if self.config.writes == "text":
            if len(pair.raw) > self.config.chunk_chars:
                self._drop(
                    pair.id, "longer than a chunk"
                )  # which of the refined text is its own, nobody knows
            elif not pair.refined.strip():
                self._drop(pair.id, "nothing is left")
            else:
                self._write(split, pair.id, pair.raw, pair.refined)
            return
        calls, why = distil(pair.raw, pair.refined)
        if calls is None:
            self._drop(pair.id, why)
            return
        for number, (begin, part) in enumerate(chunks(pair.raw, self.config.chunk_chars)):
            mine = within(calls, begin, part.count("\n") + 1)
            name = f"{pair.id}#{number}"
            self.counts["calls"] += len(mine)
            if mine or split != "train" or self.config.keep_all is None:
                self._write(split, name, numbered(part), written(mine))
            else:
                drawn = derive_seed(self.config.seed, "keep", name)
                self._keeping.append((drawn, name, numbered(part)))

    def problem(self, problem: Problem) -> None:
        """A record that cannot be read."""
        self.counts["problems"] += 1
        self._files["problems.jsonl"].write(json.dumps(vars(problem), ensure_ascii=False) + "\n")

    def finish(self) -> dict[str, Any]:
        """Write as many programs that delete nothing as may be, and the summary."""
        edits, most = self.counts["train"], self.config.keep_all
        self._keeping.sort()
        room = len(self._keeping) if most is None else int(most / (1 - most) * edits + 1e-9)
        for number, (_, name, shown) in enumerate(self._keeping):
            if number < room:
                self._write("train", name, shown, written([]))
            else:
                self._drop(name, "deletes nothing")
        self.counts["deletes nothing"] = min(room, len(self._keeping))
        self.close()
        names = ("documents", *SPLITS, "calls", "deletes nothing", "problems")
        found: dict[str, Any] = {name: self.counts[name] for name in names}
        summary = {**found, "dropped": dict(sorted(self.reasons.items()))}
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return {**found, "dropped": self.reasons.total()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, split: str, name: str, shown: str, answer: str) -> None:
        messages = [{"role": "user", "content": shown}, {"role": "assistant", "content": answer}]
        self._files[f"{split}.jsonl"].write(Talk(name, "refine", messages).line() + "\n")
        self.counts[split] += 1

    def _drop(self, name: str, reason: str) -> None:
        self.reasons[reason] += 1
        record = {"id": name, "operator": "edit-pairs", "reason": reason}
        self._files["dropped.jsonl"].write(json.dumps(record, ensure_ascii=False) + "\n")


def _pairs(context: JobContext[EditPairsConfig], made: _Made) -> Iterator[Pair]:
    from shunter.data import corpus

    config = context.config
    for source in config.sources:
        for number, item in enumerate(contents(source, context.base, made.problem, whole=True)):
            if not isinstance(item, Record):
                raise ShunterError(
                    f"source {source.label!r} holds plain text, not records of two texts",
                    mend=f"Give JSONL or Parquet with {source.field!r} and {config.refined_field!r}.",
                )
            raw, refined = item.fields.get(source.field), item.fields.get(config.refined_field)
            if isinstance(raw, str) and isinstance(refined, str):
                yield Pair(f"{source.label}:{number}", raw, refined)
            else:
                told = f"{source.field!r} or {config.refined_field!r} is not text"
                made.problem(Problem(item.file, item.line, told, "skipped"))
    if config.raw is None:
        return
    folder = context.one("refined").path
    refined = {text.id: text.text for split in SPLITS for text in corpus.texts(folder / split)}
    folder = context.one("raw").path
    parted = any(True for _ in corpus.rows(folder / "heldout"))
    for split in SPLITS:
        for text in corpus.texts(folder / split):
            yield Pair(text.id, text.text, refined.get(text.id, ""), split if parted else None)


JOB = EditPairsJob()
"""The kind `edit-pairs`."""
