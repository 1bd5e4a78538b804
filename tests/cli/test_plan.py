"""`shunter plan`: fields, tables, files, mistakes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.plan.plan import Plan

ASK = ["plan", "--model", "llama-2-7b", "--cluster", "8xa100-80", "--global-batch", "64", "--seq", "2048"]


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main([*ASK, *args]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(list(args)) == 2
    return capsys.readouterr().err


def test_the_fields_of_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(run(capsys, "--json", "--top", "3", "--fix", "pp=2,schedule=1f1b"))
    assert list(told) == ["plans", "search_seconds", "considered", "rejected", "flops", "notes"]
    assert told["flops"]["step"] == told["flops"]["with_recomputation"]
    again = json.loads(run(capsys, "--json", "--fix", "recompute=stage,pp=2,schedule=1f1b"))["flops"]
    # Another forward of the layers: a third of their operations, and the head's are not among them.
    assert 1.3 < again["with_recomputation"] / again["step"] < 4 / 3
    assert len(told["plans"]) == 3
    best = told["plans"][0]
    assert list(best) == [
        "layout", "schedule", "microbatch", "step_seconds", "compute_seconds", "communication_seconds",
        "bubble_seconds", "tokens_per_second_per_device", "flops_per_device", "mfu", "memory_bytes_by_stage",
        "lost_because",
    ]  # fmt: skip
    assert best["layout"]["pp"] == 2
    assert best["schedule"] == "1f1b"
    assert len(best["memory_bytes_by_stage"]) == 2
    assert best["lost_because"] == ""
    parts = [best[f"{name}_seconds"] for name in ("compute", "communication", "bubble")]
    assert sum(parts) == pytest.approx(best["step_seconds"])
    rate = 64 * 2048 / best["step_seconds"] / 8
    assert best["tokens_per_second_per_device"] == pytest.approx(rate)
    assert best["mfu"] == pytest.approx(best["flops_per_device"] / 312e12)
    assert 0 < told["rejected"] < told["considered"]


def test_the_table_says_why_and_what_would_help(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    text = run(capsys, "--why", "tp=8", "--what-helps", "--tokens", "1T", "--out", str(out), "--top", "2")
    assert "the best" in text
    assert "tp=8: " in text
    assert "slower" in text
    assert "links within a node twice as fast" in text
    assert "1e+12 tokens: " in text
    assert "Predicted, not measured" in text
    Plan.load(out)


MIXED = ["plan", "--model", "llama-2-13b", "--cluster", "mixed-lab", "--global-batch", "64", "--seq", "1024"]


def test_a_mixed_cluster_has_its_ranks_placed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    few = ["--fix", "pp=8,schedule=zb1p,microbatch=1"]
    assert (
        cli.main([*MIXED, *few, "--json", "--out", str(out), "--top", "1", "--why", "pp=4,tp=2,microbatch=2"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    (best,) = told["plans"]
    assert sorted(best["ranks"]) == list(range(8)) != best["ranks"]
    assert best["step_seconds"] < 0.98 * best["placed"]["naive_step_seconds"]
    assert sorted(told["why"]["ranks"]) == list(range(8))
    plan = Plan.load(out)
    assert plan.ranks == best["ranks"]
    assert plan.parallel()["ranks"] == plan.ranks
    # Stages on consumer cards have fewer layers than any on the station's devices.
    layers = [b - a for a, b in pairwise([0, *plan.layout["cut"], 40])]
    station = ["station" in name for name in plan.placed["devices"]]
    assert max(n for n, there in zip(layers, station, strict=True) if not there) < min(
        n for n, there in zip(layers, station, strict=True) if there
    )
    assert cli.main([*MIXED, *few, "--top", "1"]) == 0
    text = capsys.readouterr().out
    assert "station.0/0" in text
    assert "in the order of the cluster's file" in text


def test_links_that_are_missing_or_said_twice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from shunter.cluster.files import MACHINES

    text = (MACHINES / "mixed-lab.yaml").read_text()
    path = tmp_path / "lab.yaml"
    ask = [*MIXED[:4], str(path), *MIXED[5:]]
    path.write_text(text.replace("\nbetween: ethernet\n", "\n"))
    assert "have no link" in refused(capsys, *ask)
    twice = "pairs:\n  - {ends: [old, new], link: pcie}\n  - {ends: [new, old], link: nvlink3}\n"
    path.write_text(text + twice)
    assert "name that one there as `back`" in refused(capsys, *ask)


def test_a_recipe_and_a_configuration_are_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    recipe = [
        "plan",
        "--model",
        str(root / "recipes" / "quickstart.yaml"),
        "--cluster",
        "cpu",
        "--job",
        "base",
        "--json",
    ]
    assert cli.main(recipe) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plans"][0]["layout"]["pp"] * told["plans"][0]["layout"]["fsdp"] <= 2
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "intermediate_size": 688, "vocab_size": 1000, "max_position_embeddings": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    ask = ["plan", "--model", str(tmp_path), "--cluster", "8xa100-80", "--global-batch", "8"]
    assert cli.main([*ask, "--seq", "256", "--json"]) == 0


def test_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "Did you mean llama-2-7b" in refused(capsys, "plan", "--model", "lama-2-7b", "--cluster", "8xh100")
    assert "Did you mean '8xh100'" in refused(capsys, "plan", "--model", "llama-3-8b", "--cluster", "8xh10")
    told = refused(capsys, "plan", "--model", "llama-3-8b", "--cluster", "8xh100", "--seq", "64")
    assert "does not tell --global-batch" in told
    assert "tp may be" in refused(capsys, *ASK, "--fix", "tp=5")
    assert "tp is given twice" in refused(capsys, *ASK, "--fix", "tp=2,tp=4")
    assert "fits nowhere" in refused(capsys, *ASK, "--budget-memory", "2GB")
    assert "no practice" in refused(capsys, *ASK, "--practice", "megatron-2020")
    assert "file not found" in refused(capsys, "plan", "--model", "no.json", "--cluster", "8xh100")


def test_a_time_in_place_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["plan", "--cluster", "2xa100-80", "--time", "20m", "--data", "1B"]
    assert cli.main(ask) == 0
    text = capsys.readouterr().out
    assert "tokens a parameter" in text
    assert "Nothing is measured: --ladder RECIPE" in text
    assert cli.main([*ask, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    losses = [each["losses"][told["law"]] for each in told["models"]]
    assert losses == sorted(losses)
    assert "either --model or --time" in refused(capsys, *ask, "--model", "llama-2-7b")
    assert "either --model or --time" in refused(capsys, "plan", "--cluster", "8xa100-80")
    assert "no length of time" in refused(capsys, "plan", "--cluster", "8xa100-80", "--time", "12")
