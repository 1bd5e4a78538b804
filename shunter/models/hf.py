"""Hugging Face model folders, read and written without transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.models.decoder import Decoder
from shunter.models.families import family_of, from_config, to_config
from shunter.models.mixtures import PARTS
from shunter.models.moe import routers
from shunter.models.spec import DecoderSpec

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    # Of models from elsewhere.
    "added_tokens.json",
    "chat_template.json",
    "merges.txt",
    "tokenizer.model",
    "vocab.json",
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


def load_model(folder: Path, dtype: torch.dtype | None = torch.float32) -> Decoder:
    """The model of a folder, on the CPU, its tensors converted to `dtype` (None: as its embedding is stored).

    Every tensor of the model must be there with its shape, and no other; that is known from the files'
    headers before any memory is taken. Raises ShunterError.
    """
    model, stored = _unread(folder)
    dtype = dtype or _DTYPES[stored[EMBEDDING].kind]
    model.to(dtype=dtype).to_empty(device="cpu")
    for _, router in routers(model):
        if router.bias is not None:  # a sum of small updates, which fewer bits would lose
            router.bias = router.bias.float() if dtype.itemsize < 4 else router.bias
    _read(stored, _parts(model))
    return model


def open_model(folder: Path) -> tuple[Decoder, Callable[[str, Tensor], None]]:
    """The model of a folder in float32 on the meta device, and a function that gives one of its parameters
    or buffers, by its name, the stored values: for those who have room for a part of it only.

    Checked as by `load_model`. Raises ShunterError.
    """
    model, stored = _unread(folder)

    def fill(name: str, tensor: Tensor) -> None:
        _read(stored, their_parts(model.spec, name, tensor))

    return model, fill


def _unread(folder: Path) -> tuple[Decoder, dict[str, _Place]]:
    """The model on the meta device, and where its tensors are stored."""
    spec = read_spec(folder)
    stored = _stored(folder)
    if spec.num_layers > len(stored):  # before so many layers are made
        raise ShunterError(
            f"the configuration has {spec.num_layers} layers, but there are {len(stored)} tensors in all",
            where=str(folder),
        )
    if spec.experts is not None and spec.experts.num_experts > len(stored):
        raise ShunterError(
            f"the configuration has {spec.experts.num_experts} experts, but there are {len(stored)} tensors "
            "in all",
            where=str(folder),
        )
    with torch.device("meta"):
        model = Decoder(spec)
    _check(spec, {name: part.shape for name, part in _parts(model)}, stored, str(folder))
    if HEAD in stored and spec.tied:  # some exporters write the shared tensor twice
        both = [torch.empty(stored[EMBEDDING].shape) for _ in range(2)]
        _read(stored, zip((EMBEDDING, HEAD), both, strict=True))
        if not torch.equal(*both):
            raise ShunterError("the head is declared tied but differs from the embedding", where=str(folder))
    return model, stored


@torch.no_grad()
def _read(stored: Mapping[str, _Place], parts: Iterable[tuple[str, Tensor]]) -> None:
    """Fill tensors by their stored names, one file after the other."""
    targets = dict(parts)
    for path in sorted({stored[name].path for name in targets}):
        with safe_open(path, framework="pt") as file:
            for name, target in targets.items():
                if stored[name].path == path:
                    target.copy_(file.get_tensor(name))


def _check(
    spec: DecoderSpec, expected: Mapping[str, Sequence[int]], stored: Mapping[str, _Place], where: str
) -> None:
    for name, place in stored.items():
        shape = expected.get(EMBEDDING if name == HEAD and spec.tied else name)
        if shape is None:
            if name.endswith("rotary_emb.inv_freq"):  # a constant that old exporters stored
                continue
            raise ShunterError(f"the tensor {name} belongs nowhere in this model", where=where)
        if tuple(shape) != place.shape:
            raise ShunterError(
                f"{name} is {place.shape}, by the configuration it is {tuple(shape)}", where=where
            )
        if place.kind not in _DTYPES:
            raise ShunterError(
                f"{name} is stored as {place.kind}; quantised weights are not supported", where=where
            )
    if missing := sorted(expected.keys() - stored.keys()):
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ShunterError(f"tensors are missing: {names}", where=where)


def save_model(
    model: Decoder,
    folder: Path,
    *,
    tokenizer_folder: Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
    dtype: torch.dtype | None = None,
    eos_token_id: Sequence[int] = (),
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that transformers and vLLM load; `dtype` None keeps the model's own.

    generation: further keys of generation_config.json, such as the temperature that a model is meant for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    views = {name: part.detach() for name, part in _parts(model)}
    stored = dtype or next(iter(views.values())).dtype
    _write_shards(views, folder, max_shard_bytes, stored)
    kind = str(stored).removeprefix("torch.")
    ends = list(eos_token_id)
    special = {
        "bos_token_id": bos_token_id,
        "eos_token_id": ends[0] if ends else None,
        "pad_token_id": pad_token_id,
    }
    _write_json(folder / CONFIG, {**to_config(model.spec), **special, "torch_dtype": kind, "dtype": kind})
    tokens = {"eos_token_id": ends or None, "pad_token_id": pad_token_id, "bos_token_id": bos_token_id}
    _write_json(folder / "generation_config.json", {**(generation or {}), **tokens})
    for path in folder.glob("*.safetensors"):  # written readable by their owner alone
        path.chmod((folder / CONFIG).stat().st_mode)
    if tokenizer_folder is not None:
        for name in TOKENIZER_FILES:
            if (tokenizer_folder / name).is_file():
                shutil.copyfile(tokenizer_folder / name, folder / name)


_NAMES = {
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP = {
    "embed.weight": EMBEDDING,
    "norm.weight": "model.norm.weight",
    "head.weight": HEAD,
}


def _parts(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Everything that is stored, by their names: parameters and routers' biases."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield from their_parts(model.spec, name, tensor)


def their_parts(spec: DecoderSpec, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Their names of one of our parameters, each with its view of it (fused projections are several)."""
    if name in _TOP:
        yield _TOP[name], tensor
        return
    _, layer, rest = name.split(".", 2)
    place, _, leaf = rest.rpartition(".")
    prefix = f"model.layers.{layer}"
    if spec.experts is not None and spec.experts.inside(int(layer)) and place.startswith("ffn."):
        yield from _split_mixture(PARTS[family_of(spec)], prefix, rest, tensor)
    elif place == "attention.qkv":
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


def _split_mixture(
    parts: Mapping[str, str], prefix: str, name: str, tensor: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Experts are stored one by one, whatever they are computed as."""
    if name.startswith("ffn.router."):
        leaf = "e_score_correction_bias" if name.endswith("bias") else "weight"
        yield f"{prefix}.{parts['router']}.{leaf}", tensor
        return
    shared = name.startswith("ffn.shared.")
    for number, expert in enumerate([tensor] if shared else tensor):
        place = f"{prefix}.{parts['shared']}" if shared else f"{prefix}.{parts['experts']}.{number}"
        if "gate_up" in name:
            gate, up = expert.chunk(2)
            yield f"{place}.{parts['gate']}.weight", gate
            yield f"{place}.{parts['up']}.weight", up
        else:
            yield f"{place}.{parts['down']}.weight", expert


@dataclass(frozen=True)
class _Place:
    """Where a tensor is stored, and as what; `kind` is safetensors' name of the type, such as BF16."""

    path: Path
    shape: tuple[int, ...]
    kind: str


def _stored(folder: Path) -> dict[str, _Place]:
    """Every tensor of a folder's safetensors files, from their headers."""
    places: dict[str, _Place] = {}
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name in places:
                        raise ShunterError(f"the tensor {name} stands in two files", where=str(folder))
                    part = file.get_slice(name)
                    places[name] = _Place(path, tuple(part.get_shape()), str(part.get_dtype()))
        except (OSError, SafetensorError) as error:
            raise ShunterError(f"not a readable safetensors file ({error})", where=str(path)) from None
    return places


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():  # before the index, as transformers looks
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise ShunterError(
                "the weights are pickled, and loading a pickle can run code",
                where=str(folder),
                mend="Convert them to safetensors with a tool that you trust.",
            )
        raise ShunterError("there are no weights (model.safetensors)", where=str(folder))
    try:
        names = list(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShunterError(f"no readable index of shards ({error})", where=str(folder / INDEX)) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ShunterError(f"the index names {name!r}, which is not a file beside it", where=str(folder))
        if not (folder / name).is_file():
            raise ShunterError(f"the shard {name} is missing", where=str(folder))
    return sorted({folder / name for name in names})


def _write_shards(views: Mapping[str, Tensor], folder: Path, limit: int, dtype: torch.dtype) -> None:
    """One file, or several of at most `limit` bytes (but one tensor at least) and their index."""
    shards: list[list[str]] = [[]]
    total = size = 0
    for name, view in views.items():
        nbytes = view.numel() * _kind(name, dtype).itemsize
        if shards[-1] and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
        total += nbytes
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # Copies, of one shard at a time: safetensors refuses views of shared storage.
        tensors = {name: views[name].to(device="cpu", dtype=_kind(name, dtype), copy=True) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _kind(name: str, dtype: torch.dtype) -> torch.dtype:
    """A router's bias keeps single precision, as in transformers."""
    return torch.promote_types(dtype, torch.float32) if name.endswith("_correction_bias") else dtype


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
