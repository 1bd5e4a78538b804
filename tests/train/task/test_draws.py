"""Dropout's masks: an example's own, made for a whole batch at once.

What this cannot show: more of their quality than that bits are as often set as not, and no two streams alike.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shunter.parallel.mesh import Peers
from shunter.train.task import draws
from shunter.train.task.draws import Draws, Dropout

CPU = torch.device("cpu")


def dropped(examples: list[int], shape: tuple[int, ...], p: float = 0.5, **more: object) -> torch.Tensor:
    with Dropout(Draws(1, 5, examples, CPU), **more):  # type: ignore[arg-type]
        return F.dropout(torch.ones(shape), p)


def test_numbers_are_splitmix64_s() -> None:
    """The published generator's first three outputs from seed 0."""
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    found = draws._mixed(torch.zeros(1, 1, dtype=torch.int64), torch.arange(1, 4))
    assert found[0].tolist() == [each >> 40 for each in known]


def test_a_mask_is_the_example_s_own_in_any_batch_and_along_any_dim() -> None:
    both = dropped([7, 9], (2, 40))
    assert torch.equal(dropped([9], (1, 40))[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert torch.equal(dropped([7, 9], (40, 2), rows=[1]), both.T)
    # Two rows each: heads of an example, say.
    assert torch.equal(dropped([7, 9], (4, 20)), both.view(4, 20))


@pytest.mark.parametrize("cut", [-1, -2])
def test_a_part_of_what_is_dropped_has_a_part_of_its_mask(cut: int) -> None:
    whole = dropped([7, 9, 11], (3, 6, 8))
    parts = []
    for index in range(2):
        shape = [3, 6, 8]
        shape[cut] //= 2
        peers = Peers(None, (0, 1), index)
        parts.append(dropped([7, 9, 11], tuple(shape), peers=peers, cuts=[cut]))
    assert torch.equal(torch.cat(parts, cut), whole)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_should_be(p: float) -> None:
    found = dropped(list(range(64)), (64, 4096), p)
    kept = (found > 0).float()
    assert found.max().item() == pytest.approx(1 / (1 - p))
    deviation = (p * (1 - p) / found.numel()) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 5 * deviation
    # Neither do examples move together, nor neighbours within one.
    rows = (kept - kept.mean()) / kept.std()
    between = rows @ rows.T / rows.shape[1]
    assert between.fill_diagonal_(0).abs().max() < 0.1
    assert abs((rows[:, 1:] * rows[:, :-1]).mean().item()) < 0.01


def test_bits_are_as_often_set_as_not() -> None:
    drawn = Draws(1, 5, [3, 4], CPU).uniform_at_once(1 << 16, "some")
    for bit in range(draws.BITS):
        assert (drawn >> bit & 1).double().mean().item() == pytest.approx(0.5, abs=0.01)
