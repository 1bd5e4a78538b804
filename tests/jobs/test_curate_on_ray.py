"""curate on a Ray cluster: the rows that processes give, whoever dies meanwhile.

The nodes are two raylets of this machine, so a network between them, and clocks that differ, are not shown. A
node that does not see the store is one with a mount of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shunter.config.errors import MissingExtra, ShunterError
from shunter.data.curation.minhash import NearDuplicates
from shunter.data.curation.operators import Operator
from shunter.data.curation.runner import Done, Runner, Waiting, _await
from shunter.jobs import curate
from shunter.launch import ray_cluster
from shunter.launch.ray_cluster import Cluster, Sight, look
from shunter.launch.ray_hands import RayHands
from shunter.recipe.store import Store
from tests.data.curation.killer import Killer
from tests.data.curation.teller import Teller
from tests.data.curation.test_runner import OPERATORS, corpus, cut
from tests.data.curation.test_runner import work as chain_of
from tests.jobs.conftest import Work
from tests.jobs.test_curate_chain import CONFIG, FILES, lines, write
from tests.jobs.test_curate_trouble import RECIPE, ROOT, curated
from tests.launch.ray_nodes import PLAIN, nodes, until


def test_without_ray_it_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    config = curate.CurateConfig(kind="curate", **{**CONFIG, "how": {"runner": "ray"}})
    with pytest.raises(MissingExtra, match=r"a Ray cluster needs the package 'ray'.*shunter\[ray\]"):
        curate.JOB.check(config, tmp_path)


def test_an_address_without_ray_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="set runner: ray"):
        curate.CurateHow(address="auto")


def test_a_sight_is_one_file_of_this_run(tmp_path: Path) -> None:
    """Another store under the same path, or that of an earlier run, is not taken for this one."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    first = Sight.of(tmp_path / "here")
    assert first.there()
    assert look(first, "n1")["sees"]
    assert (tmp_path / "here" / "seen-by-nodes.n1").exists()
    second = Sight.of(tmp_path / "here")
    assert not first.there()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["seen-by-nodes"]
    other = Sight(tmp_path / "there" / "seen-by-nodes", second.token)
    assert not look(other, "n1")["sees"]
    assert not list((tmp_path / "there").iterdir())
    with pytest.raises(ShunterError, match=r"node 10\.0\.0\.7 .* does not see the store"):
        raise other.hidden("10.0.0.7")


def test_a_file_that_another_machine_wrote_is_waited_for(tmp_path: Path) -> None:
    later = threading.Timer(0.2, (tmp_path / "record.json").touch)
    later.start()
    _await(tmp_path / "record.json", 20.0)
    later.join()
    with pytest.raises(ShunterError, match=r"which is not here after 0\.1 s"):
        _await(tmp_path / "never.json", 0.1)


class _Counting:
    """Carries tasks out here, and counts those that it holds."""

    def __init__(self, workers: int, held: list[int]) -> None:
        self.workers, self.held = workers, held

    def __enter__(self) -> _Counting:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def do(self, waiting: Waiting) -> None:
        self.held.append(len(waiting))
        task = waiting[0][1]
        if task is not None:
            task()


def test_whoever_carries_tasks_out_holds_two_for_each_worker(tmp_path: Path) -> None:
    held: list[int] = []
    chain = [NearDuplicates()]
    runner = Runner(
        tmp_path, chain, 3, lambda stage, done: None, hands=lambda workers: _Counting(workers, held)
    )
    runner.run(cut(corpus(0, 40), 4))
    assert max(held) == 6


@pytest.fixture(scope="module")
def two() -> Iterator[Any]:
    with nodes(1, 1) as made:
        yield made


def on_ray(
    address: str, folder: Path, operators: list[Operator], texts: list[str], size: int, workers: int = 2
) -> Any:
    """All that a chain makes there; as `work` of test_runner gives it on one process."""
    folder.mkdir(parents=True, exist_ok=True)
    with Cluster(address) as cluster:
        sight = cluster.sees(folder)
        with pytest.MonkeyPatch.context() as patch:
            plain = Runner.__init__

            def with_ray(self: Runner, *given: Any, **named: Any) -> None:
                plain(self, *given, **named, hands=lambda workers: RayHands(cluster, sight))

            patch.setattr(Runner, "__init__", with_ray)
            return chain_of(folder, operators, cut(texts, size), workers)


@pytest.mark.long
def test_two_nodes_give_the_rows_of_one_process(two: Any, tmp_path: Path, work: Work) -> None:
    write(tmp_path / "web", corpus(5, 90), 3)
    expected, _ = work(curate.JOB, {**CONFIG, "how": {"workers": 1}}, name="one")
    how = {"runner": "ray", "address": two.address, "chunk_chars": 700}
    out, _ = work(curate.JOB, {**CONFIG, "how": how}, name="ray")
    assert [(out / name).read_bytes() for name in FILES] == [(expected / name).read_bytes() for name in FILES]
    told = next(line for line in lines(out.parent / "log" / "events.jsonl") if line["event"] == "ray")
    assert [node["cpus"] for node in told["nodes"]] == [1, 1]


@pytest.mark.long
def test_both_nodes_work(two: Any, tmp_path: Path) -> None:
    texts, places = corpus(3, 60), tmp_path / "places"
    places.mkdir()
    operators: list[Operator] = [Teller(folder=str(places), seconds=0.2), *OPERATORS]
    found = on_ray(two.address, tmp_path / "ray", operators, texts, 8)
    assert len({path.name.partition("-")[0] for path in places.iterdir()}) == 2
    assert found == chain_of(tmp_path / "alone", operators, cut(texts, 60))


@pytest.mark.long
@pytest.mark.parametrize("deaths", [2, 40])
def test_a_killed_worker(two: Any, tmp_path: Path, deaths: int) -> None:
    """What it had is done again; a chunk whose workers die again and again ends the run with a sentence."""
    texts, poison = corpus(1), tmp_path / "poison"
    poison.mkdir()
    for number in range(deaths):
        (poison / str(number)).touch()
    operators: list[Operator] = [Killer(folder=str(poison)), NearDuplicates()]
    if deaths == 2:
        found = on_ray(two.address, tmp_path / "ray", operators, texts, 20)
        assert found == chain_of(tmp_path / "alone", operators, cut(texts, 20))
        assert not list(poison.iterdir())
    else:
        with pytest.raises(ShunterError, match=r"the workers of chunk \d+ on the Ray cluster were lost 4"):
            on_ray(two.address, tmp_path / "ray", operators, texts, 20)


@pytest.mark.long
def test_a_node_that_is_lost_and_then_all(tmp_path: Path) -> None:
    texts, places = corpus(2, 60), tmp_path / "places"
    places.mkdir()
    slow: list[Operator] = [Teller(folder=str(places), seconds=0.5), *OPERATORS]
    with nodes(1, 1) as made:

        def lose(count: int) -> None:
            until(lambda: len(list(places.iterdir())) == count, "nobody works")
            made.remove_node(min(made.worker_nodes, key=id), allow_graceful=False)

        thread = threading.Thread(target=lose, args=(2,))
        thread.start()
        found = on_ray(made.address, tmp_path / "ray", slow, texts, 8)
        thread.join()
        assert found == chain_of(tmp_path / "alone", slow, cut(texts, 60))
        for path in places.iterdir():
            path.unlink()
        thread = threading.Thread(target=lose, args=(1,))
        thread.start()
        with pytest.raises(ShunterError, match="no node of the Ray cluster is left"):
            on_ray(made.address, tmp_path / "gone", slow, texts, 8)
        thread.join()
        made.add_node(num_cpus=1, **PLAIN)
        assert on_ray(made.address, tmp_path / "gone", slow, texts, 8) == found


@pytest.mark.long
def test_a_request_to_stop_keeps_what_is_done(two: Any, tmp_path: Path) -> None:
    texts, places = corpus(2, 60), tmp_path / "places"
    places.mkdir()
    slow: list[Operator] = [Teller(folder=str(places), seconds=0.5), *OPERATORS]
    seen: list[Done] = []

    def watch(stage: int, done: Done) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "ray"
    folder.mkdir()
    with Cluster(two.address) as cluster:
        sight = cluster.sees(folder)
        runner = Runner(folder, slow, 2, watch, hands=lambda workers: RayHands(cluster, sight))
        with pytest.raises(KeyboardInterrupt):
            runner.run(cut(texts, 8))
        done = len(list((folder / "0").glob("*.json")))
    assert 3 <= done < 8
    assert len(list((folder / "0").glob("*.json"))) == done, "somebody still writes"
    assert on_ray(two.address, folder, slow, texts, 8) == chain_of(tmp_path / "alone", slow, cut(texts, 60))


@pytest.mark.long
def test_a_node_that_does_not_see_the_store_is_named(tmp_path: Path) -> None:
    """It stands in a mount of its own, where another folder is in the store's place."""
    hidden = tmp_path / "store"
    hidden.mkdir()
    with nodes(1) as made:
        node = (
            "import sys, time; from ray._private.node import Node;"
            "from ray._private.parameter import RayParams;"
            "Node(RayParams(gcs_address=sys.argv[-1], node_ip_address='127.0.0.1', num_cpus=1, num_gpus=0,"
            "object_store_memory=1 << 27, include_log_monitor=False), head=False); time.sleep(600)"
        )
        start = f'mount -t tmpfs none "$1" && exec {sys.executable} -c "$2" {made.address}'
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", start, "sh", str(hidden), node],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as process:
            try:
                if os.geteuid() or process.poll() is not None:
                    pytest.skip("no mount of its own can be had here")
                with Cluster(made.address) as cluster:
                    until(lambda: len(cluster.nodes()) == 2 or process.poll() is not None, "no second node")
                    if process.poll() is not None:
                        pytest.skip("no mount of its own can be had here")
                    assert cluster.sees(tmp_path).there()
                    with pytest.raises(ShunterError, match=r"node 127\.0\.0\.1 .* does not see the store"):
                        cluster.sees(hidden)
            finally:
                alive = psutil.pid_exists(process.pid) and process.poll() is None
                children = psutil.Process(process.pid).children(recursive=True) if alive else []
                process.terminate()
                for each in psutil.wait_procs(children, timeout=20)[1]:
                    each.kill()


@pytest.mark.long
def test_nobody_there_is_told_in_time() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'shunter[ray]'")
    with pytest.raises(ShunterError, match=r"no Ray cluster can be used at 127\.0\.0\.1:9"):
        Cluster("127.0.0.1:9").__enter__()
    with pytest.raises(ShunterError, match="is no address of a node"):
        Cluster("ray://127.0.0.1:9").__enter__()


@pytest.mark.long
def test_a_cluster_made_for_the_job_listens_on_loopback_and_goes_with_it(tmp_path: Path) -> None:
    """Killed amid the work, nothing of it is left, and the rerun gives what a run on processes gives."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'shunter[ray]'")
    texts = [f"{n} {text}" for n, text in enumerate(corpus(7, 250) * 3)]
    write(tmp_path / "web", texts, 3)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert curated(tmp_path, str(tmp_path / "processes"))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("workers: 2", "workers: 2, runner: ray"))
    store = str(tmp_path / "ray")
    command = [
        sys.executable,
        "-m",
        "shunter.cli.main",
        "run",
        str(tmp_path / "recipe.yaml"),
        "--store",
        store,
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: bool(list((tmp_path / "ray").rglob("0/*.json"))), "no chunk is done")
        children = psutil.Process(process.pid).children(recursive=True)
        listening = {
            connection.laddr.ip
            for each in children
            for connection in each.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        process.kill()
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    # Two helpers of Ray, which do no work, look for the node's main process some times before they end.
    _, alive = psutil.wait_procs(children, timeout=200)
    assert not alive
    assert curated(tmp_path, store)
    made = [Store(tmp_path / name).all()[0].path for name in ("processes", "ray")]
    assert [(made[0] / name).read_bytes() for name in FILES] == [
        (made[1] / name).read_bytes() for name in FILES
    ]
