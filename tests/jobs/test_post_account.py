"""The account of learning from answers: the mean step has the run's tokens, and its parts add up.

What this cannot show: how near the cost model is to such steps; the account of a run says that.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.cluster import files
from shunter.jobs.foretold import predicted
from shunter.jobs.pairs_account import mean_step
from shunter.models.spec import DecoderSpec
from shunter.plan.presets import preset
from shunter.post.config import PostHow, PostTrain
from shunter.post.spent import Shape
from shunter.train.config import Parallel

SPEC = DecoderSpec(
    vocab_size=512, dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=128,
    max_positions=4096, tied=True,
)  # fmt: skip


def config(**train: Any) -> Any:
    return SimpleNamespace(train=PostTrain(steps=4, **train), how=PostHow())


@settings(max_examples=50)
@given(
    steps=st.integers(1, 9),
    parts=st.integers(1, 5),
    rows=st.integers(1, 16),
    row=st.integers(8, 2000),
    axes=st.sampled_from([None, {"dp": 2}, {"cp": 2, "fsdp": 2}, {"tp": 4}, {"pp": 2}]),
)
def test_the_mean_step_has_as_many_rows_and_tokens(
    steps: int, parts: int, rows: int, row: int, axes: dict[str, int] | None
) -> None:
    parallel = None if axes is None else Parallel.model_validate(axes)
    shape = Shape(steps, steps * parts, steps * parts * rows, steps * parts * rows * row)
    asked = mean_step(config(), SPEC, shape, parallel)
    data = 1 if parallel is None else parallel.data
    assert asked.batch == data * parts * rows
    assert row <= asked.row < row + 4
    assert asked.how.micro_batch == rows
    if asked.how.parallel is not None:
        assert asked.how.parallel.settled(asked.batch, rows).parts == parts


def test_a_head_that_is_asked_for_few_words_takes_less() -> None:
    shape = Shape(2, 4, 32, 32 * 1024, 32 * 256)
    asked = mean_step(config(precision="bf16"), preset("llama-3-8b"), shape, None)
    one = files.find("1xa100-80")
    every, few, none = (predicted(asked, one, scored=share)[1].seconds for share in (1.0, 0.25, 0.0))
    assert none < few < every
    assert every - none == pytest.approx(4 * (few - none), rel=0.35)  # but for what its weights take to read
