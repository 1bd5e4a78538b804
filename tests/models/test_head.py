"""The fused head against log-softmax over materialised logits, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shunter.models import head
from shunter.parallel.live import LiveBytes


def reference(hidden, weight, targets, coefficients, z_loss):
    logits = hidden @ weight.T
    normaliser = logits.logsumexp(-1)
    picked = logits.gather(1, targets.clamp(min=0)[:, None]).squeeze(1) - normaliser
    return (coefficients * picked).sum() + z_loss * (coefficients.abs() * normaliser**2).sum(), picked


@given(
    st.integers(1, 40),
    st.integers(2, 50),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.01]),
    st.integers(0, 99),
)
def test_loss_and_gradient(count: int, vocab: int, dim: int, z_loss: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, dim, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab, dim, generator=draw, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, vocab, (count,), generator=draw)
    coefficients = torch.randn(count, generator=draw, dtype=torch.float64)
    ignored = torch.rand(count, generator=draw) < 0.4
    targets[ignored], coefficients[ignored] = -100, 0.0
    expected, picked = reference(hidden, weight, targets, coefficients, z_loss)
    want = torch.autograd.grad(3 * expected, (hidden, weight))
    loss, logprobs = head.linear_cross_entropy(hidden, weight, targets, coefficients, z_loss=z_loss)
    got = torch.autograd.grad(3 * loss, (hidden, weight))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logprobs[~ignored], picked[~ignored].detach(), rtol=1e-12, atol=1e-12)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("chunk", "block"), [(512, 1 << 20), (8000, 500), (1 << 24, 1 << 20), (1 << 24, 1000)]
)
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int, block: int) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(head, "BLOCK_ELEMENTS", block)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 30, (200,), generator=draw)
    coefficients = torch.full((200,), -1 / 200, dtype=torch.float64)
    loss, _ = head.linear_cross_entropy(hidden, weight, targets, coefficients)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(hidden @ weight.T, targets))
    loss.backward()
    want = torch.autograd.grad(
        torch.nn.functional.cross_entropy(hidden @ weight.T, targets), (hidden, weight)
    )
    torch.testing.assert_close(hidden.grad, want[0])
    torch.testing.assert_close(weight.grad, want[1])


def test_no_gradient_is_taken_when_none_is_wanted() -> None:
    with torch.no_grad():
        loss, logprobs = head.linear_cross_entropy(
            torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, -1]), torch.tensor([1.0, 1, 1, 0])
        )
    assert logprobs[3] == 0
    torch.testing.assert_close(loss, logprobs.double().sum())


@pytest.mark.parametrize("chunk", [512, 1 << 24])
def test_bfloat16_products_accumulate_in_float32(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(head, "BLOCK_ELEMENTS", 1000)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 16, generator=draw).requires_grad_()
    weight = torch.randn(70, 16, generator=draw).requires_grad_()
    targets = torch.randint(0, 70, (300,), generator=draw)
    coefficients = torch.full((300,), -1 / 300, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = head.linear_cross_entropy(hidden, weight, targets, coefficients)
    got = torch.autograd.grad(loss, (hidden, weight))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss.float(), expected, rtol=3e-3, atol=0)
    for a, b in zip(got, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < 1e-2


def test_no_token_counts() -> None:
    hidden = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(7, 4, requires_grad=True)
    zero = torch.zeros(5, dtype=torch.float64)
    loss, _ = head.linear_cross_entropy(hidden, weight, torch.full((5,), -100), zero)
    for grad in (loss, *torch.autograd.grad(loss, (hidden, weight))):
        assert float(grad.detach().abs().sum()) == 0


def test_without_gradients_none_are_taken() -> None:
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets, coefficients = torch.randint(0, 9, (6,)), -torch.ones(6)
    expected, _ = head.linear_cross_entropy(hidden, weight, targets, coefficients)
    taken: list[bool] = []
    real = head.accumulate_outer

    def noting(*arguments: object) -> None:
        taken.append(True)
        real(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(head, "accumulate_outer", noting)
        found, _ = head.linear_cross_entropy(hidden, weight, targets, coefficients)
    assert not taken
    assert float(found) == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_weight_s_gradient_can_be_taken_at_once(half: bool, tied: bool) -> None:
    """Added to what is there already, also where the weight is used a second time."""
    found, expected = [], []
    for into_grad, into in ((False, expected), (True, found)):
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(9, 4, generator=draw).requires_grad_()
        for _ in range(3):
            ids, targets = (torch.randint(0, 9, (6,), generator=draw) for _ in range(2))
            first = torch.nn.functional.embedding(ids, weight if tied else weight.detach())
            hidden = first + torch.randn(6, 4, generator=draw)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss, _ = head.linear_cross_entropy(
                    hidden, weight, targets, -torch.ones(6), into_grad=into_grad
                )
            loss.backward()
            into.append(weight.grad.clone())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if half else 1e-5, atol=1e-3)


def test_a_loss_without_tokens_leaves_a_gradient_of_zero() -> None:
    weight, hidden = torch.randn(9, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    loss, _ = head.linear_cross_entropy(
        hidden, weight, torch.full((6,), -100), torch.zeros(6), into_grad=True
    )
    loss.backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [False, True])
def test_a_few_tokens_take_the_room_of_a_few(dtype: torch.dtype, part: bool) -> None:
    """Not that of a whole chunk, which is 8 MiB here and 256 MiB on a GPU."""

    class Alone:
        begin, rows = 0, 512

        def largest(self, values: torch.Tensor) -> torch.Tensor:
            return values

        total = largest

    count, vocab, dim = 16, 512, 8
    hidden, weight = (torch.randn(n, dim, requires_grad=True) for n in (count, vocab))
    targets = torch.arange(count)
    with LiveBytes([hidden, weight]) as live, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        head.linear_cross_entropy(
            hidden, weight, targets, torch.full((count,), -1.0), others=Alone() if part else None
        )
    # Logits, a scratch as large in float32, the weight's gradient and the weight as products take it.
    assert live.peak < 3 * 4 * count * vocab + 3 * 4 * vocab * dim
