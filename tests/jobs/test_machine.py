"""A plan is held to the machine that it shall run on: type, kind and number of devices.

The machine is put in place of the real one. What this cannot show: that drivers name devices as here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shunter.cli import main as cli
from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Measured
from shunter.config.errors import ShunterError
from shunter.jobs import machine, questions
from shunter.plan import probe
from shunter.plan.plan import Plan
from shunter.plan.presets import preset
from shunter.plan.search import search

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart-short.yaml"
CPU = {"cpu": "Some CPU", "cores": 2, "devices": []}


def here(monkeypatch: pytest.MonkeyPatch, **record: Any) -> None:
    told = {**CPU, **record}
    monkeypatch.setattr(machine, "environment_record", lambda: told)
    monkeypatch.setattr(machine, "accelerators", lambda: len(told["devices"]))


def planned(cluster: Cluster | str) -> Plan:
    where = files.find(cluster) if isinstance(cluster, str) else cluster
    asked = questions.question(preset("llama-2-7b"), where, 64, 1024, "shunter")
    found = search(asked, top=1, finalists=2)
    return Plan.of(found.question, where, found.plans[0].prediction)


@pytest.fixture(scope="module")
def eight() -> Plan:
    return planned("8xh100")


def test_gpus_are_not_cpus(eight: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    h100 = ["NVIDIA H100 80GB HBM3"] * 8
    here(monkeypatch)
    with pytest.raises(ShunterError, match="devices are GPUs, and this job runs on CPUs"):
        machine.must_be_here(eight)
    here(monkeypatch, devices=h100)
    assert machine.must_be_here(eight) == []
    with pytest.raises(ShunterError, match="runs on CPUs"):
        machine.must_be_here(eight, "cpu")


def test_kind_and_number_of_gpus(eight: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, devices=["NVIDIA H100 80GB HBM3"] * 4)
    with pytest.raises(ShunterError, match="for 8 devices of a machine, and here are 4"):
        machine.must_be_here(eight)
    here(monkeypatch, devices=["NVIDIA A100-SXM4-80GB"] * 8)
    with pytest.raises(ShunterError, match=r"h100.*and here is NVIDIA A100"):
        machine.must_be_here(eight)
    # Of a cluster of several machines this one is looked at alone.
    assert machine.must_be_here(planned("2x8xa100-80")) == []
    here(monkeypatch, devices=["Some Card"] * 8)
    assert machine.must_be_here(eight) == []  # a name that tells nothing


def measured(name: str) -> Cluster:
    description = files.find("8xh100").description
    told = Measured(fingerprint="0", date="2026-11-26", machine=name)
    return Cluster.of(description.model_copy(update={"measured": told}))


def test_a_measured_machine_is_known_by_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(measured("8 x NVIDIA H100 80GB HBM3"))
    here(monkeypatch, devices=["NVIDIA H100 80GB HBM3"] * 8)
    assert machine.must_be_here(plan) == []
    here(monkeypatch, devices=["NVIDIA H100 PCIe"] * 8)
    with pytest.raises(ShunterError, match="was measured, 8 x NVIDIA H100 80GB HBM3, and this is"):
        machine.must_be_here(plan)


def test_the_run_refuses_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(monkeypatch)
    for cluster, fixed in (("2xa100-80", "pp=2"), ("cpu", "pp=2,schedule=1f1b")):
        ask = ["plan", "--model", str(RECIPE), "--job", "base", "--cluster", cluster, "--fix", fixed]
        assert cli.main([*ask, "--practice", "shunter", "-o", str(tmp_path / f"{cluster}.yaml")]) == 0

    def dry(name: str) -> int:
        use = f"jobs.base.how.parallel={{plan: {tmp_path / name}}}"
        return cli.main(["run", str(RECIPE), "--dry-run", "--store", str(tmp_path / "store"), use])

    assert dry("2xa100-80.yaml") == 2
    assert "whose devices are GPUs" in capsys.readouterr().err
    assert dry("cpu.yaml") == 0
    assert "are those of shunter, and this job computes as shunter-fp32+muon" in capsys.readouterr().out
    here(monkeypatch, cores=1)
    assert dry("cpu.yaml") == 0
    assert "2 processes, and here are 1 cores" in capsys.readouterr().out
    use = "jobs.base.how.parallel=auto"
    assert cli.main(["run", str(RECIPE), "--dry-run", "--store", str(tmp_path / "store"), use]) == 0


def test_what_describes_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "cache", lambda: tmp_path)
    here(monkeypatch)
    found = machine.described(2)
    assert found is not None
    assert (found[0].world, found[1]) == (2, "as a CPU in general")
    assert machine.described(4) is None
    here(monkeypatch, devices=["NVIDIA H100 80GB HBM3"] * 8)
    found = machine.described(4)
    assert found is not None
    assert found[0].world == 4
    assert "ships" in found[1]
    here(monkeypatch, devices=["Some Card"])
    assert machine.described(1) is None
    here(monkeypatch)
    count = len(probe.environment_record()["devices"]) or 2
    description = files.find("cpu").description.model_copy(update={"name": "mine"})
    files.save(description, tmp_path / f"probe-{probe.fingerprint(count, True)}.yaml")
    found = machine.described(1)
    assert found is not None
    assert (found[0].name, found[0].world) == ("mine", 1)
