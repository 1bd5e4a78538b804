"""RMSNorm: value and gradient against the formula in float64."""

from __future__ import annotations

import pytest
import torch

from shunter.models.norm import rms_norm


def formula(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("eps", [1e-6, 0.3])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 4, 16), (1, 1, 2)])
def test_equals_the_formula(shape: tuple[int, ...], eps: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], generator=draw, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, generator=draw, dtype=torch.float64)
    want, got = formula(x, weight, eps), rms_norm(x, weight, eps)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, eps), want, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(got, (x, weight), grad),
        torch.autograd.grad(want, (x, weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_part_of_a_wider_tensor() -> None:
    """Queries are a slice of the fused projection."""
    whole = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    want = torch.autograd.grad(formula(whole[:, :, 1:4], weight, 1e-6).square().sum(), (whole, weight))
    got = torch.autograd.grad(rms_norm(whole[:, :, 1:4], weight, 1e-6).square().sum(), (whole, weight))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_is_rounded_at_the_end_only() -> None:
    x = torch.randn(64, 256).bfloat16().requires_grad_()
    weight = torch.randn(256, requires_grad=True)
    grad = torch.randn(64, 256).bfloat16()
    got = rms_norm(x, weight, 1e-6)
    assert got.dtype == torch.bfloat16
    x64, w64 = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    want = formula(x64, w64, 1e-6)
    pairs = zip(
        (got, *torch.autograd.grad(got, (x, weight), grad)),
        (want, *torch.autograd.grad(want, (x64, w64), grad.double())),
        strict=True,
    )
    for (a, b), tolerance in zip(pairs, (3e-3, 3e-3, 1e-5), strict=True):
        assert float(((a.double() - b).norm() / b.norm()).detach()) < tolerance


def test_only_the_input_is_kept() -> None:
    x, weight = torch.randn(4, 32, requires_grad=True), torch.ones(32, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x, weight, 1e-6)
    assert sum(t.numel() for t in kept if t.data_ptr() not in (x.data_ptr(), weight.data_ptr())) == 4
