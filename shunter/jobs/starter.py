"""Drafts a recipe for a person's own files: sources as found, a model and steps that suit them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from shunter.config import shape, write
from shunter.config.errors import ShunterError
from shunter.config.yaml import KeyPath
from shunter.data.survey import Found, survey

# Floating-point operations a second that training reaches, cautiously: an ordinary core with AVX2 in fp32,
# and a small model on a GPU. A draft needs the order of magnitude only; newer cores reach several times that.
FLOPS_PER_CORE = 30e9
FLOPS_PER_GPU = 40e12
# More passes over the same text teach little (Muennighoff et al., Scaling Data-Constrained Language Models).
MAX_EPOCHS = 4
# Tokens that a parameter outside the embedding should see. The best use of compute is about 20 (Hoffmann et
# al., Training Compute-Optimal LLMs); people's own text is short, and there a model too large for its text
# loses less than one too small.
TOKENS_PER_PARAMETER = 5
# (text up to this many bytes, vocabulary, bytes per token that byte-level BPE reaches on English)
VOCABULARIES = [(20e6, 4096, 3.3), (200e6, 8192, 3.7), (2e9, 16384, 4.1), (math.inf, 32768, 4.4)]
# (width, layers); heads have 32 to 128 channels.
SHAPES = [
    (96, 3),
    (128, 4),
    (192, 6),
    (256, 8),
    (384, 8),
    (512, 10),
    (640, 12),
    (768, 12),
    (1024, 16),
    (2048, 24),
]
MIN_TEXT = 10_000
HELDOUT = 0.03
# A book is held out in parts: as one document it would be held out as a whole, or not at all.
SECTION = 8000


@dataclass(frozen=True)
class Machine:
    """What the draft is sized for."""

    cores: int
    gpu: bool

    @classmethod
    def here(cls) -> Machine:
        """This machine, without importing torch: a GPU is there if its driver is."""
        gpu = any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/kfd"))
        return cls(len(os.sched_getaffinity(0)), gpu)

    @property
    def flops(self) -> float:
        """Floating-point operations a second."""
        return FLOPS_PER_GPU if self.gpu else FLOPS_PER_CORE * self.cores

    def __str__(self) -> str:
        return "one GPU" if self.gpu else f"{self.cores} CPU core{'s' * (self.cores > 1)}"


@dataclass(frozen=True)
class Size:
    """Model and training of a draft. `tokens` are those of the text, seen `epochs` times."""

    vocabulary: int
    dim: int
    layers: int
    row_length: int
    batch_rows: int
    steps: int
    tokens: int

    @property
    def head_dim(self) -> int:
        return 32 if self.dim < 256 else 64 if self.dim < 1024 else 128

    @property
    def heads(self) -> int:
        return self.dim // self.head_dim

    @property
    def ffn_dim(self) -> int:
        """Three matrices of 8/3 of the width cost what two of 4 widths do; a multiple of 32 is fast."""
        return round(self.dim * 8 / 3 / 32) * 32

    @property
    def parameters(self) -> int:
        """With the embedding shared by input and output."""
        return self.body + self.vocabulary * self.dim

    @property
    def body(self) -> int:
        """Parameters outside the embedding, norms left out."""
        return self.layers * (4 * self.dim**2 + 3 * self.dim * self.ffn_dim)

    @property
    def seen(self) -> int:
        """Tokens that training sees."""
        return self.steps * self.batch_rows * self.row_length

    @property
    def epochs(self) -> float:
        return self.seen / max(1, self.tokens)


def choose(text_bytes: int, machine: Machine, minutes: float) -> Size:
    """The largest model whose training fits the text and the time.

    A model whose layers hold N parameters wants 5 N tokens, may see the text four times at most, and costs
    6 operations a parameter and token. If even the smallest wants more, it is
    trained as long as it may, and for 20 steps at least.
    """
    by_text, per_token = next((v, b) for limit, v, b in VOCABULARIES if text_bytes <= limit)
    tokens = max(1, int(text_bytes * (1 - HELDOUT) / per_token))
    operations = machine.flops * minutes * 60
    best: Size | None = None
    for dim, layers in SHAPES:
        row_length = 256 if dim < 256 else 512 if dim < 640 else 1024
        # The embedding of a small model would outweigh its layers.
        vocabulary = min(by_text, max(2048, 2 ** int(math.log2(32 * dim))))
        probe = Size(vocabulary, dim, layers, row_length, 1, 1, tokens)
        seen = min(operations / (6 * probe.parameters), MAX_EPOCHS * tokens)
        if best is None or seen >= TOKENS_PER_PARAMETER * probe.body:
            # Some hundreds of steps at least, of a few thousand tokens for small models.
            batch_rows = 2 ** round(math.log2(min(256, max(8, seen / row_length / 600))))
            steps = max(20, round(seen / (batch_rows * row_length)))
            best = Size(vocabulary, dim, layers, row_length, batch_rows, steps, tokens)
    assert best is not None
    return best


def draft(
    folder: Path,
    data: list[Path],
    kinds: Mapping[str, type[BaseModel]],
    machine: Machine,
    minutes: float = 10.0,
) -> tuple[str, list[str]]:
    """The text of a recipe in `folder` for the files at `data`, and what was found, a line each.

    kinds: the configuration of each kind of job, whose fields' sentences become the comments.
    Raises ShunterError when there is no text, or too little to train on.
    """
    found = survey(data)
    texts = [group for group in found if not group.chat]
    total = sum(group.bytes for group in texts)
    if total < MIN_TEXT:
        raise ShunterError(
            f"{total} bytes of plain text are too little to train on",
            where=", ".join(map(str, data)),
            mend=f"Give at least {MIN_TEXT}; some megabytes make a model that writes words.",
        )
    size = choose(total, machine, minutes)
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in folder.resolve().name) or "recipe"
    content = tree(name, found, size, folder)
    reasons = _reasons(size, machine, minutes)

    def comment(path: KeyPath) -> str | None:
        if path in reasons:
            return reasons[path]
        if len(path) == 2 and path[0] == "jobs":
            kind = kinds[content["jobs"][path[1]]["kind"]]
            return (kind.__doc__ or "").strip().split("\n")[0] or None
        if len(path) < 3:
            return None
        if path[2] == "kind":
            return None
        return shape.describe(kinds[content["jobs"][path[1]]["kind"]], path[2:])

    head = (
        f"# A recipe for {sum(group.files for group in found)} files.\n"
        "# What it would do: shunter run recipe.yaml --dry-run\n"
        "# Completion in editors: shunter schema --out recipe.schema.json\n"
        "# yaml-language-server: $schema=recipe.schema.json\n"
    )
    lines = [f"{group.path}: {_amount(group)}" for group in found]
    lines.append(
        f"model: {size.parameters / 1e6:.1f} million parameters, {size.steps} steps, "
        f"{size.epochs:.1f} passes over {size.tokens / 1e6:.2f} million tokens, "
        f"sized for about {minutes:g} minutes on {machine}"
    )
    return head + write.dumps(content, comment), lines


def tree(name: str, found: list[Found], size: Size, folder: Path) -> dict[str, Any]:
    """The recipe as data. Paths are relative to `folder`, where the recipe will stand."""
    texts = [_source(group, folder) for group in found if not group.chat]
    chats = [_source(group, folder) for group in found if group.chat]
    # Small models bear and want high rates.
    rate = 3e-3 if size.dim <= 256 else 1e-3 if size.dim <= 640 else 6e-4
    train = {
        "steps": size.steps,
        "batch_rows": size.batch_rows,
        "lr": rate,
        "schedule": "cosine",
        "warmup": min(200, max(5, size.steps // 20)),
    }
    jobs: dict[str, Any] = {
        "corpus": {"kind": "curate", "sources": texts, "heldout": HELDOUT, "section_chars": SECTION},
        "tokenizer": {"kind": "tokenizer", "corpus": "corpus", "vocab_size": size.vocabulary},
        "rows": {
            "kind": "tokens",
            "corpus": "corpus",
            "tokenizer": "tokenizer",
            "row_length": size.row_length,
        },
        "base": {
            "kind": "pretrain",
            "tokens": "rows",
            "model": {
                "dim": size.dim,
                "num_layers": size.layers,
                "num_heads": size.heads,
                "num_kv_heads": size.heads,
                "head_dim": size.head_dim,
                "ffn_dim": size.ffn_dim,
                "tied": True,
            },
            "train": train,
        },
    }
    models = ["base"]
    if chats:
        jobs["talks"] = {"kind": "conversations", "sources": chats}
        jobs["talk-rows"] = {
            "kind": "tokens",
            "conversations": "talks",
            "tokenizer": "tokenizer",
            "row_length": size.row_length,
        }
        jobs["chat"] = {
            "kind": "sft",
            "model": "base",
            "tokens": "talk-rows",
            "train": {**train, "steps": max(20, size.steps // 5), "lr": rate / 3},
        }
        models.append("chat")
    jobs["scores"] = {"kind": "evaluate", "models": models, "tokens": "rows"}
    jobs["report"] = {"kind": "report", "title": name, "of": ["corpus", "tokenizer", *models, "scores"]}
    return {"version": 1, "name": name, "seed": 0, "jobs": jobs}


def _source(group: Found, folder: Path) -> dict[str, Any]:
    path = os.path.relpath(group.path, folder.resolve()) if not os.path.isabs(group.path) else group.path
    name = "".join(c if c.isalnum() else "-" for c in Path(group.path.split("/**")[0]).stem).strip("-")
    source: dict[str, Any] = {"name": f"{name or 'text'}{group.suffix.replace('.', '-')}", "path": path}
    if group.format == "zip":
        source["members"] = f"*{group.suffix}"
    if group.field:
        source["field"] = group.field
    return source


def _reasons(size: Size, machine: Machine, minutes: float) -> dict[KeyPath, str]:
    tokens = f"{size.tokens / 1e6:.2f} million tokens"
    return {
        ("version",): "Version of the recipe format.",
        ("name",): "`shunter status` and `shunter report` find the run by it.",
        ("seed",): "Seed of every random stream; a job may have its own.",
        ("jobs", "tokenizer", "vocab_size"): f"Suits about {tokens} of text.",
        ("jobs", "base", "model"): f"{size.parameters / 1e6:.1f} million parameters.",
        ("jobs", "base", "train", "steps"): (
            f"{size.epochs:.1f} passes over {tokens}: sized for about {minutes:g} minutes on {machine}."
        ),
        ("jobs", "base", "train", "batch_rows"): f"{size.batch_rows * size.row_length} tokens a step.",
    }


def _amount(group: Found) -> str:
    files = f"{group.files} file{'s' * (group.files > 1)}"
    members = f" *{group.suffix} members" if group.format == "zip" else ""
    what = "conversations" if group.chat else f"text in {group.field!r}" if group.field else "text"
    return f"{files}{members}, {group.bytes / 1e6:.2f} MB of {what}"
