"""The base of every configuration in shunter."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Strict: an unknown key, a wrong type or a value out of range is an error, never a guess.

    Fields are immutable, every field carries one sentence (`Field(description=...)`), and paths are
    plain strings (strict validation takes no `Path` from YAML). An int is accepted for a float.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
