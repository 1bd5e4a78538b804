"""Layers put aside on a GPU: the same bits, less memory, and copies beside what is computed.

Skipped without CUDA, so ordinary CI shows none of it.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.offload import FLIGHT, offload_layers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SPEC = DecoderSpec(
    vocab_size=512, dim=1024, num_layers=8, num_heads=8, num_kv_heads=8, head_dim=128, ffn_dim=2816,
    max_positions=2048,
)  # fmt: skip
ROUNDS = 4


def run(chosen: list[int], rows: int = 4, *, bf16: bool = True) -> tuple[dict[str, Tensor], int, float]:
    """Gradients of the last of some rounds, most bytes of a round beyond what was there, seconds of one."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Decoder(SPEC)
        tokens = torch.randint(SPEC.vocab_size, (rows, SPEC.max_positions))
    offload_layers([dict(enumerate(model.layers))], chosen, torch.device("cuda"))
    for _ in range(ROUNDS):
        model.zero_grad(set_to_none=False)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, begin = torch.cuda.memory_allocated(), time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16) if bf16 else nullcontext():
            loss = model(tokens).float().square().mean()
        loss.backward()
        torch.cuda.synchronize()
        seconds, most = time.perf_counter() - begin, torch.cuda.max_memory_allocated() - before
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, most, seconds


@pytest.mark.parametrize("bf16", [True, False])
def test_the_same_bits_in_less_memory(bf16: bool) -> None:
    expected, whole, slow = run([], bf16=bf16)
    every = list(range(SPEC.num_layers))
    found, few, seconds = run(every, bf16=bf16)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    half, some, _ = run(every[::2], bf16=bf16)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in half.items())
    one = (whole - few) / (SPEC.num_layers - FLIGHT)  # FLIGHT of them are there at a time
    assert whole - some == pytest.approx((SPEC.num_layers // 2 - FLIGHT) * one, rel=0.25)
    assert few < 0.55 * whole
    print(f"bf16 {bf16}: {whole / 1e6:.0f} MB, {some / 1e6:.0f} half aside, {few / 1e6:.0f} all; "
          f"{1e3 * slow:.1f} ms, {1e3 * seconds:.1f} ms aside")  # fmt: skip
