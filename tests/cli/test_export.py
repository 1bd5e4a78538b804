"""`shunter export`: transformers loads what it writes, and it never writes over anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shunter.cli import main as cli
from shunter.data.tokenizer import Tokenizer, save, train
from shunter.jobs import models
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model, save_model
from shunter.recipe.artefact import Manifest
from shunter.surgery.adapter_folder import save_adapter
from shunter.surgery.config import AdapterConfig
from shunter.surgery.lora import attach, merged
from tests.models.small import redraw, spec_of

TALK = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}]
ID = "5" * 64


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a model artefact `chat`, in the present folder. Returns the artefact's folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shunter-store" / "artefacts" / f"chat-{ID[:12]}"
    save(train(["What is 2 + 3? It is 5, said the man. " * 9], 300), tmp_path / "tokenizer", max_length=64)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    model = Decoder(spec_of("qwen3").model_copy(update={"vocab_size": tokenizer.vocab_size}))
    redraw(model)
    save_model(
        model,
        folder,
        tokenizer_folder=tmp_path / "tokenizer",
        eos_token_id=tokenizer.stop_ids,
        pad_token_id=tokenizer.pad,
    )
    manifest = Manifest(
        name="chat", kind="sft", type="model", version=1, id=ID, content="", what={}, how={}, inputs=[],
        metrics={}, attempts=[], files=[], created="",
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def test_transformers_loads_it(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    assert cli.main(["export", "chat", "out", "--max-shard-size", "100KB"]) == 0
    parameters = load_model(made).spec.num_parameters
    assert capsys.readouterr().out.startswith(f"out: {parameters:,} parameters, float32, ")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "shunter-store", "tokenizer"}

    theirs = AutoModelForCausalLM.from_pretrained("out", dtype="auto").eval()
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    tokenizer, ours = AutoTokenizer.from_pretrained("out"), Tokenizer.load(made)
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert text == ours.render(TALK)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == ours.encode_control(text)
    model = load_model(made)
    with torch.no_grad():
        found = theirs(torch.tensor([ids])).logits
        expected = model.logits(model(torch.tensor([ids])))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert sorted(GenerationConfig.from_pretrained("out").eos_token_id) == sorted(ours.stop_ids)
    assert GenerationConfig.from_pretrained("out").pad_token_id == ours.pad


def test_dtype(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(made), "half", "--dtype", "bfloat16"]) == 0
    assert "bfloat16" in capsys.readouterr().out
    half, whole = load_model(Path("half"), None), load_model(made)
    for a, b in zip(half.parameters(), whole.parameters(), strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())
    assert cli.main(["export", "half", "again"]) == 0  # a folder, and as stored
    assert "bfloat16" in capsys.readouterr().out
    assert json.loads(Path("again/config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["chat", "tokenizer"], "tokenizer: already exists and is not empty"),
        (["chat", "tokenizer/tokenizer.json"], "already exists"),
        (["chat", "out", "--dtype", "int8"], "--dtype 'int8' is not one of"),
        (["chat", "out", "--max-shard-size", "lots"], "--max-shard-size 'lots' is no size"),
        (["chat", "out", "--max-shard-size", "0"], "is no size"),
        (["tokenizer", "out"], "holds no model"),
        (["chap", "out"], "chat"),
    ],
)
def test_mistakes(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path.cwd().rglob("*"))
    assert cli.main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) <= 2
    assert sorted(Path.cwd().rglob("*")) == before


def test_an_empty_folder_is_written_into(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert cli.main(["export", "chat", "empty"]) == 0
    assert (Path("empty") / "chat_template.jinja").is_file()


def test_nothing_is_left_of_an_export_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(Path.cwd().rglob("*"))
    monkeypatch.setattr("shutil.copyfile", full)
    assert cli.main(["export", "chat", "out"]) == 2
    assert "out: the disk is full" in capsys.readouterr().err
    assert sorted(Path.cwd().rglob("*")) == before


def test_sizes() -> None:
    assert [models.size(text) for text in ("5GB", "200mb", "1.5 K", "77")] == [5 * 10**9, 2 * 10**8, 1500, 77]


def test_adapters_go_out_alone_and_come_in_merged(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned, config = load_model(made), AdapterConfig(rank=2)
    attach(tuned, config, seed=0)
    for name, parameter in tuned.named_parameters():
        if ".b." in name:
            torch.nn.init.normal_(parameter)
    save_adapter(tuned, config, made / "adapter")
    assert cli.main(["export", "chat", "alone", "--adapter"]) == 0
    assert "adapters of chat in peft's format" in capsys.readouterr().out
    assert {path.name for path in Path("alone").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert cli.main(["export", "chat", "merged", "--merge", "alone"]) == 0
    for mine, theirs in zip(load_model(Path("merged")).parameters(), merged(tuned).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not (tmp_path / "merged" / "adapter").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--adapter"], "chat has no adapters of its own"),
        (["--adapter", "--dtype", "float16"], "Leave out --dtype and --merge"),
        (["--merge", "tokenizer"], "no readable adapter configuration"),
    ],
)
def test_mistakes_with_adapters(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "chat", "out", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("out").exists()
