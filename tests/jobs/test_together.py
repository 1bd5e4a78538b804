"""`shunter run` under torchrun on two nodes, which are two agents on this machine: the model of one process;
a stop that one node hears; `shunter launch` by stand-ins of ssh and SLURM.

Not shown here: two machines (tests/launch/test_network.py comes near), NCCL.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.data.tokens import TokenRows
from shunter.jobs import ranks, together
from shunter.jobs.registry import KINDS
from shunter.launch.inject import VARIABLE
from shunter.models.spec import DecoderSpec
from shunter.plan.calibrate import coefficients_of
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.plan import Plan
from shunter.plan.practice import practice
from shunter.plan.search import search
from shunter.recipe.artefact import Artefact
from shunter.recipe.graph import load_recipe
from shunter.recipe.runner import run_graph
from shunter.recipe.store import Store
from shunter.record import events
from tests import warm
from tests.launch import stand_ins

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
version: 1
name: small
jobs:
  corpus: {kind: curate, sources: [{path: "texts/*.txt"}], heldout: 0.2}
  tokenizer: {kind: tokenizer, corpus: corpus, vocab_size: 300}
  rows: {kind: tokens, corpus: corpus, tokenizer: tokenizer, row_length: 32}
  base:
    kind: pretrain
    tokens: rows
    model: {dim: 16, num_layers: 2, num_heads: 2, num_kv_heads: 2, head_dim: 8, ffn_dim: 32, tied: true}
    train: {steps: 4, batch_rows: 4, precision: fp32, optimizer: adamw}
    how: {threads: 1, log_every: 2, checkpoint_every: 2}
"""
PIPE = "jobs.base.how.parallel.pp=2"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(40):
        text = f"The ship number {number} sailed to a place that nobody knew. " * (10 + number)
        (tmp_path / "texts" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def environment(place: Path) -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "STAND_IN": str(place),
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip


class Nodes:
    """Two of torchrun's agents, with so many processes each."""

    def __init__(
        self, place: Path, words: Sequence[str], counts: tuple[int, int] = (1, 2), **variables: str
    ) -> None:
        number, self.outputs = port(), [place / f"node{node}.txt" for node in (0, 1)]
        self.processes = []
        for node, (output, each) in enumerate(zip(self.outputs, counts, strict=True)):
            command = [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}",
                f"--nproc-per-node={each}", "--master-addr=127.0.0.1", f"--master-port={number}",
                "--shutdown-timeout=60", "-m", "shunter.cli.main", *words,
            ]  # fmt: skip
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=place,
                        env={**environment(place), **variables},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def told(self) -> list[str]:
        return [output.read_text() for output in self.outputs]

    def codes(self) -> list[int]:
        return [process.wait(120) for process in self.processes]

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 90
        while text not in self.told()[0] and time.monotonic() < until:
            time.sleep(0.1)
        assert text in self.told()[0]


def alone(place: Path, store: str, *overrides: str) -> dict[str, Artefact]:
    graph = load_recipe(place / "recipe.yaml", list(overrides), KINDS)
    return run_graph(graph, Store(str(place / store)), quiet=True)


def weights(store: Path) -> dict[str, torch.Tensor]:
    (model,) = (store / "artefacts").glob("base-*/model.safetensors")
    return load_file(model)


def test_under_torchrun_one_process_leads_and_the_model_is_that_of_one(place: Path) -> None:
    nodes = Nodes(place, ["run", "recipe.yaml", PIPE, "--store", "store"], (1, 1))
    assert nodes.codes() == [0, 0], nodes.told()
    first, second = nodes.told()
    assert "[4/4] base       done" in first
    assert first.count("round trip") == 1, "one report on the machines"
    assert second == "", "only one process speaks"
    expected = weights(Store(alone(place, "alone")["base"].path.parents[1]).path)
    found = weights(place / "store")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-4, msg=name)
    (manifest,) = (place / "store" / "artefacts").glob("base-*/manifest.json")
    assert json.loads(manifest.read_text())["how"]["parallel"]["pp"] == 2


@pytest.mark.long
def test_a_run_that_drifts_plans_anew_under_torchrun_too(place: Path) -> None:
    longer = ["jobs.base.train.steps=20", "jobs.base.how.log_every=1"]
    made = alone(place, "alone", *longer)
    model = json.loads((made["base"].path / "config.json").read_text())
    rows = TokenRows(made["rows"].path / "train")
    shape = load_recipe(place / "recipe.yaml", [], KINDS).nodes["base"].config.model.model_dump()  # type: ignore[attr-defined]
    spec = DecoderSpec(**shape, vocab_size=model["vocab_size"], max_positions=rows.row_length)
    cluster = files.find("cpu")
    asked = Question(
        spec, Fabric.of(cluster), 4, rows.row_length, practice("shunter-fp32"), coefficients_of(cluster)
    )
    found = search(asked, fixed={"pp": 2, "schedule": "1f1b"}, top=1).plans[0].prediction
    Plan.of(asked, cluster, found).save(place / "plan.yaml")
    slow = {"kind": "slow", "point": "pipeline.action", "action": "1F0", "rank": 1, "seconds": 0.2}
    words = ["run", "recipe.yaml", *longer, "--store", "store",
             "jobs.base.how.parallel={plan: plan.yaml, replan: 3.0, replans: 1}"]  # fmt: skip
    nodes = Nodes(place, words, **{VARIABLE: json.dumps({"faults": [slow]})})
    assert nodes.codes() == [0, 0], nodes.told()
    (log,) = (place / "store" / "artefacts").glob("base-*/log/events.jsonl")
    told = events.read(log)
    assert [event["step"] for event in told if event["event"] == "resume"]
    (change,) = [event for event in told if event["event"] == "replan"]
    assert "pp 2" in change["was"]
    assert "pp" not in change["is"]
    expected, learnt = weights(made["base"].path.parents[1]), weights(place / "store")
    for name, tensor in expected.items():
        torch.testing.assert_close(learnt[name], tensor, rtol=2e-3, atol=5e-4, msg=name)


def test_a_process_that_does_not_lead_says_nothing_of_a_mistake(place: Path) -> None:
    for rank, count in (("0", 1), ("1", 0)):
        variables = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        done = warm.run(
            [sys.executable, "-m", "shunter.cli.main", "run", "recipe.yaml", "--stroe", "x"],
            env={**environment(place), **variables}, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.count("error: ") == count


@pytest.mark.long
def test_what_is_wrong_is_said_once_and_all_end(place: Path) -> None:
    """Rank 1 of 3 is of the other node; nobody waits for a run that does not begin."""
    nodes = Nodes(place, ["run", "recipe.yaml", "jobs.base.how.parallel.pp=4", "--store", "store"])
    assert nodes.codes() == [1, 1], "torchrun's own code"
    first, second = nodes.told()
    assert "error: " in first
    assert "base takes 4 processes, and 3 were started. Start as many, or lower how.parallel." in first
    assert "error: " not in second


def test_how_many_processes_a_recipe_takes(place: Path) -> None:
    graph = load_recipe(place / "recipe.yaml", [PIPE], KINDS)
    assert ranks.needed(graph, graph.select(None, None)) == {"base": 2}
    assert ranks.needed(graph, graph.select(None, "rows")) == {}
    together.enough(2, graph, graph.select(None, None))
    with pytest.raises(ShunterError, match="base takes 2 processes, and 1 were started"):
        together.enough(1, graph, graph.select(None, None))


def launch(place: Path, *words: str, run: Any = subprocess.run) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "shunter.cli.main",
        "launch",
        "recipe.yaml",
        PIPE,
        "--store",
        "store",
        *words,
    ]
    found: subprocess.CompletedProcess[str] = run(
        command, cwd=place, env=environment(place), capture_output=True, text=True, check=False, timeout=120
    )
    return found


def test_a_launch_is_shown_before_it_is_done(place: Path) -> None:
    done = launch(place, "--hosts", "a,b", "--to", "rows", "--dry-run", "--env", "X=1 2")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [line.split()[:1] for line in lines] == [["ssh"], ["ssh"]]
    assert "--node-rank=1" in lines[1]
    assert "X=1 2" in lines[1]
    for words, says in [
        (["--hosts", "a,b", "--slurm"], "Give either --hosts or --slurm."),
        ([], "Give either --hosts or --slurm."),
        (["--hosts", "-x"], "is no host"),
        (["--slurm", "--time", "soon"], "SLURM cannot take 'soon'"),
        (["--hosts", "a", "--per-node", "1"], "base takes 2 processes, and 1 were started"),
    ]:
        done = launch(place, *words, run=warm.run)
        assert done.returncode == 2, words
        assert says in done.stderr


@pytest.mark.long
def test_launched_by_ssh_checked_stopped_and_continued(place: Path) -> None:
    stand_ins.install(place, ssh=stand_ins.SSH)
    hosts = ["--hosts", "a,b", "--address", "127.0.0.1", "--port", str(port())]
    done = launch(place, *hosts, "--check", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [node["host"] for node in found["nodes"]] == ["a", "b"]
    assert len(found["links"]) == 2
    command = [sys.executable, "-m", "shunter.cli.main", "launch", "recipe.yaml", PIPE, "--store", "store"]
    output = place / "launch.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, "jobs.base.train.steps=4000", *hosts], cwd=place, env=environment(place), stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        until = time.monotonic() + 90
        while "steps " not in output.read_text() and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 143, output.read_text()
    assert "saved: step" in output.read_text()
    assert "Traceback" not in output.read_text()
    done = launch(place, *hosts)
    assert done.returncode == 0, done.stderr
    assert "[4/4] base       done" in done.stdout
    lost = launch(place, "--hosts", "a,lost", "--address", "127.0.0.1", "--port", str(port()))
    assert lost.returncode == 2
    assert "error: ssh did not reach lost, or lost it (ssh: connect to host lost port 22" in lost.stderr


@pytest.mark.long
def test_one_node_that_hears_a_signal_stops_all_which_continue(place: Path) -> None:
    nodes = Nodes(place, ["run", "recipe.yaml", PIPE, "jobs.base.train.steps=4000", "--store", "store"])
    nodes.wait_for("steps ")
    nodes.processes[1].terminate()
    assert nodes.codes() == [1, 1], "torchrun's own code"
    assert "saved: step" in nodes.told()[0]
    assert "stopped; the same command continues" in nodes.told()[0]


@pytest.mark.long
def test_a_batch_job_saves_when_its_time_is_over_and_continues(place: Path) -> None:
    stand_ins.install(place, srun=stand_ins.SRUN, scontrol=stand_ins.SCONTROL, sbatch=stand_ins.SBATCH)
    done = launch(place, "jobs.base.train.steps=400", "--slurm", "-o", "job.sbatch", "--submit")
    assert done.stdout == "Submitted batch job 7\n", done.stderr
    slurm = {"SLURM_JOB_ID": str(port()), "SLURM_JOB_NODELIST": "x", "SLURM_JOB_NUM_NODES": "2"}
    output = place / "job.txt"
    for number in (signal.SIGUSR1, None):
        with output.open("w") as file:
            process = subprocess.Popen(
                ["bash", "job.sbatch"], cwd=place, env={**environment(place), **slurm}, stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            until = time.monotonic() + 90
            while number is not None and "steps " not in output.read_text() and time.monotonic() < until:
                time.sleep(0.1)
            if number is not None:
                process.send_signal(number)
            assert process.wait(120) == 0, output.read_text()
        said = output.read_text()
        assert ("saved: step" if number else "base       done") in said
    assert (place / "said").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
