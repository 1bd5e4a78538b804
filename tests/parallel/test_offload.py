"""Layers whose inside waits in the host's memory: the same bits, and the device holds two of them at most.

Under layouts: tests/train/test_layouts.py draws them. What this cannot show: on a CPU copies are made at
once; that they run beside a GPU's computation, and in what order its memory is used again, tests/cuda shows.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from shunter.config.errors import ShunterError
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel import offload
from shunter.parallel.live import LiveBytes
from shunter.parallel.offload import FLIGHT, offload_layers
from shunter.train.config import Parallel
from shunter.train.layout_check import check_layout

LAYERS = 10
SPEC = DecoderSpec(
    vocab_size=31,
    dim=16,
    num_layers=LAYERS,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    ffn_dim=24,
    max_positions=64,
)
CPU = torch.device("cpu")
TOKENS = torch.arange(96).view(2, 48) % 31


def run(
    chosen: list[int], *, bf16: bool = False, live: LiveBytes | None = None, frozen: bool = False
) -> tuple[dict[str, Tensor], int]:
    """Gradients, and bytes that were alive after the forward beyond those before it."""
    torch.manual_seed(0)
    model = Decoder(SPEC)
    if frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("ffn" in name)
    offload_layers([dict(enumerate(model.layers))], chosen, CPU)
    with live or nullcontext():
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
            loss = model(TOKENS).square().sum()
        held = live.now if live is not None else 0
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, held


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chosen", [[3], [0, 2, 5], list(range(LAYERS))])
def test_gradients_are_the_same_bits(chosen: list[int], bf16: bool, frozen: bool) -> None:
    expected, _ = run([], bf16=bf16, frozen=frozen)
    found, _ = run(chosen, bf16=bf16, frozen=frozen)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_the_device_holds_what_stays_and_two_layers_that_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies in the host's memory are made unseen here: on a CPU they would be counted as the device's."""

    def unseen(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        with _disable_current_modes():
            return storage.clone()

    monkeypatch.setattr(offload, "to_host", unseen)
    whole, most = LiveBytes(), LiveBytes()
    _, every = run([], live=whole)
    _, few = run(list(range(LAYERS)), live=most)
    one = (every - few) / LAYERS  # all are alike
    assert one > 0.5 * every / LAYERS
    # A layer of which nothing is put aside keeps as much as any other.
    _, half = run([1, 3, 5], live=LiveBytes())
    assert every - half == pytest.approx(3 * one, rel=0.05)
    gradients = sum(4 * p.numel() for p in Decoder(SPEC).parameters())
    # Backwards FLIGHT layers are there at once, and gradients besides: of parameters, and inside a layer.
    assert most.peak < few + gradients + (FLIGHT + 2) * one < whole.peak


def test_a_micro_batch_s_layers_come_back_for_it_and_not_for_another() -> None:
    """Two in flight at once, backward in the other order, as schedules have them."""
    torch.manual_seed(0)
    model = Decoder(SPEC)
    inputs = [TOKENS, TOKENS.flip(0)]
    expected = []
    for tokens in inputs:
        model.zero_grad()
        model(tokens).square().sum().backward()
        expected.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    offload_layers([dict(enumerate(model.layers))], [0, 1, 4, 5], CPU)
    for order in ([0, 1], [1, 0]):
        losses = [model(tokens).square().sum() for tokens in inputs]
        for number in order:
            model.zero_grad()
            losses[number].backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    assert torch.equal(parameter.grad, expected[number][name])


def test_an_address_that_is_used_again_is_another_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that is gone, and one in its place, within one layer: the second has bytes of its own."""
    aside = offload.Aside(CPU)
    bundle = aside.begin(True)
    first = torch.full((1000,), 1.0)
    saved = [bundle.put(first)]
    place = first.untyped_storage()._cdata
    del first
    for _ in range(50):
        again = torch.full((1000,), 2.0)
        saved.append(bundle.put(again))
        if again.untyped_storage()._cdata == place:
            break
    assert float(bundle.take(saved[0]).sum()) == 1000
    assert all(float(bundle.take(each).sum()) == 2000 for each in saved[1:])


def test_a_tensor_that_is_changed_after_it_was_kept_is_kept_as_it_was() -> None:
    bundle = offload.Aside(CPU).begin(True)
    tensor = torch.ones(8)
    one = bundle.put(tensor)
    tensor.add_(1)
    other = bundle.put(tensor[2:4])
    assert bundle.take(one).tolist() == [1.0] * 8
    assert bundle.take(other).tolist() == [2.0] * 2


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"offload": [0, 10]}, r"offload \[0, 10\] does not name layers of 10", "from 0 to 9, or write true"),
    ({"offload": [2], "recompute": [1, 2]}, "layer 2 is both put aside and computed again", "in offload or"),
    ({"offload": True, "recompute": "full"}, "layer 0 is both", "in offload or in recompute"),
    ({"offload": [1], "recompute": True}, "keeps nothing between forward and backward", "Leave one of"),
]


@pytest.mark.parametrize(("written", "says", "mend"), REFUSED)
def test_what_is_of_no_use_is_refused(written: dict[str, Any], says: str, mend: str) -> None:
    parallel = Parallel.model_validate({**written, "microbatches": 1})
    with pytest.raises(ShunterError, match=says) as caught:
        check_layout(SPEC, parallel, parallel.order())
    assert mend in str(caught.value.mend)
