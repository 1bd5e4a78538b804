"""Adapters in whole decoders: what is trained, what merging gives, what quantising changes.

Not shown: that a tuned model is good. Multi-rank runs stand in test_layouts.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shunter.config.errors import ShunterError
from shunter.models.adapter import AdaptedLinear
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model, open_model, save_model
from shunter.surgery.config import ALL, AdapterConfig
from shunter.surgery.lora import attach, filler, is_adapted, merged
from shunter.train.config import TrainConfig
from shunter.train.optim import Optimizers
from tests.models.small import CASES, redraw, spec_of


def model(name: str = "qwen2") -> Decoder:
    decoder = Decoder(spec_of(name)).double()
    redraw(decoder)
    return decoder


def tuned(config: AdapterConfig, name: str = "qwen2") -> Decoder:
    """An adapted decoder whose trainable tensors were all drawn anew, as if it had learnt."""
    decoder = model(name)
    attach(decoder, config, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.2 * noise)
    return decoder.double()


def logits(decoder: Decoder, length: int = 20) -> Tensor:
    tokens = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(1))
    return decoder.logits(decoder(tokens))


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_fresh_adapter_changes_nothing(name: str) -> None:
    decoder = model(name)
    before = logits(decoder).detach()
    attach(decoder, AdapterConfig(rank=4), seed=0)
    torch.testing.assert_close(logits(decoder.double()), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quantise", ["none", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("name", ["qwen2", "qwen3-tied", "llama-gqa-tied", "mixtral", "glm4-moe"])
def test_merged_logits_are_the_unmerged(quantise: str, name: str) -> None:
    config = AdapterConfig(rank=5, alpha=7, also=["norms", "embed"], quantise=quantise)  # type: ignore[arg-type]
    decoder = tuned(config, name)
    plain = merged(decoder)
    assert is_adapted(decoder)
    assert not is_adapted(plain)
    with torch.no_grad():
        expected, found, before = logits(decoder), logits(plain), logits(model(name))
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    assert float((before - expected).abs().max()) > 0.1, "nothing was learnt, so nothing is shown"


def test_what_is_trained() -> None:
    decoder = model()
    attach(decoder, AdapterConfig(rank=2, targets=["q", "v", "down"], also=["norms", "head"]), seed=0)
    trained = {name for name, p in decoder.named_parameters() if p.requires_grad}
    layer = {
        f"layers.0.{name}"
        for name in (
            "attention_norm.weight", "ffn_norm.weight", "attention.qkv.a.q", "attention.qkv.b.q",
            "attention.qkv.a.v", "attention.qkv.b.v", "ffn.down.a.down", "ffn.down.b.down",
        )
    }  # fmt: skip
    assert {name for name in trained if name.startswith("layers.0")} == layer
    assert {name for name in trained if not name.startswith("layers")} == {"norm.weight", "head.weight"}
    assert isinstance(decoder.layers[0].get_submodule("attention.out"), nn.Linear)
    logits(decoder.double()).square().mean().backward()
    assert {name for name, p in decoder.named_parameters() if p.grad is not None} == trained


def test_gradients_are_those_of_the_weights_that_the_packed_ones_are_read_as() -> None:
    config = AdapterConfig(rank=4, also=["norms"], quantise="nf4")
    packed = tuned(config)
    plain = model()
    attach(plain, AdapterConfig(rank=4, also=["norms"]), seed=0)
    own = dict(packed.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.double().named_parameters():
            if name.endswith("frozen.whole"):
                owner = packed.get_submodule(name.removesuffix(".frozen.whole"))
                assert isinstance(owner, AdaptedLinear)
                parameter.copy_(owner.frozen.weight(torch.float64))
            else:
                parameter.copy_(own[name])
    for decoder in (packed, plain):
        logits(decoder).square().mean().backward()
    torch.testing.assert_close(logits(packed), logits(plain), rtol=1e-12, atol=1e-12)
    compared = 0
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-9, atol=1e-12)
            compared += 1
    assert compared > 2 * 2 * len(ALL)


def test_the_optimizer_holds_state_of_what_is_trained_only() -> None:
    decoder = model()
    attach(decoder, AdapterConfig(rank=2), seed=0)
    trained = {name: p.numel() for name, p in decoder.named_parameters() if p.requires_grad}
    state = Optimizers(decoder, TrainConfig(steps=1, optimizer="adamw")).state()
    assert state.keys() == trained.keys()
    assert sum(tensor.numel() for each in state.values() for tensor in each.values()) == sum(
        2 * size + 1 for size in trained.values()
    )


def test_muon_takes_each_adapter_as_a_matrix_of_its_own() -> None:
    decoder = model()
    attach(decoder, AdapterConfig(rank=2), seed=0)
    optimizers = Optimizers(decoder, TrainConfig(steps=1, optimizer="muon"))
    assert optimizers.adamw is None
    assert all(len(views) == 1 for _, views in optimizers.matrices.values())


def test_first_weights_are_peft_s_and_depend_on_the_seed_alone() -> None:
    first, again, other = (model() for _ in range(3))
    for decoder, seed in ((first, 0), (again, 0), (other, 1)):
        attach(decoder, AdapterConfig(rank=8), seed=seed)
    for name, parameter in first.named_parameters():
        if ".a." in name:
            bound = parameter.shape[1] ** -0.5  # kaiming_uniform_(a=sqrt(5))
            assert 0.9 * bound < float(parameter.detach().abs().max()) <= bound
            assert torch.equal(parameter, again.get_parameter(name))
            assert not torch.equal(parameter, other.get_parameter(name))
        elif ".b." in name:
            assert not parameter.any()


def test_a_scale_that_does_not_fall_with_the_rank() -> None:
    assert AdapterConfig(rank=16, alpha=8).scale == 0.5
    assert AdapterConfig(rank=16, alpha=8, rank_stabilised=True).scale == 2.0


@pytest.mark.parametrize(
    ("config", "name", "says"),
    [
        ({"rank": 65}, "qwen2", r"rank 65 is above the smaller side of q, which is 64 x 64\. Use at most 64"),
        ({"rank": 17}, "llama-gqa-tied", "smaller side of k, which is 16 x 64"),
        ({"also": ["head"]}, "llama-gqa-tied", r"Write \[embed, head\]"),
    ],
)
def test_what_cannot_be_is_refused(config: dict, name: str, says: str) -> None:
    with pytest.raises(ShunterError, match=says):
        attach(model(name), AdapterConfig(**config), seed=0)
    attach(model("qwen2"), AdapterConfig(rank=20, targets=["down"]), seed=0)


@pytest.mark.parametrize("quantise", ["none", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("name", ["qwen2", "mixtral", "glm4-moe"])
def test_tensors_filled_one_by_one_are_those_of_a_model_that_was_whole(
    name: str, quantise: str, tmp_path: Path
) -> None:
    """As a rank has them that never had room for the whole."""
    save_model(model(name), tmp_path, dtype=torch.bfloat16)
    config = AdapterConfig(rank=4, also=["norms"], quantise=quantise)  # type: ignore[arg-type]
    whole = load_model(tmp_path) if quantise == "none" else load_model(tmp_path, None)
    attach(whole, config, seed=3)
    bare, read = open_model(tmp_path)
    attach(bare, config, seed=3)
    fill, expected = filler(bare, 3, read), whole.state_dict()
    assert bare.state_dict().keys() == expected.keys()
    for key, tensor in bare.state_dict().items():
        assert tensor.is_meta
        filled = torch.empty_like(tensor, device="cpu")
        fill(key, filled)
        assert filled.dtype == expected[key].dtype, key
        assert torch.equal(filled, expected[key]), key
    trained = [[p.requires_grad for p in each.parameters()] for each in (whole, bare)]
    assert trained[0] == trained[1]
