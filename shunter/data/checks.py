"""What can be known of a source before it is read: its files, encoding, template, fields and members."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.data import archives, templates
from shunter.data.sources import ARCHIVE, Problem, Record, SourceConfig, columns, files, kind_of

LOOKED_AT = 100  # records that show which fields there are


def check(source: SourceConfig, base: Path, *, whole: bool = False) -> None:
    """Raise one ShunterError, with a line for each thing that is wrong and that a run would stumble on.

    Reads directories of archives, footers of Parquet files and a source's first records of JSON; the texts
    themselves are read by a run. whole: records are needed with all their fields, whatever these are called.
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
    found = files(source, base)
    for path in found:
        try:
            if path.name.lower().endswith(ARCHIVE):
                archives.members(source, path)
            elif _table(path):
                from shunter.data import readers

                readers.opened(path, str(path), columns(source, whole))
        except ShunterError as error:
            errors.append(error)
    if not whole and not errors:
        errors += _fields(source, found)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ShunterError("\n".join(map(str, errors)))


def _fields(source: SourceConfig, found: list[Path]) -> Iterator[ShunterError]:
    """A sentence for what none of the source's first records has, a field or what the template asks for: a
    run would pass over them all, or find no address, record by record."""
    paths = [path for path in found if kind_of(path.name) == "records" and not _table(path)]
    looked_at = list(itertools.islice(_records(paths), LOOKED_AT))
    if not looked_at:
        return
    there = list(dict.fromkeys(name for record in looked_at for name in record.fields))
    many = f"the first {len(looked_at)} records; there are {', '.join(there[:20])}"
    if source.template is None and source.field not in there:
        yield _absent("field", source.field, there, many, paths[0])
    if source.url is not None and source.url not in there:
        yield _absent("url", source.url, there, many, paths[0])
    if source.template is not None:
        problems: list[Problem] = []
        to_text = templates.to_text(source)
        if not any(to_text(record, problems.append) is not None for record in looked_at):
            what = f"{problems[0].problem}, as for all of {many}"
            yield ShunterError(what, where=str(paths[0]), mend="Correct the source's `template`.")


def _absent(option: str, name: str, there: list[str], many: str, path: Path) -> ShunterError:
    near = nearest(name, there)
    hint = f"Did you mean {near!r}? " if near else ""
    return ShunterError(
        f"no field {name!r} in {many}", where=str(path), mend=f"{hint}Set the source's `{option}`."
    )


def _table(path: Path) -> bool:
    return path.name.lower().endswith(".parquet")


def _records(paths: list[Path]) -> Iterator[Record]:
    """The records of JSON files, damaged lines left out: a run tells of them."""
    from shunter.data import readers

    for path in paths:
        with path.open("rb") as raw:
            yield from readers.jsonl(readers.decompressed(raw, path.name), str(path), lambda problem: None)


def unknown_encoding(encoding: str, source: SourceConfig) -> ShunterError:
    """The sentence for a codec that Python does not have."""
    return ShunterError(
        f"source {source.label!r}: no text encoding is called {encoding!r}", mend="Try utf-8 or cp1252."
    )
