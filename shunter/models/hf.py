"""Hugging Face model folders, read and written without transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.models.decoder import Decoder
from shunter.models.families import from_config, to_config
from shunter.models.spec import DecoderSpec

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def read_spec(folder: Path) -> DecoderSpec:
    """The specification in a folder's config.json."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShunterError(f"no readable model configuration ({error})", where=str(path)) from None
    if not isinstance(config, dict):
        raise ShunterError("the model configuration is not a JSON object", where=str(path))
    return from_config(config, str(path))


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """The model of a folder, on the CPU, its tensors converted to `dtype`.

    Every tensor of the model must be there with its shape, and no other. Raises ShunterError.
    """
    spec = read_spec(folder)
    with torch.device("meta"):
        model = Decoder(spec)
    model.to(dtype=dtype).to_empty(device="cpu")
    parts = {part: where for name, target in _targets(model) for part, where in _split(spec, name, target)}
    with torch.no_grad():
        for name, stored in _stored(folder):
            if name == "lm_head.weight" and spec.tied:
                # Some exporters write the shared tensor twice.
                if not torch.equal(stored.to(dtype), model.embed.weight):
                    raise ShunterError(
                        "the head is declared tied but differs from the embedding", where=str(folder)
                    )
                continue
            if name.endswith("rotary_emb.inv_freq"):  # old exporters stored this constant
                continue
            target = parts.pop(name, None)
            if target is None:
                raise ShunterError(f"the tensor {name} belongs nowhere in this model", where=str(folder))
            if target.shape != stored.shape:
                raise ShunterError(
                    f"{name} is {tuple(stored.shape)}, by the configuration it is {tuple(target.shape)}",
                    where=str(folder),
                )
            target.copy_(stored)
    if parts:
        names = ", ".join(sorted(parts)[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
        raise ShunterError(f"tensors are missing: {names}", where=str(folder))
    return model


def save_model(
    model: Decoder,
    folder: Path,
    *,
    tokenizer_folder: Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
    dtype: torch.dtype | None = None,
    eos_token_id: Sequence[int] = (),
    pad_token_id: int | None = None,
) -> None:
    """Write a folder that transformers and vLLM load; `dtype` None keeps the model's own."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, tensor in _targets(model):
        for part, value in _split(model.spec, name, tensor):
            # A clone each: safetensors refuses views of shared storage.
            tensors[part] = value.detach().to(device="cpu", dtype=dtype or value.dtype).clone()
    _write_shards(tensors, folder, max_shard_bytes)
    stored = next(iter(tensors.values())).dtype
    kind = str(stored).removeprefix("torch.")
    ends = list(eos_token_id)
    special = {"bos_token_id": None, "eos_token_id": ends[0] if ends else None, "pad_token_id": pad_token_id}
    _write_json(folder / CONFIG, {**to_config(model.spec), **special, "torch_dtype": kind, "dtype": kind})
    generation = {"eos_token_id": ends or None, "pad_token_id": pad_token_id, "bos_token_id": None}
    _write_json(folder / "generation_config.json", generation)
    for path in folder.glob("*.safetensors"):  # written readable by their owner alone
        path.chmod((folder / CONFIG).stat().st_mode)
    if tokenizer_folder is not None:
        for name in TOKENIZER_FILES:
            if (tokenizer_folder / name).is_file():
                shutil.copyfile(tokenizer_folder / name, folder / name)


def _targets(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()


_NAMES = {
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def _split(spec: DecoderSpec, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Their names of one of our parameters, each with its view of it (fused projections are several)."""
    if name in _TOP:
        yield _TOP[name], tensor
        return
    _, layer, rest = name.split(".", 2)
    place, _, leaf = rest.rpartition(".")
    prefix = f"model.layers.{layer}"
    if place == "attention.qkv":
        width = spec.num_kv_heads * spec.head_dim
        q, k, v = tensor.split([spec.num_heads * spec.head_dim, width, width])
        for letter, part in zip("qkv", (q, k, v), strict=True):
            yield f"{prefix}.self_attn.{letter}_proj.{leaf}", part
    elif place == "ffn.gate_up":
        gate, up = tensor.chunk(2)
        yield f"{prefix}.mlp.gate_proj.{leaf}", gate
        yield f"{prefix}.mlp.up_proj.{leaf}", up
    else:
        yield f"{prefix}.{_NAMES[place]}.{leaf}", tensor


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's safetensors files, one at a time, the embedding before the head."""
    files = _files(folder)
    places: dict[str, Path] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name in places:
                        raise ShunterError(f"the tensor {name} stands in two files", where=str(folder))
                    places[name] = path
        except (OSError, SafetensorError) as error:
            raise ShunterError(f"not a readable safetensors file ({error})", where=str(path)) from None
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in sorted(n for n, place in places.items() if place == path and n != "lm_head.weight"):
                yield name, file.get_tensor(name)
    if "lm_head.weight" in places:
        with safe_open(places["lm_head.weight"], framework="pt") as file:
            yield "lm_head.weight", file.get_tensor("lm_head.weight")


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShunterError(f"no readable index of shards ({error})", where=str(folder / INDEX)) from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ShunterError(
                    f"the index names {name!r}, which is not a file beside it", where=str(folder)
                )
            if not (folder / name).is_file():
                raise ShunterError(f"the shard {name} is missing", where=str(folder))
        return sorted(folder / name for name in names)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise ShunterError(
            "the weights are pickled, and loading a pickle can run code",
            where=str(folder),
            mend="Convert them to safetensors with a tool that you trust.",
        )
    raise ShunterError("there are no weights (model.safetensors)", where=str(folder))


def _write_shards(tensors: dict[str, Tensor], folder: Path, limit: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS, metadata={"format": "pt"})
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
