"""What changes a job's identity and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.recipe import identity
from shunter.recipe.artefact import FileRecord
from shunter.recipe.graph import load_recipe
from tests.recipe.fakes import KINDS, write

CONTENTS = {"t": "c" * 64, "u": "d" * 64, "m": "e" * 64, "n": "f" * 64}
BASE: dict[str, Any] = {"kind": "train", "text": "t", "start": "m", "steps": 3, "lr": 0.5, "seed": 1}


def ident(folder: Path, job: dict[str, Any], contents: dict[str, str] = CONTENTS, name: str = "j") -> str:
    jobs = {
        "t": {"kind": "source"},
        "u": {"kind": "source"},
        "m": {"kind": "train", "text": "t"},
        "n": {"kind": "train", "text": "t"},
        name: job,
    }
    path = write(folder, json.dumps({"version": 1, "name": "x", "jobs": jobs}))
    return identity.identify(load_recipe(path, [], KINDS).nodes[name], contents)


@settings(max_examples=20)
@given(threads=st.integers(1, 10**6))
def test_how_never_changes_it(threads: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("i")
    assert ident(folder, {**BASE, "how": {"threads": threads}}) == ident(folder, BASE)


@settings(max_examples=40)
@given(
    change=st.one_of(
        st.fixed_dictionaries({"steps": st.integers(0, 10**9).filter(lambda n: n != 3)}),
        st.fixed_dictionaries({"lr": st.floats(1e-300, 1e300).filter(lambda x: x != 0.5)}),
        st.fixed_dictionaries({"seed": st.integers(0, 2**63).filter(lambda n: n != 1)}),
        st.just({"text": "u"}),
        st.just({"start": "n"}),
        st.just({"start": None}),
    )
)
def test_any_what_does(change: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("i")
    assert ident(folder, {**BASE, **change}) != ident(folder, BASE)


@settings(max_examples=20)
@given(order=st.permutations(sorted(BASE)))
def test_the_order_of_keys_does_not(order: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("i")
    assert ident(folder, {key: BASE[key] for key in order}) == ident(folder, BASE)


def test_defaults_written_out_and_whole_numbers_are_the_same(tmp_path: Path) -> None:
    plain = {"kind": "train", "text": "t"}
    assert ident(tmp_path, plain) == ident(tmp_path, {**plain, "steps": 5, "lr": 0.1, "start": None})
    assert ident(tmp_path, {**plain, "lr": 2}) == ident(tmp_path, {**plain, "lr": 2.0})


def test_name_version_content_and_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ident(tmp_path, BASE)
    assert ident(tmp_path, BASE, name="k") != first
    assert ident(tmp_path, BASE, {**CONTENTS, "m": "0" * 64}) != first
    # Two inputs that swap their contents are other inputs.
    assert ident(tmp_path, BASE, {**CONTENTS, "t": CONTENTS["m"], "m": CONTENTS["t"]}) != first
    monkeypatch.setattr(type(KINDS["train"]), "version", 2)
    assert ident(tmp_path, BASE) != first
    node = load_recipe(write(tmp_path), [], KINDS).nodes["corpus"]
    file = FileRecord(path="a", bytes=1, sha256="0" * 64)
    ids = {
        identity.identify(node, {}, files)
        for files in ([], [file], [file.model_copy(update={"path": "b"})], [file, file])
    }
    assert len(ids) == 4


def test_ids_stay_what_they_were(tmp_path: Path) -> None:
    # A change here makes every finished job of every store run again: raise IDENTITY_VERSION knowingly.
    assert identity.IDENTITY_VERSION == 1
    assert ident(tmp_path, BASE)[:12] == "a7375fdd4802"
