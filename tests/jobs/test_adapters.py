"""Jobs that train adapters: what is published, what a checkpoint holds, what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.jobs import conversations, imported, models, pretrain, sft, tokens, training
from shunter.models.hf import load_model, save_model
from shunter.recipe.identity import what
from shunter.recipe.job import Stopped
from shunter.record import events
from shunter.surgery.adapter_folder import merge_adapter
from tests.jobs.conftest import Still, Work
from tests.jobs.test_import import elsewhere, same

__all__ = ["elsewhere"]  # a fixture

ADAPTER = {"rank": 4, "alpha": 8}
TRAIN = {"steps": 8, "batch_rows": 4, "lr": 1e-2, "precision": "fp32"}
HOW = {"threads": 1, "checkpoint_every": 4}


@pytest.fixture
def rows(elsewhere: Path, work: Work, tmp_path: Path) -> Path:
    lines = [{"prompt": f"what is {n} + 1?", "completion": f"it is {n + 1}."} for n in range(60)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    talks, _ = work(conversations.JOB, {"sources": [{"path": "talks.jsonl"}], "heldout": 0.2}, base=tmp_path)
    made, _ = work(
        tokens.JOB, {"conversations": "c", "tokenizer": "t", "row_length": 64},
        inputs={"conversations": talks, "tokenizer": elsewhere},
    )  # fmt: skip
    return made


def tune(work: Work, base: Path, rows: Path, name: str, **more: Any) -> tuple[Path, dict[str, Any]]:
    adapter = {**ADAPTER, **more.pop("adapter", {})}
    how, train = {**HOW, **more.pop("how", {})}, {**TRAIN, **more.pop("train", {})}
    config = {"model": "m", "tokens": "r", "adapter": adapter, "train": train, "how": how}
    return work(sft.JOB, config, inputs={"model": base, "tokens": rows}, name=name, **more)


def test_the_model_is_published_merged_with_its_adapters_beside_it(
    elsewhere: Path, rows: Path, work: Work, tmp_path: Path
) -> None:
    out, told = tune(work, elsewhere, rows, "tuned")
    assert told["parameters"] == load_model(out).spec.num_parameters, "an ordinary model"
    assert not same(out, elsewhere)
    base = load_model(elsewhere)
    assert merge_adapter(base, out / "adapter") == 7 * 2
    for (name, mine), theirs in zip(base.named_parameters(), load_model(out).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7, msg=name)
    # The same by the import of a recipe.
    again, _ = work(
        imported.JOB, {"path": "elsewhere", "adapter": str(out / "adapter")}, base=tmp_path, name="again"
    )
    for mine, theirs in zip(load_model(again).parameters(), load_model(out).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    models.export(str(tmp_path / "store"), str(out), tmp_path / "exported", "", "5GB")
    assert same(tmp_path / "exported", out)
    assert not (tmp_path / "exported" / "adapter").exists()


def test_adapters_learn_what_they_are_shown(elsewhere: Path, rows: Path, work: Work) -> None:
    base = load_model(elsewhere)
    with torch.no_grad():
        base.head_weight.mul_(20)  # a fresh head's logits stay within 0.7, whatever comes before it
    save_model(base, elsewhere)
    first, _ = tune(work, elsewhere, rows, "tuned", train={"steps": 40, "lr": 3e-2})
    ledger = events.read(first.parent / "log" / "ledger.jsonl")
    losses = [event["loss"] for event in ledger]
    assert losses[-1] < 0.8 * losses[0]


def test_quantised_weights_are_merged_as_they_were_read(elsewhere: Path, rows: Path, work: Work) -> None:
    half = load_model(elsewhere).bfloat16()
    save_model(half, elsewhere)  # stored in bfloat16: loaded as stored, the rest is widened
    out, told = tune(work, elsewhere, rows, "packed", adapter={"quantise": "nf4"})
    assert told["loss"] > 0
    plain, tuned = load_model(elsewhere), load_model(out)
    assert torch.equal(plain.embed.weight, tuned.embed.weight)
    before, after = (m.layers[0].get_parameter("ffn.down.weight").detach() for m in (plain, tuned))
    assert 0.05 < float((after - before).norm() / before.norm()) < 1


@pytest.mark.parametrize("adapter", [{}, {"quantise": "int8", "also": ["norms", "embed"]}])
def test_a_resumed_run_ends_with_the_same_bits(
    elsewhere: Path, rows: Path, work: Work, adapter: dict[str, Any]
) -> None:
    whole, _ = tune(work, elsewhere, rows, "whole", adapter=adapter)
    with pytest.raises(Stopped):
        tune(work, elsewhere, rows, "cut", adapter=adapter, control=Still(stop_after=5))
    found = (whole.parents[1] / "cut" / "private" / "checkpoints").glob("step-*/tensors.json")
    checkpoint = sorted(found)[-1]
    held = json.loads(checkpoint.read_text())
    weights = {name for name in held if name.startswith("model.")}
    assert not [name for name in weights if "frozen" in name or name.startswith("model.head")]
    assert {name.split(".")[-2] for name in weights} >= {"a", "b"}
    assert ("model.embed.weight" in held) == bool(adapter), "what is not trained is not saved"
    assert len(held) == 1 + 4 * len(weights), "each with its step and two moments; and the generator"
    resumed, _ = tune(work, elsewhere, rows, "cut", adapter=adapter)
    assert same(resumed, whole)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("parallel", "quantise"),
    [
        pytest.param({"pp": 2, "microbatches": 2}, "none", marks=pytest.mark.long),
        ({"tp": 2}, "nf4"),
    ],
    ids=str,
)
def test_two_processes_make_the_adapters_of_one(
    elsewhere: Path, rows: Path, work: Work, parallel: dict[str, int], quantise: str
) -> None:
    """Each reads its part of the folder, and packs it as the whole is packed."""
    adapter = {"quantise": quantise}
    alone, expected = tune(work, elsewhere, rows, "alone", adapter=adapter)
    piped, told = tune(work, elsewhere, rows, "piped", adapter=adapter, how={"parallel": parallel})
    assert told["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert json.loads((piped / "adapter" / "adapter_config.json").read_text())["r"] == 4
    for mine, theirs in zip(load_model(piped).parameters(), load_model(alone).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-4)


def test_ranks_that_read_their_parts_tune_the_model_of_one(elsewhere: Path, rows: Path, work: Work) -> None:
    """All weights are trained, and looked at whole on the way."""
    config = {
        "tokens": "r", "init": "m", "train": {**TRAIN, "optimizer": "adamw", "validate_every": 4},
        "how": {**HOW, "milestones": {"every": 4, "prompts": ["what is"], "max_new_tokens": 4}},
    }  # fmt: skip
    laid = {**config, "how": {**config["how"], "parallel": {"tp": 2}}}
    inputs = {"tokens": rows, "init": elsewhere}
    alone, expected = work(pretrain.JOB, config, inputs=inputs, name="alone")
    cut, told = work(pretrain.JOB, laid, inputs=inputs, name="cut")
    for name in ("loss", "milestone/distinct_2"):
        assert told[name] == pytest.approx(expected[name], rel=1e-4), name
    for mine, theirs in zip(load_model(cut).parameters(), load_model(alone).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-4)


def test_the_whole_takes_no_room_until_it_is_brought_together(elsewhere: Path) -> None:
    decoder = load_model(elsewhere)
    bare = training.bare(decoder)
    assert all(tensor.is_meta for tensor in bare.state_dict().values())
    assert not any(tensor.is_meta for tensor in decoder.state_dict().values())
    bare.load_state_dict(decoder.state_dict(), assign=True)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), decoder.parameters(), strict=True))


def test_pretraining_goes_on_by_adapters_and_is_looked_at(elsewhere: Path, rows: Path, work: Work) -> None:
    look = {"every": 4, "prompts": ["what is"], "max_new_tokens": 4}
    config = {
        "tokens": "r", "init": "m", "adapter": ADAPTER, "train": {**TRAIN, "validate_every": 4},
        "how": {**HOW, "milestones": look},
    }  # fmt: skip
    out, told = work(pretrain.JOB, config, inputs={"tokens": rows, "init": elsewhere})
    assert "milestone/distinct_2" in told
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


BASE = {"kind": "sft", "model": "m", "tokens": "r", "train": {"steps": 8}}


def test_the_optimizer_of_adapters_is_adamw_unless_told() -> None:
    assert sft.SftConfig(**{**BASE, "train": {**BASE["train"], "lr": 1e-3}}).train.optimizer == "muon"
    told = sft.SftConfig(**BASE, adapter=ADAPTER)
    assert told.train.optimizer == "adamw"
    assert sft.SftConfig(**told.model_dump()) == told, "written down and read again"
    other = {**BASE, "train": {"steps": 8, "optimizer": "muon"}}
    assert sft.SftConfig(**other, adapter=ADAPTER).train.optimizer == "muon"


def test_jobs_without_adapters_are_those_that_they_were() -> None:
    assert "adapter" not in what(sft.SftConfig(**BASE))
    assert what(sft.SftConfig(**BASE, adapter=ADAPTER))["adapter"]["rank"] == 4
    assert "adapter" not in what(imported.ImportConfig(kind="import", path="x"))


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"targets": ["q", "dwon"]}, r"targets\.1: must be 'q'.*\(got 'dwon'\). Did you mean 'down'\?"),
        ({"rnak": 4}, "rnak: unknown key. Did you mean 'rank'?"),
        ({"rank": 0}, "rank: must be at least 1"),
        (
            {"targets": [], "quantise": "nf4"},
            "quantise: nf4 freezes the layers' weights, so targets must name",
        ),
        ({"targets": []}, "targets and also are both empty"),
        ({"targets": ["q", "q"]}, "targets names 'q' twice"),
        ({"quantise": "nf5"}, "Did you mean 'nf4'"),
    ],
)
def test_mistakes_in_a_recipe(adapter: dict[str, Any], says: str) -> None:
    with pytest.raises(ShunterError, match=says.replace("?", r"\?") if "unknown" in says else says):
        parse(sft.SftConfig, {**BASE, "adapter": {**adapter}})


def test_adapters_of_nothing_are_refused(tmp_path: Path) -> None:
    shape = {"dim": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "ffn_dim": 48}
    config = {"kind": "pretrain", "tokens": "r", "model": shape, "adapter": ADAPTER, "train": {"steps": 8}}
    with pytest.raises(ShunterError, match="name its job with init, not model"):
        parse(pretrain.PretrainConfig, config)
    restart = {"steps": 8, "restart": {"at": 4}}
    with pytest.raises(ShunterError, match="Leave out either restart or adapter"):
        sft.JOB.check(sft.SftConfig(**{**BASE, "train": restart}, adapter=ADAPTER), tmp_path)
    for key, value in (("recompute", "selective"), ("gather", "bf16")):
        laid = {"adapter": ADAPTER, "how": {"parallel": {"fsdp": 2, key: value}}}
        with pytest.raises(ShunterError, match=f"{key}: {value} would"):
            sft.JOB.check(sft.SftConfig(**BASE, **laid), tmp_path)


def test_a_rank_that_does_not_fit_is_refused_before_the_first_step(
    elsewhere: Path, rows: Path, work: Work
) -> None:
    with pytest.raises(ShunterError, match=r"rank 17 is above the smaller side of k, which is 16 x 32"):
        tune(work, elsewhere, rows, "tuned", adapter={"rank": 17})


def test_an_adapter_that_is_not_there_is_refused_before_any_work(elsewhere: Path, tmp_path: Path) -> None:
    config = imported.ImportConfig(kind="import", path="elsewhere", adapter="nowhere")
    with pytest.raises(ShunterError, match="no readable adapter configuration"):
        imported.JOB.check(config, tmp_path)
