"""Drafting a recipe for a person's own files: sizes, comments, paths.

That a draft runs is shown by tests/test_readme.py, which runs every command of the documentation.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from shunter.cli import main as cli
from shunter.config import yaml
from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.jobs import starter
from shunter.jobs.starter import MAX_EPOCHS, SHAPES, Machine, choose, draft

CPU, GPU = Machine(2, False), Machine(8, True)
TEXT = "A sentence that somebody wrote, for reading. " * 500


class Anything(Config):
    """Does something."""

    corpus: str = Field("", description="The corpus that it reads.")
    vocab_size: int = Field(1, description="Entries of the vocabulary.")


KINDS = defaultdict(lambda: Anything)


@given(st.integers(10_000, 10**12), st.sampled_from([CPU, GPU]), st.floats(0.1, 10_000))
def test_a_size_fits_text_and_time(text_bytes: int, machine: Machine, minutes: float) -> None:
    size = choose(text_bytes, machine, minutes)
    assert (size.dim, size.layers) in SHAPES
    assert size.dim % size.heads == 0
    assert size.heads * size.head_dim == size.dim
    assert size.vocabulary & (size.vocabulary - 1) == 0
    if size.steps > 20:
        # Rounding to whole steps of whole batches may add half a step.
        seen = size.seen - size.batch_rows * size.row_length / 2
        assert seen <= MAX_EPOCHS * size.tokens
        assert 6 * size.parameters * seen <= machine.flops * minutes * 60
    assert 8 <= size.batch_rows <= 256


@given(st.integers(10_000, 10**10), st.floats(1, 1000))
def test_more_of_anything_never_gives_a_smaller_model(text_bytes: int, minutes: float) -> None:
    size = choose(text_bytes, CPU, minutes)
    assert choose(text_bytes, CPU, 4 * minutes).dim >= size.dim
    assert choose(text_bytes, GPU, minutes).dim >= size.dim
    assert choose(text_bytes * 4, CPU, minutes).dim >= size.dim or size.tokens > 1e9


def test_a_draft_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my texts").mkdir()
    (tmp_path / "my texts" / "a.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    text, lines = draft(Path("my model"), [Path("my texts")], KINDS, CPU)
    data = yaml.parse(text).data
    assert data["name"] == "my-model"
    assert list(data["jobs"]) == ["corpus", "tokenizer", "rows", "base", "scores", "report"]
    (source,) = data["jobs"]["corpus"]["sources"]
    assert source["path"] == "../my texts/**/*.txt"
    assert "  tokenizer:  # Does something." in text
    assert "corpus: corpus  # The corpus that it reads." in text
    assert "passes over" in text
    assert lines[0] == "my texts/**/*.txt: 1 file, 0.02 MB of text"
    assert lines[-1].endswith("sized for about 10 minutes on 2 CPU cores")
    assert max(map(len, text.splitlines())) <= 110


def test_a_draft_with_conversations_adds_a_tuned_model(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text((json.dumps({"story": TEXT}) + "\n") * 3)
    (tmp_path / "c.jsonl").write_text((json.dumps({"prompt": "a", "completion": "b"}) + "\n") * 3)
    data = yaml.parse(draft(tmp_path, [tmp_path / "a.jsonl", tmp_path / "c.jsonl"], KINDS, GPU)[0]).data
    assert data["jobs"]["corpus"]["sources"][0]["field"] == "story"
    assert [source["path"] for source in data["jobs"]["talks"]["sources"]] == [str(tmp_path / "c.jsonl")]
    assert data["jobs"]["chat"]["model"] == "base"
    assert data["jobs"]["scores"]["models"] == ["base", "chat"]


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ShunterError, match="5 bytes of plain text are too little"):
        draft(tmp_path, [tmp_path], KINDS, CPU)


def test_init_refuses_to_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "."]) == 0
    before = (tmp_path / "recipe.yaml").read_text()
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "recipe.yaml"]
    capsys.readouterr()
    assert cli.main(["init", "."]) == 2
    assert capsys.readouterr().err.startswith("error: recipe.yaml: is there already.")
    assert (tmp_path / "recipe.yaml").read_text() == before


def test_this_machine_is_seen() -> None:
    assert starter.Machine.here().cores >= 1
    assert str(Machine(1, False)) == "1 CPU core"
    assert GPU.flops > CPU.flops
