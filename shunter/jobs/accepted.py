"""The job `accepted`: conversations of a model's own answers that rules accept (rejection sampling)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.jobs import contexts, taught
from shunter.post.config import RewardConfig
from shunter.recipe.graph import Graph, Node
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

if TYPE_CHECKING:
    from shunter.post.prompts import Prompt
    from shunter.post.rewards import Item

AT_ONCE = 16  # prompts between two looks at whether a stop was requested


class AcceptedConfig(JobConfig):
    """Lets a model answer, and keeps the answers that are worth enough, to tune a model on."""

    model: Annotated[str, Input("model")] = Field(description="Job whose model answers.")
    prompts: Annotated[str, Input("conversations")] = Field(description="Job that made the conversations.")
    task: str | None = Field(None, description="Conversations to ask: those of this task; none: all.")
    rewards: list[RewardConfig] = Field(min_length=1, description="What an answer is worth.")
    least: float = Field(1.0, description="Answers worth less are left out; so are those that were cut off.")
    count: int = Field(0, ge=0, description="Prompts to ask, drawn by the seed; 0: all.")
    per_prompt: int = Field(4, ge=1, description="Answers to each prompt; equal ones are kept once.")
    max_new_tokens: int = Field(64, ge=1, description="Longest answer in tokens.")
    temperature: float = Field(1.0, gt=0, description="Of sampling.")


class AcceptedJob:
    """Writes train.jsonl and an empty heldout.jsonl (id, task, messages), and summary.json."""

    kind: ClassVar[str] = "accepted"
    produces: ClassVar[str] = "conversations"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = AcceptedConfig

    def check(self, config: AcceptedConfig, base: Path) -> Sequence[str]:
        taught.check_rewards(config.rewards, None, base)
        return []

    def check_graph(self, node: Node, graph: Graph) -> Sequence[str]:
        config = node.config
        assert isinstance(config, AcceptedConfig)
        return contexts.check(graph, node, "model", {"max_new_tokens": config.max_new_tokens})

    def reads(self, config: AcceptedConfig, base: Path) -> Sequence[Path]:
        return taught.reads(config.rewards, base)

    def run(self, context: JobContext[AcceptedConfig]) -> dict[str, Any]:
        import torch

        from shunter.models.hf import load_model
        from shunter.post.prompts import read_prompts

        config, folder = context.config, context.one("model").path
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        decoder, tokenizer = load_model(folder).to(device), taught.opened(folder)
        room = decoder.spec.max_positions - config.max_new_tokens
        path = context.one("prompts").path / "train.jsonl"
        prefix = taught.prefix(config.rewards, context.base)
        read = read_prompts(path, tokenizer, config.task, room, prefix, config.rewards)
        for told in read.told:
            context.events.write("problem", problem=told)
        order = sorted(read.items, key=lambda one: derive_seed(config.seed, "asked", one.id))
        chosen = order[: config.count or None]
        asked = _messages(path)
        answers = passed = kept = 0
        grader = taught.grader(config.rewards, context, device, patient=True)
        try:
            with (context.out / "train.jsonl").open("w", encoding="utf-8") as out:
                for begin in range(0, len(chosen), AT_ONCE):
                    if context.control.stop_requested():
                        raise Stopped
                    part = chosen[begin : begin + AT_ONCE]
                    items = _answers(context, decoder, tokenizer, part, begin)
                    seen: set[tuple[str, str]] = set()
                    for i, (item, graded) in enumerate(zip(items, grader.grade(items), strict=True)):
                        answers += 1
                        talk = asked[part[i // config.per_prompt].id]
                        if graded.total < config.least or not item.finished:
                            continue
                        passed += 1
                        if (talk["id"], item.answer) in seen:
                            continue
                        seen.add((talk["id"], item.answer))
                        kept += 1
                        said = {"role": "assistant", "content": item.answer}
                        line = {
                            "id": f"{talk['id']}#{i}",
                            "task": talk["task"],
                            "messages": [*talk["messages"], said],
                        }
                        out.write(json.dumps(line, ensure_ascii=False) + "\n")
                    context.events.progress(begin + len(part), len(chosen), "prompts")
        finally:
            grader.close()
        if not kept:
            raise ShunterError(
                f"of {answers} answers none is worth {config.least:g}",
                where=context.name,
                mend="Ask for more answers, or lower `least`.",
            )
        (context.out / "heldout.jsonl").touch()
        found = {"answers": answers, "passed": passed, "kept": kept, "too_long": read.too_long}
        (context.out / "summary.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
        return found


def _answers(
    context: JobContext[AcceptedConfig], decoder: Any, tokenizer: Any, part: Sequence[Prompt], begin: int
) -> list[Item]:
    from shunter.generate.config import SamplingConfig
    from shunter.generate.rollout import rollouts
    from shunter.jobs import models

    config = context.config
    sampling = SamplingConfig(
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        batch=AT_ONCE * config.per_prompt,
    )
    stops = {*tokenizer.stop_ids, *models.special(context.one("model").path)["eos_token_id"]}
    prompts = [prompt for prompt in part for _ in range(config.per_prompt)]
    seed = derive_seed(config.seed, "answers", begin)
    found = []
    for prompt, one in zip(
        prompts, rollouts(decoder, [p.ids for p in prompts], sampling, stops, seed), strict=True
    ):
        ended = one.stop_reason == "stop"
        text = tokenizer.decode(one.ids[:-1] if ended else one.ids)
        found.append(prompt.item(text, ended))
    return found


def _messages(path: Path) -> dict[str, dict[str, Any]]:
    """id, task and messages up to where the assistant answers, by id."""
    from shunter.data import chat

    found = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            talk = json.loads(line)
            messages = chat.asked(talk["messages"])[0]
            found[str(talk["id"])] = {"id": str(talk["id"]), "task": talk.get("task"), "messages": messages}
    return found


JOB = AcceptedJob()
