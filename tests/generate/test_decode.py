"""The fast path of one token equals the model's own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shunter.models import cache as cache_module
from shunter.models.cache import KVCache
from shunter.models.decode import Stepper
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec, ExpertsSpec, RopeSpec

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"qkv_bias": True, "num_kv_heads": 2},
    "norms": {"qk_norm": True, "num_kv_heads": 1, "tied": True},
    "window": {"sliding_window": 4},
    "dynamic": {"rope": RopeSpec(scaling="dynamic", factor=2.0, original_positions=6)},
    "experts": {"experts": ExpertsSpec(num_experts=5, per_token=2, ffn_dim=16, capacity=0.5)},
    "shared": {
        "experts": ExpertsSpec(
            num_experts=4, per_token=3, ffn_dim=8, shared_ffn_dim=8, router="sigmoid", dense_first=1
        )
    },
    "yarn": {"rope": RopeSpec(scaling="yarn", factor=4.0, original_positions=6)},
}


def model(name: str, dtype: torch.dtype) -> Decoder:
    shape = {"vocab_size": 37, "dim": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "head_dim": 6}
    made = Decoder(DecoderSpec(**{**shape, "ffn_dim": 40, "max_positions": 32, **VARIANTS[name]})).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return made.to(dtype)


def steps(name: str, dtype: torch.dtype, fast: bool) -> torch.Tensor:
    """Logits [steps, B, V] of tokens that follow prompts of lengths 5, 2 and 4, with one row leaving."""
    decoder = model(name, dtype)
    cache = KVCache(decoder.spec, torch.tensor([0, 3, 1]), 16, dtype)
    draw = torch.Generator().manual_seed(2)
    found = []
    stepper = Stepper(decoder)
    with torch.inference_mode():
        decoder(torch.randint(0, 37, (3, 5), generator=draw), cache=cache)
        for step in range(8):
            tokens = torch.randint(0, 37, (3,), generator=draw)
            if step == 5:
                cache.select(torch.tensor([2, 0]))
            if step >= 5:
                tokens = tokens[:2]
            if fast:
                logits = stepper(tokens, cache)
            else:
                logits = decoder.logits(decoder(tokens[:, None], cache=cache)[:, 0])
            found.append(logits[:2].double())
    return torch.stack(found)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_token_equals_the_forward_pass(name: str) -> None:
    torch.testing.assert_close(steps(name, torch.float64, True), steps(name, torch.float64, False))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_in_other_precisions_up_to_rounding(dtype: torch.dtype, tolerance: float) -> None:
    exact = steps("norms", torch.float64, False)
    gap = (steps("norms", dtype, True) - exact).abs().max() / exact.abs().max()
    assert float(gap) < tolerance


def test_huge_pages_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = steps("plain", torch.float64, True)
    monkeypatch.setattr(cache_module, "_LARGE", 0)
    assert torch.equal(steps("plain", torch.float64, True), expected)
