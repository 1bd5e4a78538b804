"""What a job learnt for operators, in two files: facts as JSON, and arrays beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shunter.config.errors import ShunterError

Files = tuple[str, str]  # of the facts, of the arrays


def write(
    folder: Path, files: Files, version: int, facts: Mapping[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """version: of the form of both, which `read` asks for."""
    from safetensors.numpy import save_file

    save_file(arrays, folder / files[1])
    told = json.dumps({"format": version, **facts}, ensure_ascii=False)
    (folder / files[0]).write_text(told + "\n", encoding="utf-8")


def read(
    folder: Path, files: Files, version: int, what: str, kind: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write` wrote: facts and arrays. what: is read, with its article; kind: of the job that makes it.

    Raises ShunterError where it is not there, or of another version.
    """
    from safetensors.numpy import load_file

    path = folder / files[0]
    if not path.is_file():
        name = what.partition(" ")[2]
        raise ShunterError(f"no {name} is here", where=str(folder), mend=f"Make one: kind: {kind}.")
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if facts.get("format") != version:
        raise ShunterError(f"{what} of format {facts.get('format')}", where=str(path))
    return facts, load_file(folder / files[1])
