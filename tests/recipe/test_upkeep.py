"""Lineage, gc, comparison, following a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shunter.config.errors import ShunterError
from shunter.recipe import attempt, diff, gc, lineage, watch
from shunter.recipe.artefact import Artefact
from shunter.recipe.graph import load_recipe
from shunter.recipe.runner import run_graph
from shunter.recipe.status import run_data
from shunter.recipe.store import Store
from tests.recipe.fakes import CHAIN, KINDS, write
from tests.recipe.test_kill import run, start

TEXT = CHAIN.replace("text: hello", "text: hello, files: [doc.txt]")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(folder: Path, store: Store, *overrides: str, **options: Any) -> dict[str, Artefact]:
    (folder / "doc.txt").write_text(" world")
    return run_graph(load_recipe(write(folder, TEXT), overrides, KINDS), store, quiet=True, **options)


def test_lineage_leads_from_a_score_to_the_document(store: Store, tmp_path: Path) -> None:
    made = make(tmp_path, store)
    tree = lineage.of(store, "scores").tree().splitlines()
    names = [artefact.path.name for artefact in made.values()]
    assert tree[0].startswith(f"{names[2]}  scores by score")
    assert tree[1].startswith(f"`- models: {names[1]}  model by train")
    assert tree[2].startswith(f"   `- text: {names[0]}  text by source")
    assert tree[3] == "      `- file doc.txt  6 B"
    data = lineage.of(store, str(made["base"].path)).data()
    assert set(data["nodes"]) == {names[0], names[1], "file:doc.txt"}
    assert {(edge["from"], edge["to"]) for edge in data["edges"]} == {
        (names[0], names[1]),
        ("file:doc.txt", names[0]),
    }
    assert data["nodes"][names[1]]["used_by"] == [names[2]]
    assert json.dumps(data)


def test_lineage_means_the_very_content_that_was_used(store: Store, tmp_path: Path) -> None:
    first = make(tmp_path, store)
    second = make(tmp_path, store, "jobs.corpus.text=bye")
    found = lineage.of(store, first["scores"].path.name).data()
    assert first["corpus"].path.name in found["nodes"]
    assert second["corpus"].path.name not in found["nodes"]
    import shutil

    shutil.rmtree(first["corpus"].path)
    graph = lineage.of(store, first["scores"].path.name)
    assert "(removed)" in graph.tree()
    assert "removed" in [node.get("state") for node in graph.data()["nodes"].values()]


def test_other_code_is_said(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path, store)
    assert not any(job["other_code"] for job in run_data(store, store.run())["jobs"])
    assert "[other code]" not in lineage.of(store, "scores").tree()
    manifest = json.loads((made["base"].path / "manifest.json").read_text())
    manifest["attempts"][-1]["code"]["digest"] = "another"
    (made["base"].path / "manifest.json").write_text(json.dumps(manifest))
    assert [job["other_code"] for job in run_data(store, store.run())["jobs"]] == [False, True, False]
    assert lineage.of(store, "scores").tree().count("[other code]") == 1


def test_the_code_digest_sees_a_changed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(attempt, "PACKAGE", tmp_path)
    digest = attempt.code_digest.__wrapped__
    before = digest()
    (tmp_path / "a.py").write_text("x = 2\n")
    assert digest() != before


def sizes(store: Store) -> dict[str, int]:
    return {a.path.name: sum(f.stat().st_size for f in a.path.rglob("*") if f.is_file()) for a in store.all()}


def test_gc_takes_the_oldest_and_never_the_newest_or_its_lineage(store: Store, tmp_path: Path) -> None:
    old = make(tmp_path, store)
    middle = make(tmp_path, store, "jobs.base.steps=6")
    new = make(tmp_path, store, "jobs.base.steps=7")
    assert gc.sweep(store).removals == [], "without a budget only leftovers go"
    everything = gc.sweep(store, 0)
    assert [removal.path for removal in everything.removals] == [
        old["scores"].path,
        old["base"].path,
        middle["scores"].path,
        middle["base"].path,
    ], "what is made from a thing goes before it; the shared corpus and the newest stay"
    assert everything.is_over
    least = gc.sweep(store, everything.bytes - 1)
    assert [removal.path for removal in least.removals] == [old["scores"].path]
    assert not least.is_over
    assert old["scores"].path.exists(), "looking removes nothing"
    freed = gc.remove(store, everything)
    assert freed == sum(removal.bytes for removal in everything.removals)
    assert {artefact.path for artefact in store.all()} == {artefact.path for artefact in new.values()}
    assert list(store.work.iterdir()) == []
    assert make(tmp_path, store, "jobs.base.steps=7")["scores"].path == new["scores"].path


def test_gc_keeps_what_the_newest_was_made_from(store: Store, tmp_path: Path) -> None:
    first = make(tmp_path, store)
    make(tmp_path, store, "jobs.corpus.text=bye", last="corpus")
    # The newest corpus is not the one that base was made from.
    assert gc.sweep(store, 0).removals == []
    broken = gc.sweep(store, 0, break_lineage=True)
    assert [removal.path for removal in broken.removals] == [first["corpus"].path]


def test_gc_and_unfinished_work(store: Store, tmp_path: Path) -> None:
    (tmp_path / "doc.txt").write_text(" world")
    recipe = write(tmp_path, TEXT)
    assert run(recipe, store.path, "--kill", "train.step:base:3")[0] == -9
    (work,) = store.work.iterdir()
    assert gc.sweep(store, 0).removals == [], "the same command would go on with it"
    # The recipe went another way; who stopped the first run may still come back to it.
    make(tmp_path, store, "jobs.base.steps=2")
    assert gc.sweep(store).removals == []
    assert [removal.path for removal in gc.sweep(store, 0).removals] == [work], "a budget demands it"
    make(tmp_path, store, "jobs.base.steps=7")
    everything = gc.sweep(store, 0).removals
    assert everything[0].path == work, "before finished artefacts"
    assert len(everything) > 1
    # Runs' records are gone: nobody comes back.
    runs = store.path / "runs"
    runs.rename(store.path / "elsewhere")
    assert [removal.path for removal in gc.sweep(store).removals] == [work]
    (store.path / "elsewhere").rename(runs)
    process = start(recipe, store.path, "--wait", "train.step:base:4")
    assert process.stdout is not None
    while "at train.step" not in process.stdout.readline():
        pass
    assert gc.sweep(store).removals == [], "somebody works there"
    process.communicate("\n", timeout=60)


def test_gc_removes_damage(store: Store, tmp_path: Path) -> None:
    made = make(tmp_path, store)
    (made["scores"].path / "manifest.json").unlink()
    found = gc.sweep(store)
    assert [removal.path for removal in found.removals] == [made["scores"].path]
    gc.remove(store, found)
    assert store.damage() == []


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 1610612736), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert gc.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2XB", "-1GB", "1e9"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ShunterError, match="is no size"):
        gc.parse_size(text)


def test_compare_two_runs(store: Store, tmp_path: Path) -> None:
    make(tmp_path, store)
    make(tmp_path, store, "jobs.base.lr=0.2", "jobs.base.how.threads=2")
    one, two = (each.id for each in store.runs())
    found = diff.compare(store, one, two)
    corpus, base, scores = found["jobs"]
    assert corpus["same"]
    assert base["what"] == {"lr": [0.1, 0.2]}
    assert base["how"] == {"threads": [1, 2]}
    assert base["metrics"]["steps"] == [5, 5]
    assert base["code"]
    assert scores["inputs"] == ["base"]
    assert not scores["same"]
    assert diff.compare(store, one, one)["jobs"][1]["same"]
    assert diff.compare(store, "base", "base")["jobs"][0]["same"]
    for a, b, message in [
        (one, "base", "is a run and the other an artefact"),
        ("corpus", "base", "made by source and base by train"),
        ("nothing", one, "no run and no artefact 'nothing'"),
    ]:
        with pytest.raises(ShunterError, match=message):
            diff.compare(store, a, b)


def test_gc_never_takes_what_a_run_going_on_uses(store: Store, tmp_path: Path) -> None:
    """Its corpus is neither the newest, nor has anything been made from it yet."""
    used = make(tmp_path, store, last="corpus")["corpus"]
    process = start(write(tmp_path, TEXT), store.path, "--wait", "train.step:base:3")
    assert process.stdout is not None
    while "at train.step" not in process.stdout.readline():
        pass
    newer = make(tmp_path, store, "jobs.corpus.text=bye", last="corpus")["corpus"]
    assert newer.path != used.path
    assert gc.sweep(store, 0).removals == []
    process.communicate("\n", timeout=60)


def test_compare_pairs_items_of_the_same_model_and_task(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = type(KINDS["score"])
    work = score.run

    def items(self: object, context: Any) -> dict[str, Any]:
        rows = [{"model": "base", "task": task, "id": i, "score": i} for task in "xy" for i in range(3)]
        (context.out / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return dict(work(self, context))

    monkeypatch.setattr(score, "run", items)
    make(tmp_path, store)
    make(tmp_path, store, "jobs.base.lr=0.2")

    def paired(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        assert [row["id"] for row in a] == [row["id"] for row in b]
        return {"n": len(a)}

    one, two = (each.id for each in store.runs())
    assert diff.compare(store, one, two, paired)["scores"] == [
        {"job": "scores", "model": "base", "task": task, "n": 3} for task in "xy"
    ]


def test_watch_follows_a_run_to_its_end(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match=r"nothing runs in the store .* Start a run with shunter run"):
        watch.find(store, None)
    recipe = write(tmp_path)
    process = start(recipe, store.path, "--wait", "train.step:base:3")
    assert process.stdout is not None
    while "at train.step" not in process.stdout.readline():
        pass
    found = watch.find(store, None)
    assert found.id == watch.find(store, "chain").id
    watcher = watch.Watcher(store, found)
    lines = watcher.poll()
    assert lines[:2] == ["corpus: done", "base: running"]
    assert lines[2].startswith("base: step 3/5, loss 0.3333")
    assert not watcher.ended
    assert watcher.poll() == []
    process.communicate("\n", timeout=60)
    assert watcher.poll() == ["base: done", "scores: done"]
    assert watcher.ended
    assert watcher.last_line() == f"run {found.id} is done"
    with pytest.raises(ShunterError, match=r"is done. Its report: shunter report"):
        watch.find(store, None)


def test_watch_can_ask_to_stop(store: Store, tmp_path: Path) -> None:
    from shunter.recipe import control

    process = start(write(tmp_path), store.path, "--wait", "train.step:base:3")
    assert process.stdout is not None
    while "at train.step" not in process.stdout.readline():
        pass
    found = watch.find(store, None)
    control.request(found.folder / "control", "save")
    control.request(found.folder / "control", "stop")
    process.communicate("\n", timeout=60)
    assert process.returncode == 143
    assert store.run().state == "stopped"
    with pytest.raises(ShunterError, match=r"is stopped. Continue it with: shunter run"):
        watch.find(store, None)
    # The request was meant for that session only.
    assert run(tmp_path / "recipe.yaml", store.path)[0] == 0


def test_a_save_request_is_taken_once(tmp_path: Path) -> None:
    from shunter.recipe.control import RunControl, request

    wanted = RunControl(tmp_path)
    assert not wanted.take_save_request()
    request(tmp_path, "save")
    assert [wanted.take_save_request() for _ in range(2)] == [True, False]


def test_runs_are_found_by_name_path_and_id(store: Store, tmp_path: Path) -> None:
    make(tmp_path, store)
    (only,) = store.runs()
    for ref in (None, "chain", only.id, str(tmp_path / "recipe.yaml"), tmp_path / "recipe.yaml", only.folder):
        assert store.run(ref).id == only.id
    with pytest.raises(ShunterError, match=r"Did you mean 'chain'"):
        store.run("chian")
    assert (only.folder / "recipe.yaml").read_text() == TEXT
