"""config.json of published models, as their makers wrote them: each key is read, or known to be harmless."""

from __future__ import annotations

from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.models.families import from_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "initializer_range": 0.02, "pretraining_tp": 1, "use_cache": True, "transformers_version": "4.31.0",
}  # fmt: skip
QWEN: dict[str, Any] = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "tie_word_embeddings": True, "vocab_size": 151936,
}  # fmt: skip
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True,
}  # fmt: skip

# name -> (their keys, what is expected, parameters)
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "Llama-2-7b": (
        {**LLAMA, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 11008,
         "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
         "num_key_value_heads": 32, "rms_norm_eps": 1e-05, "rope_scaling": None,
         "tie_word_embeddings": False, "torch_dtype": "float16", "vocab_size": 32000},
        {"head_dim": 128, "tied": False, "max_positions": 4096},
        6738415616,
    ),
    "Meta-Llama-3-8B": (
        {**LLAMA, "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
         "eos_token_id": 128001, "hidden_size": 4096, "intermediate_size": 14336,
         "max_position_embeddings": 8192, "num_attention_heads": 32, "num_hidden_layers": 32,
         "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0,
         "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256},
        {"num_kv_heads": 8, "head_dim": 128},
        8030261248,
    ),
    "Llama-3.2-1B": (
        {**LLAMA, "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
         "eos_token_id": 128001, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192,
         "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
         "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
         "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                          "original_max_position_embeddings": 8192, "rope_type": "llama3"},
         "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 128256},
        {"tied": True, "max_positions": 131072, "head_dim": 64},
        1235814400,
    ),
    "TinyLlama-1.1B": (
        {**LLAMA, "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 2048,
         "intermediate_size": 5632, "max_position_embeddings": 2048, "num_attention_heads": 32,
         "num_hidden_layers": 22, "num_key_value_heads": 4, "rms_norm_eps": 1e-05, "rope_scaling": None,
         "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
         "vocab_size": 32000},
        {"num_kv_heads": 4, "head_dim": 64},
        1100048384,
    ),
    "SmolLM2-135M": (
        {**LLAMA, "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0,
         "hidden_size": 576, "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
         "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
         "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
         "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
         "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 49152},
        {"tied": True, "head_dim": 64},
        134515008,
    ),
    "Mistral-7B-v0.1": (
        {**MISTRAL, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
        {"sliding_window": 4096, "head_dim": 128},
        7241732096,
    ),
    "Mistral-7B-v0.3": (
        {**MISTRAL, "attention_dropout": 0.0, "head_dim": 128, "rope_theta": 1000000.0,
         "sliding_window": None, "vocab_size": 32768},
        {"sliding_window": None},
        7248023552,
    ),
    "Qwen2.5-0.5B": (
        {**QWEN, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
         "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
         "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
         "sliding_window": 32768, "use_mrope": False},
        {"qkv_bias": True, "sliding_window": None, "tied": True},
        494032768,
    ),
    "Qwen3-0.6B": (
        {**QWEN, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
         "head_dim": 128, "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
         "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28,
         "num_key_value_heads": 8, "rope_scaling": None, "sliding_window": None},
        {"qk_norm": True, "head_dim": 128, "qkv_bias": False},
        596049920,
    ),
    "Mixtral-8x7B-v0.1": (
        {**MISTRAL, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
         "attention_dropout": 0.0, "num_experts_per_tok": 2, "num_local_experts": 8,
         "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
         "sliding_window": None, "transformers_version": "4.36.0.dev0", "vocab_size": 32000},
        {"sliding_window": None, "head_dim": 128, "active_parameters": 12879925248},
        46702792704,
    ),
    "Qwen3-30B-A3B": (
        {**QWEN, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False,
         "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144,
         "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
         "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
         "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
         "output_router_logits": False, "rope_scaling": None, "router_aux_loss_coef": 0.001,
         "sliding_window": None, "tie_word_embeddings": False},
        {"qk_norm": True, "head_dim": 128, "active_parameters": 3353032704},
        30532122624,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_read(name: str) -> None:
    """The number of parameters is the one that their makers tell: a misread shape would change it."""
    config, expected, parameters = PUBLISHED[name]
    spec = from_config(config, name)
    assert {key: getattr(spec, key) for key in expected} == expected
    assert spec.rope.theta == config.get("rope_theta", 10000.0)
    assert spec.norm_eps == config["rms_norm_eps"]
    assert spec.num_parameters == parameters


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model_type", ["llama"], r"model_type \['llama'\] is not one of"),
        ("tie_word_embeddings", "false", "tie_word_embeddings is 'false', not true or false"),
        ("num_attention_heads", 0, "not a valid model configuration"),
        ("hidden_size", "wide", r"hidden_size is 'wide'"),
        ("rms_norm_eps", -1.0, r"rms_norm_eps is -1.0"),
        ("mlp_bias", True, "mlp_bias is True, which is not supported"),
        ("attn_logit_softcapping", 50.0, "'attn_logit_softcapping' is not known"),
    ],
)
def test_what_cannot_be_read_is_named_by_their_key(key: str, value: object, says: str) -> None:
    config = {**PUBLISHED["SmolLM2-135M"][0], "head_dim": 64, key: value}
    with pytest.raises(ShunterError, match=says) as caught:
        from_config(config, "config.json")
    assert "pydantic" not in str(caught.value)
