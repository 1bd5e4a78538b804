"""What runs on a GPU is what runs on the CPU: gradients, mixtures, quantised weights, text, whole steps.

All are skipped without CUDA, so ordinary CI shows none of it. Float32 products are not rounded to TF32 here.
Cannot be shown on one GPU: messages between GPUs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shunter.data.tokens import Batch
from shunter.generate.config import SamplingConfig
from shunter.generate.engine import generate
from shunter.layout.grid import Grid
from shunter.models.decoder import CausalAttention, Decoder
from shunter.models.grouped import grouped_back, grouped_linear, grouped_outer
from shunter.models.packed import PackedWeight
from shunter.models.segments import SegmentPlan, takes_edges
from shunter.models.spec import DecoderSpec
from shunter.parallel.mesh import ProcessGroups
from shunter.record import points
from shunter.surgery.config import AdapterConfig
from shunter.surgery.lora import attach
from shunter.train.checkpoint.lifecycle import Checkpointer
from shunter.train.config import Parallel, TrainConfig
from shunter.train.device import CUBLAS
from shunter.train.objective import CrossEntropy
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass, Passes
from shunter.train.pipeline import LaidOutPasses
from shunter.train.step import count, train_step
from shunter.train.world import World
from tests.train.corpora import decoder, training
from tests.train.layouts import Case, batch

# For deterministic products: it has to stand there before CUDA is used at all.
os.environ.setdefault(CUBLAS, ":4096:8")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STEPS = 6
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
DENSE = {
    "vocab_size": 101, "max_positions": 64, "dim": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 16, "ffn_dim": 96, "tied": True,
}  # fmt: skip
EXPERTS = {"num_experts": 5, "per_token": 2, "ffn_dim": 48, "balance_loss": 0.01, "z_loss": 0.001}
MIXTURE = {**DENSE, "tied": False, "family": "mixtral", "experts": EXPERTS}
SPECS = {"dense": DENSE, "mixture": MIXTURE}


def case(name: str) -> Case:
    return Case(SPECS[name], {}, rows=4, length=48, z_loss=1e-4, ragged=True, seed=3)


def model(name: str, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The same weights everywhere, but for rounding."""
    made = Decoder(DecoderSpec(**SPECS[name])).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return made.to(dtype).to(device)


def gradients(passes: Passes, decoder: Decoder, rows: Batch, z_loss: float) -> dict[str, torch.Tensor]:
    counts, _ = count(passes, CrossEntropy(), [rows])
    passes.gradients([rows], [torch.from_numpy(CrossEntropy().coefficients(rows, counts))], z_loss)
    return {name: p.grad.double().cpu() for name, p in decoder.named_parameters() if p.grad is not None}


def learn(passes: Passes, optimizers: Optimizers, name: str, steps: int) -> list[Any]:
    """What some steps tell, each of other rows."""
    results = []
    for n in range(steps):
        rows = [batch(case(name), n)]
        results.append(train_step(passes, optimizers, CrossEntropy(), rows, step=n, rate=1e-2, clip=0.5))
    return results


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize(("precision", "close"), [("fp32", 2e-5), ("bf16", 6e-2)])
def test_gradients_are_those_of_float64_on_the_cpu(name: str, precision: str, close: float) -> None:
    exact, here = model(name, torch.float64, CPU), model(name, torch.float32, CUDA)
    rows = batch(case(name), 0)
    expected = gradients(OnePass(exact, exact, CPU, "fp32"), exact, rows, 1e-4)
    found = gradients(OnePass(here, here, CUDA, precision), here, rows, 1e-4)
    assert found.keys() == expected.keys()
    for part, theirs in expected.items():
        if precision == "bf16" and "router" in part:
            continue  # a near tie is decided the other way, and with it which experts learn
        apart = (found[part] - theirs).norm() / theirs.norm().clamp_min(1e-9)
        assert apart < (close if name == "dense" or precision == "fp32" else 0.3), part


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_grouped_products_with_empty_groups(dtype: torch.dtype) -> None:
    counts = torch.tensor([0, 7, 0, 33, 1, 0])
    x, weight = torch.randn(41, 64), torch.randn(6, 48, 64)
    grad = torch.randn(41, 48)
    for product, operands in (
        (grouped_linear, (x, weight)), (grouped_back, (grad, weight)), (grouped_outer, (grad, x)),
    ):  # fmt: skip
        expected = product(*(o.double() for o in operands), counts)
        found = product(*(o.to(dtype).to(CUDA) for o in operands), counts.to(CUDA)).double().cpu()
        apart = (found - expected).norm() / expected.norm()
        assert apart < (2e-2 if dtype == torch.bfloat16 else 1e-5), product.__name__


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_packed_weights_read_the_same(kind: Any) -> None:
    weight = torch.randn(70, 96)
    here = PackedWeight(weight, kind)
    there = PackedWeight(weight.to(CUDA), kind)
    # Quantised there, a code may be rounded the other way.
    other = (there.codes.cpu() != here.codes).double().mean()
    assert other < (0 if kind == "nf4" else 1e-2) + 1e-9
    expected = here.weight(torch.float32)
    torch.testing.assert_close(here.to(CUDA).weight(torch.float32).cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_adapters_learn(quantise: Any) -> None:
    losses = []
    for device in (CPU, CUDA):
        part = model("dense", torch.float32, CPU)
        attach(part, AdapterConfig(rank=4, quantise=quantise), 0)
        part.to(device)
        optimizers = Optimizers(part, TrainConfig(steps=STEPS, optimizer="adamw", lr=1e-2))
        passes = OnePass(part, part, device, "fp32")
        losses.append([result.loss for result in learn(passes, optimizers, "dense", STEPS)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1][-1] != losses[1][0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", list(SPECS))
def test_one_rank_on_nccl_is_one_process(name: str, optimizer: Any, tmp_path: Path) -> None:
    """The laid-out form of all ones, its collectives on NCCL."""
    dist.init_process_group("nccl", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        world = World.create(Grid(), 0, CUDA, ProcessGroups())
        told = []
        for laid in (False, True):
            part = model(name, torch.float32, CUDA)
            passes: Any = OnePass(part, part, CUDA, "fp32")
            if laid:
                passes = LaidOutPasses(part, Parallel(pp=1, microbatches=1), world, 48)
            config = TrainConfig(steps=STEPS, optimizer=optimizer)
            optimizers = Optimizers(part, config, passes.part if laid else None)
            told.append([vars(result) for result in learn(passes, optimizers, name, STEPS)])
        for alone, other in zip(*told, strict=True):
            for key in ("loss", "grad_norm"):
                # Muon makes its update in bfloat16.
                assert other[key] == pytest.approx(alone[key], rel=1e-4 if optimizer == "adamw" else 5e-3), (
                    key
                )
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", list(SPECS))
def test_greedy_text_is_the_cpus(name: str) -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
    config = SamplingConfig(max_new_tokens=24, temperature=0.0)
    here = generate(model(name, torch.float32, CPU), prompts, config)
    there = generate(model(name, torch.float32, CUDA), prompts, config)
    for a, b in zip(here, there, strict=True):
        assert a.ids == b.ids
        assert b.logprobs == pytest.approx(a.logprobs, abs=1e-4)


def test_drawn_text_is_the_same_on_both() -> None:
    config = SamplingConfig(max_new_tokens=24, temperature=0.9, top_k=20)
    texts = [
        [one.ids for one in generate(model("dense", torch.float32, device), [[1, 2], [3]], config, seed=5)]
        for device in (CPU, CUDA)
    ]
    assert texts[0] == texts[1]


def test_a_compiled_step_is_the_eager_one() -> None:
    losses = []
    for compiled in (False, True):
        part = model("dense", torch.float32, CUDA)
        called: Any = torch.compile(part) if compiled else part
        passes = OnePass(called, part, CUDA, "bf16")
        optimizers = Optimizers(part, TrainConfig(steps=STEPS, optimizer="adamw"))
        losses.append([result.loss for result in learn(passes, optimizers, "dense", STEPS)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("mask_up_to", [0, 1024])
def test_documents_by_their_edges_are_those_of_the_masks(window: int | None, mask_up_to: int) -> None:
    draw = torch.Generator().manual_seed(2)
    segments = torch.tensor([[0] * 7 + [1] * 30 + [2] * 20 + [-1] * 7, [0] * 64, [0] + [1] * 63])
    q, k, v, w = (torch.randn(3, 2, 64, 16, generator=draw, dtype=torch.float64) for _ in range(4))
    real = (segments >= 0)[:, None, :, None]
    found = {}
    for name, device, dtype in (("exact", CPU, torch.float64), ("here", CUDA, torch.bfloat16)):
        plan = SegmentPlan.build(segments.to(device), mask_up_to if device == CUDA else 0)
        here = [x.detach().to(device, dtype).requires_grad_() for x in (q, k, v)]
        assert takes_edges(here[2], plan) == (name == "here")
        out = CausalAttention(window)(*here, plan, None)
        (out * (w * real).to(device, dtype)).sum().backward()
        grads = [x.grad.double().cpu() for x in here if x.grad is not None]
        found[name] = [out.detach().double().cpu() * real, *grads]
    for here_, exact in zip(found["here"], found["exact"], strict=True):
        torch.testing.assert_close(here_, exact, rtol=0.05, atol=0.05)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_goes_on_from_a_checkpoint_of_the_gpu(tmp_path: Path, optimizer: str) -> None:
    """To the bit on the GPU, and within rounding on the CPU."""

    def kill(point: str, facts: dict[str, Any]) -> None:
        if point == "train.update" and facts["step"] == 6:
            raise Killed

    ended = {}
    for name, after in (("whole", None), ("again", "cuda"), ("moved", "cpu")):
        config, how = {"optimizer": optimizer}, {"device": "cuda", "deterministic": True}
        if after is not None:
            points.install(kill)
            with pytest.raises(Killed):
                training(tmp_path / name, config, how).run()
            points.install(None)
            how["device"] = after
        last = training(tmp_path / name, config, how, model=decoder(seed=7 if after else 0))
        last.run()
        ended[name] = {key: p.detach().cpu() for key, p in last.decoder.named_parameters()}
    torch.use_deterministic_algorithms(False)
    for key, weight in ended["whole"].items():
        assert torch.equal(ended["again"][key], weight), key
        apart = (ended["moved"][key] - weight).norm() / weight.norm()
        assert apart < (1e-4 if optimizer == "adamw" else 2e-2), key


def test_a_save_beside_the_steps_has_the_values_of_its_moment(tmp_path: Path) -> None:
    """Copies to pinned memory are queued before what changes the values next."""
    keeper, whole = Checkpointer(tmp_path), torch.arange(1 << 22, dtype=torch.float32)
    state = {"a": whole.to(CUDA), "turned": whole.view(2048, 2048).to(CUDA).T}
    keeper.save_later(1, state, {})
    for tensor in state.values():
        tensor.zero_()
    keeper.wait()
    found = {"a": torch.empty(1 << 22), "turned": torch.empty(2048, 2048)}
    keeper.load(1, found)
    assert torch.equal(found["a"], whole)
    assert torch.equal(found["turned"], whole.view(2048, 2048).T)
