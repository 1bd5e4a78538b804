"""A published artefact and its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_FORMAT = 1


class FileRecord(BaseModel):
    """Size and digest of one file of an artefact."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(description="Path inside the artefact, with forward slashes.")
    bytes: int = Field(description="Size in bytes.")
    sha256: str = Field(description="Hex digest of the content.")


class InputRecord(BaseModel):
    """An input as it was used: which artefact, with which content."""

    model_config = ConfigDict(extra="forbid")
    field: str = Field(description="Configuration field that named it.")
    name: str = Field(description="Job that made it.")
    id: str = Field(description="Its identity.")
    content: str = Field(description="Its content digest.")


class Manifest(BaseModel):
    """`manifest.json`, written last: an artefact without one does not exist."""

    model_config = ConfigDict(extra="forbid")
    format: int = Field(MANIFEST_FORMAT, description="Version of this file's format.")
    name: str = Field(description="Job name in the graph.")
    kind: str = Field(description="Job kind.")
    type: str = Field(description="Artefact type.")
    version: int = Field(description="Version of the job kind that made it.")
    id: str = Field(description="Identity: digest of name, version, `what`, content of inputs and files.")
    content: str = Field(description="Digest over the files outside `log/`.")
    what: dict[str, Any] = Field(description="Canonical `what` half of the configuration.")
    how: dict[str, Any] = Field(description="`how` half of the attempt that finished.")
    inputs: list[InputRecord] = Field(description="Inputs as used.")
    reads: list[FileRecord] = Field(
        default_factory=list,
        description="Files outside the store that the job read, relative to the recipe's folder if in it.",
    )
    metrics: dict[str, Any] = Field(description="Headline numbers returned by the job.")
    attempts: list[dict[str, Any]] = Field(
        description="One record an attempt: begin, seconds, how, code, environment, outcome, peak memory."
    )
    files: list[FileRecord] = Field(description="Every file but this one.")
    created: str = Field(description="UTC time of publication, ISO 8601.")


@dataclass(frozen=True)
class Artefact:
    """A published folder. `path` is read-only by convention: nothing writes into an artefact."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def type(self) -> str:
        return self.manifest.type

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def content(self) -> str:
        return self.manifest.content
