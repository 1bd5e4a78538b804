"""A calibration is of the devices and the practice that it was fitted to, and of nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shunter.cluster import files
from shunter.cluster.cluster import Cluster
from shunter.config.errors import ShunterError
from shunter.plan import calibration
from shunter.plan.calibrate import coefficients_of
from shunter.plan.practice import Coefficients, kernels, practice

H100, MIXED = files.find("8xh100"), files.find("mixed-lab")


def written(path: Path, cluster: Cluster, practised: str = "shunter", **values: float) -> Path:
    found = coefficients_of(cluster).but("fitted to a run", **(values or {"products": 0.5}))
    calibration.save(calibration.made(found, list(values or {"products": 0.5}), cluster, practised), path)
    return path


def test_it_comes_back_and_is_cited(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", H100, products=0.5, links=0.3)
    found = coefficients_of(H100, path, "shunter")
    assert (found["products"], found["links"]) == (0.5, 0.3)
    assert found.known["products"].source == "fitted to a run"
    assert found["memory"] == coefficients_of(H100)["memory"]
    assert coefficients_of(files.find("4x8xh100"), path)["products"] == 0.5  # more of the same devices


def test_all_kinds_of_a_mixed_cluster_come_back(tmp_path: Path) -> None:
    before = coefficients_of(MIXED)
    halved = before.but("fitted to a run", products=0.5 * before["products"])
    calibration.save(calibration.made(halved, ["products"], MIXED, "shunter"), tmp_path / "c.yaml")
    after = coefficients_of(MIXED, tmp_path / "c.yaml", "shunter")
    assert set(after.kinds) == {"a100-80", "rtx4090"}
    for kind in after.kinds:
        assert after.on(kind)["products"] == pytest.approx(0.5 * before.on(kind)["products"]), kind
    assert after["products"] == pytest.approx(0.5 * before["products"])
    with pytest.raises(ShunterError, match="of h100, the cluster of a100-80, rtx4090"):
        coefficients_of(MIXED, written(tmp_path / "other.yaml", H100))
    few = written(tmp_path / "few.yaml", files.find("8xa100-80"))
    with pytest.raises(ShunterError, match="the cluster has rtx4090 too"):
        coefficients_of(MIXED, few)


def test_another_machine_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """Kinds of all measured machines are called `device`."""

    def machine(rate: float) -> Cluster:
        description = files.find("cpu").description
        (kind,) = description.devices.values()
        other = kind.model_copy(update={"memory_bandwidth": rate})
        (group,) = description.nodes.values()
        nodes = {"host": group.model_copy(update={"device": "device"})}
        return Cluster.of(description.model_copy(update={"devices": {"device": other}, "nodes": nodes}))

    mine, theirs = machine(10e9), machine(11e9)
    path = written(tmp_path / "c.yaml", mine, "shunter-fp32")
    assert coefficients_of(mine, path, "shunter-fp32")["products"] == 0.5
    with pytest.raises(ShunterError, match="of another device"):
        coefficients_of(theirs, path, "shunter-fp32")
    places = {calibration.kept_at(tmp_path, each, "shunter") for each in (mine, theirs)}
    assert len(places) == 2


def test_another_practice_is_refused_and_another_optimizer_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", H100, "shunter+muon")
    for same in ("shunter", "shunter+muon", "shunter+unshared"):
        assert coefficients_of(H100, path, same)["products"] == 0.5
    for other in ("shunter-fp32", "torchtitan", "shunter+compiled"):
        with pytest.raises(ShunterError, match=r"of runs by shunter\+muon"):
            coefficients_of(H100, path, other)
    assert kernels("shunter+compiled+muon+unsplit") == "shunter+compiled"
    assert practice("shunter+compiled+muon").schedules == ("1f1b", "interleaved-1f1b", "gpipe")
    for wrong in ("shunter+muons", "shunter+muon+muon"):
        with pytest.raises(ShunterError, match="nothing that shunter may do otherwise"):
            practice(wrong)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("-3", "products is -3"),
        ("0", "products is 0"),
        (".inf", "finite"),
        ("soon", "number"),
        ("1e9", "1e\\+09"),
    ],
)
def test_a_number_that_no_run_can_have_given(value: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", H100)
    path.write_text(path.read_text().replace("value: 0.5", f"value: {value}"))
    with pytest.raises(ShunterError, match=said) as caught:
        coefficients_of(H100, path)
    assert "c.yaml" in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text in ("h100: {products: {value: 0.5, source: mine}}\n", "format: shunter-plan\n"):
        path.write_text(text)
        with pytest.raises(ShunterError, match="this is no calibration"):
            coefficients_of(H100, path)
    written(path, H100)
    path.write_text(path.read_text().replace("products:", "produce:"))
    with pytest.raises(ShunterError, match="'produce' of h100 is no coefficient"):
        coefficients_of(H100, path)


def test_shipped_ones_say_of_whose_runs_they_are() -> None:
    a100 = files.find("8xa100-80")
    assert "runs of megatron-2021" in coefficients_of(a100, practised="shunter").known["products"].source
    assert "runs of" not in coefficients_of(a100, practised="megatron-2021").known["products"].source


def test_bounds_hold_all_that_is_known() -> None:
    for name, each in Coefficients().known.items():
        assert calibration.wrong(name, each.value) is None
        assert calibration.wrong(name, -1.0) is not None
    assert replace(Coefficients()).kinds == {}
