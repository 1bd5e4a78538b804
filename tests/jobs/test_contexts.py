"""Answers that no context holds are refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.jobs import contexts
from shunter.jobs.registry import KINDS
from shunter.recipe import dryrun
from shunter.recipe.graph import load_recipe
from shunter.recipe.store import Store

RECIPES = Path(__file__).parents[2] / "recipes"


def refused(path: str, overrides: list[str], folder: Path) -> str | None:
    try:
        dryrun.show(load_recipe(RECIPES / path, overrides, KINDS), Store(folder), None, None, [])
    except ShunterError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("path", "job", "key", "model", "context"),
    [
        ("rl-puzzles.yaml", "tuned", "max_new_tokens", "start", 128),
        ("quickstart.yaml", "scores", "tasks.1.max_new_tokens", "base", 256),
        ("quickstart.yaml", "practised", "max_new_tokens", "chat", 256),
        ("papers/tulu3-length.yaml", "pairs", "sampled.max_new_tokens", "sft", 128),
        ("papers/tulu3.yaml", "rlvr", "max_new_tokens", "dpo", 128),  # over two jobs without rows
    ],
)
def test_a_context_that_answers_fill(
    path: str, job: str, key: str, model: str, context: int, tmp_path: Path
) -> None:
    told = refused(path, [f"jobs.{job}.{key}={context}"], tmp_path)
    assert told is not None
    assert f"jobs.{job}.{key}: {context} new tokens fill the context of {model}, which is {context}" in told
    assert refused(path, [f"jobs.{job}.{key}={context - 1}"], tmp_path) is None


def test_what_a_recipe_does_not_tell_is_not_refused() -> None:
    graph = load_recipe(RECIPES / "quickstart.yaml", [], KINDS)
    assert contexts.context_of(graph, graph.nodes["practised"]) == 256
    assert contexts.context_of(graph, graph.nodes["talks"]) is None
