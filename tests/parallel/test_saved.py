"""Bytes held for backwards: counted once, and gone after the backward."""

from __future__ import annotations

import torch
from torch import nn

from shunter.parallel.saved import SavedBytes
from shunter.parallel.stage import LOSS, Stage


def test_counts_what_is_saved_until_the_backward() -> None:
    layer = nn.Linear(4, 8)
    saved = SavedBytes(layer.parameters())
    x = torch.randn(3, 4, requires_grad=True)
    with saved:
        y = layer(x)
        z = torch.tanh(y)  # saves its result
        w = z * z  # the same once more
    assert saved.now == saved.peak == 4 * (3 * 4 + 3 * 8)
    w.sum().backward()
    del w, z, y
    assert saved.now == 0
    assert saved.peak == 4 * (3 * 4 + 3 * 8)


def test_a_light_forward_holds_its_inputs_only() -> None:
    module = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4))
    found = {}
    for light in (False, True):
        stage = Stage(lambda inputs, m: {LOSS: module(inputs["x"]).square().sum()}, module)
        stage.saved = saved = SavedBytes(module.parameters())
        for microbatch in range(4):
            stage.forward(microbatch, {"x": torch.randn(2, 4)}, light=light)
        held = saved.now
        for microbatch in range(3, -1, -1):
            if light:
                stage.recompute(microbatch)
            stage.backward(microbatch, {})
        assert saved.now == 0
        found[light] = held, saved.peak
    inputs, inside = 4 * 2 * 4, found[False][0] // 4
    assert found[True] == (4 * inputs, 3 * inputs + inside)
