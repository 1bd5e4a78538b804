"""Adapters' product and its written-out gradient, against torch's own.

Not shown: anything on a GPU; that adapters learn as well as all weights do.
"""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shunter.models.adapter import TARGETS, AdaptedLinear, FrozenWeight, Held
from shunter.parallel.saved import SavedBytes

ROWS = {"q": 24, "k": 8, "v": 16}


def linear(bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, sum(ROWS.values()), bias=bias).double()


def adapted(held: Held, names: list[str], bias: bool = False) -> AdaptedLinear:
    made = AdaptedLinear(linear(bias), ROWS, names, rank=3, scale=1.7, held=held).double()
    for parameter in (*made.a.parameters(), *made.b.parameters()):
        nn.init.normal_(parameter)
    return made


def apart(module: AdaptedLinear, x: Tensor) -> Tensor:
    """The projections as separate products, as Hugging Face has them, by torch's own gradient."""
    weight, begin, parts = module.frozen.weight(x.dtype), 0, []
    for name, count in ROWS.items():
        y = F.linear(x, weight[begin : begin + count])
        if module.bias is not None:
            y = y + module.bias[begin : begin + count]
        if name in module.a:
            y = y + module.scale * F.linear(F.linear(x, module.a[name]), module.b[name])
        parts.append(y)
        begin += count
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("held", ["none", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("names", [["q", "k", "v"], ["q", "v"], ["k"], []])
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients(held: Held, names: list[str], bias: bool) -> None:
    module = adapted(held, names, bias)
    x = torch.randn(2, 5, 64, dtype=torch.float64, requires_grad=True)
    up = torch.randn(2, 5, sum(ROWS.values()), dtype=torch.float64)
    trained = [p for p in module.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(names)
    expected_y = apart(module, x)
    expected = torch.autograd.grad(expected_y, [x, *trained], up)
    y = module(x)
    found = torch.autograd.grad(y, [x, *trained], up)
    torch.testing.assert_close(y, expected_y, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected_y, rtol=1e-12, atol=1e-12)
        whole = F.linear(x, module.merged(torch.float64), module.bias)
        torch.testing.assert_close(whole, expected_y, rtol=1e-9, atol=1e-9)


def test_an_input_without_gradient_costs_none() -> None:
    module = adapted("none", ["q"])
    x = torch.randn(4, 64, dtype=torch.float64)
    module(x).sum().backward()
    assert module.a["q"].grad is not None
    assert module.frozen.whole.grad is None  # type: ignore[union-attr]


@pytest.mark.parametrize("held", ["none", "nf4"])
def test_of_the_weight_nothing_is_kept_for_the_backward(held: Held) -> None:
    """In bfloat16 too, where autocast would keep a rounded copy of it."""
    wide = AdaptedLinear(nn.Linear(256, 512, bias=False), {"out": 512}, ["out"], 4, 1.0, held)
    for parameter in (*wide.a.parameters(), *wide.b.parameters()):
        nn.init.normal_(parameter)
    x = torch.randn(3, 256, requires_grad=True)
    with SavedBytes(wide.parameters()) as saved, torch.autocast("cpu", dtype=torch.bfloat16):
        y = wide(x)
    gc.collect()
    assert 0 < saved.now <= 3 * 256 * 2 + 3 * 4 * 2, "the input, and what A made of it"
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_autocast_rounds_as_a_linear_does() -> None:
    plain = nn.Linear(64, 48)
    module = AdaptedLinear(plain, ROWS, ["q"], 3, 1.0, "none")
    for parameter in (*module.a.parameters(), *module.b.parameters()):
        nn.init.zeros_(parameter)
    x = torch.randn(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), plain(x))


@pytest.mark.parametrize("cut", ["output", "input"])
def test_pieces_of_a_tensor_parallel_layout_make_the_whole(cut: str) -> None:
    """What `Place.dims` declares: two ranks' pieces, concatenated or added up, give one process's product."""
    module = AdaptedLinear(linear(), {"out": 48}, ["out"], 3, 1.7, "none").double()
    nn.init.normal_(module.a["out"])
    nn.init.normal_(module.b["out"])
    place = next(place for place in TARGETS.values() if place.cut == cut)
    x = torch.randn(5, 64, dtype=torch.float64)
    assert isinstance(module.frozen, FrozenWeight)
    parts = []
    for rank in range(2):

        def piece(tensor: Tensor, dim: int | None, rank: int = rank) -> Tensor:
            return tensor if dim is None else tensor.chunk(2, dim)[rank]

        weight = piece(module.frozen.whole, 0 if cut == "output" else 1)
        a, b = piece(module.a["out"], place.dims[0]), piece(module.b["out"], place.dims[1])
        mine = x if cut == "output" else piece(x, 1)
        parts.append(F.linear(mine, weight) + module.scale * F.linear(F.linear(mine, a), b))
    whole = torch.cat(parts, dim=-1) if cut == "output" else parts[0] + parts[1]
    torch.testing.assert_close(whole, module(x), rtol=1e-12, atol=1e-12)
