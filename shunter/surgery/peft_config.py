"""The configuration in a folder of peft's, and what of it is refused. Imports without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Keys of peft's configuration that change the arithmetic, with the only values that this one is right for.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": (None, [], {}),
    "megatron_config": (None,),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "eva_config": (None,),
    "corda_config": (None,),
    "use_bdlora": (False, None),
    "velora_config": (None,),
    "arrow_config": (None,),
    "monteclora_config": (None,),
    "lora_ga_config": (None,),
    "kasa_config": (None,),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None, []),
    # The others change the base weights too, in a file of their own.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}


def check_config(folder: Path) -> dict[str, Any]:
    """The configuration in a peft folder. Raises ShunterError for one whose arithmetic is another."""
    path = folder / CONFIG
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShunterError(f"no readable adapter configuration ({error})", where=str(path)) from None
    if not isinstance(told, dict):
        raise ShunterError("the adapter configuration is not a JSON object", where=str(path))
    for key, allowed in _REQUIRED.items():
        if key in told and told[key] not in allowed:
            raise ShunterError(f"{key} {told[key]!r} is not supported", where=str(path))
    for key in ("r", "lora_alpha"):
        if not isinstance(told.get(key), int | float) or isinstance(told[key], bool) or told[key] <= 0:
            raise ShunterError(f"{key} must be a positive number (got {told.get(key)!r})", where=str(path))
    if not (folder / WEIGHTS).is_file():
        raise ShunterError(f"there are no adapters ({WEIGHTS})", where=str(folder))
    return told
