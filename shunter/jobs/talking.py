"""A conversation in a terminal, or with lines from a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig
from shunter.jobs import models

if TYPE_CHECKING:
    from shunter.generate.conversation import Conversation

PROMPT = "you> "


def talk(
    store: str,
    ref: str,
    sampling: Mapping[str, Any],
    *,
    system: str | None,
    seed: int,
    raw: bool,
    lines: TextIO,
    out: TextIO,
) -> None:
    """Answer each line of `lines` on `out` until it ends. On a terminal with a prompt and hints."""
    config = parse(SamplingConfig, {**sampling, "batch": 1})
    folder = models.find(store, ref)
    import torch

    from shunter.data.tokenizer import Tokenizer
    from shunter.generate.conversation import Conversation
    from shunter.models.hf import load_model

    tokenizer = Tokenizer.load(folder)
    if not raw and not tokenizer.template:
        raise ShunterError(
            "the model has no chat template", where=str(folder), mend="Continue text with --raw."
        )
    if not raw and _untaught(folder):
        print(
            "note: this model was trained on plain text alone and has seen no conversation; "
            "--raw continues text instead",
            file=sys.stderr,
        )
    model = load_model(folder)
    if torch.cuda.is_available():
        model.to("cuda")
    conversation = Conversation(model, tokenizer, config, system, seed, raw, _stops(folder))
    terminal = lines.isatty() and out.isatty()
    if terminal:
        import readline  # noqa: F401 - gives input() editing and history

        print(f"{folder}\n/reset forgets the conversation, /quit leaves, Ctrl-C stops an answer.", file=out)
    while (text := _next(lines, terminal)) is not None:
        if text in ("/quit", "/exit"):
            return
        if text == "/reset":
            conversation.reset()
        elif text.startswith("/") and " " not in text:
            print(f"no such command: {text}; there are /reset and /quit", file=sys.stderr)
        elif text:
            _answer(conversation, text, out, terminal)


def _stops(folder: Path) -> list[int]:
    """Tokens that end an answer by the model's own generation_config.json (Llama 3 has three)."""
    path = folder / "generation_config.json"
    named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    return [named] if isinstance(named, int) else list(named or [])


def _untaught(folder: Path) -> bool:
    """Whether an artefact's manifest says that it comes from pre-training, without tuning after it."""
    manifest = folder / "manifest.json"
    return manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")).get("kind") == "pretrain"


def _next(lines: TextIO, terminal: bool) -> str | None:
    """The next message; None at the end of input."""
    try:
        if terminal:
            return input(PROMPT).strip()
    except EOFError:
        return None
    line = lines.readline()
    return line.strip() if line else None


def _answer(conversation: Conversation, text: str, out: TextIO, terminal: bool) -> None:
    def show(piece: str) -> None:
        out.write(piece)
        out.flush()

    try:
        completion = conversation.reply(text, show)
    except ShunterError as error:
        print(f"error: {error}", file=sys.stderr)
        return
    except KeyboardInterrupt:
        if not terminal:
            raise
        out.write(" [stopped]\n")
        return
    if completion.stop_reason == "context":
        out.write(" [the context is full]")
    out.write("\n")
    out.flush()
    if conversation.forgotten and terminal and not conversation.raw:
        print(f"({conversation.forgotten} earlier messages no longer fit the context)", file=sys.stderr)
