"""A model that a person names: an artefact of a store, or a folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.recipe import disk
from shunter.recipe.store import Store
from shunter.surgery.peft_config import CONFIG, WEIGHTS, check_config

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


def export(
    store: str, ref: str, folder: Path, dtype: str, max_shard_size: str, merge: Path | None = None
) -> str:
    """Write the model `ref` to `folder`; returns a line about it. Never overwrites.

    merge: a folder with a peft adapter of this model, which is added to its weights.
    The folder appears as a whole, or not at all: it is written aside and renamed.
    """
    limit = size(max_shard_size)
    if dtype not in ("", "float32", "bfloat16", "float16"):
        raise ShunterError(f"--dtype {dtype!r} is not one of float32, bfloat16, float16")
    _must_be_new(folder)
    source = find(store, ref)
    told = special(source)
    if merge is not None:
        check_config(merge)

    import torch

    from shunter.models.hf import load_model, save_model

    model = load_model(source, getattr(torch, dtype) if dtype else None)
    if merge is not None:
        from shunter.surgery.adapter_folder import merge_adapter

        merge_adapter(model, merge)
    with _aside(folder) as aside:
        save_model(
            model,
            aside,
            tokenizer_folder=source,
            max_shard_bytes=limit,
            **told,
        )
        total = disk.size(aside)
    name = str(model.embed.weight.dtype).removeprefix("torch.")
    return f"{folder}: {model.spec.num_parameters:,} parameters, {name}, {disk.human(total)}"


def export_adapter(store: str, ref: str, folder: Path) -> str:
    """Write the adapters that the job `ref` trained to `folder`, as peft loads them; returns a line."""
    _must_be_new(folder)
    source = find(store, ref) / "adapter"
    if not (source / CONFIG).is_file():
        raise ShunterError(
            f"{ref} has no adapters of its own", mend="Export the model whole, without --adapter."
        )
    with _aside(folder) as aside:
        aside.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(source / name, aside / name)
        total = disk.size(aside)
    return f"{folder}: adapters of {ref} in peft's format, {disk.human(total)}"


def _must_be_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ShunterError("already exists and is not empty", where=str(folder), mend="Name a new folder.")


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A place to write in, which becomes `folder` at the end, or is gone."""
    target = folder.absolute()
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, target)  # a folder may take the place of an empty one
    except Exception as error:
        if disk.is_full(error):
            raise disk.full(error, folder) from None
        if isinstance(error, OSError):
            raise ShunterError(f"cannot be written ({error.strerror})", where=str(folder)) from None
        raise
    finally:
        disk.remove(aside)


def special(source: Path) -> dict[str, Any]:
    """What a model's folder tells besides its arithmetic, as `save_model` takes it: the tokens that end an
    answer, begin a text and pad, and how the model is meant to be sampled."""
    found = {name: _object(source / name) for name in ("config.json", "generation_config.json")}
    told: dict[str, Any] = {}
    for each in found.values():  # the latter has the last word
        told |= {key: value for key, value in each.items() if value is not None}
    ends = told.get("eos_token_id", [])
    return {
        "eos_token_id": [ends] if isinstance(ends, int) else list(ends),
        "pad_token_id": told.get("pad_token_id"),
        "bos_token_id": told.get("bos_token_id"),
        "generation": found["generation_config.json"],
    }


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = disk.read_json(path)
    if found is None:
        raise ShunterError("holds no JSON object", where=str(path))
    return dict(found)
