"""What `pretrain` and `sft` share: rows in, a trained model's folder out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderShape
from shunter.recipe.job import JobContext
from shunter.record.track import check_trackers
from shunter.train.config import TrainHow

if TYPE_CHECKING:
    from shunter.models.decoder import Decoder
    from shunter.train.loop import Milestone

GUESSED_VOCABULARY = 16384  # for the estimate of disk space, before the tokenizer exists


def check_how(how: TrainHow) -> Sequence[str]:
    """What can be refused without torch: missing trackers, a missing compiler."""
    check_trackers(how.track)
    if how.compile and shutil.which("c++") is None and shutil.which("g++") is None:
        raise ShunterError(
            "how.compile needs a C++ compiler, and there is none", mend="Install g++, or set it false."
        )
    return []


def disk_bytes(shape: DecoderShape, how: TrainHow) -> int:
    """Bytes of the model and of its checkpoints, one more than are kept while the newest is written."""
    qkv = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    block = shape.dim * (qkv + shape.num_heads * shape.head_dim + 3 * shape.ffn_dim)
    weights = shape.num_layers * block + GUESSED_VOCABULARY * shape.dim * (1 if shape.tied else 2)
    return 4 * weights * (1 + 3 * (how.keep + 1))


def train(
    context: JobContext[Any], decoder: Decoder, tokens: Path, milestone: Milestone | None = None
) -> dict[str, Any]:
    """Train `decoder` on a `tokens` artefact and write the model's folder; returns headline metrics."""
    from shunter.data.tokenizer import Tokenizer
    from shunter.data.tokens import TokenRows
    from shunter.models.hf import save_model
    from shunter.train.loop import Place, Training
    from shunter.train.objective import CrossEntropy

    rows, heldout = TokenRows(tokens / "train"), TokenRows(tokens / "heldout")
    if rows.vocab_size > decoder.spec.vocab_size:
        raise ShunterError(
            f"the rows have a vocabulary of {rows.vocab_size}, the model one of {decoder.spec.vocab_size}",
            mend="Make the rows with the model's tokenizer (`tokenizer:` may name the model's job).",
        )
    if rows.row_length > decoder.spec.max_positions:
        raise ShunterError(
            f"rows of {rows.row_length} tokens exceed the model's context of {decoder.spec.max_positions}",
            mend="Make shorter rows.",
        )
    place = Place(context.name, context.work, context.log, context.events, context.control)
    config = context.config
    training = Training(
        decoder,
        CrossEntropy(),
        rows,
        heldout if heldout.num_rows else None,
        config.train,
        config.how,
        place,
        seed=config.seed,
        milestone=milestone,
    )
    metrics = training.run()
    tokenizer = Tokenizer.load(tokens / "tokenizer")
    save_model(
        decoder.cpu(),
        context.out,
        tokenizer_folder=tokens / "tokenizer",
        eos_token_id=tokenizer.stop_ids,
        pad_token_id=tokenizer.pad,
    )
    return metrics
