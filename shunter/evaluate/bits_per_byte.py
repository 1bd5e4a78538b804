"""Bits per byte: how well a model predicts text, whatever its tokenizer.

Every document begins after an end-of-text token, so each token of its text is predicted once; the
end-of-text token that closes it is predicted too and its bits count. The sum over all of them, divided
by the bytes of the text, is what a compressor that the model drives would need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shunter.config.errors import ShunterError
from shunter.evaluate.config import BitsPerByteTask
from shunter.evaluate.heldout import Document, HeldOut, choose, xz_bits_per_byte
from shunter.evaluate.intervals import bootstrap, mean
from shunter.evaluate.likelihood import token_logprobs
from shunter.evaluate.subject import Subject, Tick

Windows = list[tuple[int, NDArray[np.int64], int]]  # document, tokens, first one predicted


def windows(number: int, tokens: NDArray[np.int64], size: int, overlap: float) -> Windows:
    """Cut a document so that each token but the first is predicted once.

    The model sees `size` tokens at most; beyond the first window, `overlap` of them are context only.
    """
    keep = max(1, min(size - 1, int(size * overlap))) if size > 1 else 1
    found: Windows = []
    begin, first = 0, 1
    while begin + first < len(tokens):
        end = min(len(tokens), begin + size + 1)
        found.append((number, tokens[begin:end], first))
        begin, first = end - keep, keep
    return found


def run(task: BitsPerByteTask, subject: Subject, held: HeldOut, seed: int, tick: Tick) -> dict[str, Any]:
    """Scores (overall, and a source each) and one item a document; see `docs/evaluate.md`.

    Without held-out text there is neither, and `problem` says so.
    """
    everything = held.documents
    documents = [everything[i] for i in choose(len(everything), task.documents, task.name, seed=seed)]
    if not documents:
        # A corpus of one document has it on one side: after a long training that is no reason to fail.
        problem = f"{task.name}: there is no held-out text to score; raise `heldout` of the corpus's job"
        return {"scores": [], "items": [], "problem": problem}
    ids = _ids(documents, subject, held)
    subject.check_ids([document.tolist() for document in ids])
    size = task.window or min(held.rows.row_length, subject.context)
    if size > subject.context:
        raise ShunterError(f"window {size} exceeds the context of {subject.name}, {subject.context} tokens")
    cut = [
        window for number, tokens in enumerate(ids) for window in windows(number, tokens, size, task.overlap)
    ]
    total = sum(len(tokens) - 1 for tokens in ids)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tick(done, total, "tokens")

    scored = token_logprobs(
        subject.decoder, [tokens for _, tokens, _ in cut], [first for _, _, first in cut], tick=advance
    )
    assert sum(map(len, scored)) == total, "each token is predicted once"
    bits = np.zeros(len(documents))
    for (number, _, _), logprobs in zip(cut, scored, strict=True):
        bits[number] -= logprobs.sum() / math.log(2)
    groups = {task.name: list(range(len(documents)))}
    sources = sorted({document.source for document in documents})
    if task.by_source and len(sources) > 1:
        for source in sources:
            groups[f"{task.name} {source}"] = [i for i, d in enumerate(documents) if d.source == source]
    scores = [
        _score(name, [documents[i] for i in chosen], bits[chosen], seed) for name, chosen in groups.items()
    ]
    for score, chosen in zip(scores, groups.values(), strict=True):
        score["seen_in_part"] = sum(documents[i].id in held.seen_in_part for i in chosen)
    scores[0]["window"], scores[0]["overlap"], scores[0]["tokens"] = size, task.overlap, total
    items = [
        {
            "task": task.name,
            "id": document.id,
            "metric": "bits_per_byte",
            "unit": "bits/byte",
            "score": float(bits[number]) / document.bytes,
            "weight": document.bytes,
            "bits": float(bits[number]),
            "tokens": len(ids[number]) - 1,
        }
        for number, document in enumerate(documents)
    ]
    return {"scores": scores, "items": items}


def _ids(documents: Sequence[Document], subject: Subject, held: HeldOut) -> list[NDArray[np.int64]]:
    """Token ids of each document by the model's own tokenizer."""
    if held.same_tokenizer(subject.tokenizer):
        return [document.tokens for document in documents]
    texts = [document.text for document in documents]
    if any(text is None for text in texts):
        raise ShunterError(
            f"{subject.name} has another tokenizer than these rows, and theirs does not give the text back",
            where=str(held.folder),
            mend="Make rows for it with its own tokenizer and evaluate them in a job of their own.",
        )
    encoded = subject.tokenizer.encode_batch([text for text in texts if text is not None])
    ends = [np.asarray([subject.start]), np.asarray([subject.tokenizer.end_of_text])]
    return [np.concatenate([ends[0], ids.astype(np.int64), ends[1]]) for ids in encoded]


def _score(name: str, documents: list[Document], bits: NDArray[np.float64], seed: int) -> dict[str, Any]:
    weights = [float(document.bytes) for document in documents]
    values = [b / w for b, w in zip(bits.tolist(), weights, strict=True)]
    low, high = bootstrap(values, weights, seed=seed)
    score: dict[str, Any] = {
        "task": name,
        "metric": "bits_per_byte",
        "value": mean(values, weights),
        "low": low if math.isfinite(low) else None,
        "high": high if math.isfinite(high) else None,
        "unit": "bits/byte",
        "n": len(documents),
        "interval": "95 % bootstrap over documents",
        "bytes": int(sum(weights)),
    }
    baseline = xz_bits_per_byte(documents)
    if baseline is not None:
        score["baseline"] = {"name": "xz -9", "value": baseline}
    return score
