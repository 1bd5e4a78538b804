"""JSON Schema of a recipe, with which editors complete keys and mark mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

# The dialect that editors' YAML servers speak.
DIALECT = "http://json-schema.org/draft-07/schema#"
_MATRIX = {
    "type": "object",
    "description": "Sweep: dotted key of this job -> values. Each combination is a job of its own.",
    "additionalProperties": {"type": "array", "minItems": 1},
}
_STOP_EARLY = {
    "type": ["object", "null"],
    "description": "With a matrix: variants that begin badly are not gone on with (after, share, tolerance).",
    "properties": {
        "after": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "tolerance": {"type": "number", "minimum": 0},
    },
    "additionalProperties": False,
}


def recipe_schema(recipe: type[BaseModel], kinds: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The schema of `recipe`, whose `jobs` maps a name to the configuration that its `kind` chooses.

    A branch is chosen by `kind` with if/then, not by `oneOf`: an editor then reports what is wrong in
    that kind instead of that no kind fits. Every job also takes `matrix` and `stop_early`.
    """
    schema = _plain(recipe.model_json_schema())
    definitions: dict[str, Any] = schema.pop("$defs", {})
    branches = []
    for kind, model in kinds.items():
        name = f"job.{kind}"
        own = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions.update({f"{name}.{part}": _plain(body) for part, body in own.pop("$defs", {}).items()})
        own = _plain(own)
        own["properties"]["kind"] = {"const": kind, "description": own.get("description", kind)}
        own["properties"]["matrix"] = _MATRIX
        own["properties"]["stop_early"] = _STOP_EARLY
        own["required"] = ["kind", *(key for key in own.get("required", []) if key != "kind")]
        definitions[name] = own
        chosen = {"properties": {"kind": {"const": kind}}, "required": ["kind"]}
        branches.append({"if": chosen, "then": {"$ref": f"#/$defs/{name}"}})
    definitions["job"] = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(kinds), "description": "The verb: which job this is."}},
        "allOf": branches,
    }
    schema["properties"]["jobs"] = {
        "type": "object",
        "description": schema["properties"].get("jobs", {}).get("description", "The jobs by name."),
        "additionalProperties": {"$ref": "#/$defs/job"},
    }
    return {"$schema": DIALECT, **schema, "$defs": definitions}


def _plain(node: Any) -> Any:
    """Without pydantic's `title`s (they only repeat the key) and OpenAPI's `discriminator`."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    # Below `properties` and `$defs`, keys are names: a field may well be called `title`.
    return {
        key: {name: _plain(part) for name, part in value.items()}
        if key in ("properties", "$defs")
        else _plain(value)
        for key, value in node.items()
        if key not in ("title", "discriminator")
    }
