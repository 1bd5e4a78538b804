"""The catalogue of papers, and the state of each, computed from what is recorded and tested."""

from __future__ import annotations

import ast
import json
import tomllib
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from shunter.config.errors import ShunterError

HERE = Path(__file__).parent
RESULTS = HERE / "results"  # one JSON a paper, written by `shunter reproduce SLUG --record`
PROJECT = HERE.parents[1]  # the clone's root: tests and docs are looked up here

State = Literal["works", "partial", "missing"]


@dataclass(frozen=True)
class Paper:
    """One published system or method. `state` and `lacks` follow from results, tests and docs."""

    slug: str
    title: str
    arxiv: str
    kind: str
    state: State
    holds: bool | None  # of the recorded result; None when nothing is recorded
    lacks: tuple[str, ...]  # what stands between this paper and `works`, in words
    untried: tuple[str, ...]  # experiments of its card that need what a clone cannot count on

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_toml(name: str) -> dict[str, Any]:
    """One of this room's data files."""
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


def papers() -> list[Paper]:
    """Every paper known, in order of slug."""
    catalogue, demands, claims = (read_toml(f"{n}.toml") for n in ("catalogue", "must_haves", "claims"))
    return [
        _paper(slug, entry, demands.get(slug, {}), claims.get(slug, {}).get("claims", []))
        for slug, entry in sorted(catalogue.items())
    ]


def find(slug: str) -> Paper:
    """The paper with this slug, or an error that names the nearest."""
    known = {paper.slug: paper for paper in papers()}
    if slug not in known:
        near = get_close_matches(slug, known, n=1)
        mend = f"Did you mean {near[0]!r}?" if near else "`shunter papers` lists them."
        raise ShunterError(f"no paper is called {slug!r}", mend=mend)
    return known[slug]


def recorded_result(slug: str) -> dict[str, Any] | None:
    """The last recorded result of `shunter reproduce`, or None."""
    path = RESULTS / f"{slug}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _paper(slug: str, entry: dict[str, str], demands: dict[str, Any], claims: list[dict[str, Any]]) -> Paper:
    result = recorded_result(slug)
    musts, experiments = demands.get("must_have", []), demands.get("experiment", [])
    if not claims:
        state: State = "missing"
        lacks: list[str] = ["no experiment"]
    else:
        lacks = []
        if result is None:
            lacks.append("no recorded result")
        elif result.get("made", {}).get("code", {}).get("dirty") or result.get("short"):
            lacks.append("its result was recorded in the short form, or by code that was not committed")
        lacks += _unmeasured(experiments, claims, result)
        if not musts:
            lacks.append("its must-haves are not listed")
        for must in musts:
            tests = must.get("tests", [])
            broken = [test for test in tests if not _test_exists(test)]
            if not tests:
                lacks.append(f"untested: {must['text']}")
            elif broken:
                lacks.append(f"test not found: {', '.join(broken)}")
        if not (PROJECT / "docs" / "papers" / f"{slug}.md").exists():
            lacks.append("no docs page")
        state = "partial" if lacks else "works"
    return Paper(
        slug,
        entry["title"],
        entry["arxiv"],
        entry["kind"],
        state,
        result["holds"] if result else None,
        tuple(lacks),
        tuple(f"{e['text']} (needs {e['needs']})" for e in experiments if "needs" in e),
    )


def _unmeasured(
    experiments: list[dict[str, Any]], claims: list[dict[str, Any]], result: dict[str, Any] | None
) -> list[str]:
    """What the card wants measured and no claim does, or no recorded result has."""
    if not experiments:
        return ["its card's experiments are not listed"]
    judged = {claim["name"] for claim in claims}
    recorded = judged if result is None else {claim["name"] for claim in result.get("claims", [])}
    lacks = []
    for experiment in experiments:
        names = experiment.get("claims", [])
        if not names and "needs" not in experiment:
            lacks.append(f"not measured: {experiment['text']}")
        elif unknown := [name for name in names if name not in judged]:
            lacks.append(f"no claim is called {unknown[0]!r}")
        elif missing := [name for name in names if name not in recorded]:
            lacks.append(f"the recorded result has no {missing[0]!r}")
    return lacks


def _test_exists(test: str) -> bool:
    """Whether `tests/room/test_file.py::test_name` names a test function of this clone."""
    path, _, name = test.partition("::")
    return name in _functions(PROJECT / path)


@cache
def _functions(path: Path) -> frozenset[str]:
    if not path.exists():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
