"""What can be known of a source before it is read: its files, encoding, template, columns and members."""

from __future__ import annotations

from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.data import archives, templates
from shunter.data.sources import ARCHIVE, SourceConfig, columns, files


def check(source: SourceConfig, base: Path, *, whole: bool = False) -> None:
    """Raise one ShunterError, with a line for each thing that is wrong and that a run would stumble on.

    Reads directories of archives and footers of Parquet files; the texts themselves are read by a run.
    whole: records are needed with all their fields, whatever these are called.
    """
    errors: list[ShunterError] = []
    try:
        if source.encoding != "auto":
            b"some".decode(source.encoding, errors="replace")
    except LookupError:  # also codecs that are not of text
        errors.append(unknown_encoding(source.encoding, source))
    try:
        if source.template is not None:
            templates.compiled(source)
    except ShunterError as error:
        errors.append(error)
    for path in files(source, base):
        try:
            if path.name.lower().endswith(ARCHIVE):
                archives.members(source, path)
            elif path.name.lower().endswith(".parquet"):
                from shunter.data import readers

                readers.opened(path, str(path), columns(source, whole))
        except ShunterError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ShunterError("\n".join(map(str, errors)))


def unknown_encoding(encoding: str, source: SourceConfig) -> ShunterError:
    """The sentence for a codec that Python does not have."""
    return ShunterError(
        f"source {source.label!r}: no text encoding is called {encoding!r}", mend="Try utf-8 or cp1252."
    )
