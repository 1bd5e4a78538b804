"""What passes between stages under tensor parallelism: cut on the wire, whole where it is computed with.

What this cannot show: what a real machine's links do with it.
"""

from __future__ import annotations

import numpy as np
import pytest

from shunter.cluster import files
from shunter.layout.grid import Grid
from shunter.plan import communication
from shunter.plan.choices import Choices, Question
from shunter.plan.estimate import costs
from shunter.plan.fabric import Fabric
from shunter.plan.practice import Coefficients, practice
from shunter.plan.presets import preset
from shunter.plan.score import predict


def question(practised: str) -> Question:
    fabric = Fabric.of(files.find("4x8xa100-80"))
    return Question(preset("gpt-18b"), fabric, 64, 2048, practice(practised), Coefficients())


def sent(practised: str, **degrees: int) -> communication.Messages:
    nothing = np.zeros(1)
    return communication.messages(question(practised), Choices.one(Grid(**degrees), 2), nothing, nothing)


def test_what_came_in_parts_is_gathered_before_it_is_computed_with() -> None:
    """arXiv 2104.04473, section 4.1: a slice of each tensor rank over the network, the rest within the
    node."""
    found = sent("megatron-2021", pp=4, tp=8)
    whole = np.array([2.0 * 2 * 2048 * 6144])
    eight = np.array([8])
    assert found.received == pytest.approx(
        communication.ring(question("megatron-2021"), np.array([1]), eight, whole)
    )
    assert 0 < found.received < found.tensor  # a layer's two sums each send twice that
    for practised, degrees in (
        ("megatron-2021", {"pp": 4, "dp": 8}),
        ("megatron-2021", {"tp": 8, "dp": 4}),
        ("torchtitan", {"pp": 4, "tp": 8}),  # each tensor rank goes on with its own tokens
    ):
        assert sent(practised, **degrees).received == 0


def test_each_stage_gathers_what_it_is_sent() -> None:
    """Forward all stages but the first, backward all but the last."""
    asked, choice = question("megatron-2021"), Choices.one(Grid(pp=4, tp=8), 2)
    found, cost = predict(asked, choice), costs(asked, choice, asked.fabric.device)
    each, layer, ends = float(cost.messages.received[0]), cost.dense, cost.messages.end
    ahead, behind = (10 * float(one.both[0]) for one in (layer.forward, layer.backward))
    assert found.bounds == (0, 10, 20, 30, 40)
    assert found.forward[1:3] == pytest.approx([ahead + each] * 2)
    assert found.backward[1:3] == pytest.approx([behind + each] * 2)
    assert found.forward[0] == pytest.approx(ahead + float((cost.embedding.forward + ends)[0]))
    assert found.backward[3] == pytest.approx(behind + float((cost.head.backward + ends)[0]))
