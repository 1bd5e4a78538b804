"""A model that a person names: an artefact of a store, or a folder."""

from __future__ import annotations

import re
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.recipe.disk import human
from shunter.recipe.store import Store

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def find(store: str, ref: str) -> Path:
    """The folder of a model: `ref` itself if it holds a config.json, else an artefact of the store."""
    if (Path(ref) / "config.json").is_file():
        return Path(ref)
    if Path(ref).is_dir() and not (Path(ref) / "manifest.json").is_file():
        raise ShunterError("this folder holds no model (no config.json)", where=ref)
    artefact = Store(store).get(ref)
    if artefact.type != "model":
        raise ShunterError(
            f"{ref} is a {artefact.type}, not a model", mend="`shunter status` shows the models."
        )
    return artefact.path


def size(text: str) -> int:
    """Bytes of `5GB`, `200MB`, `1000`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if match is None or float(match[1]) == 0:
        raise ShunterError(f"--max-shard-size {text!r} is no size", mend="Write it as 5GB or 200MB.")
    return int(float(match[1]) * _UNITS[match[2]])


def export(store: str, ref: str, folder: Path, dtype: str, max_shard_size: str) -> str:
    """Write the model `ref` to `folder`; returns a line about it. Never overwrites."""
    limit = size(max_shard_size)
    if dtype not in ("", "float32", "bfloat16", "float16"):
        raise ShunterError(f"--dtype {dtype!r} is not one of float32, bfloat16, float16")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ShunterError("already exists and is not empty", where=str(folder), mend="Name a new folder.")
    source = find(store, ref)
    import json

    import torch

    from shunter.models.hf import load_model, save_model

    stored = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kind = getattr(torch, dtype or stored.get("torch_dtype") or stored.get("dtype") or "float32")
    model = load_model(source, kind)
    generation = source / "generation_config.json"
    ends = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else stored
    stop = ends.get("eos_token_id")
    save_model(
        model,
        folder,
        tokenizer_folder=source,
        max_shard_bytes=limit,
        eos_token_id=[stop] if isinstance(stop, int) else stop or [],
        pad_token_id=ends.get("pad_token_id"),
    )
    total = sum(path.stat().st_size for path in folder.iterdir())
    name = str(kind).removeprefix("torch.")
    return f"{folder}: {model.spec.num_parameters:,} parameters, {name}, {human(total)}"
