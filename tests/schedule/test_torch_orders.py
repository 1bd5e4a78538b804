"""Orders equal those of torch's own schedules, action for action, pairs included."""

from __future__ import annotations

import logging

import pytest
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops
from torch.distributed.pipelining.schedules import ScheduleInterleavedZeroBubble

from shunter.schedule.action import texts
from shunter.schedule.builders import rounds, single, vee
from shunter.schedule.order import Order
from tests.draws import some

RANKS = (1, 2, 3, 4, 6, 8)
MICROBATCHES = (1, 2, 3, 4, 5, 8, 12, 13, 16, 24)


def torch_order(name: object, ranks: int, microbatches: int, chunks: int) -> list[list[str]]:
    logging.disable(logging.WARNING)
    try:
        ops = get_schedule_ops(name, ranks, microbatches, chunks)  # type: ignore[arg-type]
    finally:
        logging.disable(logging.NOTSET)
    # Its single-stage schedules come with gradient reductions already; those are lowering, not order.
    computed = [[str(action) for action in actions if action is not None] for actions in ops]
    return [[text for text in actions if not text.endswith("REDUCE_GRAD")] for actions in computed]


def order_text(order: Order) -> list[list[str]]:
    return [list(texts(actions)) for actions in order.actions]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("microbatches", MICROBATCHES)
def test_one_stage_a_rank(ranks: int, microbatches: int) -> None:
    fifo = order_text(single.gpipe(ranks, microbatches, fifo=True))
    assert fifo == torch_order("GPipe", ranks, microbatches, 1)
    if microbatches >= ranks:  # torch refuses fewer
        theirs = torch_order("1F1B", ranks, microbatches, 1)
        # torch 2.13 draws the last rank's forwards as 1..m; its runtime does 0..m-1.
        last = theirs[-1]
        for place, text in enumerate(last):
            stage, forward, microbatch = text.partition("F")
            if forward:
                last[place] = f"{stage}F{int(microbatch) - 1}"
        assert order_text(single.one_f_one_b(ranks, microbatches)) == theirs


def torch_group(ranks: int, microbatches: int) -> int | None:
    """The size of torch's rounds, where it accepts them."""
    rounds = max(1, microbatches // ranks)
    return microbatches // rounds if microbatches % rounds == 0 else None


@pytest.mark.parametrize("chunks", [2, 3, 4])
@pytest.mark.parametrize("ranks", RANKS)
@some("microbatches", MICROBATCHES)
def test_rounds(ranks: int, microbatches: int, chunks: int) -> None:
    group = torch_group(ranks, microbatches)
    if group is None or microbatches < ranks:
        pytest.skip("torch refuses these micro-batches")
    # The default group is torch's where the ranks divide the micro-batches.
    chosen = None if microbatches % ranks == 0 else group
    assert order_text(rounds.interleaved(ranks, microbatches, chunks, group=chosen)) == torch_order(
        "Interleaved1F1B", ranks, microbatches, chunks
    )
    assert order_text(
        rounds.interleaved_zero_bubble(ranks, microbatches, chunks, group=chosen)
    ) == torch_order("InterleavedZeroBubble", ranks, microbatches, chunks)
    assert order_text(rounds.looped_breadth_first(ranks, microbatches, chunks)) == torch_order(
        "LoopedBFS", ranks, microbatches, chunks
    )


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("microbatches", MICROBATCHES)
def test_vee(ranks: int, microbatches: int) -> None:
    assert order_text(vee.zero_bubble_v(ranks, microbatches)) == torch_order(
        "ZBVZeroBubble", ranks, microbatches, 2
    )
    if microbatches >= 2 * ranks:
        assert order_text(vee.dual_pipe_v(ranks, microbatches)) == torch_order(
            "DualPipeV", ranks, microbatches, 2
        )


def test_zero_bubble_with_one_stage_a_rank() -> None:
    """torch's drawing insists on two stages a rank; the schedule itself does not."""
    from unittest import mock

    from torch.distributed.pipelining.stage import PipelineStage

    for ranks, microbatches in ((2, 4), (4, 8), (4, 12), (8, 16)):
        stage = mock.create_autospec(PipelineStage, instance=True)
        stage.group_rank, stage.group_size, stage.submod, stage.num_stages = 0, ranks, None, ranks
        theirs = ScheduleInterleavedZeroBubble([stage], microbatches).pipeline_order
        assert theirs is not None
        assert order_text(rounds.interleaved_zero_bubble(ranks, microbatches)) == [
            [str(action) for action in theirs[rank] if action is not None] for rank in range(ranks)
        ]
