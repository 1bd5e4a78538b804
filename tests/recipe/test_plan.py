"""What a run would do and why, and what it refuses before any work."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.recipe import dryrun
from shunter.recipe.artefact import Artefact
from shunter.recipe.graph import Graph, load_recipe
from shunter.recipe.plan import Planner, Step, differences
from shunter.recipe.progress import Progress
from shunter.recipe.runner import run_graph
from shunter.recipe.store import Store
from tests.recipe.fakes import CHAIN, KINDS, write

FILES = CHAIN.replace("text: hello", "text: hello, files: [one.txt, more/two.txt]")


def steps(graph: Graph, store: Store, *redo: str) -> dict[str, Step]:
    return {step.node.name: step for step in Planner(graph, store, redo).plan()}


def why(folder: Path, *overrides: str, text: str = CHAIN) -> dict[str, tuple[str, str]]:
    graph = load_recipe(write(folder, text), overrides, KINDS)
    return {name: (step.state, step.why) for name, step in steps(graph, Store(folder / "store")).items()}


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Artefact]:
    return run_graph(load_recipe(write(tmp_path), [], KINDS), Store(tmp_path / "store"), quiet=True)


def test_before_the_first_run(tmp_path: Path) -> None:
    assert why(tmp_path) == {
        "corpus": ("run", "never made"),
        "base": ("waits", "depends on corpus"),
        "scores": ("waits", "depends on base"),
    }
    assert not (tmp_path / "store").exists(), "looking makes nothing"


def test_a_change_is_named(tmp_path: Path, made: dict[str, Artefact]) -> None:
    assert {state for state, _ in why(tmp_path).values()} == {"finished"}
    found = why(tmp_path, "jobs.base.lr=3e-4", "jobs.base.steps=6")
    assert found["corpus"][0] == "finished"
    assert found["base"] == ("run", "steps: 5 -> 6; lr: 0.1 -> 0.0003")
    assert found["scores"] == ("waits", "depends on base")
    # How a thing is made does not matter to what it is.
    assert why(tmp_path, "jobs.base.how.threads=4")["base"][0] == "finished"
    found = why(tmp_path, text=CHAIN.replace("text: corpus", "text: other") + "  other: {kind: source}\n")
    assert found["base"] == ("waits", "depends on other")


def test_an_input_that_older_versions_did_not_have_is_no_change(
    tmp_path: Path, made: dict[str, Artefact]
) -> None:
    graph = load_recipe(tmp_path / "recipe.yaml", [], KINDS)
    node = replace(graph.nodes["base"], inputs={**graph.nodes["base"].inputs, "also": ()})
    newest = Store(tmp_path / "store").newest("base")
    assert newest is not None
    manifest = newest.manifest
    contents = {record.name: record.content for record in manifest.inputs}
    assert differences(manifest, node, contents, []) == []


def test_changed_upstream_content_is_named(tmp_path: Path, made: dict[str, Artefact]) -> None:
    run_graph(
        load_recipe(tmp_path / "recipe.yaml", ["jobs.corpus.text=bye"], KINDS),
        Store(tmp_path / "store"),
        last="corpus",
        quiet=True,
    )
    assert why(tmp_path, "jobs.corpus.text=bye")["base"] == ("run", "corpus has another content")
    # Back to the old text: everything made from it is still there.
    assert {state for state, _ in why(tmp_path).values()} == {"finished"}


def test_the_same_content_upstream_ends_the_change(tmp_path: Path, made: dict[str, Artefact]) -> None:
    # Another configuration that gives the same bytes: what follows is reused.
    (tmp_path / "hello").write_text("hello")
    graph = load_recipe(tmp_path / "recipe.yaml", ["jobs.corpus.text=''", "jobs.corpus.files=[hello]"], KINDS)
    again = run_graph(graph, Store(tmp_path / "store"), quiet=True)
    assert again["corpus"].path != made["corpus"].path
    assert again["base"].path == made["base"].path


def test_files_outside_the_store_are_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "more" / "two.txt").write_text("2")
    graph = load_recipe(write(tmp_path, FILES), [], KINDS)
    store = Store(tmp_path / "store")
    made = run_graph(graph, store, quiet=True)
    assert [record.path for record in made["corpus"].manifest.reads] == ["one.txt", "more/two.txt"]
    assert steps(graph, store)["corpus"].state == "finished"
    (tmp_path / "one.txt").write_text("3")
    assert steps(graph, store)["corpus"].why == "file one.txt changed"
    (tmp_path / "more" / "two.txt").write_text("4")
    assert steps(graph, store)["corpus"].why == "2 files changed"
    (tmp_path / "one.txt").unlink()
    assert steps(graph, store)["corpus"].state == "refused"
    with pytest.raises(ShunterError, match=r"one.txt: file not found"):
        run_graph(graph, store, quiet=True)


def test_digests_of_files_are_remembered_but_never_wrongly(tmp_path: Path) -> None:
    from shunter.recipe import publish

    (tmp_path / "more").mkdir()
    for name in ("one.txt", "more/two.txt"):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1e9, 1e9))
    graph = load_recipe(write(tmp_path, FILES), [], KINDS)
    store = Store(tmp_path / "store")
    store.create()
    calls: list[Path] = []
    digest = publish.digest

    def count(path: Path) -> str:
        calls.append(path)
        return digest(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "digest", count)
        # The inode has just changed: too fresh to be remembered.
        for expected in (2, 2):
            calls.clear()
            planner = Planner(graph, store)
            planner.plan()
            planner.digests.save()
            assert len(calls) == expected
        patch.setattr("shunter.recipe.reads.RACY_SECONDS", -1.0)
        for expected in (2, 0):
            calls.clear()
            planner = Planner(graph, store)
            planner.plan()
            planner.digests.save()
            assert len(calls) == expected
        # The same size and time, another content: the change of the inode tells.
        (tmp_path / "one.txt").write_text("y")
        os.utime(tmp_path / "one.txt", (1e9, 1e9))
        calls.clear()
        Planner(graph, store).plan()
        assert calls == [tmp_path / "one.txt"]


def test_a_file_that_changes_under_the_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.txt").write_text("1")
    source = type(KINDS["source"])
    work = source.run

    def meddle(self: object, context: object) -> dict[str, object]:
        result: dict[str, object] = work(self, context)
        (tmp_path / "one.txt").write_text("another")
        return result

    monkeypatch.setattr(source, "run", meddle)
    graph = load_recipe(write(tmp_path, CHAIN.replace("text: hello", "files: [one.txt]")), [], KINDS)
    store = Store(tmp_path / "store")
    with pytest.raises(ShunterError, match=r"one.txt changed while corpus was reading it"):
        run_graph(graph, store, quiet=True)
    assert store.all() == []


def test_an_artefact_that_was_changed_is_refused_as_input(tmp_path: Path, made: dict[str, Artefact]) -> None:
    (made["corpus"].path / "part" / "text.txt").write_text("meddled with")
    graph = load_recipe(tmp_path / "recipe.yaml", ["jobs.base.steps=7"], KINDS)
    store = Store(tmp_path / "store")
    with pytest.raises(ShunterError, match=r"text.txt has 12 bytes, 5 were published.*--redo corpus"):
        run_graph(graph, store, quiet=True)
    assert len(store.all()) == 3
    again = run_graph(graph, store, redo=["corpus"], quiet=True)
    assert again["corpus"].path.name.endswith("-r2")


def test_from_and_to(tmp_path: Path) -> None:
    graph = load_recipe(write(tmp_path), [], KINDS)
    store = Store(tmp_path / "store")
    with pytest.raises(
        ShunterError, match=r"corpus is needed and not finished \(never made\). Start with --from corpus"
    ):
        run_graph(graph, store, first="base", quiet=True)
    assert list(run_graph(graph, store, last="base", quiet=True)) == ["corpus", "base"]
    assert store.run("chain").jobs["scores"]["state"] == "left out"
    assert list(run_graph(graph, store, first="scores", quiet=True)) == list(graph.nodes)
    with pytest.raises(ShunterError, match=r"no job .scroes.*Did you mean .scores."):
        run_graph(graph, store, first="scroes", quiet=True)
    with pytest.raises(ShunterError, match="'corpus' is not made from 'base'"):
        run_graph(graph, store, first="base", last="corpus", quiet=True)
    with pytest.raises(ShunterError, match="corpus is not among the jobs to run"):
        run_graph(graph, store, first="base", redo=["corpus"], quiet=True)


def test_redo_makes_a_revision_and_equal_content_ends_there(
    tmp_path: Path, made: dict[str, Artefact]
) -> None:
    graph = load_recipe(tmp_path / "recipe.yaml", [], KINDS)
    store = Store(tmp_path / "store")
    assert steps(graph, store, "base")["base"].why == "asked for by --redo"
    again = run_graph(graph, store, redo=["base"], quiet=True)
    assert again["base"].path.name == f"{made['base'].path.name}-r2"
    assert again["scores"].path == made["scores"].path, "the same weights need no new scores"
    assert store.find("base", made["base"].id) == again["base"]


def test_all_refusals_come_at_once_and_warnings_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "version: 1\nname: x\njobs:\n  a: {kind: source, text: refuse}\n  b: {kind: source, files: [none]}\n"
    )
    graph = load_recipe(write(tmp_path, text), [], KINDS)
    store = Store(tmp_path / "store")
    with pytest.raises(ShunterError) as caught:
        run_graph(graph, store, quiet=True)
    place = tmp_path / "recipe.yaml"
    assert sorted(str(caught.value).splitlines()) == [
        f"{place}:4: jobs.a: this text is refused. Write another.",
        "none: file not found",
    ]
    assert store.runs() == []
    graph = load_recipe(tmp_path / "recipe.yaml", ["jobs.a.text=warn", "jobs.b.files=[]"], KINDS)
    run_graph(graph, store, progress=Progress())
    out, err = capsys.readouterr()
    assert err == "warning: a: a warning\n"
    assert "[1/2] a  source: never made" in out


def test_a_bug_in_a_job_keeps_its_work_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(self: object, context: object) -> dict[str, object]:
        raise ZeroDivisionError("a bug")

    graph = load_recipe(write(tmp_path), [], KINDS)
    store = Store(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(type(KINDS["train"]), "run", crash)
        with pytest.raises(ZeroDivisionError):
            run_graph(graph, store, quiet=True)
    record = store.run("chain")
    assert record.state == "failed"
    assert record.jobs["base"]["error"] == "ZeroDivisionError: a bug"
    assert record.jobs["scores"]["state"] == "waiting"
    assert steps(graph, store)["base"].why == "continues after attempt 1, which was failed"
    made = run_graph(graph, store, quiet=True)
    assert [each["outcome"] for each in made["base"].manifest.attempts] == ["failed", "done"]


def test_a_dry_run_prints_and_changes_nothing(tmp_path: Path, made: dict[str, Artefact]) -> None:
    graph = load_recipe(tmp_path / "recipe.yaml", ["jobs.base.steps=6"], KINDS)
    store = Store(tmp_path / "store")
    before = sorted(path.stat().st_mtime_ns for path in store.path.rglob("*"))
    lines = dryrun.show(graph, store, None, None, []).splitlines()
    assert lines == [
        f"corpus  finished             {made['corpus'].path.name}",
        "base    will run             steps: 5 -> 6",
        "scores  depends on upstream  depends on base",
    ]
    data = json.loads(dryrun.show(graph, store, None, None, ["base"], as_json=True))
    assert [job["state"] for job in data["jobs"]] == ["finished", "will run", "depends on upstream"]
    assert sorted(path.stat().st_mtime_ns for path in store.path.rglob("*")) == before


def test_secrets_of_the_environment_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    from shunter.recipe import attempt

    attempt.environment_record.cache_clear()
    try:
        made = run_graph(load_recipe(write(tmp_path), [], KINDS), Store(tmp_path / "store"), quiet=True)
    finally:
        attempt.environment_record.cache_clear()
    (record,) = made["base"].manifest.attempts
    assert record["environment"]["variables"]["OMP_NUM_THREADS"] == "3"
    assert record["environment"]["packages"]["torch"].startswith("2.")
    assert record["code"]["digest"]
    everything = "".join(path.read_text() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert "hunter2" not in everything
