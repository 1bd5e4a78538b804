"""Muon in float32, where bfloat16 is slow: torch's, but for rounding."""

from __future__ import annotations

import pytest
import torch

from shunter.record import processor
from shunter.train import muon
from shunter.train.muon import Muon, orthogonal

SETTINGS = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
SHAPES = ((24, 16), (16, 48), (32, 32))


def after(kind: type[torch.optim.Muon], steps: int = 3) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    optimizer = kind(made, **SETTINGS)
    for step in range(steps):
        for number, parameter in enumerate(made):
            given = torch.randn(parameter.shape, generator=draw)
            parameter.grad = given if (step, number) != (1, 0) else None  # one is left out once
        optimizer.step()
    momentum = [optimizer.state[parameter]["momentum_buffer"] for parameter in made]
    return [*(parameter.detach() for parameter in made), *momentum]


def test_it_is_torchs_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights move by 0.2 times the rate in the mean: what bfloat16 rounds is far below that."""
    theirs = after(torch.optim.Muon)
    monkeypatch.setattr(muon, "has_bf16", lambda: False)
    ours = after(Muon)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=3e-4)
    assert not all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours[3:], theirs[3:], strict=True))  # the state, to the bit


def test_with_bfloat16_it_is_torchs_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_bf16", lambda: True)
    assert all(torch.equal(a, b) for a, b in zip(after(Muon), after(torch.optim.Muon), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_iterations_are_those_of_float64(shape: tuple[int, int]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    settings = ((3.4445, -4.775, 2.0315), 5, 1e-7)
    found = orthogonal(given, *settings)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, orthogonal(given.double(), *settings).float(), rtol=0, atol=1e-4)
    spread = torch.linalg.svdvals(found)
    assert 0.6 < float(spread.min()) <= float(spread.max()) < 1.3  # about one, which is all that it promises


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ({"avx2", "fma"}, False),
        ({"avx2", "avx512f"}, False),
        ({"avx512bw", "avx512dq", "avx512vl"}, True),
        ({"avx2", "amx_bf16"}, True),
        (set(), True),
    ],
    ids=["avx2", "avx512f", "avx512", "amx", "no x86"],
)
def test_who_has_bfloat16(flags: set[str], has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_flags", lambda: frozenset(flags))
    assert processor.has_bf16() is has
