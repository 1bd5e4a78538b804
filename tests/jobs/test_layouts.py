"""`shunter layout`, and layouts that are refused before anything starts.

What this cannot show: whether estimates of activations are near what a device holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shunter.cli import main as cli
from shunter.config.errors import ShunterError
from shunter.jobs.layouts import parse_bytes
from shunter.layout.described import Layout

RECIPE = """
version: 1
name: laid
jobs:
  corpus: {kind: curate, sources: [{path: texts.jsonl}]}
  tokenizer: {kind: tokenizer, corpus: corpus, vocab_size: 300}
  rows: {kind: tokens, corpus: corpus, tokenizer: tokenizer, row_length: 48}
  base:
    kind: pretrain
    tokens: rows
    model: {dim: 24, num_layers: 4, num_heads: 6, num_kv_heads: 3, head_dim: 8, ffn_dim: 40, tied: true}
    train: {steps: 4, batch_rows: 8, optimizer: adamw}
    how: {parallel: {dp: 2}}
  more: {kind: sft, model: base, tokens: rows, train: {steps: 4, batch_rows: 8}}
"""
DP, MODEL = "jobs.base.how.parallel.dp=1", "jobs.base.model"
EXPERTS = f"{MODEL}.experts={{num_experts: 6, per_token: 2, ffn_dim: 8}}"


@pytest.fixture(autouse=True)
def _recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    Path("texts.jsonl").write_text(json.dumps({"text": "a text"}) + "\n")


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    assert cli.main(["layout", "r.yaml", *args]) == code
    told = capsys.readouterr()
    return told.out if code == 0 else told.err


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    axes = [f"jobs.base.how.parallel.{axis}=2" for axis in ("pp", "tp")]
    text = run(capsys, *axes, "jobs.base.model.num_kv_heads=2")
    for word in ("pp0 dp1 tp1", "embedding", "gate_up", "pp, tp", "pipeline", "tensor", "data", "at most"):
        assert word in text, word
    data = json.loads(run(capsys, *axes, "jobs.base.model.num_kv_heads=2", "--json"))
    assert len(data["ranks"]) == len(data["traffic"]) == 8
    (qkv,) = (kind for kind in data["kinds"] if kind["kind"] == "qkv")
    assert (qkv["whole"], qkv["local"], qkv["axes"]) == ([80, 24], [40, 24], ["pp", "tp"])


def test_shared_state_helps_before_another_axis_does(capsys: pytest.CaptureFixture[str]) -> None:
    copies = "jobs.base.how.parallel.dp=4"
    plain = json.loads(run(capsys, copies, "--json"))
    found = plain["ranks"][0]
    limit = str(found["total"] - found["optimizer"] // 2)
    assert "Use zero=1 (4 ranks)." in run(capsys, copies, "--memory", limit, code=2)
    shared = json.loads(run(capsys, copies, "jobs.base.how.parallel.zero=1", "--memory", limit, "--json"))
    assert shared["ranks"][0]["optimizer"] == pytest.approx(found["optimizer"] / 4, rel=0.1)
    assert shared["traffic"][0]["data"] == pytest.approx(plain["traffic"][0]["data"], rel=0.05)
    alone = run(capsys, DP, "jobs.base.how.parallel.zero=1")
    assert "zero: 1 changes nothing here" in alone


BIG = [
    f"{MODEL}={{dim: 4096, num_layers: 16, num_heads: 32, num_kv_heads: 8, head_dim: 128, ffn_dim: 14336}}",
    "jobs.rows.row_length=4096",
    "jobs.base.train.batch_rows=128",
    "jobs.base.how.checkpoint_async=true",
    "jobs.base.how.parallel={pp: 8, fsdp: 8, tp: 8, schedule: interleaved-1f1b, microbatches: 16, chunks: 2}",
]


def test_a_big_layout_is_tried_on_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """4 B parameters over 512 ranks: what each holds and sends, and what recomputation changes."""
    found = json.loads(run(capsys, *BIG, "--json"))
    assert len(found["ranks"]) == len(found["traffic"]) == 512
    assert sum(each["parameters"] for each in found["ranks"]) > 16 * (4096 * (4096 + 4 * 1024 + 3 * 14336))
    assert any("checkpoint_async keeps up to" in note for note in found["notes"])
    again = json.loads(run(capsys, *BIG, "jobs.base.how.parallel.recompute=full", "--json"))
    most = [max(each["at_once"] for each in layout["ranks"]) for layout in (found, again)]
    assert most[1] < most[0] / 4
    sent = [layout["traffic"][0]["tensor"] for layout in (found, again)]
    assert 1 < sent[1] / sent[0] < 1.5


def test_a_layout_is_saved_loaded_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--save", "a.json")
    saved = Layout.load(Path("a.json"))
    assert run(capsys, "--diff", "a.json").strip() == "nothing changes"
    text = run(capsys, "jobs.base.how.parallel.fsdp=3", "--diff", "a.json")
    assert "settings.parallel.fsdp" in text
    assert "fullest rank.weights" in text
    changes = json.loads(run(capsys, "--diff", "jobs.base.how.parallel.dp=4", "--json"))
    assert changes["ranks"] == [2, 4]
    assert changes["settings.parallel.dp"] == [2, 4]
    assert saved.diff(saved) == {}
    for text, says in (("[]", "no saved layout"), ("{", "can be read"), ("{}", "no saved layout")):
        Path("bad.json").write_text(text)
        assert says in run(capsys, "--diff", "bad.json", code=2)
    for change, says in (({"version": 2}, "of version 2"), ({"ranks": [{}]}, "is missing")):
        Path("bad.json").write_text(json.dumps({**saved.data(), **change}))
        assert says in run(capsys, "--diff", "bad.json", code=2)
    assert "Give bad.json alone" in run(capsys, "--diff", "bad.json", "--diff", "a.b=1", code=2)


def test_a_job_that_begins_from_another_s_model_or_from_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    changed = ["jobs.base.how.parallel=null", "jobs.more.how.parallel.fsdp=2"]
    one, two = (json.loads(run(capsys, *args, "--json")) for args in (["--job", "base"], changed))
    assert two["settings"]["job"] == "more"
    assert two["settings"]["model"] == one["settings"]["model"]
    Path("theirs").mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "vocab_size": 512,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    Path("theirs/config.json").write_text(json.dumps(config))
    text = RECIPE.replace("  more: {kind: sft, model: base", "  more: {kind: sft, model: theirs")
    Path("r.yaml").write_text(text + "  theirs: {kind: import, path: theirs}\n")
    found = json.loads(run(capsys, *changed, "--json"))
    assert found["settings"]["model"]["vocab_size"] == 512
    assert "several jobs train: base, more" in run(capsys, changed[0], code=2)
    assert "trains nothing" in run(capsys, "--job", "rows", code=2)


def test_what_does_not_fit_into_memory(capsys: pytest.CaptureFixture[str]) -> None:
    need = max(each["total"] for each in json.loads(run(capsys, "--json"))["ranks"])
    run(capsys, "--memory", str(need))
    told = run(capsys, "--memory", str(need - 1), code=2)
    assert "rank 0 needs about" in told
    assert "Use " in told
    assert "No single axis mends it" in run(capsys, "--memory", "1KB", code=2)
    assert "no amount of memory" in run(capsys, "--memory", "much", code=2)
    assert parse_bytes("16GiB") == 16 << 30
    assert parse_bytes(" 1.5 MB ") == 1_500_000
    for text in ("-1", "0", "nan", "inf", "1PB", ""):
        with pytest.raises(ShunterError):
            parse_bytes(text)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tp": 4}, "6 heads with 3 of keys and values cannot be cut into tp=4", "Use tp=3."),
    ({"cp": 5}, "rows of 48 tokens cannot be cut into 2 x cp=5 equal parts", "Make rows of 50 tokens"),
    ({"cp": 4, "tp": 3}, "cannot be cut into 2 x cp=4 x tp=3 equal parts", ""),
    ({"cp": 4, "attention": "ulysses"}, "6 query heads cannot be spread evenly over cp=4", "Use cp=3"),
    ({"tp": 3, "cp": 4, "attention": "ulysses"}, "2 query heads of a tensor rank", "Use cp=2"),
    ({"tp": 2, "ep": 3}, "ep x etp is 3 x 1, which does not divide the 2 ranks", "Use ep=2."),
    ({"fsdp": 2, "ep": 2}, "the model has no experts", "Use ep=1 and etp=1."),
    ({"fsdp": 4, "ep": 4, "experts": True}, "6 experts cannot be cut into ep=4", "Use ep=3."),
    ({"tp": 3, "sequence": False, "experts": True}, "experts would see them twice", "Set sequence to true"),
    ({"pp": 2, "fsdp": 2, "schedule": "zbv"}, "the weight that they share (tied)", "such as 1f1b"),
    ({"pp": 5, "microbatches": 8}, "4 layers cannot be cut into 5 stages", "Use fewer ranks"),
    ({"pp": 2, "microbatches": 9}, "8 rows a step cannot be cut into 9 micro-batches", "at most 8"),
    ({"dp": 9}, "8 rows a step cannot be cut", "Set train.batch_rows to at least 9."),
    ({"pp": 2, "cut": [4]}, "cut [4] does not give every stage a layer of 4", "rising numbers from 1 to 3"),
    ({"fsdp": 2, "pp": 2, "vocabulary": 2}, "both cut embedding and head", "Leave vocabulary out."),
    ({"dp": 2, "pad_experts": True}, "and the model has no experts", "Leave pad_experts out."),
    ({"dp": 2, "pad_experts": True, "experts": True}, "and they have none", "Set experts.capacity"),
    ({"tp": 320, "num_heads": 320, "num_kv_heads": 320}, "cannot be cut into tp=320 parts", "Use tp="),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "says", "mend"), REFUSED)
def test_layouts_that_cannot_be_are_refused_before_a_start(
    capsys: pytest.CaptureFixture[str], changed: dict[str, Any], says: str, mend: str
) -> None:
    model = [f"{MODEL}.{key}={changed[key]}" for key in ("num_heads", "num_kv_heads") if key in changed]
    model += [EXPERTS, f"{MODEL}.tied=false"] if changed.get("experts") else []
    axes = {k: v for k, v in changed.items() if k not in ("num_heads", "num_kv_heads", "experts")}
    if axes.get("tp") == 3 and axes.get("cp") == 4 and "attention" not in axes:
        model.append("jobs.rows.row_length=40")
    overrides = [DP, *model, *(f"jobs.base.how.parallel.{k}={json.dumps(v)}" for k, v in axes.items())]
    for verb in (["run", "r.yaml", *overrides, "--dry-run"], ["layout", "r.yaml", *overrides]):
        assert cli.main(verb) == 2, verb
        told = capsys.readouterr().err
        assert says in told
        assert mend in told
    assert cli.main(["doctor", "r.yaml", *overrides]) == 2
    assert says in " ".join(capsys.readouterr().out.split())


def test_layouts_that_can_be_are_not_refused() -> None:
    for changed in ({"tp": 3}, {"cp": 3, "attention": "ulysses"}, {"pp": 2, "cut": '"measured"'}):
        overrides = [f"jobs.base.how.parallel.{k}={v}" for k, v in changed.items()]
        assert cli.main(["run", "r.yaml", DP, *overrides, "--dry-run"]) == 0
