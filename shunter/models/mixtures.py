"""How mixtures of experts are written in Hugging Face's config.json, and what their tensors are called.

Facts as transformers' modelling files and published checkpoints have them. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shunter.config.errors import ShunterError
from shunter.models.spec import DecoderSpec, ExpertsSpec, Family

# Keys that are read, for each family that has experts.
READ: dict[Family, frozenset[str]] = {
    "mixtral": frozenset({"num_local_experts", "num_experts_per_tok"}),
    "qwen3_moe": frozenset(
        {"num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
         "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"}
    ),
    "glm4_moe": frozenset(
        {"n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts",
         "routed_scaling_factor", "norm_topk_prob", "first_k_dense_replace", "use_qk_norm",
         "attention_bias", "partial_rotary_factor"}
    ),
}  # fmt: skip
# Keys with the only values that this arithmetic is right for.
REQUIRED: dict[Family, dict[str, tuple[Any, ...]]] = {
    "mixtral": {"router_jitter_noise": (0, 0.0, None)},
    "qwen3_moe": {},
    "glm4_moe": {
        "n_group": (1, None), "topk_group": (1, None),
        # Layers that predict further tokens; published folders have one beyond the last.
        "num_nextn_predict_layers": (0, None), "num_mtp_layers": (0, None),
    },
}  # fmt: skip
# Of training alone: a job that goes on chooses its own.
IGNORED = frozenset({"router_aux_loss_coef", "output_router_logits"})

# Where a layer's parts stand: {router, routed expert's gate, up and down, shared expert}.
PARTS: dict[Family, dict[str, str]] = {
    "mixtral": {
        "router": "block_sparse_moe.gate", "experts": "block_sparse_moe.experts",
        "gate": "w1", "up": "w3", "down": "w2",
    },
    "qwen3_moe": {
        "router": "mlp.gate", "experts": "mlp.experts",
        "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
    },
    "glm4_moe": {
        "router": "mlp.gate", "experts": "mlp.experts", "shared": "mlp.shared_experts",
        "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
    },
}  # fmt: skip


def written(family: Family, spec: DecoderSpec) -> dict[str, Any]:
    """The keys of config.json that only a mixture has."""
    experts = spec.experts
    assert experts is not None
    common = {"num_experts_per_tok": experts.per_token, "output_router_logits": False}
    if family == "mixtral":
        return {
            **common,
            "intermediate_size": experts.ffn_dim,
            "num_local_experts": experts.num_experts,
            "router_jitter_noise": 0.0,
        }
    common |= {"moe_intermediate_size": experts.ffn_dim, "norm_topk_prob": experts.normalise}
    if family == "qwen3_moe":
        return {
            **common,
            "num_experts": experts.num_experts,
            "decoder_sparse_step": experts.every,
            "mlp_only_layers": list(range(experts.dense_first)),
        }
    return {
        **common,
        "n_routed_experts": experts.num_experts,
        "n_shared_experts": experts.shared_ffn_dim // experts.ffn_dim,
        "routed_scaling_factor": experts.scale,
        "first_k_dense_replace": experts.dense_first,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
        "use_qk_norm": spec.qk_norm,
        "attention_bias": spec.qkv_bias,
        "partial_rotary_factor": 1.0,
    }


def read(family: Family, config: Mapping[str, Any], where: str) -> ExpertsSpec:
    """The mixture of a config.json. Raises ShunterError, and what pydantic raises."""
    if family == "mixtral":
        return ExpertsSpec(
            num_experts=config.get("num_local_experts", 8),
            per_token=config.get("num_experts_per_tok", 2),
            ffn_dim=config["intermediate_size"],
        )
    if family == "qwen3_moe":
        # transformers 4 wrote the one, 5 writes the other.
        counts = [config[key] for key in ("num_experts", "num_local_experts") if config.get(key) is not None]
        if any(count != counts[0] for count in counts):
            raise ShunterError("num_experts and num_local_experts contradict each other", where=where)
        dense = config.get("mlp_only_layers") or []
        if not isinstance(dense, list) or sorted(dense) != list(range(len(dense))):
            raise ShunterError(f"mlp_only_layers {dense!r} are not the first layers", where=where)
        return ExpertsSpec(
            num_experts=counts[0] if counts else 128,
            per_token=config.get("num_experts_per_tok", 8),
            ffn_dim=config.get("moe_intermediate_size", 768),
            normalise=config.get("norm_topk_prob", False),
            dense_first=len(dense),
            every=config.get("decoder_sparse_step", 1),
        )
    rope = config.get("rope_parameters") or {}
    inside = rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
    if config.get("partial_rotary_factor", inside) != 1.0:
        raise ShunterError("rotary embedding of a part of each head is not supported", where=where)
    width = config.get("moe_intermediate_size", 1408)
    return ExpertsSpec(
        num_experts=config.get("n_routed_experts", 128),
        per_token=config.get("num_experts_per_tok", 8),
        ffn_dim=width,
        shared_ffn_dim=config.get("n_shared_experts", 1) * width,
        router="sigmoid",
        normalise=config.get("norm_topk_prob", True),
        scale=float(config.get("routed_scaling_factor", 1.0)),
        dense_first=config.get("first_k_dense_replace", 1),
    )
