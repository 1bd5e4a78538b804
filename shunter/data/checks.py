"""What can be known of a source before it is read: its files, encoding, template, fields and members."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.data import archives, templates
from shunter.data.sources import ARCHIVE, Problem, Record, SourceConfig, columns, files, kind_of

LOOKED_AT = 100  # records of a file that show which fields there are
DEEP = 20_000  # of a source, before it is refused
FILES = 16  # of a source, evenly spread, of which it is told that their records do not fit


def check(source: SourceConfig, base: Path, *, whole: bool = False) -> list[str]:
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
    warnings: list[str] = []
    if not whole and not errors:
        errors, warnings = _fields(source, found)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ShunterError("\n".join(map(str, errors)))
    return warnings


def _fields(source: SourceConfig, found: list[Path]) -> tuple[list[ShunterError], list[str]]:
    """A sentence for what no record has, a field or what the template asks for, and warnings.

    It is wrong where a run would pass over every record: none of the first of any file fits, nor of the
    first DEEP of all, and there is nothing but records. Else a run goes on with what it can read, so files
    whose first records do not fit are told as a warning; so is a field of addresses that is not seen.
    """
    paths = [path for path in found if kind_of(path.name) == "records" and not _table(path)]
    if not paths:
        return [], []
    fits = _Fits(source)
    step = -(-len(paths) // FILES)
    some = {path: fits.any(_records([path]), LOOKED_AT) for path in paths[::step]}
    worst = fits.error(paths[0])
    fitting = any(some.values())
    fitting = fitting or any(fits.any(_records([path]), LOOKED_AT) for path in paths if path not in some)
    if worst is not None and not (fitting or fits.any(_records(paths), DEEP)) and len(paths) == len(found):
        return [worst, *([fits.url(paths[0])] if fits.no_url else [])], []
    warnings = [str(fits.url(paths[0]))] if fits.no_url else []
    others = [path for path, fine in some.items() if fine is False]
    if others:
        more = f" and {len(others) - 1} other files" if len(others) > 1 else ""
        wanted = "what the template asks for" if source.template else f"the field {source.field!r}"
        warnings.append(f"{others[0]}{more}: none of the first records has {wanted}; they are left out")
    return [], warnings


class _Fits:
    """Which records of a source have what it asks for, and what those that were looked at have."""

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self.there: dict[str, None] = {}
        self.seen = 0
        self.problem = ""
        self._to_text = templates.to_text(source) if source.template is not None else None

    @property
    def no_url(self) -> bool:
        """Whether a field of addresses is named and was not seen."""
        return self.seen > 0 and self.source.url is not None and self.source.url not in self.there

    def any(self, records: Iterator[Record], most: int) -> bool | None:
        """Whether one of the first records fits; None: there is none."""
        number = 0
        fine = False
        for record in itertools.islice(records, most):
            number += 1
            self.there |= dict.fromkeys(record.fields)
            fine = fine or self._one(record)
            if fine and self.source.url in (None, *self.there):
                break
        self.seen = max(self.seen, number)
        return fine if number else None

    def _one(self, record: Record) -> bool:
        if self._to_text is None:
            return self.source.field in record.fields
        problems: list[Problem] = []
        fine = self._to_text(record, problems.append) is not None
        if problems and not self.problem:
            self.problem = problems[0].problem
        return fine

    def error(self, path: Path) -> ShunterError | None:
        """What to say where none fits."""
        if not self.seen:
            return None
        if self._to_text is None:
            return self._absent("field", self.source.field, path)
        what = f"{self.problem}, as for all of {self._many()}"
        return ShunterError(what, where=str(path), mend="Correct the source's `template`.")

    def url(self, path: Path) -> ShunterError:
        """What to say where no address is."""
        return self._absent("url", self.source.url or "", path)

    def _absent(self, option: str, name: str, path: Path) -> ShunterError:
        near = nearest(name, list(self.there))
        hint = f"Did you mean {near!r}? " if near else ""
        what = f"no field {name!r} in {self._many()}"
        return ShunterError(what, where=str(path), mend=f"{hint}Set the source's `{option}`.")

    def _many(self) -> str:
        return f"the first {self.seen} records; there are {', '.join(list(self.there)[:20])}"


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
