"""The FLOP of a step are those that the result needs: inside documents, where there is a target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.data.tokens import IGNORE, Batch
from shunter.models.spec import ExpertsSpec
from shunter.record import events
from shunter.train import loop
from shunter.train.flops import batch_flops, visible_pairs
from tests.train import corpora


def batch(segments: list[list[int]]) -> Batch:
    array = np.asarray(segments, dtype=np.int32)
    targets = np.where(array >= 0, 1, IGNORE)
    zeros = np.zeros(array.shape, dtype=np.int64)
    return Batch(zeros, targets, array, zeros, np.arange(len(array)))


@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3),
    st.none() | st.integers(1, 6),
)
def test_pairs_are_those_that_a_token_sees(rows: list[list[int]], window: int | None) -> None:
    segments = []
    for lengths in rows:
        row = [number for number, length in enumerate(lengths) for _ in range(length)]
        segments.append([*row, *[-1] * (20 - len(row))])
    expected = sum(
        1
        for row in segments
        for i, mine in enumerate(row)
        for j in range(i + 1)
        if mine >= 0 and row[j] == mine and (window is None or i - j < window)
    )
    assert visible_pairs(batch(segments), window) == expected


@pytest.mark.parametrize("experts", [None, ExpertsSpec(num_experts=6, per_token=2, ffn_dim=10)])
def test_one_document_a_row_takes_what_the_specification_says(experts: ExpertsSpec | None) -> None:
    whole, spec = batch([[0] * 24] * 3), corpora.SPEC.model_copy(update={"experts": experts})
    assert batch_flops(spec, whole) == pytest.approx(72 * spec.flops_per_token(24), rel=1e-12)


def test_documents_padding_and_silent_tokens_take_less() -> None:
    whole = batch_flops(corpora.SPEC, batch([[0] * 24]))
    packed = batch_flops(corpora.SPEC, batch([[0] * 12 + [1] * 12]))
    padded = batch_flops(corpora.SPEC, batch([[0] * 12 + [-1] * 12]))
    assert packed == pytest.approx(2 * padded)
    assert packed < whole
    silent = batch([[0] * 24])
    silent.targets[:, :20] = IGNORE
    head = 6 * corpora.SPEC.vocab_size * corpora.SPEC.dim
    assert whole - batch_flops(corpora.SPEC, silent) == pytest.approx(20 * head)


def test_the_clock_stands_while_checkpoints_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Throughput is the steps' own: neither checkpoints, nor validation, nor milestones are in it."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("shunter.train.meter.peak_flops", lambda device, precision: 1e6)
    real = loop.train_step

    def step(*args: object, **facts: object) -> object:
        now[0] += 2.0
        return real(*args, **facts)

    def milestone(step: int, tokens: int) -> dict[str, float]:
        now[0] += 1000.0
        return {}

    monkeypatch.setattr(loop, "train_step", step)
    training = corpora.training(tmp_path, {"validate_every": 2}, milestone=milestone)
    save = training.checkpointer.save

    def slow(*args: object) -> Path:
        now[0] += 1000.0
        return save(*args)

    monkeypatch.setattr(training.checkpointer, "save", slow)
    metrics = training.run()
    assert training.session.tally.total.seconds == 24.0
    rows = events.read_metrics(tmp_path / "log" / "events.jsonl")
    seen = sum(row["train/tokens_per_second"] * 4.0 for row in rows)
    assert metrics["tokens_per_second"] == pytest.approx(seen / 24.0)
    assert metrics["mfu"] == pytest.approx(training.session.tally.total.flops / 24e6)
