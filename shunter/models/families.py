"""Which Hugging Face architecture a decoder is, and how its configuration is written there.

Facts of each family as transformers' modelling files and the published checkpoints have them. Imports
without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from shunter.config.errors import ShunterError
from shunter.models import mixtures
from shunter.models.spec import DecoderSpec, Family, RopeSpec


@dataclass(frozen=True)
class FamilyFacts:
    """What a family always has, and defaults of keys that its config.json may leave out.

    qkv_bias, qk_norm: None where its config.json says so.  router: of its experts; None: it has none.
    """

    architecture: str
    qkv_bias: bool | None = False
    qk_norm: bool | None = False
    router: str | None = None
    sliding_window: bool = False
    norm_eps: float = 1e-6
    theta: float = 10000.0
    max_positions: int = 2048
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    num_kv_heads: int | None = None  # None: num_attention_heads
    default_window: int | None = None


FAMILIES: dict[Family, FamilyFacts] = {
    "llama": FamilyFacts("LlamaForCausalLM"),
    "mistral": FamilyFacts(
        "MistralForCausalLM",
        sliding_window=True,
        max_positions=4096 * 32,
        num_kv_heads=8,
        default_window=4096,
    ),
    "qwen2": FamilyFacts("Qwen2ForCausalLM", qkv_bias=True, max_positions=32768, num_kv_heads=32),
    "qwen3": FamilyFacts(
        "Qwen3ForCausalLM", qk_norm=True, max_positions=32768, num_kv_heads=32, head_dim=128
    ),
    "mixtral": FamilyFacts(
        "MixtralForCausalLM",
        router="softmax",
        sliding_window=True,
        norm_eps=1e-5,
        theta=1e6,
        max_positions=4096 * 32,
        num_kv_heads=8,
    ),
    "qwen3_moe": FamilyFacts(
        "Qwen3MoeForCausalLM", qk_norm=True, router="softmax", max_positions=32768, num_kv_heads=4
    ),
    "glm4_moe": FamilyFacts(
        "Glm4MoeForCausalLM",
        qkv_bias=None,
        qk_norm=None,
        router="sigmoid",
        norm_eps=1e-5,
        max_positions=131072,
        num_kv_heads=8,
    ),
}

# Keys that change the arithmetic, with the only values that this arithmetic is right for.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "attention_dropout": (0, 0.0, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
}
# Keys that say nothing about the arithmetic (or, as the windows of Qwen, only together with one above);
# older exporters kept settings of generation here too.
IGNORED = {
    "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "id2label", "initializer_range", "label2id", "max_window_layers", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict", "sep_token_id",
    "torch_dtype", "transformers_version", "use_cache", "_name_or_path", "_attn_implementation",
    "transformers.js_config", "is_llama_config", "max_length", "max_sequence_length", "min_length",
    "do_sample", "temperature", "top_k", "top_p", "typical_p", "num_beams", "num_beam_groups",
    "diversity_penalty", "length_penalty", "repetition_penalty", "early_stopping", "num_return_sequences",
    "tokenizer_class", "torchscript", "unsloth_fixed", "unsloth_version", "attn_implementation",
    "neftune_noise_alpha", "task_specific_params", "prefix", "bad_words_ids",
}  # fmt: skip
READ = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling",
    "rope_parameters", "tie_word_embeddings", "sliding_window", "layer_types",
}  # fmt: skip

# Our field -> their key, for messages.
THEIRS = {
    "dim": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads", "ffn_dim": "intermediate_size", "norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings", "theta": "rope_theta", "tied": "tie_word_embeddings",
    "per_token": "num_experts_per_tok", "normalise": "norm_topk_prob", "scale": "routed_scaling_factor",
}  # fmt: skip

# (their key, our field) of each rope type beyond theta; the original context is handled apart.
_ROPE: dict[str, list[tuple[str, str]]] = {
    "linear": [("factor", "factor")],
    "dynamic": [("factor", "factor")],
    "llama3": [
        ("factor", "factor"),
        ("low_freq_factor", "low_freq_factor"),
        ("high_freq_factor", "high_freq_factor"),
    ],
    "yarn": [
        ("factor", "factor"),
        ("beta_fast", "beta_fast"),
        ("beta_slow", "beta_slow"),
        ("attention_factor", "attention_factor"),
    ],
}
_ROPE_NEEDED = {"factor", "low_freq_factor", "high_freq_factor"}
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "original_max_position_embeddings"}
# Further keys, with the values that change nothing.
_ROPE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "truncate": (True,),
    "partial_rotary_factor": (1.0,),
    "finetuned": (True, False),
}


def family_of(spec: DecoderSpec) -> Family:
    """The family to export as: the spec's own if it can express it, else the one that can.

    Raises ShunterError when none can: its weights would mean something else there.
    """
    for family in (spec.family, *FAMILIES):
        facts = FAMILIES[family]
        window = spec.sliding_window is None or facts.sliding_window
        router = None if spec.experts is None else spec.experts.router
        traits_fit = facts.qkv_bias in (None, spec.qkv_bias) and facts.qk_norm in (None, spec.qk_norm)
        if facts.router == router and traits_fit and window:
            return family
    traits = [
        name
        for name, there in (
            ("qkv_bias", spec.qkv_bias),
            ("qk_norm", spec.qk_norm),
            ("sliding_window", spec.sliding_window is not None),
        )
        if there
    ]
    raise ShunterError(f"no Hugging Face architecture here has {' and '.join(traits)} together")


def to_config(spec: DecoderSpec) -> dict[str, Any]:
    """The keys of config.json that describe the arithmetic, readable by transformers 4 and 5."""
    family = family_of(spec)
    rope: dict[str, Any] = {"rope_type": "default" if spec.rope.scaling == "none" else spec.rope.scaling}
    for theirs, ours in _ROPE.get(spec.rope.scaling, []):
        if (value := getattr(spec.rope, ours)) is not None:
            rope[theirs] = value
    if spec.rope.scaling == "dynamic" and spec.rope.original_positions not in (0, spec.max_positions):
        raise ShunterError("transformers takes max_positions for dynamic scaling's original context")
    if spec.rope.scaling not in ("none", "linear"):
        rope["original_max_position_embeddings"] = spec.rope.original_positions or spec.max_positions
    config: dict[str, Any] = {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.dim,
        "intermediate_size": spec.ffn_dim,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "rope_scaling": None if spec.rope.scaling == "none" else rope,
        "rope_parameters": {**rope, "rope_theta": spec.rope.theta},
        "tie_word_embeddings": spec.tied,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if family in ("llama", "qwen3", "qwen3_moe"):
        config["attention_bias"] = False
    if family == "llama":
        config["mlp_bias"] = False
    if family in ("mistral", "mixtral"):
        config["sliding_window"] = spec.sliding_window
    if family in ("qwen2", "qwen3", "qwen3_moe"):
        config["use_sliding_window"] = False
        config["sliding_window"] = None
    return config if spec.experts is None else config | mixtures.written(family, spec)


def from_config(config: Mapping[str, Any], where: str) -> DecoderSpec:
    """The spec of a config.json. Raises ShunterError for whatever this arithmetic does not do."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ShunterError(
            f"model_type {family!r} is not one of {', '.join(FAMILIES)}",
            where=where,
            mend="Only these architectures can be loaded.",
        )
    facts = FAMILIES[family]
    if not isinstance(config.get("tie_word_embeddings", False), bool):
        raise ShunterError(
            f"tie_word_embeddings is {config['tie_word_embeddings']!r}, not true or false", where=where
        )
    known, required = READ, REQUIRED
    if facts.router is not None:
        known = READ | mixtures.READ[family] | mixtures.IGNORED
        required = REQUIRED | mixtures.REQUIRED[family]
        required = {key: allowed for key, allowed in required.items() if key not in known}
    for key, allowed in required.items():
        if key in config and config[key] not in allowed:
            raise ShunterError(f"{key} is {config[key]!r}, which is not supported", where=where)
    for key in config.keys() - known - IGNORED - required.keys():
        if config[key] not in (None, False, 0, "", [], {}):
            raise ShunterError(f"the key {key!r} is not known, and it may change the model", where=where)
    try:
        dim, heads = config["hidden_size"], config["num_attention_heads"]
        window = config.get("sliding_window", facts.default_window) if facts.sliding_window else None
        _check_layer_types(config, window, where)
        return DecoderSpec(
            vocab_size=config["vocab_size"],
            dim=dim,
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads", facts.num_kv_heads) or heads,
            head_dim=config.get("head_dim") or facts.head_dim or dim // heads,
            ffn_dim=config["intermediate_size"],
            experts=None if facts.router is None else mixtures.read(family, config, where),
            max_positions=config.get("max_position_embeddings", facts.max_positions),
            norm_eps=config.get("rms_norm_eps", facts.norm_eps),
            rope=_rope(config, facts, where),
            qkv_bias=config.get("attention_bias", False) if facts.qkv_bias is None else facts.qkv_bias,
            qk_norm=config.get("use_qk_norm", False) if facts.qk_norm is None else facts.qk_norm,
            tied=config.get("tie_word_embeddings", False),
            sliding_window=window,
            family=family,
        )
    except KeyError as error:
        raise ShunterError(f"the key {error.args[0]!r} is missing", where=where) from None
    except ValidationError as error:
        first = error.errors()[0]
        ours = str(first["loc"][-1]) if first["loc"] else ""
        key, got = THEIRS.get(ours, ours), first.get("input")
        told = f"{key} is {got!r}: " if key and not isinstance(got, Mapping) else ""
        raise ShunterError(
            f"not a valid model configuration ({told}{first['msg'].removeprefix('Value error, ')})",
            where=where,
        ) from None
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ShunterError(f"not a valid model configuration ({error})", where=where) from None


def _check_layer_types(config: Mapping[str, Any], window: int | None, where: str) -> None:
    expected = "full_attention" if window is None else "sliding_attention"
    types = config.get("layer_types") or []
    if any(kind != expected for kind in types):
        raise ShunterError(f"layer_types other than {expected} are not supported", where=where)


def _rope(config: Mapping[str, Any], facts: FamilyFacts, where: str) -> RopeSpec:
    # transformers 5 writes rope_parameters with theta inside; before, theta stood beside rope_scaling.
    forms = [_flat(config[key]) for key in ("rope_parameters", "rope_scaling") if config.get(key)]
    thetas = [form.pop("rope_theta") for form in forms if form.get("rope_theta") is not None]
    if config.get("rope_theta") is not None:
        thetas.append(config["rope_theta"])
    if any(form != forms[0] for form in forms) or any(theta != thetas[0] for theta in thetas):
        raise ShunterError("rope_parameters, rope_scaling and rope_theta contradict each other", where=where)
    found = forms[0] if forms else {}
    theta = float(thetas[0]) if thetas else facts.theta
    scaling = found.get("rope_type", "default")
    if scaling != "default" and scaling not in _ROPE:
        raise ShunterError(f"rope scaling {scaling!r} is not supported", where=where)
    known = dict(_ROPE.get(scaling, []))
    for key in found.keys() - known.keys() - _ROPE_KEYS:
        if found[key] not in _ROPE_NEUTRAL.get(key, ()):
            raise ShunterError(f"rope scaling has the unsupported key {key!r}: {found[key]!r}", where=where)
    if scaling == "default":
        return RopeSpec(theta=theta)
    if missing := [key for key in known if key in _ROPE_NEEDED and key not in found]:
        raise ShunterError(f"rope scaling {scaling} lacks {', '.join(missing)}", where=where)
    values = {ours: float(found[theirs]) for theirs, ours in known.items() if theirs in found}
    original = int(found.get("original_max_position_embeddings") or 0)
    if scaling == "dynamic" and original not in (0, config.get("max_position_embeddings")):
        # transformers stretches from max_position_embeddings, whatever stands here.
        raise ShunterError(
            "dynamic rope scaling from another context than max_position_embeddings is not supported",
            where=where,
        )
    return RopeSpec(theta=theta, scaling=scaling, original_positions=original, **values)


def _flat(form: Any) -> dict[str, Any]:
    """One way of writing a rope: the type under its newer key, nothing empty."""
    if not isinstance(form, Mapping):
        raise ValueError(f"a rope is written as an object, not as {form!r}")
    kind = form.get("rope_type", form.get("type", "default"))
    rest = {key: value for key, value in form.items() if key not in ("rope_type", "type")}
    return {"rope_type": kind, **{key: value for key, value in rest.items() if value is not None}}
