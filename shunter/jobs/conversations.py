"""The job `conversations`: what a model is tuned on, from a person's files or made from other data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data import arithmetic, checks
from shunter.data.sources import Problem, Record, SourceConfig, contents, files
from shunter.jobs.practice import ProgramsConfig, PuzzlesConfig, programmed, puzzled
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

if TYPE_CHECKING:
    from shunter.data.contamination import Contamination
    from shunter.data.talks import Talk


class ArithmeticConfig(Config):
    """Questions such as "What is 48 / 2?" from the calculator notes of worked problems."""

    source: SourceConfig = Field(description="Worked problems; `field` is where the notes stand.")
    heldout: SourceConfig | None = Field(
        None, description="Problems for the held-out split; none: a share of `source`'s expressions."
    )
    phrasings: int = Field(2, ge=1, le=5, description="Ways in which each training expression is asked.")
    up_to: int = Field(
        0, ge=0, le=1000, description="Also ask all sums, differences and products of numbers up to this one."
    )
    limit: int = Field(0, ge=0, description="Expressions of the sources to use in each split; 0: all.")


class ContinuationConfig(Config):
    """Requests to continue a document of a corpus from some place."""

    corpus: Annotated[str, Input("corpus")] = Field(
        description="Job that made it; its held-out documents make held-out requests."
    )
    sources: list[str] = Field([], description="Names of the corpus's sources to use; empty: all.")
    per_document: int = Field(4, ge=1, description="Places in each document.")
    prompt_chars: int = Field(200, ge=20, description="Characters shown, about.")
    answer_chars: int = Field(200, ge=20, description="Characters to answer with, about.")


class DecontaminateConfig(Config):
    """Leaves out conversations to learn from whose questions stand in those held out by other jobs."""

    against: Annotated[list[str], Input("conversations")] = Field(
        min_length=1, description="Jobs whose held-out questions must not be learnt."
    )
    words: int = Field(8, ge=1, description="Words in a run; a question with fewer is one run.")
    most: float = Field(
        0.5, ge=0, lt=1, description="Share of a question's words in common runs above which a text leaves."
    )


class ConversationsConfig(JobConfig):
    """Collects conversations and holds some out; no held-out question stands in the train split."""

    sources: list[SourceConfig] = Field([], description="Own conversations: JSONL or Parquet.")
    columns: list[str] = Field(
        [],
        exclude_if=lambda value: not value,  # jobs without are those that they were before there were any
        description="Fields of own records that stay beside their conversation, for the `target` of rewards.",
    )
    unanswered: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="Also keep own conversations that end before the assistant answers, or in which it says "
        "nothing: questions for jobs that answer themselves, as `rl` does.",
    )
    arithmetic: ArithmeticConfig | None = Field(None, description="Makes questions about numbers.")
    continuation: ContinuationConfig | None = Field(None, description="Makes requests to continue a text.")
    puzzles: PuzzlesConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,  # jobs without are those that they were before there were any
        description="Makes questions whose answers a rule can check.",
    )
    programs: ProgramsConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Makes problems whose answers are programs.",
    )
    decontaminate: DecontaminateConfig | None = Field(
        None, exclude_if=lambda value: value is None, description="Keeps evaluations out of what is learnt."
    )
    heldout: float = Field(
        0.05, ge=0, le=0.5, description="Share held out, where the kind has no split of its own."
    )

    @model_validator(mode="after")
    def _something(self) -> ConversationsConfig:
        made = (self.arithmetic, self.continuation, self.puzzles, self.programs)
        if not self.sources and all(each is None for each in made):
            raise ValueError("give sources, arithmetic, continuation, puzzles or programs")
        if (self.columns or self.unanswered) and not self.sources:
            raise ValueError("columns and unanswered are of own records: give sources, or leave them out")
        if taken := sorted({"id", "task", "messages"} & set(self.columns)):
            raise ValueError(f"columns names {', '.join(taken)}, which every conversation has by itself")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names a field twice")
        return self


class ConversationsJob:
    """Writes train.jsonl and heldout.jsonl (id, task, messages, and `columns`), problems.jsonl and
    summary.json; with `decontaminate` also contaminated.jsonl, what was left out and for which question."""

    kind: ClassVar[str] = "conversations"
    produces: ClassVar[str] = "conversations"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = ConversationsConfig

    def check(self, config: ConversationsConfig, base: Path) -> Sequence[str]:
        for source in config.sources:
            checks.check(source, base, whole=True)
        for source in _worked(config):
            checks.check(source, base)
        return []

    def reads(self, config: ConversationsConfig, base: Path) -> Sequence[Path]:
        sources = [*config.sources, *_worked(config)]
        return list(dict.fromkeys(path for source in sources for path in files(source, base)))

    def run(self, context: JobContext[ConversationsConfig]) -> dict[str, Any]:
        counts: dict[str, Counter[str]] = {split: Counter() for split in ("train", "heldout")}
        forms: dict[str, int] = {}
        seen: set[bytes] = set()
        duplicates = problems = 0
        with ExitStack() as stack:
            out = {
                split: stack.enter_context((context.out / f"{split}.jsonl").open("w", encoding="utf-8"))
                for split in counts
            }
            bad = stack.enter_context((context.out / "problems.jsonl").open("w", encoding="utf-8"))

            first: list[str] = []

            def report(problem: Problem) -> None:
                nonlocal problems
                problems += 1
                if not first:
                    first.append(f": {problem.file}, line {problem.line}: {problem.problem}")
                bad.write(json.dumps(vars(problem), ensure_ascii=False) + "\n")

            against = _evaluations(context)
            met: Counter[str] = Counter()
            if against is not None:
                path = context.out / "contaminated.jsonl"
                left_out = stack.enter_context(path.open("w", encoding="utf-8"))

            for number, (split, talk) in enumerate(_talks(context, report, forms), 1):
                if talk.digest in seen:
                    duplicates += 1
                    continue
                seen.add(talk.digest)
                match = against.worst(_asked(talk.messages)) if against and split == "train" else None
                if match is not None:
                    met[match.evaluation] += 1
                    left_out.write(json.dumps({"id": talk.id, **vars(match)}, ensure_ascii=False) + "\n")
                    continue
                counts[split][talk.task] += 1
                out[split].write(talk.line() + "\n")
                context.events.progress(number, None, "conversations")
                if number % 512 == 0 and context.control.stop_requested():
                    raise Stopped
        if not counts["train"]:
            raise ShunterError(
                "there is no conversation to train on" + "".join(first),
                mend="Mend the lines that cannot be read, or give more.",
            )
        summary = {**counts, "duplicates": duplicates, "problems": problems, "forms": forms}
        if against is not None:
            names = context.config.decontaminate.against if context.config.decontaminate else []
            summary["contaminated"] = {name: met[name] for name in names}
        (context.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return {
            "train": counts["train"].total(),
            "heldout": counts["heldout"].total(),
            "duplicates": duplicates,
            "problems": problems,
            **({} if against is None else {"contaminated": met.total()}),
        }


def _asked(messages: Sequence[Mapping[str, str]]) -> str:
    """What people say in a conversation."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def _evaluations(context: JobContext[ConversationsConfig]) -> Contamination | None:
    """The held-out questions of the jobs that must not be learnt from."""
    wanted = context.config.decontaminate
    if wanted is None:
        return None
    from shunter.data.contamination import Contamination

    found: dict[str, list[str]] = {}
    for name, artefact in zip(wanted.against, context.many("decontaminate.against"), strict=True):
        lines = (artefact.path / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [_asked(json.loads(line)["messages"]) for line in lines]
    return Contamination(found, wanted.words, wanted.most)


def _worked(config: ConversationsConfig) -> list[SourceConfig]:
    """The sources of worked problems."""
    found = [] if config.arithmetic is None else [config.arithmetic.source, config.arithmetic.heldout]
    return [source for source in found if source is not None]


def _talks(
    context: JobContext[ConversationsConfig], report: Any, forms: dict[str, int]
) -> Iterator[tuple[str, Talk]]:
    from shunter.data import corpus
    from shunter.data.talks import Columns, continuations, own

    config = context.config
    columns = Columns(config.columns)
    for source in config.sources:
        for talk in own(source, context.base, report, forms, columns, config.unanswered):
            # By the question alone: the same question with another answer stays on the same side.
            yield (
                _side("\n".join(m["content"] for m in talk.messages if m["role"] != "assistant"), config),
                talk,
            )
    columns.check()
    if config.arithmetic is not None:
        yield from _arithmetic(config.arithmetic, context, report)
    if config.puzzles is not None:
        yield from puzzled(config.puzzles, partial(_side, config=config), config.seed)
    if config.programs is not None:
        yield from programmed(config.programs, partial(_side, config=config), config.seed)
    if config.continuation is not None:
        folder, wanted = context.one("continuation.corpus").path, config.continuation
        for split in ("train", "heldout"):
            for document in corpus.texts(folder / split):
                if wanted.sources and document.source not in wanted.sources:
                    continue
                for talk in continuations(
                    document.id,
                    document.text,
                    wanted.per_document,
                    wanted.prompt_chars,
                    wanted.answer_chars,
                    config.seed,
                ):
                    yield split, talk


def _arithmetic(
    config: ArithmeticConfig, context: JobContext[ConversationsConfig], report: Any
) -> Iterator[tuple[str, Talk]]:
    from shunter.data.talks import Talk

    train = _expressions(config.source, context.base, report)
    if config.heldout is not None:
        heldout = _expressions(config.heldout, context.base, report)
        heldout = {key: e for key, e in heldout.items() if key not in train}
    else:
        heldout = {key: e for key, e in train.items() if _side(key, context.config) == "heldout"}
        train = {key: e for key, e in train.items() if key not in heldout}
    if config.limit:
        train, heldout = (dict(list(found.items())[: config.limit]) for found in (train, heldout))
    for key, expression in arithmetic.table(config.up_to).items():
        if key not in train and key not in heldout:
            side = train if _side(key, context.config) == "train" else heldout
            side[key] = expression
    for split, found, ways in (("train", train, config.phrasings), ("heldout", heldout, 1)):
        for key, expression in found.items():
            first = derive_seed(context.config.seed, "phrasing", key) % arithmetic.phrasings()
            for way in range(ways):
                yield split, Talk(f"{key}@{way}", "arithmetic", arithmetic.ask(expression, first + way))


def _expressions(source: SourceConfig, base: Path, report: Any) -> dict[str, arithmetic.Expression]:
    """Each expression once, by its key, in the order of the source."""
    found: dict[str, arithmetic.Expression] = {}
    for item in contents(source, base, report):
        text = item.fields.get(source.field) if isinstance(item, Record) else item
        if not isinstance(text, str):
            assert isinstance(item, Record)
            report(Problem(item.file, item.line, f"field {source.field!r} is not text", "skipped"))
            continue
        for expression in arithmetic.expressions(text):
            found.setdefault(expression.key, expression)
    return found


def _side(key: str, config: ConversationsConfig) -> str:
    share = derive_seed(config.seed, "heldout", key) / 2**63
    return "heldout" if share < config.heldout else "train"


JOB = ConversationsJob()
