"""The job `preferences`: pairs of answers, from a person's files or written by models and judged by rules."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data import chat, checks
from shunter.data.sources import Problem, Record, SourceConfig, contents, files
from shunter.jobs import contexts, taught
from shunter.post.config import RewardConfig
from shunter.recipe.graph import Graph, Node
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

SPLITS = ("train", "heldout")
AT_ONCE = 16  # prompts between two looks at whether a stop was requested
SHOWN = 3  # causes that a sentence names, the most frequent ones


class SampledConfig(Config):
    """Answers of models to prompts, of which the best and a worse one make a pair."""

    models: Annotated[list[str], Input("model")] = Field(description="Jobs whose models answer.")
    prompts: Annotated[str, Input("conversations")] = Field(description="Job that made the conversations.")
    task: str | None = Field(None, description="Conversations to ask: those of this task; none: all.")
    rewards: list[RewardConfig] = Field(min_length=1, description="What an answer is worth.")
    count: int = Field(0, ge=0, description="Prompts of each split to ask; 0: all.")
    per_prompt: int = Field(4, ge=1, description="Answers of each model to each prompt.")
    max_new_tokens: int = Field(64, ge=1, description="Longest answer in tokens.")
    temperature: float = Field(1.0, gt=0, description="Of sampling.")


class PreferencesConfig(JobConfig):
    """Collects pairs of answers to one prompt, a better and a worse one."""

    sources: list[SourceConfig] = Field([], description="Own pairs: JSONL or Parquet.")
    sampled: SampledConfig | None = Field(None, description="Lets models answer, and judges.")
    heldout: float = Field(0.1, ge=0, le=0.5, description="Share of own pairs that is held out, by prompt.")

    @model_validator(mode="after")
    def _something(self) -> PreferencesConfig:
        if not self.sources and self.sampled is None:
            raise ValueError("give sources or sampled")
        return self


class PreferencesJob:
    """Writes train.jsonl and heldout.jsonl (id, messages, chosen, rejected), problems.jsonl, summary.json."""

    kind: ClassVar[str] = "preferences"
    produces: ClassVar[str] = "preferences"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = PreferencesConfig

    def check(self, config: PreferencesConfig, base: Path) -> Sequence[str]:
        for source in config.sources:
            checks.check(source, base, whole=True)
        if config.sampled is not None:
            taught.check_rewards(config.sampled.rewards, None, base)
        return []

    def check_graph(self, node: Node, graph: Graph) -> Sequence[str]:
        config = node.config
        assert isinstance(config, PreferencesConfig)
        asked = {} if config.sampled is None else {"sampled.max_new_tokens": config.sampled.max_new_tokens}
        return contexts.check(graph, node, "sampled.models", asked)

    def reads(self, config: PreferencesConfig, base: Path) -> Sequence[Path]:
        told = [] if config.sampled is None else taught.reads(config.sampled.rewards, base)
        return list(dict.fromkeys([*(path for s in config.sources for path in files(s, base)), *told]))

    def run(self, context: JobContext[PreferencesConfig]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        causes: Counter[str] = Counter()
        first = ""
        out = {split: (context.out / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
        bad = (context.out / "problems.jsonl").open("w", encoding="utf-8")

        def report(problem: Problem, cause: str = "") -> None:
            nonlocal first
            counts["problems"] += 1
            causes[cause or problem.problem] += 1
            place = f"{problem.file}:{problem.line}" if problem.line else problem.file
            first = first or f"{place}: {problem.problem}"
            bad.write(json.dumps(vars(problem), ensure_ascii=False) + "\n")

        try:
            for split, pair in _own(context, report):
                counts[split] += 1
                out[split].write(json.dumps(pair, ensure_ascii=False) + "\n")
            if context.config.sampled is not None:
                from shunter.post.rewards import Grader

                grader: Grader = _grader(context, context.config.sampled)
                try:
                    for split, pair in _sampled(context, context.config.sampled, grader, counts, report):
                        counts[split] += 1
                        out[split].write(json.dumps(pair, ensure_ascii=False) + "\n")
                finally:
                    grader.close()
        finally:
            for file in (*out.values(), bad):
                file.close()
        if not counts["train"]:
            # What is staged goes when a job fails; its log stays.
            shutil.copyfile(context.out / "problems.jsonl", context.log / "problems.jsonl")
            raise _nothing(counts, causes, first, context.log)
        found = {name: counts[name] for name in (*SPLITS, "problems", "ties", "unfinished", "too_long")}
        (context.out / "summary.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
        return found


def _nothing(counts: Counter[str], causes: Counter[str], first: str, log: Path) -> ShunterError:
    """Why there is no pair. causes: how many have which problem. first: place and problem."""
    told, mend = [], "Give more pairs, or more prompts."
    if problems := counts["problems"]:
        by_cause = ", ".join(f"{count} {cause}" for cause, count in causes.most_common(SHOWN))
        more = f" ({by_cause}{', ...' if len(causes) > SHOWN else ''})" if len(causes) > 1 else ""
        told.append(f"{problems} could not be used, the first at {first}{more}")
        mend = (
            "problems.jsonl there has each: a record has `prompt` or `messages`, and two answers that "
            "differ, `chosen` and `rejected`."
        )
    if long := counts["too_long"]:
        told.append(f"{long} prompts are too long")
    if ties := counts["ties"]:
        told.append(f"{ties} prompts have answers that are all worth the same")
    if cut := counts["unfinished"]:
        told.append(f"{cut} prompts have no better answer than one that was cut off")
    if ties or cut:
        mend = "Let answers differ more (temperature, per_prompt), or be longer (max_new_tokens)."
    if held := counts["heldout"]:
        told.append(f"{held} {'are' if held > 1 else 'is'} held out")
        mend = "Lower heldout, or give more pairs." if len(told) == 1 else mend
    what = "there is no pair to learn from: " + ("; ".join(told) or "the sources are empty")
    return ShunterError(what, where=str(log), mend=mend)


def _own(context: JobContext[PreferencesConfig], report: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    config = context.config
    for source in config.sources:
        row = 0
        for item in contents(source, context.base, report, whole=True):
            if not isinstance(item, Record):
                raise ShunterError(f"source {source.label!r} holds plain text, not pairs")
            try:
                messages, chosen, rejected = recognise(item.fields)
            except ShunterError as error:
                report(Problem(item.file, item.line, error.what, "skipped"))
                continue
            share = derive_seed(config.seed, "heldout", json.dumps(messages)) / 2**63
            split = "heldout" if share < config.heldout else "train"
            yield split, {
                "id": f"{source.label}:{row}", "messages": messages, "chosen": chosen, "rejected": rejected,
            }  # fmt: skip
            row += 1


def recognise(fields: Mapping[str, Any]) -> tuple[list[dict[str, str]], str, str]:
    """Prompt, better and worse answer of a record: `chosen` and `rejected` as texts after `prompt` or
    `messages`, or as whole conversations that differ in their last message. Raises ShunterError."""
    if missing := [name for name in ("chosen", "rejected") if name not in fields]:
        raise ShunterError(f"no field {' and '.join(missing)}")
    chosen, rejected = fields["chosen"], fields["rejected"]
    asked = fields.get("messages", fields.get("prompt"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        talks = [chat.check(talk) for talk in (chosen, rejected)]
        before = [talk[:-1] for talk in talks]
        if asked is not None and isinstance(asked, list) and not before[0]:
            before = [chat.check(asked)] * 2
        if before[0] != before[1]:
            raise ShunterError("chosen and rejected differ in more than their last message")
        messages = before[0]
        if not messages and isinstance(asked, str):
            messages = [{"role": "user", "content": asked}]
        answers = [talk[-1]["content"] for talk in talks]
    elif isinstance(chosen, str) and isinstance(rejected, str):
        if isinstance(asked, str):
            asked = [{"role": "user", "content": asked}]
        if asked is None:
            raise ShunterError("no field prompt or messages")
        messages, answers = chat.check(asked), [chosen, rejected]
    else:
        raise ShunterError("chosen and rejected are neither two texts nor two conversations")
    if not messages:
        raise ShunterError("there is no prompt before the answers")
    if answers[0] == answers[1]:
        raise ShunterError("both answers are the same")
    return messages, answers[0], answers[1]


def _grader(context: JobContext[PreferencesConfig], config: SampledConfig) -> Any:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return taught.grader(config.rewards, context, device, patient=True)


def _sampled(
    context: JobContext[PreferencesConfig],
    config: SampledConfig,
    grader: Any,
    counts: Counter[str],
    report: Any,
) -> Iterator[tuple[str, dict[str, Any]]]:
    import torch

    from shunter.generate.config import SamplingConfig
    from shunter.generate.rollout import RolloutEngine
    from shunter.jobs import models
    from shunter.models.hf import load_model
    from shunter.post.prompts import read_prompts
    from shunter.post.rewards import Item

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folders = [artefact.path for artefact in context.many("sampled.models")]
    talks = context.one("sampled.prompts").path
    loaded = [(load_model(folder).to(device), taught.opened(folder), folder) for folder in folders]
    for split in SPLITS:
        if split == "heldout" and not (talks / "heldout.jsonl").read_bytes():
            continue
        asked: list[Any] = []
        for decoder, tokenizer, _ in loaded:
            room = decoder.spec.max_positions - config.max_new_tokens
            path = talks / f"{split}.jsonl"
            read = read_prompts(path, tokenizer, config.task, room, rewards=config.rewards)
            counts["too_long"] += read.too_long
            for told in read.told if decoder is loaded[0][0] else ():
                context.events.write("problem", problem=told)
            asked.append({prompt.id: prompt for prompt in read.items})
        shared = [name for name in asked[0] if all(name in one for one in asked)]
        shared.sort(key=lambda name: derive_seed(context.config.seed, "asked", split, name))
        shared = shared[: config.count or None]
        messages = _messages(talks / f"{split}.jsonl")
        for begin in range(0, len(shared), AT_ONCE):
            if context.control.stop_requested():
                raise Stopped
            part = shared[begin : begin + AT_ONCE]
            answers: dict[str, list[tuple[str, Item]]] = {name: [] for name in part}
            for number, (decoder, tokenizer, folder) in enumerate(loaded):
                sampling = SamplingConfig(
                    temperature=config.temperature, max_new_tokens=config.max_new_tokens, batch=64
                )
                stops = {*tokenizer.stop_ids, *models.special(folder)["eos_token_id"]}
                seed = derive_seed(context.config.seed, "answers", split, begin, number)
                room = max(len(asked[number][name].ids) for name in part) + config.max_new_tokens + 16
                engine = RolloutEngine(decoder, sampling, stops, seed, tokens=64 * room)
                for name in part:
                    for _ in range(config.per_prompt):
                        engine.submit(asked[number][name].ids)
                for one in engine.run():
                    name = part[one.number // config.per_prompt]
                    prompt = asked[number][name]
                    ids = one.ids[:-1] if one.stop_reason == "stop" else one.ids
                    item = prompt.item(tokenizer.decode(ids), one.stop_reason == "stop")
                    answers[name].append((context.many("sampled.models")[number].name, item))
            flat = [item for name in part for _, item in answers[name]]
            graded = iter(grader.grade(flat))
            for name in part:
                mine = [next(graded) for _ in answers[name]]
                failed = [one.failed[0] for one in mine if one.failed]
                if failed and len(failed) == len(mine):  # its target is at fault, not the answers
                    problem = Problem(str(talks / f"{split}.jsonl"), None, f"{name}: {failed[0]}", "skipped")
                    report(problem, failed[0])
                    continue
                pair = _judged(name, answers[name], [one.total for one in mine], context.config.seed)
                if isinstance(pair, str):
                    counts[pair] += 1
                    continue
                yield split, {"id": name, "messages": messages[name], **pair}
            context.events.progress(begin + len(part), len(shared), f"prompts of {split}")


def _messages(path: Path) -> dict[str, list[dict[str, str]]]:
    """The messages of each prompt, up to where the assistant answers."""
    found = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            talk = json.loads(line)
            found[str(talk["id"])] = chat.asked(talk["messages"])[0]
    return found


def _judged(
    name: str, answers: list[tuple[str, Any]], scores: Sequence[float], seed: int
) -> dict[str, Any] | str:
    """The best answer that ended by itself and one that is worth less, each drawn by the seed among equals;
    `ties` when all are worth the same, `unfinished` when only one that was cut off is worth more: an end
    would be learnt there, in the middle of a sentence."""
    ended = [i for i, (_, item) in enumerate(answers) if item.finished]
    top = max((scores[i] for i in ended), default=min(scores))
    worse = [i for i, score in enumerate(scores) if score < top]
    if not worse:
        return "ties" if min(scores) == max(scores) else "unfinished"
    equals = [i for i in ended if scores[i] == top]
    best = equals[derive_seed(seed, "best", name) % len(equals)]
    other = worse[derive_seed(seed, "worse", name) % len(worse)]
    return {
        "chosen": answers[best][1].answer,
        "rejected": answers[other][1].answer,
        "scores": [scores[best], scores[other]],
        "models": [answers[best][0], answers[other][0]],
    }


JOB = PreferencesJob()
