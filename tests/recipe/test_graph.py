"""Recipes become graphs: edges, sweeps, order, and every mistake with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.recipe.graph import Graph, load_recipe
from shunter.recipe.runner import run_graph
from shunter.recipe.store import Store
from tests.recipe.fakes import CHAIN, KINDS, write

HEAD = "version: 1\nname: x\njobs:\n"


def load(folder: Path, text: str, *overrides: str) -> Graph:
    return load_recipe(write(folder, text), overrides, KINDS)


def mistake(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ShunterError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_chain(tmp_path: Path) -> None:
    graph = load(tmp_path, CHAIN, "seed=7", "jobs.base.lr=2")
    assert list(graph.nodes) == ["corpus", "base", "scores"]
    assert graph.nodes["scores"].inputs == {"models": ("base",)}
    assert graph.nodes["base"].upstream == ("corpus",)
    assert graph.nodes["base"].config.seed == 7, "the recipe's seed is the jobs' default"
    assert graph.base == tmp_path


def test_the_order_follows_the_edges_and_else_the_file(tmp_path: Path) -> None:
    text = HEAD + (
        "  scores: {kind: score, models: [b, a]}\n  b: {kind: train, text: t}\n"
        "  a: {kind: train, text: t}\n  t: {kind: source}\n"
    )
    assert list(load(tmp_path, text).nodes) == ["t", "b", "a", "scores"]


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ("  a: {kind: trian}\n", "recipe.yaml:4: jobs.a.kind: unknown kind 'trian'. Did you mean 'train'?"),
        ("  a: {kid: train}\n", "jobs.a.kind: this key is required. Is 'kid' meant to be 'kind'?"),
        (
            "  corpus: {kind: source}\n  b: {kind: train, text: corpse}\n",
            "recipe.yaml:5: jobs.b.text: no job is named 'corpse'. Did you mean 'corpus'?",
        ),
        (
            "  a: {kind: source}\n  b: {kind: score, models: [a]}\n",
            "jobs.b.models: 'a' makes a text, but a model is needed. No job here makes a model.",
        ),
        (
            "  t: {kind: source}\n"
            "  a: {kind: train, text: t, start: b}\n  b: {kind: train, text: t, start: a}\n",
            "recipe.yaml:5: jobs.a: the jobs form a cycle: a -> b -> a.",
        ),
        ("  a: {kind: train, text: t, start: a}\n  t: {kind: source}\n", "the jobs form a cycle: a -> a."),
        (
            "  a: {kind: source, txt: x}\n",
            "recipe.yaml:4: jobs.a.txt: unknown key. Did you mean 'text'?",
        ),
        ("  -a: {kind: source}\n", "jobs.-a: '-a' is no name for a job."),
        (
            "  a: {kind: source, matrix: [1]}\n",
            "jobs.a.matrix: must be a mapping of keys to lists of values.",
        ),
        (
            "  a: {kind: source, matrix: {text: x}}\n",
            "jobs.a.matrix.text: must be a list of at least one value",
        ),
        ("  a: {kind: source, matrix: {text: [x, x]}}\n", "the value 'x' stands twice. Remove one."),
        (
            "  a:\n    kind: source\n    matrix:\n      txt: [x]\n",
            "recipe.yaml:7: jobs.a.txt: unknown key. Did you mean 'text'?",
        ),
        (
            "  a: {kind: source, matrix: {text: [x, y]}}\n  b: {kind: train, text: 'a[text=z]'}\n",
            "jobs.b.text: no variant is named 'a[text=z]'. Did you mean 'a[text=x]'?",
        ),
    ],
)
def test_mistakes(tmp_path: Path, jobs: str, message: str) -> None:
    assert message in mistake(tmp_path, HEAD + jobs)


def test_all_mistakes_are_told_at_once_and_each_once(tmp_path: Path) -> None:
    text = HEAD + (
        "  a: {kind: source, txt: x, matrix: {seed: [1, 2, 3]}}\n  b: {kind: nothing}\n"
        "  c: {kind: train, text: a, lr: -1}\n"
    )
    lines = mistake(tmp_path, text).splitlines()
    assert len(lines) == 3
    assert [line.split(":")[1] for line in lines] == ["4", "5", "6"]


def test_a_wrong_value_hides_no_wrong_input(tmp_path: Path) -> None:
    """A job with a mistake of its own is still a job to others: what it makes is not asked."""
    text = HEAD + (
        "  a: {kind: source, seed: -1}\n  b: {kind: train, text: a}\n  c: {kind: train, text: b}\n"
        "  d: {kind: train, text: t, start: gone}\n  t: {kind: source}\n"
    )
    lines = mistake(tmp_path, text).splitlines()
    assert [line.split(":")[1] for line in lines] == ["4", "6", "7"]
    assert "jobs.c.text: 'b' makes a model, but a text is needed" in lines[1]
    assert "no job is named 'gone'" in lines[2]


def test_no_jobs_and_a_newer_recipe(tmp_path: Path) -> None:
    assert "jobs: no jobs" in mistake(tmp_path, "version: 1\nname: x\njobs: {}\n")
    assert "recipe version 2 is newer than this shunter reads (1). Upgrade shunter." in mistake(
        tmp_path, CHAIN.replace("version: 1", "version: 2")
    )


SWEEP = HEAD + (
    "  t: {kind: source, matrix: {text: [a, b]}}\n"
    "  base: {kind: train, text: t, matrix: {lr: [1e-3, 3e-3]}}\n"
    "  tuned: {kind: train, text: t, start: base}\n"
    "  scores: {kind: score, models: [base, tuned]}\n"
    "  own: {kind: score, text: t, models: [base]}\n"
    "  one: {kind: score, models: ['base[text=a,lr=0.001]']}\n"
)


def test_sweeps_multiply_join_and_gather(tmp_path: Path) -> None:
    graph = load(tmp_path, SWEEP)
    names = list(graph.nodes)
    assert graph.named("t") == ["t[text=a]", "t[text=b]"]
    grid = [f"[text={text},lr={lr}]" for text in "ab" for lr in ("0.001", "0.003")]
    assert set(graph.named("base")) == {f"base{each}" for each in grid}
    # Joined on the shared sweep: four, not eight; the tuned model sees the text of its base.
    assert set(graph.named("tuned")) == {f"tuned{each}" for each in grid}
    tuned = graph.nodes["tuned[text=b,lr=0.001]"]
    assert tuned.inputs == {"text": ("t[text=b]",), "start": ("base[text=b,lr=0.001]",)}
    assert tuned.config.model_dump()["start"] == "base[text=b,lr=0.001]"
    assert set(graph.nodes["scores"].inputs["models"]) == {
        f"{j}{each}" for j in ("base", "tuned") for each in grid
    }
    assert graph.nodes["own[text=a]"].inputs["models"] == ("base[text=a,lr=0.001]", "base[text=a,lr=0.003]")
    assert graph.nodes["one"].inputs["models"] == ("base[text=a,lr=0.001]",)
    assert len(names) == len(set(names)) == 2 + 4 + 4 + 1 + 2 + 1


def test_a_key_swept_twice_is_told_apart(tmp_path: Path) -> None:
    text = HEAD + (
        "  t: {kind: source}\n  a: {kind: train, text: t, matrix: {lr: [1, 2]}}\n"
        "  b: {kind: train, text: t, start: a, matrix: {lr: [1, 2]}}\n"
    )
    names = [f"b[a.lr={above},lr={own}]" for own in (1, 2) for above in (1, 2)]
    assert load(tmp_path, text).named("b") == names


def test_names_of_variants_are_file_names(tmp_path: Path) -> None:
    values = ["a/b", "a_b", "x" * 300, "ü" * 50, "../..", ""]
    graph = load(tmp_path, HEAD + f"  t: {{kind: source, matrix: {{text: {values!r}}}}}\n")
    assert len(graph.nodes) == 6
    for name in graph.nodes:
        assert "/" not in name
        assert len(name.encode()) <= 200


def test_nested_inputs(tmp_path: Path) -> None:
    text = HEAD + (
        "  t: {kind: source}\n  m: {kind: train, text: t, matrix: {seed: [0, 1]}}\n"
        "  s: {kind: score, models: [m], parts: [{of: t}, {of: m, weight: 2}]}\n"
    )
    graph = load(tmp_path, text)
    node = graph.nodes["s[seed=1]"]
    assert node.inputs["parts.1.of"] == ("m[seed=1]",)
    assert node.config.model_dump()["parts"][1] == {"of": "m[seed=1]", "weight": 2.0}
    assert "jobs.s.parts.0.of: no job is named" in mistake(tmp_path, text.replace("{of: t}", "{of: q9}"))


@st.composite
def dags(draw: st.DrawFn) -> dict[str, list[str]]:
    """Models by name with the models that each gathers, written in a random order."""
    count = draw(st.integers(1, 7))
    names = [f"j{index}" for index in range(count)]
    edges = {
        name: draw(st.lists(st.sampled_from(names[:index]), unique=True, max_size=3)) if index else []
        for index, name in enumerate(names)
    }
    return {name: edges[name] for name in draw(st.permutations(names))}


def recipe_of(edges: dict[str, list[str]]) -> str:
    """A recipe of jobs that gather, and one that stands alone."""
    lines = ["  t: {kind: source}"]
    for name, ups in edges.items():
        lines.append(f"  {name}: {{kind: join, of: [{', '.join(ups)}]}}")
    return HEAD + "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def joins() -> dict[str, object]:
    """A kind whose jobs gather any number of their own type, and which writes down its calls."""
    from typing import Annotated, Any, ClassVar

    from pydantic import Field

    from shunter.recipe.job import Input, JobConfig, JobContext

    class JoinConfig(JobConfig):
        of: Annotated[list[str], Input("join")] = Field(description="Inputs.")

    class Join:
        kind: ClassVar[str] = "join"
        produces: ClassVar[str] = "join"
        version: ClassVar[int] = 1
        Config: ClassVar[type[JobConfig]] = JoinConfig
        calls: ClassVar[list[str]] = []

        def check(self, config: Any, base: Path) -> list[str]:
            return []

        def run(self, context: JobContext[Any]) -> dict[str, Any]:
            self.calls.append(context.name)
            names = [(each.path / "name").read_text() for each in context.many("of")]
            (context.out / "name").write_text(f"{context.name}({','.join(names)})")
            return {}

    return {**KINDS, "join": Join()}


@settings(max_examples=8)
@given(edges=dags())
def test_random_graphs_run_each_job_once_after_its_inputs(
    edges: dict[str, list[str]], joins: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dag")
    graph = load_recipe(write(folder, recipe_of(edges)), [], joins)  # type: ignore[arg-type]
    calls = joins["join"].calls  # type: ignore[attr-defined]
    calls.clear()
    store = Store(folder / "store")
    made = run_graph(graph, store, quiet=True)
    assert sorted(calls) == sorted(edges)
    for name, ups in edges.items():
        assert all(calls.index(up) < calls.index(name) for up in ups)

    def expected(name: str) -> str:
        return f"{name}({','.join(expected(up) for up in edges[name])})"

    assert all((made[name].path / "name").read_text() == expected(name) for name in edges)
    calls.clear()
    run_graph(graph, store, quiet=True)
    assert calls == [], "nothing is made twice"


@settings(max_examples=60)
@given(edges=dags(), data=st.data())
def test_from_and_to_select_what_lies_between(
    edges: dict[str, list[str]],
    data: st.DataObject,
    joins: dict[str, object],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    graph = load_recipe(write(tmp_path_factory.mktemp("dag"), recipe_of(edges)), [], joins)  # type: ignore[arg-type]
    first, last = (data.draw(st.none() | st.sampled_from(sorted(edges))) for _ in range(2))

    def above(name: str) -> set[str]:
        return {name}.union(*(above(up) for up in edges[name]))

    wanted = {
        name
        for name in [*edges, "t"]
        if (first is None or (name in edges and first in above(name)))
        and (last is None or name in above(last))
    }
    if not wanted:
        with pytest.raises(ShunterError, match="is not made from"):
            graph.select(first, last)
        return
    selected = graph.select(first, last)
    assert set(selected) == wanted
    assert selected == [name for name in graph.nodes if name in wanted]
