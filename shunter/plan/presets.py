"""Published models by name, as their config.json has them. Imports without torch."""

from __future__ import annotations

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.models.spec import DecoderSpec


def _llama(
    layers: int, dim: int, heads: int, keys: int, ffn: int, words: int, positions: int = 8192
) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=words, dim=dim, num_layers=layers, num_heads=heads, num_kv_heads=keys,
        head_dim=dim // heads, ffn_dim=ffn, max_positions=positions,
    )  # fmt: skip


def gpt(layers: int, hidden: int, heads: int, words: int = 51200, positions: int = 2048) -> DecoderSpec:
    """A decoder as large as a GPT of these sizes (arXiv 2104.04473, table 1): its feed-forward layer of two
    matrices and width 4 h has as many weights as a SwiGLU of width 8 h / 3."""
    return DecoderSpec(
        vocab_size=words, dim=hidden, num_layers=layers, num_heads=heads, num_kv_heads=heads,
        head_dim=hidden // heads, ffn_dim=8 * hidden // 3, max_positions=positions, tied=True,
    )  # fmt: skip


PRESETS: dict[str, DecoderSpec] = {
    "llama-2-7b": _llama(32, 4096, 32, 32, 11008, 32000, 4096),
    "llama-2-13b": _llama(40, 5120, 40, 40, 13824, 32000, 4096),
    "llama-2-70b": _llama(80, 8192, 64, 8, 28672, 32000, 4096),
    "llama-3-8b": _llama(32, 4096, 32, 8, 14336, 128256),
    "llama-3-70b": _llama(80, 8192, 64, 8, 28672, 128256),
    "llama-3-405b": _llama(126, 16384, 128, 8, 53248, 128256),
    "gpt-1.7b": gpt(24, 2304, 24),
    "gpt-3.6b": gpt(30, 3072, 32),
    "gpt-7.5b": gpt(36, 4096, 32),
    "gpt-18b": gpt(40, 6144, 48),
    "gpt-39b": gpt(48, 8192, 64),
    "gpt-76b": gpt(60, 10240, 80),
    "gpt-145b": gpt(80, 12288, 96),
    "gpt-175b": gpt(96, 12288, 96),
    "gpt-310b": gpt(96, 16384, 128),
    "gpt-530b": gpt(105, 20480, 128),
    "gpt-1t": gpt(128, 25600, 160),
    "mixtral-8x7b": DecoderSpec.model_validate(
        {
            "vocab_size": 32000, "dim": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8,
            "head_dim": 128, "ffn_dim": 14336, "max_positions": 32768, "family": "mixtral",
            "experts": {"num_experts": 8, "per_token": 2, "ffn_dim": 14336},
        }
    ),
    "qwen3-30b-a3b": DecoderSpec.model_validate(
        {
            "vocab_size": 151936, "dim": 2048, "num_layers": 48, "num_heads": 32, "num_kv_heads": 4,
            "head_dim": 128, "ffn_dim": 6144, "max_positions": 40960, "qk_norm": True, "family": "qwen3_moe",
            "experts": {"num_experts": 128, "per_token": 8, "ffn_dim": 768},
        }
    ),
}  # fmt: skip


def preset(name: str) -> DecoderSpec:
    """The model of this name. Raises ShunterError, with the nearest name, where there is none."""
    found = PRESETS.get(name.lower())
    if found is None:
        guess = nearest(name.lower(), PRESETS)
        raise ShunterError(
            f"no model is called {name!r}",
            mend=f"Did you mean {guess}?"
            if guess
            else f"Name a recipe, a config.json, or one of {', '.join(PRESETS)}.",
        )
    return found
