"""The store: what counts as an artefact, references, formats, verification."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.recipe import disk
from shunter.recipe.artefact import Artefact
from shunter.recipe.graph import load_recipe
from shunter.recipe.job import JobContext
from shunter.recipe.lock import Busy, Lock, holder
from shunter.recipe.runner import run_graph
from shunter.recipe.store import Store
from shunter.record import memory
from tests.recipe.fakes import KINDS, Source, write

SWEEP = """\
version: 1
name: sweep
jobs:
  corpus: {kind: source, text: hello}
  base: {kind: train, text: corpus, matrix: {lr: [0.1, 0.2]}}
  scores: {kind: score, models: [base]}
"""


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Artefact]:
    return run_graph(load_recipe(write(tmp_path, SWEEP), [], KINDS), Store(tmp_path / "store"), quiet=True)


@pytest.fixture
def store(made: dict[str, Artefact], tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_references(store: Store, made: dict[str, Artefact], tmp_path: Path) -> None:
    corpus = made["corpus"]
    for ref in (
        "corpus",
        f"corpus-{corpus.id[:4]}",
        f"corpus-{corpus.id}",
        corpus.path.name,
        str(corpus.path),
        corpus.path,
    ):
        assert store.get(ref).id == corpus.id
    assert store.get("base[lr=0.2]").id == made["base[lr=0.2]"].id
    for ref, message in [
        ("corpse", "Did you mean 'corpus'?"),
        ("base", r"was swept .* Name one of: base\[lr=0.1\], base\[lr=0.2\]"),
        ("corpus-ffffffffffff", "no artefact"),
        (str(tmp_path), "no artefact"),
        ("", "no artefact"),
    ]:
        with pytest.raises(ShunterError, match=message):
            store.get(ref)


def test_the_peak_of_a_job_is_of_all_its_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job resets the peak as often as it likes."""
    if not memory.reset_peak():
        pytest.skip("this system cannot reset the peak")
    run, before = Source.run, memory.current_rss()

    def phases(self: Source, context: JobContext) -> Any:
        block = bytearray(b"1") * (64 << 20)
        del block
        memory.reset_peak()
        return run(self, context)

    monkeypatch.setattr(Source, "run", phases)
    made = run_graph(load_recipe(write(tmp_path, SWEEP), [], KINDS), Store(tmp_path / "store"), quiet=True)
    peaks = {name: made[name].manifest.attempts[-1]["peak_bytes"] for name in ("corpus", "scores")}
    assert peaks["scores"] < before + (48 << 20) < peaks["corpus"]


def test_an_artefact_is_what_its_manifest_says(store: Store, made: dict[str, Artefact]) -> None:
    corpus = made["corpus"]
    assert store.verify(corpus) == []
    assert [record.path for record in corpus.manifest.files] == ["log/events.jsonl", "part/text.txt"]
    text = corpus.path / "part" / "text.txt"
    text.write_text("hellO")
    assert store.verify(corpus, sizes_only=True) == []
    assert store.verify(corpus) == [
        f"{corpus.path.name}/part/text.txt has another content than was published"
    ]
    text.write_text("hello!")
    assert "has 6 bytes, 5 were published" in store.verify(corpus, sizes_only=True)[0]
    text.unlink()
    (corpus.path / "more").write_text("")
    assert store.verify(corpus) == [
        f"{corpus.path.name}/part/text.txt is missing",
        f"{corpus.path.name}/more was added",
    ]
    (corpus.path / "more").unlink()
    (corpus.path / "more").symlink_to("/etc/passwd")
    assert "neither a file nor a folder" in store.verify(corpus)[0]


def test_the_log_does_not_change_the_content(tmp_path: Path) -> None:
    graph = load_recipe(write(tmp_path), [], KINDS)
    one, two = (run_graph(graph, Store(tmp_path / name), quiet=True) for name in "ab")
    assert {n: a.content for n, a in one.items()} == {n: a.content for n, a in two.items()}
    assert {n: a.id for n, a in one.items()} == {n: a.id for n, a in two.items()}


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', "null"])
def test_a_corrupt_manifest_is_no_artefact_and_its_job_is_done_again(
    store: Store, made: dict[str, Artefact], damage: str, tmp_path: Path
) -> None:
    corpus = made["corpus"]
    (corpus.path / "manifest.json").write_text(damage)
    assert store.find("corpus", corpus.id) is None
    assert store.newest("corpus") is None
    assert len(store.damage()) == 1
    assert corpus.path.name in store.damage()[0]
    graph = load_recipe(tmp_path / "recipe.yaml", [], KINDS)
    again = run_graph(graph, store, quiet=True)
    assert again["corpus"].path.name == f"{corpus.path.name}-r2", "damage is not written over"
    assert again["corpus"].content == corpus.content
    assert again["scores"].path == made["scores"].path


def test_a_manifest_of_another_job_is_not_taken(store: Store, made: dict[str, Artefact]) -> None:
    corpus = made["corpus"]
    manifest = json.loads((corpus.path / "manifest.json").read_text())
    (corpus.path / "manifest.json").write_text(json.dumps({**manifest, "id": "0" * 64}))
    assert store.find("corpus", corpus.id) is None


def test_newer_formats_are_refused(store: Store, made: dict[str, Artefact], tmp_path: Path) -> None:
    corpus = made["corpus"]
    manifest = json.loads((corpus.path / "manifest.json").read_text())
    (corpus.path / "manifest.json").write_text(json.dumps({**manifest, "format": 2, "new": 1}))
    for look in (lambda: store.find("corpus", corpus.id), lambda: store.get(corpus.path)):
        with pytest.raises(ShunterError, match=r"format 2, newer than this shunter reads \(1\). Upgrade"):
            look()
    (store.path / "version.json").write_text('{"format": 2}')
    with pytest.raises(ShunterError, match=r"this store has format 2, newer than this shunter reads \(1\)"):
        Store(store.path)
    (store.path / "version.json").write_text("broken")
    with pytest.raises(ShunterError, match="cannot be read"):
        Store(store.path)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ShunterError, match="this folder is no store"):
        Store(tmp_path)
    with pytest.raises(ShunterError, match="this is a file, not a store"):
        Store(tmp_path / "thesis.tex")


def test_a_store_whose_making_was_killed_is_completed(tmp_path: Path) -> None:
    (tmp_path / "s" / "work").mkdir(parents=True)
    store = Store(tmp_path / "s")
    store.create()
    assert json.loads((store.path / "version.json").read_text()) == {"format": 1}


def test_an_unwritable_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "store"
    graph = load_recipe(write(tmp_path), [], KINDS)

    def refuse(self: Path, *arguments: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(
            ShunterError, match=r"cannot be written \(Permission denied\). Name another folder"
        ):
            run_graph(graph, Store(target), quiet=True)
    # Under a file no folder can be made, not even by root.
    (tmp_path / "file").write_text("")
    with pytest.raises(ShunterError, match="cannot be written"):
        run_graph(load_recipe(write(tmp_path), [], KINDS), Store(tmp_path / "file" / "store"), quiet=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.create()
    store.work.chmod(0o555)
    with pytest.raises(ShunterError, match="cannot be written"):
        run_graph(load_recipe(write(tmp_path), [], KINDS), store, quiet=True)


def test_a_read_only_artefact_is_used_and_can_be_removed(
    store: Store, made: dict[str, Artefact], tmp_path: Path
) -> None:
    for folder in [made["corpus"].path, made["corpus"].path / "part"]:
        for entry in folder.iterdir():
            if entry.is_file():
                entry.chmod(0o444)
        folder.chmod(0o555)
    graph = load_recipe(tmp_path / "recipe.yaml", ["jobs.base.steps=6"], KINDS)
    assert run_graph(graph, store, quiet=True)["corpus"].path == made["corpus"].path
    disk.remove(made["corpus"].path)
    assert not made["corpus"].path.exists()


def test_a_job_may_not_write_links_or_reserved_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load_recipe(write(tmp_path), [], KINDS)
    for act in (
        lambda out: (out / "x").symlink_to("/etc/passwd"),
        lambda out: os.mkfifo(out / "x"),
        lambda out: (out / "manifest.json").write_text("{}"),
        lambda out: (out / "log").mkdir(),
    ):
        monkeypatch.setattr(
            type(KINDS["source"]), "run", lambda self, context, act=act: {"done": str(act(context.out))}
        )
        store = Store(tmp_path / "store")
        with pytest.raises(ValueError, match=r"neither a file nor a folder|may not write"):
            run_graph(graph, store, quiet=True)
        assert list(store.artefacts.iterdir()) == []


def test_atomic_writes_leave_the_old_text_when_they_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    disk.write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        disk.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_everything_is_synced_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content and folders before the manifest, the manifest before the name, the name before done."""
    from shunter.record import points

    seen: list[str] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append(f"sync {path.relative_to(tmp_path / 'store').as_posix()}")
        sync(descriptor)

    graph = load_recipe(write(tmp_path), [], KINDS)
    monkeypatch.setattr(os, "fsync", record)
    points.install(lambda point, facts: seen.append(point))
    try:
        made = run_graph(graph, Store(tmp_path / "store"), last="corpus", quiet=True)
    finally:
        points.install(None)
    out = f"work/{made['corpus'].path.name}/out"
    before = seen[seen.index("job.done") : seen.index("publish.manifest")]
    files = [f"sync {out}/{record.path}" for record in made["corpus"].manifest.files]
    folders = [f"sync {out}/log", f"sync {out}/part", f"sync {out}"]
    assert set(files + folders) <= set(before)
    assert max(map(before.index, files)) < min(map(before.index, folders))
    manifest = seen[seen.index("publish.manifest") : seen.index("publish.rename")]
    assert any(each.startswith(f"sync {out}/.manifest.json") for each in manifest)
    assert f"sync {out}" in manifest
    assert "sync artefacts" in seen[seen.index("publish.rename") : seen.index("publish.done")]


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    assert holder(path) is None
    with Lock(path):
        assert holder(path) == os.getpid()
        with pytest.raises(Busy) as caught:
            Lock(path)
        assert caught.value.pid == os.getpid()
    assert holder(path) is None
    Lock(path).close()


def test_sizes_are_read_and_written() -> None:
    assert [disk.human(n) for n in (0, 999, 1000, 12_345_678, 2.5e13)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "25.0 TB",
    ]


def test_permissions_of_a_new_lock_let_others_read_its_pid(tmp_path: Path) -> None:
    Lock(tmp_path / "lock").close()
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) & stat.S_IRUSR
