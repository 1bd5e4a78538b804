"""Layers that are computed again: the same bits, each layer once more, and less held meanwhile.

Under layouts: tests/train/test_layouts.py draws them. What this cannot show: kernels of a GPU, and the memory
that `selective` keeps outside of autograd's saved tensors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec
from shunter.parallel.recompute import recompute_layer
from shunter.train.config import Parallel
from shunter.train.layout_check import check_layout

SPEC = DecoderSpec(
    vocab_size=31, dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, ffn_dim=24, max_positions=16
)
TOKENS = torch.arange(24).view(2, 12) % 31


class Operations(TorchDispatchMode):
    """Counts what is done, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.count[name] = self.count.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def run(again: str | list[int]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Gradients, and the operations of the backward."""
    torch.manual_seed(0)
    model = Decoder(SPEC)
    for number in range(3) if isinstance(again, str) else again:
        recompute_layer(model.layers[number], selective=again == "selective")
    loss = model(TOKENS).square().sum()
    with Operations() as done:
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, done.count


def test_gradients_are_the_same_bits_and_only_what_is_cheap_is_done_again() -> None:
    expected, plain = run([])
    products = ("mm", "_scaled_dot_product_flash_attention_for_cpu", "silu")
    for again, more in (
        ("full", (3 * 3, 3, 3)),  # of four products of a layer the last is not needed again
        ("selective", (0, 0, 3)),
        ([1], (3, 1, 1)),
    ):
        found, done = run(again)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items()), again
        assert [done.get(name, 0) - plain.get(name, 0) for name in products] == list(more), again


def test_a_layer_that_is_not_learnt_from_is_computed_once() -> None:
    model = Decoder(SPEC)
    plain = model(TOKENS).detach()
    for layer in model.layers:
        recompute_layer(layer)
    with torch.no_grad(), Operations() as done:
        torch.testing.assert_close(model(TOKENS), plain)  # norms round otherwise without a graph
    assert done.count["mm"] == 4 * 3


@pytest.mark.parametrize(
    ("chosen", "mend"), [([0, 3], "from 0 to 2"), ([1, 1], "each once"), ([-1], "0 to 2")]
)
def test_what_is_no_layer_is_refused(chosen: list[int], mend: str) -> None:
    parallel = Parallel.model_validate({"recompute": chosen, "microbatches": 1})
    with pytest.raises(ShunterError, match="does not name layers of 3") as caught:
        check_layout(SPEC, parallel, parallel.order())
    assert mend in str(caught.value.mend)
    assert parallel.grid == Grid()
