"""`shunter layout` of a model without declarations: a folder's, and a job's of a person's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.cli.main import main

ROOT = Path(__file__).parents[2]


def folder(at: Path, heads: int = 4) -> Path:
    """A Llama of one layer, without values."""
    at.mkdir()
    shapes = {
        f"model.layers.0.self_attn.{name}_proj.weight": [16, 16] for name in "qkvo"
    } | {
        "model.layers.0.mlp.gate_proj.weight": [32, 16], "model.layers.0.mlp.up_proj.weight": [32, 16],
        "model.layers.0.mlp.down_proj.weight": [16, 32], "model.layers.0.input_layernorm.weight": [16],
        "model.embed_tokens.weight": [64, 16], "lm_head.weight": [64, 16],
    }  # fmt: skip
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()
    }
    text = json.dumps(header).encode()
    (at / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    (at / "config.json").write_text(json.dumps({"num_attention_heads": heads, "num_key_value_heads": 2}))
    return at


def test_a_folders_plan_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = str(folder(tmp_path / "model"))
    assert main(["layout", "--model", at, "--tp", "4", "--rule", "lm_head=whole"]) == 0
    told = capsys.readouterr().out
    assert "out of a feed-forward layer" in told
    assert "as you said" in told
    assert "2 of keys and values, cannot be cut into 4" in told
    assert main(["layout", "--model", at, "--json", "--save", str(tmp_path / "plan.json")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan == json.loads((tmp_path / "plan.json").read_text())
    assert plan["weights"]["model.layers.0.mlp.down_proj.weight"]["dim"] == 1
    assert plan["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rule", "down_porj=in"], "Did you mean 'down_proj'?"),
        (["--memory", "30KB"], "Use tp=4."),
        (["--memory", "1KB"], "No tp up to 64 fits."),
        (["recipe.yaml"], "give either a recipe, or --model"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["layout", "--model", str(folder(tmp_path / "model")), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_jobs_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes" / "papers" / "redco.yaml")
    assert main(["layout", recipe, "jobs.own.settings.family=t5", "jobs.own.how.parallel={tp: 2}"]) == 0
    told = capsys.readouterr().out
    assert "each rank of 2 holds" in told
    assert "relative_attention_bias" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("jobs.own.how.parallel={pp: 2}", "needs a model whose layers declare"),
        ("jobs.own.how.parallel={tp: 2, fsdp: 2}", "Use one of them, with dp."),
        ("jobs.own.how.compile=true", "is not compiled here"),
        ("jobs.own.file=none.py", "there is no such file"),
        ("jobs.own.train.epocs=2", "epochs"),
        ("jobs.own.how.parallel={fsdp: 2}", "no rule to show"),
    ],
)
def test_a_custom_job_is_checked_before_it_runs(
    capsys: pytest.CaptureFixture[str], change: str, told: str
) -> None:
    recipe = str(ROOT / "recipes" / "papers" / "redco.yaml")
    assert main(["layout", recipe, change]) == 2
    assert told in capsys.readouterr().err
