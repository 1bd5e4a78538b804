"""Two halves are the whole backward, and the first one leaves products for the second."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shunter.models.decoder import Decoder
from shunter.parallel.stage import LOSS, Stage
from shunter.parallel.tree import Tree
from tests.models.small import CASES, redraw, spec_of

torch.manual_seed(0)
# Weights whose gradients are left for the second half.
PRODUCTS = ("qkv.weight", "out.weight", "gate_up.weight", "down.weight", "experts.gate_up", "experts.down")


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def run(module: nn.Module, x: Tensor, halves: bool, *, recompute: bool, autocast: bool) -> tuple[Tree, dict]:
    def compute(inputs: Tree, microbatch: int) -> Tree:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if recompute:
                y = checkpoint(module, inputs["x"], use_reentrant=False)
            else:
                y = module(inputs["x"])
        return {LOSS: y.float().square().mean()}

    stage = Stage(compute, module)
    stage.forward(0, {"x": x.clone().requires_grad_()})
    if not halves:
        return stage.backward(0, {}), gradients(module)
    back = stage.input_grad(0, {})
    early = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    weights = {f"{n}.weight" for n, m in module.named_modules() if type(m) is nn.Linear}
    assert not early & weights, "the first half took the gradient of a linear layer's weight"
    stage.weight_grad(0)
    return back, gradients(module)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_halves_are_the_whole(recompute: bool, autocast: bool) -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8, bias=False))
    x = torch.randn(3, 5, 8)
    setting = {"recompute": recompute, "autocast": autocast}
    plain, expected = run(module, x, False, **setting)
    back, found = run(module, x, True, **setting)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(back, plain, rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_queue_that_is_not_drained_is_seen() -> None:
    """What the tests above rest on: without the second half, gradients of weights are missing."""
    module = nn.Linear(4, 4)
    stage = Stage(lambda inputs, microbatch: {LOSS: module(inputs["x"]).sum()}, module)
    stage.forward(0, {"x": torch.randn(2, 4)})
    stage.input_grad(0, {})
    assert module.weight.grad is None
    assert module.bias.grad is not None
    assert stage.in_flight == 1


@pytest.mark.parametrize("name", sorted(CASES))
def test_decoders_of_every_family(name: str) -> None:
    """Models know nothing of it; fused projections and written-out gradients of norms included."""
    model = Decoder(spec_of(name)).double()
    redraw(model)
    tokens = torch.randint(0, 97, (2, 12))
    model(tokens).square().mean().backward()
    expected = gradients(model)
    stage = Stage(lambda inputs, microbatch: {LOSS: model(tokens).square().mean()}, model)
    for microbatch in range(2):
        stage.forward(microbatch, {})
    for microbatch in range(2):
        stage.input_grad(microbatch, {})
    late = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert late & expected.keys() == {name for name in expected if name.endswith(PRODUCTS)}
    for microbatch in range(2):
        stage.weight_grad(microbatch)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], 2 * gradient, rtol=1e-9, atol=1e-12, msg=key)
