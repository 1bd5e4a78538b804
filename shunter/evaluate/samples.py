"""Texts for people to read: every model continues the same fixed prompts."""

from __future__ import annotations

from typing import Any

from shunter.config.seed import derive_seed
from shunter.evaluate.config import SamplesTask
from shunter.evaluate.heldout import HeldOut, choose
from shunter.evaluate.subject import Subject, Tick
from shunter.evaluate.writing import write


def prompts_of(task: SamplesTask, held: HeldOut | None, seed: int) -> list[str]:
    """The prompts given, or the beginnings of held-out documents; empty ones when there are none."""
    if task.prompts:
        return task.prompts
    texts = [d.text for d in held.documents if d.text is not None and d.text.strip()] if held else []
    if not texts:
        return [""] * task.count  # from nothing but the start of a text
    return [
        _beginning(texts[i], task.prompt_chars) for i in choose(len(texts), task.count, task.name, seed=seed)
    ]


def run(task: SamplesTask, subject: Subject, prompts: list[str], seed: int, tick: Tick) -> dict[str, Any]:
    """One line of samples.jsonl a prompt, with the prompt exactly as the model saw it."""
    tokenizer = subject.tokenizer
    if task.form == "chat":
        talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
        seen = [tokenizer.render(talk, add_generation_prompt=True) for talk in talks]
        ids = [tokenizer.encode_prompt(talk) for talk in talks]
    else:
        # A document begins after an end-of-text token, which is no part of the text.
        seen, ids = prompts, [[subject.start, *tokenizer.encode(text)] for text in prompts]
    written = write(
        subject,
        ids,
        max_new_tokens=task.max_new_tokens,
        temperature=task.temperature,
        top_k=task.top_k,
        top_p=task.top_p,
        seed=derive_seed(seed, "samples", task.name),
        tick=lambda done, total: tick(done, total, "samples"),
    )
    samples = [
        {"task": task.name, "id": str(number), "prompt": prompt, "response": one.text, "stop": one.stop}
        for number, (prompt, one) in enumerate(zip(seen, written, strict=True))
    ]
    return {"samples": samples}


def _beginning(text: str, length: int) -> str:
    """The first characters, cut before a space."""
    if len(text) <= length:
        return text[: max(1, len(text) // 2)]
    space = text.rfind(" ", 1, length + 1)
    return text[: space if space > 0 else length]
