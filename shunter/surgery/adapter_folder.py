"""A folder with adapters as peft writes and reads it: adapter_config.json, adapter_model.safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.models.adapted_experts import AdaptedExperts
from shunter.models.adapter import AdaptedLinear
from shunter.models.decoder import Decoder
from shunter.models.families import family_of
from shunter.models.hf import EMBEDDING, HEAD, their_parts
from shunter.models.mixtures import PARTS
from shunter.surgery.config import AdapterConfig
from shunter.surgery.peft_config import CONFIG, WEIGHTS, check_config

_PREFIX = "base_model.model."
_NAMES = {
    "q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj",
    "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
}  # fmt: skip
_LORA = re.compile(r"\.(\w+)\.lora_[AB]\.weight$")
_NORMS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm")


def save_adapter(decoder: Decoder, config: AdapterConfig, folder: Path) -> None:
    """Write the adapters of `decoder`, and what else was trained, so that peft loads them on the base model.

    The base there is the model that the adapters were put into, unquantised. Each expert's stand by
    themselves, under the names of the stored model, as peft wrote them for transformers before 5 and reads
    them for later ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in _trained(decoder)
    }
    adapted = dict.fromkeys(found[1] for name in tensors if (found := _LORA.search(name)))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    besides = []
    if "norms" in config.also:
        besides += [each for each in _NORMS if decoder.spec.qk_norm or each not in ("q_norm", "k_norm")]
    if "embed" in config.also:
        besides.append("embed_tokens")
    if "head" in config.also or ("embed" in config.also and decoder.spec.tied):
        besides.append("lm_head")
    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(adapted),
        "modules_to_save": besides or None,
        "use_rslora": config.rank_stabilised,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # written readable by its owner alone


def _trained(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """peft's names, after its prefix, of what was trained."""
    for number, layer in enumerate(decoder.layers):
        parts = PARTS[family_of(decoder.spec)] if decoder.spec.experts is not None else {}
        for place, module in layer.named_modules():
            if isinstance(module, AdaptedExperts):
                for name in module.a:
                    for expert, (a, b) in enumerate(zip(module.a[name], module.b[name], strict=True)):
                        base = f"model.layers.{number}.{parts['experts']}.{expert}.{parts[name]}"
                        yield f"{base}.lora_A.weight", a
                        yield f"{base}.lora_B.weight", b
            if not isinstance(module, AdaptedLinear):
                continue
            block = "self_attn" if place.startswith("attention") else "mlp"
            if place.startswith("ffn.shared"):
                block = parts["shared"]
            for name in module.bounds:
                base = f"model.layers.{number}.{block}.{_NAMES[name]}"
                yield f"{base}.lora_A.weight", module.a[name]
                yield f"{base}.lora_B.weight", module.b[name]
    for ours, parameter in decoder.named_parameters():
        if parameter.requires_grad and ours.split(".")[-2] not in ("a", "b"):
            yield from their_parts(decoder.spec, ours, parameter)
    if decoder.spec.tied and decoder.embed.weight.requires_grad:
        # peft keeps a copy of its own of each module that was trained, so the two would come apart.
        yield HEAD, decoder.embed.weight


@torch.no_grad()
def merge_adapter(decoder: Decoder, folder: Path) -> int:
    """Add the adapters of a peft folder to the weights of an ordinary decoder; returns how many there are.

    Raises ShunterError, before anything is changed, when they are another model's.
    """
    told = check_config(folder)
    views = {
        name: view
        for ours, p in decoder.named_parameters()
        for name, view in their_parts(decoder.spec, ours, p.detach())
    }
    given = _read(folder)
    tied = decoder.spec.tied and HEAD in given and EMBEDDING in given
    if tied and not torch.equal(given.pop(HEAD), given[EMBEDDING]):
        raise ShunterError("it unties the head of a model whose head is its embedding", where=str(folder))
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in given.items():
        module, _, rest = name.partition(".lora_")
        if rest in ("A.weight", "B.weight"):
            pairs.setdefault(f"{module}.weight", {})[rest[0]] = tensor
        else:
            whole[name] = tensor
    wrong = f"these are adapters of another model: {{}} (the model is {decoder.spec.family})"
    for name in (*pairs, *whole):
        if name not in views:
            raise ShunterError(wrong.format(f"it has no {name}"), where=str(folder))
    deltas: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise ShunterError(f"{name} has only one of lora_A and lora_B", where=str(folder))
        a, b = pair["A"].to(views[name].device), pair["B"].to(views[name].device)
        shape = (b.shape[0], a.shape[-1])
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or shape != views[name].shape:
            raise ShunterError(
                wrong.format(f"the adapter of {name} is {shape}, the weight {tuple(views[name].shape)}"),
                where=str(folder),
            )
        rank = a.shape[0]
        scale = told["lora_alpha"] / (rank**0.5 if told.get("use_rslora") else rank)
        wide = torch.promote_types(views[name].dtype, torch.float32)
        deltas[name] = scale * (b.to(wide) @ a.to(wide))
    for name, tensor in whole.items():
        if tensor.shape != views[name].shape:
            raise ShunterError(
                wrong.format(f"{name} is {tuple(tensor.shape)}, here {tuple(views[name].shape)}"),
                where=str(folder),
            )
    for name, tensor in whole.items():
        views[name].copy_(tensor)
    for name, delta in deltas.items():
        views[name] += delta
    return len(deltas)


def _read(folder: Path) -> dict[str, Tensor]:
    """The tensors of a peft folder, its prefix taken away."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name.removeprefix(_PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ShunterError(
            f"not a readable safetensors file ({error})", where=str(folder / WEIGHTS)
        ) from None
