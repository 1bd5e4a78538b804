"""Optimizers: what is fused for arithmetic's sake is learnt as if it were not."""

from __future__ import annotations

import pytest
import torch

from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.train.config import TrainConfig
from shunter.train.muon import Muon
from shunter.train.optim import Optimizers
from tests.train import corpora

MUON = TrainConfig(steps=1, optimizer="muon")
FUSED = ("attention.qkv.weight", "ffn.gate_up.weight")
EXPERTS = {"num_experts": 3, "per_token": 1, "ffn_dim": 20}


def with_gradients(model: Decoder, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)


def separate(name: str, tensor: torch.Tensor, spec: DecoderSpec) -> list[torch.Tensor]:
    """The projections of a parameter of a layer, as a model without fused products has them."""
    if name.endswith(FUSED[0]):
        q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        return [tensor[:q], tensor[q : q + kv], tensor[q + kv :]]
    if name.endswith(FUSED[1]):
        return [tensor[: spec.ffn_dim], tensor[spec.ffn_dim :]]
    if name.endswith("experts.gate_up"):
        return [part for expert in tensor for part in expert.chunk(2)]
    return list(tensor) if name.endswith("experts.down") else [tensor]


def model_of(experts: dict[str, int] | None) -> Decoder:
    model = Decoder(DecoderSpec(**{**corpora.SPEC.model_dump(), "experts": experts}))
    init_weights(model, 0)
    return model


@pytest.mark.parametrize(("experts", "matrices"), [(None, 7), (EXPERTS, 4 + 1 + 3 * 3)])
def test_each_projection_is_updated_as_if_it_stood_alone(
    experts: dict[str, int] | None, matrices: int
) -> None:
    """Against Muon on parameters of their own: same bits, over several steps and a skipped one."""
    model = model_of(experts)
    ours = Optimizers(model, MUON)
    alone = {
        name: [torch.nn.Parameter(part.detach().clone()) for part in separate(name, p, model.spec)]
        for name, p in model.named_parameters()
        if name in ours.matrices
    }
    assert sum(len(parts) for parts in alone.values()) == matrices * model.spec.num_layers
    theirs = Muon(
        [part for parts in alone.values() for part in parts],
        momentum=MUON.momentum,
        weight_decay=MUON.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    for step in range(4):
        with_gradients(model, step)
        if step == 2:
            ours.zero_grad()
            continue
        for name, p in model.named_parameters():
            for part, grad in zip(alone.get(name, ()), separate(name, p.grad, model.spec), strict=False):
                part.grad = grad.clone()
        for group in theirs.param_groups:
            group["lr"] = 1e-2
        ours.step(1e-2)
        theirs.step()
        ours.zero_grad()
    for name, parts in alone.items():
        now = dict(model.named_parameters())[name]
        for part, mine in zip(parts, separate(name, now, model.spec), strict=True):
            assert torch.equal(part, mine), name


def test_the_update_of_each_projection_has_the_size_that_is_promised() -> None:
    """arXiv 2502.16982, equation 4: an RMS of 0.2 times the rate, whatever the projections' gradients."""
    spec = DecoderSpec(**{**corpora.SPEC.model_dump(), "dim": 128, "head_dim": 64, "num_kv_heads": 2})
    model = Decoder(spec)
    init_weights(model, 0)
    optimizers = Optimizers(model, TrainConfig(steps=1, weight_decay=0.0))
    with_gradients(model, 0)
    weight = model.layers[0].attention.qkv.weight
    for part, scale in zip(separate(FUSED[0], weight.grad, spec), (1.0, 1e-3, 30.0), strict=True):
        part.mul_(scale)  # as query, key and value differ in a training
    before = weight.detach().clone()
    optimizers.step(1e-2)
    for part in separate(FUSED[0], (weight.detach() - before), spec):
        assert float(part.square().mean().sqrt()) / 1e-2 == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("experts", [None, EXPERTS])
def test_the_state_is_one_tensor_a_parameter(experts: dict[str, int] | None) -> None:
    """Checkpoints are those of an optimizer that knows nothing of projections, and loads fill the views."""
    model = model_of(experts)
    optimizers = Optimizers(model, MUON)
    state = optimizers.state()
    assert state.keys() == {name for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        if name in optimizers.matrices:
            assert state[name]["momentum_buffer"].shape == p.shape
            state[name]["momentum_buffer"].fill_(3.0)
    assert optimizers.muon is not None
    for held in optimizers.muon.state.values():
        assert bool((held["momentum_buffer"] == 3.0).all())


def test_parameters_that_were_moved_are_not_updated_in_silence() -> None:
    model = corpora.decoder()
    optimizers = Optimizers(model, MUON)
    model.double()
    with_gradients(model, 0)
    with pytest.raises(RuntimeError, match="was moved after its optimizer was made"):
        optimizers.step(1e-3)
