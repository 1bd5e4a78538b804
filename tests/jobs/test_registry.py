"""The kinds that the documentation names are those that there are, and so are a chain's operators."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from shunter.config import check
from shunter.config.errors import ShunterError
from shunter.config.yaml import parse
from shunter.data.curation.kinds import AnyOperator, Preset
from shunter.jobs.registry import KINDS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(page: str, first: str) -> dict[str, list[str]]:
    """Kind -> cells, of the table whose head begins with `first`; each kind has one row."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text[text.index(f"| {first} |") :].partition("\n\n")[0].splitlines()[2:]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    names = [re.fullmatch(r"`([\w-]+)`", cells[0]) for cells in found]
    assert all(names)
    assert len({name[1] for name in names if name}) == len(found)
    return {name[1]: cells[1:] for name, cells in zip(names, found, strict=True) if name}


def test_the_table_of_kinds_is_the_registry() -> None:
    table = rows("recipes.md", "kind | reads | makes")
    assert set(table) == set(KINDS)
    for kind, (_, makes) in table.items():
        assert re.match(rf"{KINDS[kind].produces}\b", makes), f"{kind} makes {KINDS[kind].produces}"


def test_the_table_of_operators_is_what_a_recipe_may_name() -> None:
    operators = get_args(get_args(AnyOperator)[0])
    assert set(rows("curate.md", "kind | does | defaults from")) == {
        get_args(each.model_fields["kind"].annotation)[0] for each in operators
    }
    text = (DOCS / "curate.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in get_args(Preset))


def excerpts() -> list[tuple[str, dict[str, Any]]]:
    """Page and job of every YAML excerpt in the docs that gives whole jobs."""
    found = []
    for page in sorted(DOCS.rglob("*.md")):
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            if "..." in block:
                continue
            try:
                data = parse(block, page.name).data
            except ShunterError:  # only comments, or what shows an error
                continue
            jobs = data.get("jobs", data) if isinstance(data, dict) else {}
            name = page.relative_to(DOCS).as_posix()
            found += [
                (name, job) for job in jobs.values() if isinstance(job, dict) and job.get("kind") in KINDS
            ]
    return found


@pytest.mark.parametrize(
    ("page", "job"), [pytest.param(*each, id=f"{n}") for n, each in enumerate(excerpts())]
)
def test_jobs_in_the_docs_are_read_as_they_stand(page: str, job: dict[str, Any]) -> None:
    """Whether its keys and values may be so; what it names may be missing."""
    job = {key: value for key, value in job.items() if key not in ("matrix", "parallel")}
    check.parse(KINDS[job["kind"]].Config, job)
