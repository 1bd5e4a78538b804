"""The JSON Schema says what the parser says."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import fastjsonschema
import pytest
from pydantic import Field

from shunter.config.base import Config
from shunter.config.json_schema import recipe_schema


class How(Config):
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where.")


class Cook(Config):
    """Cooks."""

    kind: str = Field(description="The verb.")
    minutes: int = Field(ge=1, description="How long.")
    title: str = Field("x", description="A field that is called like a keyword of JSON Schema.")
    how: How = Field(default_factory=How, description="How.")


class Warm(Config):
    degrees: float = Field(description="How warm.")


class Cold(Config):
    kind: Literal["cold"] = Field(description="Branch.")


class Hot(Config):
    kind: Literal["hot"] = Field(description="Branch.")
    how: Warm = Field(description="How.")


class Serve(Config):
    """Serves."""

    kind: str = Field(description="The verb.")
    plates: list[Annotated[Cold | Hot, Field(discriminator="kind")]] = Field(description="What.")


class Recipe(Config):
    """A recipe."""

    version: Literal[1] = Field(description="Version of the format.")
    name: str = Field(description="Name.")
    jobs: dict[str, Any] = Field(description="The jobs by name.")


SCHEMA = recipe_schema(Recipe, {"cook": Cook, "serve": Serve})
VALID = fastjsonschema.compile(SCHEMA)


def recipe(**jobs: object) -> dict[str, object]:
    return {"version": 1, "name": "x", "jobs": jobs}


@pytest.mark.parametrize(
    "job",
    [
        {"kind": "cook", "minutes": 3},
        {"kind": "cook", "minutes": 3, "title": "soup", "how": {"device": "cuda"}},
        {"kind": "cook", "minutes": 3, "matrix": {"minutes": [1, 2]}},
        {"kind": "serve", "plates": [{"kind": "cold"}, {"kind": "hot", "how": {"degrees": 3}}]},
    ],
)
def test_takes(job: dict[str, Any]) -> None:
    VALID(recipe(job=job))


@pytest.mark.parametrize(
    "job",
    [
        {"minutes": 3},
        {"kind": "cok", "minutes": 3},
        {"kind": "cook"},
        {"kind": "cook", "minutes": 0},
        {"kind": "cook", "minutes": "3"},
        {"kind": "cook", "minutes": 3, "minute": 3},
        {"kind": "cook", "minutes": 3, "how": {"device": "gpu"}},
        {"kind": "cook", "minutes": 3, "how": {"degrees": 3}},
        {"kind": "cook", "minutes": 3, "matrix": {"minutes": 3}},
        {"kind": "serve", "plates": [{"kind": "hot", "how": {"device": "cpu"}}]},
        {"kind": "serve", "minutes": 3},
    ],
)
def test_refuses(job: dict[str, Any]) -> None:
    with pytest.raises(fastjsonschema.JsonSchemaException):
        VALID(recipe(job=job))


def test_the_top_is_checked_too() -> None:
    for wrong in ({}, {**recipe(), "extra": 1}, {**recipe(), "version": 2}):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            VALID(wrong)


def test_sentences_reach_the_editor() -> None:
    cook = SCHEMA["$defs"]["job.cook"]
    assert cook["properties"]["minutes"]["description"] == "How long."
    assert cook["properties"]["kind"]["description"] == "Cooks."
    assert cook["properties"]["title"]["type"] == "string"
    assert "title" not in cook
