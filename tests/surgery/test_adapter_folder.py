"""Adapters in peft's folders: what transformers computes with the same tensors, and what peft does.

peft is an optional package: where it is not installed its tests are skipped, and the arithmetic of its
format is compared with transformers' modules all the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model, save_model
from shunter.surgery.adapter_folder import merge_adapter, save_adapter
from shunter.surgery.config import AdapterConfig
from shunter.surgery.lora import merged
from tests.models.small import spec_of
from tests.surgery.test_lora import model, tuned

CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
TOKENS = torch.arange(24)[None] % 97
FULL = AdapterConfig(rank=4, alpha=6, also=["norms", "embed", "head"])
CONFIGS = {
    "qwen2": AdapterConfig(rank=4, alpha=6, rank_stabilised=True),
    "llama2": AdapterConfig(rank=3, alpha=5, targets=["q", "v", "down"]),
    "qwen3": FULL,
    "llama-gqa-tied": FULL,
    "mixtral": AdapterConfig(rank=4, alpha=6),
    "qwen3-moe": AdapterConfig(rank=3, alpha=5, targets=["q", "gate", "up", "down"]),
    "glm4-moe": AdapterConfig(rank=4, alpha=6),
}
# peft 0.21 takes adapters of a name for experts alone where the model has any.
READABLE = sorted(CONFIGS.keys() - {"glm4-moe"})


def ours(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(TOKENS))


def written(folder: Path, name: str) -> Decoder:
    """base/: the model before; adapter/: what it learnt. Returns the adapted model."""
    save_model(model(name), folder / "base", dtype=torch.float64)
    decoder = tuned(CONFIGS[name], name)
    save_adapter(decoder, CONFIGS[name], folder / "adapter")
    return decoder


def close(found: Tensor, expected: Tensor, bound: float = 1e-9) -> bool:
    return float((found - expected).abs().max()) <= bound * float(expected.abs().max())


def base(folder: Path) -> Any:
    """The base model in transformers, in float64."""
    from transformers import AutoModelForCausalLM

    kind = {"experts_implementation": "eager"}  # fused experts have no float64
    return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float64, **kind).eval()


@pytest.mark.parametrize("name", ["qwen2", "llama2"])
def test_the_tensors_mean_in_transformers_what_they_mean_here(tmp_path: Path, name: str) -> None:
    decoder = written(tmp_path, name)
    theirs, config = base(tmp_path), CONFIGS[name]
    tensors = load_file(tmp_path / WEIGHTS)
    names = {key.removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key}
    assert len(names) == 2 * len(config.targets)
    with torch.no_grad():
        for key in names:
            module = theirs.get_submodule(key.removeprefix("base_model.model."))
            product = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
            module.weight.add_(config.scale * product)
        # transformers' norms round to float32.
        assert close(theirs(TOKENS).logits, ours(decoder), 1e-5)


@pytest.mark.parametrize("name", READABLE)
def test_peft_reads_what_we_write(tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    decoder = written(tmp_path, name)
    wrapped = peft.PeftModel.from_pretrained(base(tmp_path), tmp_path / "adapter").eval()
    with torch.no_grad():
        found = wrapped(TOKENS).logits
        before = base(tmp_path)(TOKENS).logits
        unloaded = wrapped.merge_and_unload()(TOKENS).logits
    expected = ours(merged(decoder))
    assert close(found, expected, 1e-5)
    assert close(unloaded, expected, 1e-5)
    assert not close(before, expected, 0.1)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_what_peft_writes(tmp_path: Path, rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    save_model(model("qwen2"), tmp_path / "base", dtype=torch.float64)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, task_type="CAUSAL_LM", use_rslora=rslora, modules_to_save=["lm_head"],
        target_modules=["q_proj", "v_proj", "gate_proj"], init_lora_weights=False,
    )  # fmt: skip
    wrapped = peft.get_peft_model(base(tmp_path), config).eval()
    wrapped.save_pretrained(tmp_path / "theirs")
    plain = load_model(tmp_path / "base", torch.float64)
    assert merge_adapter(plain, tmp_path / "theirs") == 6
    with torch.no_grad():
        assert close(wrapped(TOKENS).logits, ours(plain), 1e-5)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_folder_merged_again_is_the_model(tmp_path: Path, name: str) -> None:
    decoder = written(tmp_path, name)
    plain = load_model(tmp_path / "base", torch.float64)
    merge_adapter(plain, tmp_path / "adapter")
    assert close(ours(plain), ours(decoder))


def change(folder: Path, **told: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}))


def tensors(folder: Path, **changed: Tensor | None) -> None:
    path = folder / WEIGHTS
    found = load_file(path) | {key: value for key, value in changed.items() if value is not None}
    save_file({key: value for key, value in found.items() if changed.get(key, 1) is not None}, path)


A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: change(folder, use_dora=True), "use_dora True is not supported"),
        (lambda folder: change(folder, peft_type="IA3"), "peft_type 'IA3' is not supported"),
        (lambda folder: change(folder, init_lora_weights="pissa"), "init_lora_weights 'pissa'"),
        (lambda folder: change(folder, r=None), "r must be a positive number"),
        (lambda folder: (folder / CONFIG).write_text("{"), "no readable adapter"),
        (lambda folder: (folder / WEIGHTS).unlink(), "there are no adapters"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x"), "not a readable"),
        (lambda folder: tensors(folder, **{A: None}), "only one of lora_A and lora_B"),
        (lambda folder: tensors(folder, **{A: torch.ones(4, 65)}), r"model: the adapter of .* is \(64, 65\)"),
        (
            lambda folder: tensors(folder, **{A.replace("layers.1", "layers.9"): torch.ones(4, 64)}),
            "another model: it has no model.layers.9.self_attn.q_proj.weight",
        ),
        (
            lambda folder: tensors(folder, **{"base_model.model.lm_head.weight": torch.ones(3, 64)}),
            r"lm_head.weight is \(3, 64\), here \(97, 64\)",
        ),
    ],
)  # fmt: skip
def test_what_is_no_adapter_of_this_model_is_refused(tmp_path: Path, damage: Any, says: str) -> None:
    written(tmp_path, "qwen2")
    damage(tmp_path)
    plain = load_model(tmp_path / "base", torch.float64)
    with pytest.raises(ShunterError, match=says):
        merge_adapter(plain, tmp_path / "adapter")
    before = model("qwen2")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), before.parameters(), strict=True))
    assert plain.spec == spec_of("qwen2")
