"""Import and export against transformers: every tensor redrawn, positions past the original context.

Default initialisation hides missing biases, norms and rope scaling (ones, zeros, short contexts), so each
tensor is drawn from N(0, 0.3). transformers takes RMSNorm's mean, routers' probabilities and the rotary
angles in float32 even in a float64 model; the fixture `exact` lifts the norm to float64, so that what is left
is rounding alone (at most 1.3e-7, with experts as without).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shunter.config.errors import ShunterError
from shunter.models.decoder import Decoder
from shunter.models.families import family_of, from_config, to_config
from shunter.models.hf import load_model, open_model, read_spec, save_model
from shunter.models.spec import RopeSpec
from tests.models.small import CASES, LENGTH, redraw, spec_of


def tokens() -> torch.Tensor:
    return torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' RMSNorm in the dtype of its input."""
    import transformers.models.glm4_moe.modeling_glm4_moe as glm4_moe
    import transformers.models.llama.modeling_llama as llama
    import transformers.models.mistral.modeling_mistral as mistral
    import transformers.models.mixtral.modeling_mixtral as mixtral
    import transformers.models.qwen2.modeling_qwen2 as qwen2
    import transformers.models.qwen3.modeling_qwen3 as qwen3
    import transformers.models.qwen3_moe.modeling_qwen3_moe as qwen3_moe

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    for norm in (
        llama.LlamaRMSNorm, mistral.MistralRMSNorm, qwen2.Qwen2RMSNorm, qwen3.Qwen3RMSNorm,
        mixtral.MixtralRMSNorm, qwen3_moe.Qwen3MoeRMSNorm, glm4_moe.Glm4MoeRMSNorm,
    ):  # fmt: skip
        monkeypatch.setattr(norm, "forward", forward)


def theirs(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    kind = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **kind)
    return model.double().eval()


def gap(ours: Decoder, other: torch.nn.Module) -> float:
    """Largest difference of logits, relative to the largest logit."""
    ids = tokens()
    with torch.no_grad():
        expected = other(ids, use_cache=False).logits
        found = ours.logits(ours(ids))
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", CASES)
def test_export_is_what_transformers_computes(name: str, tmp_path: Path) -> None:
    ours = Decoder(spec_of(name)).double()
    redraw(ours)
    save_model(ours, tmp_path)
    assert gap(ours, theirs(tmp_path)) < 1e-6


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", CASES)
def test_import_of_what_transformers_saved(name: str, tmp_path: Path) -> None:
    save_model(Decoder(spec_of(name)).double(), tmp_path / "shape")
    other = theirs(tmp_path / "shape")
    redraw(other, seed=2)
    other.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1, "not sharded"
    assert read_spec(tmp_path / "theirs") == spec_of(name).model_copy(
        update={"rope": read_spec(tmp_path / "theirs").rope}
    )
    assert gap(load_model(tmp_path / "theirs", torch.float64), other) < 1e-6


MUTATIONS = {
    "a bias": ("qwen2", "attention.qkv.bias", None),
    "a query norm": ("qwen3", "attention.q_norm.weight", None),
    "a block's norm": ("llama2", "ffn_norm.weight", None),
    "the last norm": ("llama2", "norm.weight", None),
    "the scaling": ("llama3", None, {"rope": RopeSpec(theta=500000.0)}),
    "the factor of yarn": (
        "llama-yarn",
        None,
        {"rope": RopeSpec(scaling="yarn", factor=2.0, original_positions=16)},
    ),
    "theta": ("qwen2", None, {"rope": RopeSpec(theta=10000.0)}),
    "the window": ("mistral-window", None, {"sliding_window": None}),
    "the offset of the norm": ("llama-wide-heads", None, {"norm_eps": 1e-6}),
    "a router": ("mixtral", "ffn.router.weight", None),
    "an expert's gate": ("mixtral", "ffn.experts.gate_up", None),
    "an expert's way back": ("qwen3-moe", "ffn.experts.down", None),
    "the number of experts a token": ("mixtral", None, {"experts": {"per_token": 1}}),
    "the norm of probabilities": ("qwen3-moe", None, {"experts": {"normalise": True}}),
    "the bias of the choice": ("glm4-moe", "ffn.router.bias", None),
    "the shared expert": ("glm4-moe-bias", "ffn.shared.down.weight", None),
    "the scale": ("glm4-moe", None, {"experts": {"scale": 1.0}}),
}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("what", MUTATIONS)
def test_dropping_a_part_fails_the_parity(what: str, tmp_path: Path) -> None:
    """The parity above is able to fail: each part matters to it."""
    name, parameter, update = MUTATIONS[what]
    ours = Decoder(spec_of(name)).double()
    redraw(ours)
    save_model(ours, tmp_path)
    other = theirs(tmp_path)
    update = dict(update or {})
    if "experts" in update:
        update["experts"] = spec_of(name).experts.model_copy(update=update["experts"])
    broken = Decoder(spec_of(name).model_copy(update=update)).double()
    broken.load_state_dict(ours.state_dict())
    if parameter is not None:
        with torch.no_grad():
            for key, value in broken.state_dict().items():
                if key.endswith(parameter):
                    value.fill_(0.0 if key.endswith("bias") else 1.0)
    assert gap(ours, other) < 1e-6
    assert gap(broken, other) > 1e-4


@pytest.mark.parametrize("name", ["llama2", "qwen2-yarn-tied", "qwen3", "qwen3-moe-some-dense", "glm4-moe"])
def test_saving_and_loading_keeps_every_bit(name: str, tmp_path: Path) -> None:
    ours = Decoder(spec_of(name))
    redraw(ours)
    for limit in (10**9, 50_000):
        folder = tmp_path / str(limit)
        save_model(ours, folder, max_shard_bytes=limit)
        assert read_spec(folder) == spec_of(name)
        again = load_model(folder)
        assert again.state_dict().keys() == ours.state_dict().keys()
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())
    assert len(list((tmp_path / "50000").glob("*.safetensors"))) > 3
    opened, fill = open_model(tmp_path / "50000")
    for key, value in opened.state_dict().items():
        assert value.is_meta
        whole = torch.full_like(value, float("nan"), device="cpu")
        fill(key, whole)
        assert torch.equal(whole, ours.state_dict()[key]), key
    low = load_model(tmp_path / "50000", torch.bfloat16)
    assert low.embed.weight.dtype == torch.bfloat16
    assert all(buffer.dtype == torch.float32 for buffer in low.buffers())


def test_generation_config_and_stored_dtype(tmp_path: Path) -> None:
    ours = Decoder(spec_of("llama2"))
    save_model(ours, tmp_path, dtype=torch.bfloat16, eos_token_id=[5, 7], pad_token_id=1)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [5, 7]
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_file(tmp_path / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


def test_a_bias_keeps_single_precision(tmp_path: Path) -> None:
    save_model(Decoder(spec_of("glm4-moe-bias")), tmp_path, dtype=torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    wide = {name for name, kind in kinds.items() if kind == torch.float32}
    assert wide == {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (0, 1)}


def test_older_rope_keys_are_read() -> None:
    config = to_config(spec_of("llama3"))
    del config["rope_parameters"]
    assert from_config(config, "x").rope == spec_of("llama3").rope
    config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    assert from_config(config, "x").rope == spec_of("llama3").rope


def test_the_family_is_one_that_can_express_the_model() -> None:
    spec = spec_of("llama2")
    assert family_of(spec.model_copy(update={"qk_norm": True})) == "qwen3"
    assert family_of(spec.model_copy(update={"sliding_window": 4})) == "mistral"
    experts = spec_of("mixtral").experts
    assert family_of(spec.model_copy(update={"experts": experts})) == "mixtral"
    assert family_of(spec.model_copy(update={"experts": experts, "qk_norm": True})) == "qwen3_moe"
    with pytest.raises(ShunterError, match="no Hugging Face architecture here has qkv_bias and qk_norm"):
        family_of(spec.model_copy(update={"qk_norm": True, "qkv_bias": True}))
