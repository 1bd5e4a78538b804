"""Lets a model write after prompts, by continuous batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.evaluate.subject import Subject

if TYPE_CHECKING:
    from shunter.generate.config import SamplingConfig, ToolConfig
    from shunter.generate.engine import Completion
    from shunter.generate.toolbox import Toolbox

AT_ONCE = 32  # texts that are written side by side


@dataclass(frozen=True)
class Written:
    """A model's continuation as text, without the token that stopped it. `stop`: why it ended."""

    text: str
    stop: str


def write(
    subject: Subject,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    tick: Callable[[int, int], None],
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    tools: ToolConfig | None = None,
) -> list[Written]:
    """What the model writes after each prompt; temperature 0 takes the likeliest token each time.

    A text also ends with the model's context (`stop` is `context` then). A prompt that fills it is refused.
    tools: that it may ask; of an answer in several turns the last one is what it wrote.
    """
    from shunter.generate.config import SamplingConfig
    from shunter.generate.rollout import rollouts

    subject.check_ids(prompts)
    longest = max(map(len, prompts), default=0)
    if longest >= subject.context:
        raise ShunterError(
            f"a prompt of {longest} tokens fills the context of {subject.name}, {subject.context} tokens",
            mend="Give shorter prompts.",
        )
    config = SamplingConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens, batch=AT_ONCE
    )
    stops = subject.tokenizer.stop_ids
    stream = derive_seed(seed, "prompts", 0)
    box: Toolbox | None = None
    if tools is not None:
        from shunter.post.interpreter import Tools

        box = Tools(tools, subject.tokenizer)
    done: Sequence[Completion]
    try:
        if subject.decoder.spec.rope.scaling == "dynamic":  # its texts cannot come and go
            done = _by_batches(subject, prompts, config, stream, tick)
        else:
            told = 0 if tools is None else tools.most * tools.room
            done = rollouts(
                subject.decoder, prompts, config, stops, stream,
                reply=box, told=told, tick=lambda count: tick(count, len(prompts)),
            )  # fmt: skip
    finally:
        if box is not None:
            box.close()
    tick(len(done), len(prompts))
    return [Written(_said(subject, one, box), str(one.stop_reason)) for one in done]


def _said(subject: Subject, done: Completion, box: Toolbox | None) -> str:
    """The text without the tokens that ended it."""
    if box is not None:
        from shunter.generate.rollout import Rollout

        assert isinstance(done, Rollout)
        return box.last(done)
    ids = list(done.ids)
    while ids and ids[-1] in subject.tokenizer.stop_ids:
        ids.pop()
    return subject.tokenizer.decode(ids)


def _by_batches(
    subject: Subject,
    prompts: Sequence[list[int]],
    config: SamplingConfig,
    seed: int,
    tick: Callable[[int, int], None],
) -> list[Completion]:
    """Some prompts at a time, with a cache that all of a batch share."""
    from shunter.generate.engine import generate

    found: list[Completion] = []
    for begin in range(0, len(prompts), AT_ONCE):
        part = list(prompts[begin : begin + AT_ONCE])
        stream = derive_seed(seed, "batch", begin)
        found += generate(subject.decoder, part, config, subject.tokenizer.stop_ids, stream)
        tick(len(found), len(prompts))
    return found
