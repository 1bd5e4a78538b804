"""What makes a job the same job: name, version of its kind, `what`, the content of what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shunter.config import canonical
from shunter.recipe.artefact import FileRecord
from shunter.recipe.graph import Node
from shunter.recipe.job import JobConfig

IDENTITY_VERSION = 1
SHORT = 12  # hex digits of an id in folder names and tables


def what(config: JobConfig) -> dict[str, Any]:
    """The half of a configuration that is the job's identity, as plain data."""
    return config.model_dump(mode="json", exclude={"how"})


def how(config: JobConfig) -> dict[str, Any]:
    """The half that is recorded per attempt."""
    return config.how.model_dump(mode="json")


def identify(node: Node, contents: Mapping[str, str], reads: Sequence[FileRecord] = ()) -> str:
    """The job's id, 64 hex digits.

    contents: content digest of each upstream job's artefact.
    reads:    files outside the store that the job reads, with their digests.

    The order of keys in the recipe does not count, that of list inputs does.
    """
    return canonical.digest(
        {
            "identity": IDENTITY_VERSION,
            "name": node.name,
            "kind": node.kind,
            "version": node.job.version,
            "what": what(node.config),
            "inputs": {field: [contents[name] for name in names] for field, names in node.inputs.items()},
            "reads": [[file.path, file.bytes, file.sha256] for file in reads],
        }
    )
