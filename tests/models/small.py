"""Small configurations of every family, all their tensors redrawn."""

from __future__ import annotations

from typing import Any

import torch

from shunter.models.spec import DecoderSpec, ExpertsSpec, RopeSpec

LENGTH = 48  # three times the original context of the cases with scaling

CASES: dict[str, dict[str, Any]] = {
    "llama2": {},
    "llama-gqa-tied": {"num_kv_heads": 1, "tied": True},
    "llama-wide-heads": {"head_dim": 24, "norm_eps": 1e-3},
    "llama-linear": {"rope": {"scaling": "linear", "factor": 4.0}},
    "llama-dynamic": {
        "rope": {"scaling": "dynamic", "factor": 2.0, "original_positions": 16},
        "max_positions": 16,
    },
    "llama3": {
        "rope": {
            "theta": 500000.0,
            "scaling": "llama3",
            "factor": 8.0,
            "original_positions": 16,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
    },
    "llama-yarn": {"rope": {"scaling": "yarn", "factor": 4.0, "original_positions": 16}},
    "llama-yarn-inside": {  # both ends of the ramp lie between the first and the last frequency
        "head_dim": 32,
        "rope": {
            "theta": 100.0,
            "scaling": "yarn",
            "factor": 4.0,
            "original_positions": 16,
            "beta_fast": 2.0,
            "beta_slow": 0.25,
            "attention_factor": 1.3,
        },
    },
    "mistral": {"family": "mistral", "num_kv_heads": 2},
    "mistral-window": {"family": "mistral", "sliding_window": 9},
    "qwen2": {"family": "qwen2", "qkv_bias": True, "rope": {"theta": 1e6}},
    "qwen2-yarn-tied": {
        "family": "qwen2",
        "qkv_bias": True,
        "tied": True,
        "rope": {"theta": 1e6, "scaling": "yarn", "factor": 4.0, "original_positions": 16},
    },
    "qwen3": {"family": "qwen3", "qk_norm": True, "head_dim": 32, "num_kv_heads": 2, "rope": {"theta": 1e6}},
    "qwen3-tied": {"family": "qwen3", "qk_norm": True, "tied": True},
    "mixtral": {
        "family": "mixtral",
        "num_kv_heads": 2,
        "ffn_dim": 40,
        "experts": {"num_experts": 6, "per_token": 2, "ffn_dim": 40},
        "rope": {"theta": 1e6},
    },
    "mixtral-window-one": {
        "family": "mixtral",
        "sliding_window": 9,
        "ffn_dim": 24,
        "experts": {"num_experts": 3, "per_token": 1, "ffn_dim": 24},
    },
    "qwen3-moe": {
        "family": "qwen3_moe",
        "qk_norm": True,
        "experts": {"num_experts": 5, "per_token": 3, "ffn_dim": 24, "normalise": False},
    },
    "qwen3-moe-some-dense": {
        "family": "qwen3_moe",
        "qk_norm": True,
        "tied": True,
        "num_layers": 5,
        "experts": {"num_experts": 4, "per_token": 2, "ffn_dim": 24, "dense_first": 2, "every": 2},
    },
    "glm4-moe": {
        "family": "glm4_moe",
        "qk_norm": True,
        "experts": {
            "num_experts": 6,
            "per_token": 3,
            "ffn_dim": 24,
            "shared_ffn_dim": 48,
            "router": "sigmoid",
            "scale": 2.5,
            "dense_first": 1,
        },
    },
    "glm4-moe-bias": {
        "family": "glm4_moe",
        "qkv_bias": True,
        "num_kv_heads": 2,
        "experts": {
            "num_experts": 4,
            "per_token": 2,
            "ffn_dim": 24,
            "shared_ffn_dim": 24,
            "router": "sigmoid",
            "normalise": False,
        },
    },
}


def spec_of(name: str) -> DecoderSpec:
    case = dict(CASES[name])
    rope = RopeSpec(**case.pop("rope", {}))
    experts = ExpertsSpec(**case.pop("experts")) if "experts" in case else None
    values = {
        "vocab_size": 97,
        "dim": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 16,
        "ffn_dim": 80,
        "max_positions": 64,
        "norm_eps": 1e-6,
        **case,
    }
    return DecoderSpec(**values, rope=rope, experts=experts)


def redraw(model: torch.nn.Module, seed: int = 0) -> None:
    """Every tensor, norms and biases too, from N(0, 0.3); also of buffers those that are saved."""
    generator = torch.Generator().manual_seed(seed)
    saved = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for parameter in (*model.parameters(), *(b for n, b in model.named_buffers() if n in saved)):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
