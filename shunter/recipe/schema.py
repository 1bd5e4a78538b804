"""The recipe file as a type. Its jobs are typed by their kinds, in `graph`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from shunter.config.base import Config

RECIPE_VERSION = 1


class Recipe(Config):
    """A graph of jobs that turn files into artefacts."""

    version: int = Field(ge=1, description="Version of the recipe format: 1.")
    name: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        max_length=64,
        description="Name of the recipe, by which runs are found.",
    )
    seed: int = Field(0, ge=0, description="Default of every job's seed.")
    jobs: dict[str, dict[str, Any]] = Field(description="The jobs by name.")
