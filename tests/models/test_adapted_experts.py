"""Adapters beside experts: the product and its written-out gradient, against torch's own, expert by expert.

Not shown: anything on a GPU. Layouts stand in tests/surgery/test_layouts.py.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shunter.models.adapted_experts import AdaptedExperts
from shunter.models.adapter import Held
from shunter.models.moe import Experts
from shunter.parallel.saved import SavedBytes

NUMBER, DIM, WIDTH, RANK = 4, 64, 48, 3
COUNTS = torch.tensor([5, 0, 9, 3])


def adapted(held: Held, names: list[str]) -> AdaptedExperts:
    torch.manual_seed(0)
    made = AdaptedExperts(Experts(NUMBER, DIM, WIDTH).double(), names, RANK, 1.7, held).double()
    for parameter in (*made.a.parameters(), *made.b.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return made


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    rows = torch.randn(int(COUNTS.sum()), DIM, dtype=torch.float64, requires_grad=True)
    return rows, torch.rand(len(rows), dtype=torch.float64).requires_grad_()


def apart(module: AdaptedExperts, rows: Tensor, weights: Tensor) -> Tensor:
    """Each expert and each projection by itself, by torch's own gradient."""
    gate_up, down = (module.matrices(name, NUMBER, rows.dtype) for name in ("gate_up", "down"))

    def product(x: Tensor, weight: Tensor, name: str, expert: int) -> Tensor:
        y = F.linear(x, weight)
        if name in module.a:
            y = y + module.scale * F.linear(F.linear(x, module.a[name][expert]), module.b[name][expert])
        return y

    found = []
    for expert, (x, w) in enumerate(
        zip(rows.split(COUNTS.tolist()), weights.split(COUNTS.tolist()), strict=True)
    ):
        gate = product(x, gate_up[expert, :WIDTH], "gate", expert)
        up = product(x, gate_up[expert, WIDTH:], "up", expert)
        found.append(product(F.silu(gate) * up * w[:, None], down[expert], "down", expert))
    return torch.cat(found)


@pytest.mark.parametrize("held", ["none", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("names", [["gate", "up", "down"], ["up"], ["down"], ["gate", "up"], []])
def test_product_and_gradients_are_those_of_separate_products(held: Held, names: list[str]) -> None:
    module, found = adapted(held, names), []
    for compute in (module, lambda *given: apart(module, *given[:2])):
        rows, weights = inputs()
        module.zero_grad()
        y = compute(rows, weights, COUNTS)
        y.square().sum().backward()
        grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        found.append((y.detach(), rows.grad, weights.grad, grads))
    (y, rows, weights, grads), (y2, rows2, weights2, grads2) = found
    assert grads.keys() == grads2.keys() == {f"{part}.{name}" for part in "ab" for name in names}
    for mine, theirs in (
        (y, y2),
        (rows, rows2),
        (weights, weights2),
        *((grads[n], grads2[n]) for n in grads),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("names", [["gate", "up", "down"], ["up"], ["down"]])
def test_merged_matrices_compute_the_same(names: list[str]) -> None:
    module = adapted("nf4", names)
    plain = Experts(NUMBER, DIM, WIDTH).double()
    with torch.no_grad():
        for name in ("gate_up", "down"):
            plain.get_parameter(name).copy_(module.merged(name, torch.float64))
        rows, weights = inputs()
        torch.testing.assert_close(
            plain(rows, weights, COUNTS), module(rows, weights, COUNTS), rtol=1e-9, atol=1e-10
        )


def test_no_unpacked_weight_is_kept_for_the_backward() -> None:
    module = adapted("nf4", ["gate", "up", "down"])
    rows, weights = inputs()
    with SavedBytes(module.parameters()) as saved:
        module(rows, weights, COUNTS)
    assert 0 < saved.peak < NUMBER * 2 * WIDTH * DIM * 8 / 4
