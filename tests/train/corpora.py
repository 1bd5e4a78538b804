"""Small token folders and trainings for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shunter.data.tokens import TokenRows, TokenWriter
from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.record.events import EventLog
from shunter.train.config import TrainConfig, TrainHow
from shunter.train.loop import Place, Training
from shunter.train.objective import CrossEntropy
from tests.jobs.conftest import Still

VOCABULARY = 61
SPEC = DecoderSpec(
    vocab_size=VOCABULARY,
    dim=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    ffn_dim=48,
    max_positions=32,
    tied=True,
)


def rows(folder: Path, documents: int = 60, row_length: int = 24, seed: int = 0) -> TokenRows:
    """Documents of 3 to 40 tokens in which each token depends on the one before."""
    if not (folder / "index.json").exists():
        draw = np.random.default_rng(seed)
        writer = TokenWriter(folder, vocab_size=VOCABULARY)
        for number in range(documents):
            ids = [int(draw.integers(VOCABULARY))]
            while len(ids) < draw.integers(3, 40):
                ids.append(int((ids[-1] * 3 + draw.integers(3)) % VOCABULARY))
            writer.append([np.asarray(ids, dtype=np.uint32)], [f"d:{number}"], [2 * len(ids)])
        writer.finish(row_length, "concat")
    return TokenRows(folder)


def decoder(seed: int = 0) -> Decoder:
    """A fresh model."""
    model = Decoder(SPEC)
    init_weights(model, seed)
    return model


def training(
    folder: Path, config: dict[str, Any], how: dict[str, Any] | None = None, **more: Any
) -> Training:
    """A training in `folder`; a second one in the same folder is the next attempt."""
    log = folder / "log"
    log.mkdir(parents=True, exist_ok=True)
    attempt = 1 + len(list(log.glob("*.begun")))
    (log / f"{attempt}.begun").touch()
    place = Place(
        "base",
        folder / "work",
        log,
        EventLog(log / "events.jsonl", attempt=attempt),
        more.pop("control", None) or Still(),
    )
    data = more.pop("rows", None) or rows(folder / "train")
    return Training(
        more.pop("model", None) or decoder(),
        CrossEntropy(),
        data,
        more.pop("heldout", None),
        TrainConfig(**{"steps": 12, "batch_rows": 4, "precision": "fp32", "warmup": 2, **config}),
        TrainHow(**{"threads": 1, "log_every": 2, "checkpoint_every": 4, "track": [], **(how or {})}),
        place,
        seed=0,
        **more,
    )
