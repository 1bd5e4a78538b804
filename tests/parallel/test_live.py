"""Live bytes are counted while operations run. What this cannot show: what a GPU's allocator adds."""

from __future__ import annotations

from dataclasses import replace

import torch

from shunter.parallel.live import LiveBytes, Sample, stage_peak

IT = Sample(layers=4, hidden=64, heads=4, pp=2, tp=1, dp=1, rows=2, batch=8)


def test_what_is_made_counts_until_it_is_let_go() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a[:10]
        assert live.now == 4000  # a view has no bytes of its own
        c = a + 1
        assert live.now == 8000
        del a, c
        assert live.now == 4000  # the view holds its storage
        del b
        assert (live.now, live.peak) == (0, 8000)


def test_what_is_emptied_by_no_operation_is_gone() -> None:
    """As `fully_shard` does with gathered weights: it fills and empties their storages itself."""
    with LiveBytes() as live:
        kept = [torch.zeros(1000) for _ in range(4)]
        for each in kept[:3]:
            each.untyped_storage().resize_(0)
        more = torch.zeros(2000)
        assert live.peak == 16_000
        kept[0].untyped_storage().resize_(4000)
        views = kept[0].view(10, 100), torch.zeros(500)  # seen again, it counts again
        assert (live.now, live.peak) == (4000 + 8000 + 4000 + 2000, 18_000)
        del more, views
        assert live.now == 8000


def test_peak_bytes_of_stages_that_were_executed() -> None:
    """Weights with gradients and two moments are always there; each further micro-batch in flight adds."""
    weights = 2 * (12 * 64**2 + 13 * 64) + 512 * 64
    peak = stage_peak(IT, 0)
    assert peak > 16 * weights
    assert stage_peak(replace(IT, tp=2), 0) < peak
    one = stage_peak(replace(IT, batch=2), 0)  # one micro-batch
    assert one < peak
    deep = replace(IT, layers=8, pp=4, batch=16)
    assert stage_peak(deep, 0) > stage_peak(deep, 1) - 16 * 512 * 64  # more in flight, and the embedding


def test_what_was_there_before_is_not_counted() -> None:
    weight = torch.ones(64, 32)
    with LiveBytes([weight]) as live:
        made = torch.ones(8, 32) @ weight.t()  # a view of it is no storage of its own
        weight.add_(1)
    assert live.now == made.untyped_storage().nbytes()
    with LiveBytes() as blind:
        torch.ones(8, 32) @ weight.t()
    assert blind.peak > live.peak
