"""Mixtures of experts: against a loop over tokens, and what must not depend on how a step is cut.

What this cannot show: kernels of CUDA, and that a bias evens the load in a long training.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shunter.models import grouped
from shunter.models.moe import MoE, begin_step, expert_load, rebalance
from shunter.models.router import within_capacity
from shunter.models.spec import ExpertsSpec

DIM = 16
BASE: dict[str, Any] = {"num_experts": 5, "per_token": 2, "ffn_dim": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "over all": {"normalise": False},
    "sigmoid": {"router": "sigmoid", "shared_ffn_dim": 12, "scale": 2.5},
    "sigmoid as it is": {"router": "sigmoid", "normalise": False},
    "every expert": {"per_token": 5},
    "dropped": {"capacity": 0.7},
    "dropped by position": {"capacity": 0.7, "drop": "position"},
    "dropped among all": {"capacity": 0.7, "capacity_scope": "local"},
}


def spec(**more: Any) -> ExpertsSpec:
    return ExpertsSpec(**{**BASE, **more})


def layer(dtype: torch.dtype = torch.float64, **more: Any) -> MoE:
    torch.manual_seed(0)
    made = MoE(DIM, spec(**more)).double()
    torch.nn.init.normal_(made.router.weight)
    if made.router.bias is not None:
        torch.nn.init.normal_(made.router.bias, std=0.3)
    return made.to(dtype)


def inputs(rows: int = 3, length: int = 7) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(rows, length, DIM, generator=draw, dtype=torch.float64)


class ByRow(torch.nn.Module):
    """In the place of experts."""

    def forward(self, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        return rows.sin() * weights[:, None]


def by_hand(moe: MoE, x: Tensor, real: Tensor | None = None) -> Tensor:
    """One token after the other, dropping as the card of the paper says it."""
    s = moe.spec
    flat = x.flatten(0, 1)
    logits = flat @ moe.router.weight.T
    scores = logits.softmax(-1) if s.router == "softmax" else logits.sigmoid()
    ranked = scores if moe.router.bias is None else scores + moe.router.bias
    chosen = [[int(e) for e in row.topk(s.per_token).indices] for row in ranked]
    weight = {}
    for t, experts in enumerate(chosen):
        total = scores[t, experts].sum() if s.normalise else 1.0
        weight |= {(t, e): scores[t, e] / total * s.scale for e in experts}
    valid = [True] * len(flat) if real is None else real.flatten().tolist()
    groups = [range(len(flat))]
    if s.capacity_scope == "sequence":
        groups = [range(r * x.shape[1], (r + 1) * x.shape[1]) for r in range(len(x))]
    kept = set()
    for group in groups:
        tokens = [t for t in group if valid[t]]
        room = (
            len(tokens) if s.capacity is None else -(-len(tokens) * s.per_token * s.capacity // s.num_experts)
        )
        for e in range(s.num_experts):
            mine = [t for t in tokens if e in chosen[t]]
            if s.drop == "probs":
                mine.sort(key=lambda t: -weight[t, e].item())
            kept |= {(t, e) for t in mine[: int(room)]}
    out = []
    for t, token in enumerate(flat):
        y = torch.zeros_like(token) if moe.shared is None else moe.shared(token)
        for e in chosen[t]:
            if (t, e) in kept:
                gate, up = (moe.experts.gate_up[e] @ token).chunk(2)
                y = y + weight[t, e] * (moe.experts.down[e] @ (F.silu(gate) * up))
        out.append(y)
    return torch.stack(out).view_as(x)


def gradients(moe: MoE, y: Tensor, x: Tensor) -> dict[str, Tensor]:
    moe.zero_grad()
    x.grad = None
    (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()).sum().backward()
    return {"x": x.grad} | {name: p.grad for name, p in moe.named_parameters()}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_and_gradients_are_those_of_a_loop_over_tokens(name: str, padded: bool) -> None:
    moe, x = layer(**VARIANTS[name]), inputs().requires_grad_()
    real = torch.arange(7) < torch.tensor([7, 3, 0])[:, None] if padded else None
    expected = by_hand(moe, x, real)
    found = moe(x, real)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    theirs = gradients(moe, expected, x)
    for part, grad in gradients(moe, moe(x, real), x).items():
        torch.testing.assert_close(grad, theirs[part], rtol=1e-11, atol=1e-12, msg=part)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "dropped" in name])
def test_experts_filled_up_to_their_capacity_compute_the_same(name: str) -> None:
    """Within rounding: products of more rows, and sums with zeros among them, are taken in other blocks."""
    real = torch.arange(7) < torch.tensor([7, 3, 0])[:, None]
    found = []
    for pad in (False, True):
        moe, x = layer(**VARIANTS[name]), inputs().requires_grad_()
        moe.pad = pad
        shapes: list[torch.Size] = []
        moe.experts.register_forward_pre_hook(lambda _, given, shapes=shapes: shapes.append(given[0].shape))
        y = moe(x, real)
        moe(inputs(), None)
        found.append((y, gradients(moe, y, x), shapes))
    (plain, exact, _), (filled, grads, shapes) = found
    torch.testing.assert_close(filled, plain, rtol=1e-12, atol=1e-13)
    for part, grad in grads.items():
        torch.testing.assert_close(grad, exact[part], rtol=1e-12, atol=1e-13, msg=part)
    # Three rows of 7, two experts a token of five: 7 x 2 / 5 x 0.7 = 1.96 of a row, 5.88 of all.
    room = 6 if "among all" in name else 3 * 2
    assert set(shapes) == {torch.Size([5 * room, DIM])}, "no shape depends on what is chosen"


def test_what_is_filled_up_comes_back_to_the_bit() -> None:
    """With experts that do each row by itself: rows, weights, their gradients and the order of sums."""
    found = []
    for pad in (False, True):
        moe, x = layer(capacity=0.7), inputs().requires_grad_()
        moe.pad, moe.experts = pad, ByRow()
        y = moe(x, None)
        found.append((y, gradients(moe, y, x)))
    (plain, exact), (filled, grads) = found
    assert torch.equal(plain, filled)
    assert grads.keys() == exact.keys() == {"x", "router.weight"}
    assert all(torch.equal(grad, exact[name]) for name, grad in grads.items())


def test_without_a_capacity_to_heed_nothing_is_filled_up() -> None:
    moe = layer(capacity=0.3).eval()
    expected = moe(inputs())
    moe.pad = True
    assert torch.equal(moe(inputs()), expected), "nothing is dropped in evaluation, so there is no bound"


@given(
    capacity=st.floats(0.05, 3), rows=st.integers(1, 4), length=st.integers(1, 9), local=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_no_expert_ever_has_more_than_its_room(
    capacity: float, rows: int, length: int, local: bool, seed: int
) -> None:
    scope = "local" if local else "sequence"
    router = layer(capacity=capacity, capacity_scope=scope).router
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, length, DIM, generator=draw, dtype=torch.float64)
    x[:, :, 0] += 3 * (seed % 2)  # some crowd
    real = torch.rand(rows, length, generator=draw) < 0.8
    routing = router(x, real, drop=True)
    assert routing.room is not None
    assert int(routing.experts.flatten().bincount(minlength=6)[:5].max()) <= routing.room


def test_experts_without_tokens_and_batches_without_tokens() -> None:
    moe = layer()
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[:2, 0] = 1e3
    x = inputs().abs().requires_grad_()  # all choose experts 0 and 1
    grads = gradients(moe, moe(x), x)
    assert not grads["experts.gate_up"][2:].any()
    assert not grads["experts.down"][2:].any()
    assert grads["experts.down"][:2].abs().amin(dim=(1, 2)).gt(0).all()
    empty = torch.zeros(2, 0, DIM, dtype=torch.float64, requires_grad=True)
    assert moe(empty).shape == empty.shape
    none = torch.zeros(3, 7, dtype=torch.bool)
    assert not moe(x, none).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(32, 16), (24, 6)])
def test_grouped_products_equal_the_loop(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    """The second width does not begin rows at multiples of 16 bytes, so that it is computed by the loop."""
    draw = torch.Generator().manual_seed(0)
    n, k = sizes
    x, w, g = (torch.randn(*shape, generator=draw) for shape in ((50, k), (4, n, k), (50, n)))
    counts = torch.tensor([20, 0, 29, 1])
    wide = [t.double() for t in (x, w, g)]
    x, w, g = x.to(dtype), w.to(dtype), g.to(dtype)
    assert grouped._fused(x, w) == (sizes == (32, 16))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for found, expected in (
        (grouped.grouped_linear(x, w, counts), grouped.grouped_linear(wide[0], wide[1], counts)),
        (grouped.grouped_back(g, w, counts), grouped.grouped_back(wide[2], wide[1], counts)),
        (grouped.grouped_outer(g, x, counts), grouped.grouped_outer(wide[2], wide[0], counts)),
    ):
        assert float((found.double() - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_other_precisions_up_to_rounding_and_the_router_in_single(dtype: torch.dtype) -> None:
    exact = layer()(inputs())
    low = layer(torch.float32)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        found = low(inputs().float())
        routing = low.router(inputs().to(dtype), None, drop=False)
    assert routing.weights.dtype == torch.float32
    assert found.dtype == dtype
    gap = (found.double() - exact).abs().max() / exact.abs().max()
    assert gap.item() < (1e-5 if dtype == torch.float32 else 0.03)


LOSSES: dict[str, dict[str, Any]] = {
    "z": {"z_loss": 0.3},
    "balance of rows": {"balance_loss": 0.3},
    "balance of rows, sigmoid": {"balance_loss": 0.3, "router": "sigmoid"},
    "balance of micro-batches": {"balance_loss": 0.3, "balance_scope": "microbatch"},
}


def step(moe: MoE, x: Tensor, real: Tensor, cuts: list[int]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and load of a step over micro-batches; the loss itself does not reach the router."""
    moe.zero_grad()
    begin_step(moe, int(real.sum()))
    for rows, valid in zip(x.split(cuts), real.split(cuts), strict=True):
        (moe(rows, valid) * 0).sum().backward()
    return {name: p.grad.clone() for name, p in moe.named_parameters()}, expert_load(moe)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_the_router_have_the_gradient_of_their_formula(name: str) -> None:
    moe, x = layer(**LOSSES[name]), inputs()
    real = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
    logits = x @ moe.router.weight.T
    if "z_loss" in LOSSES[name]:
        loss = 0.3 * logits.logsumexp(-1)[real].square().mean()
    else:
        scores = logits.softmax(-1) if moe.router.bias is None else logits.sigmoid()
        ranked = scores if moe.router.bias is None else scores + moe.router.bias
        hot = F.one_hot(ranked.topk(2).indices, 5).sum(-2).double()
        p = scores / scores.sum(-1, keepdim=True)
        groups = (
            [real] if "microbatch" in LOSSES[name].values() else list(torch.eye(3).bool()[:, :, None] & real)
        )
        loss = sum(
            0.3 * group.sum().double() / real.sum() * 5 * (hot[group].mean(0) / 2 * p[group].mean(0)).sum()
            for group in groups
        )
    expected = torch.autograd.grad(loss, moe.router.weight)[0]
    found, load = step(moe, x, real, [3])
    torch.testing.assert_close(found["router.weight"], expected, rtol=1e-11, atol=1e-14)
    assert load["experts/z_loss"] + load["experts/balance_loss"] == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_micro_batches_or_padding_but_for_the_one_that_says_so(name: str) -> None:
    moe, x = layer(**LOSSES[name]), inputs(4)
    real = torch.arange(7) < torch.tensor([7, 3, 5, 7])[:, None]
    whole, load = step(moe, x, real, [4])
    wider = F.pad(x, (0, 0, 0, 3), value=3.0), F.pad(real, (0, 3))
    same = name != "balance of micro-batches"
    for grads, seen in (step(moe, x, real, [1, 3]), step(moe, x, real, [2, 1, 1])):
        gap = (grads["router.weight"] - whole["router.weight"]).abs().max() / whole[
            "router.weight"
        ].abs().max()
        assert (float(gap) < 1e-12) == same
        assert seen["experts/load_max"] == load["experts/load_max"]
    grads, seen = step(moe, *wider, [4])
    torch.testing.assert_close(grads["router.weight"], whole["router.weight"], rtol=1e-12, atol=0)
    assert seen == pytest.approx(load, rel=1e-12)


def test_dropping_in_rows_does_not_depend_on_micro_batches_and_among_all_does() -> None:
    x = inputs(4)
    outputs = {}
    for scope in ("sequence", "local"):
        moe = layer(capacity=0.8, capacity_scope=scope)
        outputs[scope] = moe(x), torch.cat([moe(part) for part in x.split([1, 3])])
    assert torch.allclose(*outputs["sequence"], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(*outputs["local"], rtol=1e-3, atol=1e-3)


@given(st.data())
def test_no_expert_has_more_than_its_capacity_and_keeps_the_best(data: st.DataObject) -> None:
    rows, length, k = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    s = spec(per_token=k, capacity=data.draw(st.sampled_from([0.1, 0.5, 1.0, 1.25, 10.0])))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    scores = torch.rand(rows, length, 5, generator=draw)
    weights, experts = scores.topk(k)
    valid = torch.rand(rows, length, generator=draw) < 0.8
    keep = within_capacity(s, experts, weights, valid)
    order = torch.randperm(length, generator=draw)
    shuffled = within_capacity(s, experts[:, order], weights[:, order], valid[:, order], places=order)
    assert torch.equal(keep[:, order], shuffled), "depends on where the tokens stand in memory"
    for row in range(rows):
        room = -(-int(valid[row].sum()) * k * s.capacity // 5)
        for expert in range(5):
            mine = (experts[row] == expert) & valid[row, :, None]
            kept, lost = weights[row][mine & keep[row]], weights[row][mine & ~keep[row]]
            assert len(kept) == min(int(mine.sum()), room)
            assert not len(kept) or not len(lost) or float(kept.min()) >= float(lost.max()) - 2**-16
    assert not keep[~valid].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_rounding_alone_parts_are_kept_by_place(dtype: torch.dtype) -> None:
    s = spec(per_token=1, capacity=2.5)
    weights = torch.full((1, 8, 1), 0.3, dtype=dtype)
    experts, valid = torch.zeros(1, 8, 1, dtype=torch.int64), torch.ones(1, 8, dtype=torch.bool)
    weights[0, 5:] *= 1 + 8 * torch.finfo(dtype).eps
    assert within_capacity(s, experts, weights, valid).flatten().tolist() == [True] * 4 + [False] * 4


def test_capacity_counts_in_training_alone() -> None:
    moe, x = layer(capacity=0.3), inputs()
    full = layer()(x)
    assert not torch.allclose(moe(x), full)
    assert torch.equal(moe(x, drop=False), full)
    assert torch.equal(moe.eval()(x), full)


def test_the_bias_moves_against_the_load_of_the_whole_step() -> None:
    moe, x = layer(router="sigmoid", bias_update=0.01), inputs(4)
    real = torch.ones(4, 7, dtype=torch.bool)
    step(moe, x, real, [1, 3])
    assert moe.router.load is not None
    assert moe.router.bias is not None
    chosen, before = moe.router.load.chosen, moe.router.bias.clone()
    assert int(chosen.sum()) == 4 * 7 * 2
    rebalance(moe)
    moved = (moe.router.bias - before) / 0.01
    torch.testing.assert_close(moved, (chosen.double().mean() - chosen).sign())
    for _ in range(300):  # the same tokens again and again: their load becomes even
        step(moe, x, real, [4])
        rebalance(moe)
    assert expert_load(moe)["experts/load_max"] < 1.25


def test_a_repeated_forward_pass_counts_once() -> None:
    moe, x = layer(z_loss=0.1), inputs().requires_grad_()
    begin_step(moe, 21)
    for reentrant in (False, True):
        torch.utils.checkpoint.checkpoint(moe, x, use_reentrant=reentrant).sum().backward()
    with torch.no_grad():
        moe(x)
    assert moe.router.load is not None
    assert int(moe.router.load.chosen.sum()) == 2 * 21 * 2


def test_dropped_choices_are_told() -> None:
    moe, x = layer(capacity=0.5, capacity_scope="local"), inputs()
    begin_step(moe, 21)
    moe(x).sum().backward()
    assert expert_load(moe)["experts/dropped"] == pytest.approx(
        float((moe.router(x, None, drop=True).experts == 5).float().mean())
    )
    assert expert_load(torch.nn.Linear(2, 2)) == {}


def test_normalised_probabilities_are_a_softmax_over_the_chosen_alone() -> None:
    """Choosing first and then weighing, as Mixtral's authors write it, is `normalise`."""
    moe, x = layer(), inputs()
    logits = (x @ moe.router.weight.T).flatten(0, 1)
    routing = moe.router(x, None, drop=False)
    expected = logits.topk(2).values.softmax(-1)
    torch.testing.assert_close(routing.weights, expected, rtol=1e-12, atol=0)
