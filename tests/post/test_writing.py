"""What a process that writes does with its messages, and the weights in them.

That it writes what it should is shown in tests/jobs/test_beside_rl.py.
"""

from __future__ import annotations

import queue
from collections import deque
from typing import Any

import pytest
import torch
from torch import nn

from shunter.post.roles import wire
from shunter.post.writers import arrays, load, snapshot, tensors
from shunter.post.writing import Writing


def test_weights_that_newer_ones_replace_before_anything_is_asked_are_left_out() -> None:
    writing = Writing.__new__(Writing)
    writing.told, writing.next, writing.over = queue.SimpleQueue(), deque(), False
    said = ["1", "2", "ask", "3", "ask", "ask", "4", "5", "6"]
    for each in said:
        writing.told.put({"do": "ask"} if each == "ask" else {"do": "weights", "version": each})
    heard: list[Any] = []
    while writing._asked():
        message = writing._message()
        heard.append(message.get("version", "ask"))
    assert heard == ["2", "ask", "3", "ask", "ask", "6"]
    writing.end()
    assert writing._message()["do"] == "nothing"
    assert writing.over


def model() -> nn.Module:
    made = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, dtype=torch.bfloat16))
    made.get_parameter("0.weight").requires_grad_(False)
    return made


def test_weights_are_sent_in_their_own_bits_and_frozen_ones_not_at_all() -> None:
    mine, theirs = model(), model()
    theirs.state_dict()["0.weight"].copy_(mine.state_dict()["0.weight"])  # as both began with it
    weights = snapshot(mine)
    assert weights.keys() == mine.state_dict().keys() - {"0.weight"}
    header, body = wire.encode(arrays(weights))
    size = sum(value.nbytes for value in weights.values())
    assert sum(part.nbytes for part in body) == size, "bfloat16 takes two bytes"
    sent = wire.decode(header, bytearray(b"".join(body)))
    load(theirs, tensors(sent, theirs))
    for name, value in mine.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    mine.state_dict()["0.bias"].zero_()
    assert weights["0.bias"].abs().sum() > 0, "nobody changes what was taken"


def test_weights_of_another_model_are_refused() -> None:
    weights = snapshot(model())
    with pytest.raises(ValueError, match=r"of another model: 0\.bias"):
        load(model(), {name: value for name, value in weights.items() if name != "0.bias"})
    with pytest.raises(ValueError, match="of another model: more"):
        load(model(), {**weights, "more": torch.zeros(1)})
