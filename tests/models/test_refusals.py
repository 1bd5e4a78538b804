"""What a model folder may hold that is not loaded: other arithmetic, damage, pickles, paths elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from shunter.config.errors import ShunterError
from shunter.models.decoder import Decoder
from shunter.models.families import from_config, to_config
from shunter.models.hf import load_model, read_spec, save_model
from shunter.models.spec import DecoderSpec
from tests.models.small import redraw, spec_of

REFUSED = {
    "model_type": ("gpt2", "model_type 'gpt2' is not one of"),
    "hidden_act": ("gelu", "hidden_act is 'gelu'"),
    "attention_bias": (True, "attention_bias is True"),
    "mlp_bias": (True, "mlp_bias is True"),
    "quantization_config": ({"bits": 4}, "quantization_config is"),
    "use_sliding_window": (True, "use_sliding_window is True"),
    "layer_types": (["full_attention", "sliding_attention"], "layer_types"),
    "logit_softcapping": (30.0, "'logit_softcapping' is not known"),
    "rope_parameters": ({"rope_type": "longrope"}, "rope scaling 'longrope'"),
    "rope_scaling": ({"rope_type": "linear", "factor": 2.0}, "contradict each other"),
    "rope_theta": (5.0, "contradict each other"),
    "partial_rotary_factor": (0.5, "partial_rotary_factor is 0.5"),
    "num_key_value_heads": (3, "does not divide"),
    "hidden_size": ("64", "not a valid model configuration"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ours = Decoder(spec_of("llama2"))
    redraw(ours)
    save_model(ours, tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("key", REFUSED)
def test_configurations_that_mean_other_arithmetic_are_refused(key: str, folder: Path) -> None:
    value, complaint = REFUSED[key]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ShunterError, match=complaint):
        read_spec(folder)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("rope", "complaint"),
    [
        ({**YARN, "truncate": False}, "unsupported key 'truncate'"),
        ({**YARN, "mscale": 0.7}, "unsupported key 'mscale'"),
        ({"rope_type": "yarn"}, "yarn lacks factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "llama3 lacks low_freq_factor, high_freq_factor"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "unsupported key 'partial_rotary_factor'"),
        ({"full_attention": {"rope_type": "default"}}, "unsupported key 'full_attention'"),
        ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}, "another context"),
        ("yarn", "written as an object"),
    ],
)
def test_ropes_that_mean_other_arithmetic_are_refused(rope: Any, complaint: str) -> None:
    config = {**to_config(spec_of("llama2")), "rope_parameters": rope}
    with pytest.raises(ShunterError, match=complaint):
        from_config(config, "x")


MOE_REFUSED = {
    "n_group": ("glm4-moe", 2, "n_group is 2"),
    "num_nextn_predict_layers": ("glm4-moe", 1, "num_nextn_predict_layers is 1"),
    "partial_rotary_factor": ("glm4-moe", 0.5, "a part of each head"),
    "mlp_only_layers": ("qwen3-moe", [1], "are not the first layers"),
    "num_local_experts": ("qwen3-moe", 7, "contradict each other"),
    "num_experts_per_tok": ("mixtral", 9, "per_token 9 exceeds num_experts 6"),
    "router_jitter_noise": ("mixtral", 0.1, "router_jitter_noise is 0.1"),
    "num_experts": ("llama2", 4, "'num_experts' is not known"),
    "attention_bias": ("qwen3-moe", True, "attention_bias is True"),
}


@pytest.mark.parametrize("key", MOE_REFUSED)
def test_mixtures_that_mean_other_arithmetic_are_refused(key: str) -> None:
    name, value, complaint = MOE_REFUSED[key]
    with pytest.raises(ShunterError, match=complaint):
        from_config({**to_config(spec_of(name)), key: value}, "x")


EXPERTS = {"num_experts": 4, "per_token": 2, "ffn_dim": 8}


@pytest.mark.parametrize(
    ("shape", "experts", "complaint"),
    [
        ({}, {"shared_ffn_dim": 8}, "a softmax router and shared_ffn_dim together"),
        ({}, {"scale": 2.0}, "a softmax router and a scale together"),
        ({}, {"bias_update": 0.1}, "a softmax router and bias_update together"),
        ({"qkv_bias": True}, {}, "a softmax router and qkv_bias together"),
        ({}, {"normalise": False}, "without qk_norm"),
        ({}, {"dense_first": 1}, "without qk_norm"),
        ({"qk_norm": True}, {"dense_first": 2}, "no layer has experts"),
        ({}, {"router": "sigmoid"}, "a multiple of experts.ffn_dim"),
        ({}, {"router": "sigmoid", "shared_ffn_dim": 12}, "a multiple of experts.ffn_dim"),
        ({"sliding_window": 4}, {"router": "sigmoid", "shared_ffn_dim": 8}, "a sigmoid router with"),
        ({}, {"per_token": 5}, "per_token 5 exceeds num_experts 4"),
    ],
)
def test_mixtures_that_no_architecture_has_are_refused_before_they_are_trained(
    shape: dict[str, Any], experts: dict[str, Any], complaint: str
) -> None:
    whole = {**spec_of("llama2").model_dump(), **shape, "experts": {**EXPERTS, **experts}}
    with pytest.raises(ValidationError, match=complaint):
        DecoderSpec(**whole)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "glm4_moe"])
def test_keys_left_out_mean_what_they_mean_in_transformers(family: str) -> None:
    from transformers import AutoConfig

    needed = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    config = {"model_type": family, **dict.fromkeys(needed, 64), "hidden_size": 4096}
    if family == "glm4_moe":  # by default it turns half of each head, and predicts two tokens
        config |= {"partial_rotary_factor": 1.0, "num_nextn_predict_layers": 0}
    theirs = AutoConfig.for_model(**config)
    spec = from_config(config, "x")
    assert spec.num_kv_heads == theirs.num_key_value_heads
    assert spec.head_dim == (getattr(theirs, "head_dim", None) or 4096 // 64)
    assert spec.max_positions == theirs.max_position_embeddings
    assert spec.norm_eps == theirs.rms_norm_eps
    assert spec.rope.theta == theirs.rope_parameters["rope_theta"]
    assert spec.sliding_window == getattr(theirs, "sliding_window", None)
    assert spec.tied == theirs.tie_word_embeddings
    if spec.experts is not None:
        assert spec.experts.num_experts == theirs.num_local_experts
        assert spec.experts.per_token == theirs.num_experts_per_tok
        assert spec.experts.ffn_dim == getattr(theirs, "moe_intermediate_size", theirs.intermediate_size)
        assert spec.experts.normalise == getattr(theirs, "norm_topk_prob", True)
        assert spec.experts.dense_first == getattr(theirs, "first_k_dense_replace", 0)
        assert spec.experts.scale == getattr(theirs, "routed_scaling_factor", 1.0)
        shared = getattr(theirs, "n_shared_experts", 0)
        assert spec.experts.shared_ffn_dim == shared * spec.experts.ffn_dim


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop(NORM), f"tensors are missing: {NORM}"),
        (lambda t: t.update(extra=torch.zeros(2)), "the tensor extra belongs nowhere"),
        (lambda t: t.update({NORM: torch.zeros(2)}), r"is \(2,\), by the configuration it is \(64,\)"),
        (lambda t: t.update({NORM: torch.zeros(64, dtype=torch.int8)}), "stored as I8; quantised"),
    ],
)
def test_wrong_tensors_are_refused(change: Any, complaint: str, folder: Path) -> None:
    rewrite(folder, change)
    with pytest.raises(ShunterError, match=complaint):
        load_model(folder)


def test_a_tied_head_that_differs_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(ShunterError, match="differs from the embedding"):
        load_model(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert load_model(folder).spec.tied


def test_damaged_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match="no readable model configuration"):
        load_model(tmp_path / "none")
    config = (folder / "config.json").read_text()
    for text in ("{", "[" * 100_000, "\xff", ""):
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ShunterError, match="no readable model configuration"):
            load_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ShunterError, match="not a JSON object"):
        load_model(folder)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ShunterError, match="not a readable safetensors file"):
        load_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ShunterError, match="can run code"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ShunterError, match="there are no weights"):
        load_model(folder)


def test_sizes_that_the_files_do_not_have_are_refused_before_memory_is_taken(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, complaint in {"num_hidden_layers": "layers, but there are", "vocab_size": "by the conf"}.items():
        (folder / "config.json").write_text(json.dumps({**config, key: 10**12}))
        with pytest.raises(ShunterError, match=complaint):
            load_model(folder)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ({"weight_map": {"x": "../model.safetensors"}}, "not a file beside it"),
        ({"weight_map": {"x": "/etc/hostname"}}, "not a file beside it"),
        ({"weight_map": {"x": 5}}, "not a file beside it"),
        ({"weight_map": {"x": ["a"]}}, "not a file beside it"),
        ({"weight_map": {"x": "gone.safetensors"}}, "is missing"),
        ({"weight_map": ["x"]}, "no readable index"),
        ([], "no readable index"),
    ],
)
def test_an_index_cannot_name_files_elsewhere(index: Any, complaint: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ShunterError, match=complaint):
        load_model(folder)
