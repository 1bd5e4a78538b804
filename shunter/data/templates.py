"""Texts made from a record's fields by a template that a person wrote; sandboxed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from shunter.config.errors import ShunterError
from shunter.data.sources import Problem, Record, Report, SourceConfig

if TYPE_CHECKING:
    from jinja2 import Template


def compiled(source: SourceConfig) -> Template:
    """The source's template. Raises ShunterError for what is no template, or asks for an unknown filter."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    environment.filters["without"] = _without
    try:
        return environment.from_string(source.template or "")
    except jinja2.TemplateError as error:
        raise ShunterError(
            f"the template of source {source.label!r} is not valid ({str(error).rstrip('.')})",
            mend="Write it in Jinja, such as '{{ title }}: {{ body }}'.",
        ) from error


def to_text(source: SourceConfig) -> Callable[[Record, Report], str | None]:
    """A function from a record to its text; None when it has none, which is reported."""
    import jinja2

    template = None if source.template is None else compiled(source)

    def convert(record: Record, report: Report) -> str | None:
        if template is not None:
            try:
                return template.render(record.fields)
            except (jinja2.TemplateError, TypeError, re.error) as error:
                report(Problem(record.file, record.line, f"the template fails: {error}", "skipped"))
                return None
        value = record.fields.get(source.field)
        if not isinstance(value, str):
            what = (
                "is missing" if source.field not in record.fields else f"is {type(value).__name__}, not text"
            )
            report(Problem(record.file, record.line, f"field {source.field!r} {what}", "skipped"))
            return None
        return value

    return convert


def _without(text: str, pattern: str) -> str:
    return re.sub(pattern, "", text)
