"""SwiGLU's product: value and gradient against autograd's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shunter.models.swiglu import swiglu


def formula(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("shape", [(2,), (5, 8), (2, 3, 14)])
def test_equals_the_formula(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draw, dtype=torch.float64).mul_(3).requires_grad_()
    grad = torch.randn(*shape[:-1], shape[-1] // 2, generator=draw, dtype=torch.float64)
    want, got = formula(x), swiglu(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(swiglu(x), want, rtol=1e-12, atol=1e-12)
    a, b = torch.autograd.grad(got, x, grad), torch.autograd.grad(want, x, grad)
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_gradient_that_is_a_view() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(formula(x).t()[1:].square().sum(), x)
    (got,) = torch.autograd.grad(swiglu(x).t()[1:].square().sum(), x)
    torch.testing.assert_close(got, want)


def test_bfloat16_is_as_near_as_autograd() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(64, 256, generator=draw).bfloat16()
    grad = torch.randn(64, 128, generator=draw).bfloat16()
    exact = x.double().requires_grad_()
    (want,) = torch.autograd.grad(formula(exact), exact, grad.double())
    errors = []
    for function in (swiglu, lambda y: F.silu(y.chunk(2, dim=-1)[0]) * y.chunk(2, dim=-1)[1]):
        here = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(function(here), here, grad)
        errors.append(float((found.double() - want).norm() / want.norm()))
    assert errors[0] <= errors[1] * 1.05


def test_only_the_input_is_kept() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        swiglu(x)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]
