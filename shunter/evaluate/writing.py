"""Lets a model write, some prompts at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.evaluate.subject import Subject

# Prompts between two looks at whether a stop was requested.
AT_ONCE = 32


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
) -> list[Written]:
    """What the model writes after each prompt; temperature 0 takes the likeliest token each time.

    A text also ends with the model's context (`stop` is `context` then). A prompt that fills it is refused.
    """
    from shunter.generate.config import SamplingConfig
    from shunter.generate.engine import generate

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
    stop_ids = subject.tokenizer.stop_ids
    found: list[Written] = []
    for begin in range(0, len(prompts), AT_ONCE):
        part = list(prompts[begin : begin + AT_ONCE])
        stream = derive_seed(seed, "prompts", begin)
        for done in generate(subject.decoder, part, config, stop_ids, stream):
            ids = list(done.ids)
            while ids and ids[-1] in stop_ids:
                ids.pop()
            found.append(Written(subject.tokenizer.decode(ids), str(done.stop_reason)))
        tick(len(found), len(prompts))
    return found
