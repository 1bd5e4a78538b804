"""An actor whose matrices are cut while it learns and whole while it writes, on gloo ranks.

Equal within rounding to one that is never cut: sums over parts are taken in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from shunter.config.errors import ShunterError
from shunter.layout.generation import Hybrid
from shunter.parallel.mesh import Groups, Peers, ProcessGroups
from shunter.post.judged import settings
from shunter.post.roles.actor import Actor
from shunter.post.roles.models import Critic
from shunter.post.roles.role import Station
from shunter.post.roles.rows import Rows, share
from shunter.post.roles.stage import Play, _settings
from tests.parallel.pool import GROUPS, Pool
from tests.post.roles.small import model_in, play, talks_in


@pytest.fixture(scope="module")
def what(tmp_path_factory: pytest.TempPathFactory) -> Play:
    folder = tmp_path_factory.mktemp("cut")
    return play(model_in(folder), talks_in(folder / "talks"))


def given_prompts() -> Rows:
    ids = [np.array([5, 6 + n, 7, 9 + n]) for n in range(4)]
    return Rows({"ids": ids, "place": [np.array([n]) for n in range(4)]})


def learnt(actor: Actor, shares: tuple[tuple[int, int], tuple[int, int]]) -> dict[str, Any]:
    """Write, learn twice from rewards that are made up, write again. shares: of writing, of learning, as
    (index, count)."""
    written = actor.generate(given_prompts().take(*share(4, 1, shares[0][1], shares[0][0])), step=0)
    told = dict(actor.told)
    first = [ids.tolist() for ids in written["ids"]]
    # What all have written is known here: one step of learning from the same answers for everybody.
    ids = [np.array([11 + n % 5, 30 + n, 12]) for n in range(16)]
    prompts = [given_prompts()["ids"][n // 4] for n in range(16)]
    rows = Rows(
        {
            "prompt": prompts, "ids": ids, "place": [np.array([n]) for n in range(16)],
            "old": [np.full(3, -4.0) for _ in range(16)],
            "reference": [np.full(3, -4.1) for _ in range(16)],
            "advantage": [np.full(3, float(n % 4) - 1.5) for n in range(16)],
        },
        4,
    )  # fmt: skip
    losses = []
    for step in range(2):
        actor.told = {}
        begin, end = share(16, 4, shares[1][1], shares[1][0])
        actor.update(rows.take(begin, end), step=step, epoch=1)
        losses.append((actor.told["loss"], actor.told["grad_norm"], actor.told["gap"]))
    with actor.whole() as decoder:
        weights = {name: p.detach().clone() for name, p in decoder.state_dict().items()}
    actor.save(step=2)
    return {"first": first, "losses": losses, "weights": weights, "told": told}


def station(folder: Path, rank: int, layout: Hybrid, groups: ProcessGroups) -> Station:
    ranks = tuple(range(layout.size))
    everyone = Peers(groups.get(ranks) if dist.is_initialized() else None, ranks, rank)
    return Station("actor", rank, layout, everyone, groups, folder)


def settings_for(what: Play) -> dict[str, Any]:
    return {**_settings("actor", what), "model": str(what.model)}


def on_rank(rank: int, groups: Groups, argument: Any) -> dict[str, Any]:
    given, degrees, folder = argument
    layout = Hybrid(**degrees)
    seat = layout.seat(rank)
    actor = Actor(station(folder, rank, layout, GROUPS), **given)
    found = learnt(actor, ((seat.copy, layout.copies), (seat.d, layout.d)))
    dist.barrier(group=GROUPS.get(range(layout.size)))
    # A second one goes on from what was kept.
    again = Actor(station(folder, rank, layout, GROUPS), **given)
    again.restore(step=2)
    with again.whole() as decoder:
        found["kept"] = all(
            torch.equal(tensor, found["weights"][name]) for name, tensor in decoder.state_dict().items()
        )
    return found


@pytest.mark.parametrize("degrees", [{"t": 2, "d": 2}, {"t": 2, "d": 1}], ids=str)
def test_learning_in_parts_and_writing_whole_is_learning_whole(
    pool: Pool, what: Play, degrees: dict[str, int], tmp_path: Path
) -> None:
    given = settings_for(what)
    alone = Actor(station(tmp_path / "alone", 0, Hybrid(), ProcessGroups()), **given)
    expected = learnt(alone, ((0, 1), (0, 1)))
    layout = Hybrid(**degrees)
    found = pool.run(on_rank, layout.size, (given, degrees, tmp_path / "parts"))
    written = {layout.seat(rank).copy: it["first"] for rank, it in enumerate(found)}
    assert [ids for copy in sorted(written) for ids in written[copy]] == expected["first"]
    for rank in found:
        assert np.allclose(rank["losses"], expected["losses"], rtol=1e-4, atol=1e-6)
        for name, tensor in rank["weights"].items():
            assert torch.allclose(tensor, expected["weights"][name], atol=2e-5), name
        assert rank["told"]["redundant"] == 0
        assert rank["told"]["received"] > 0
        assert rank["kept"]


def test_what_cannot_be_cut_is_refused(what: Play, tmp_path: Path) -> None:
    given = settings_for(what)
    with pytest.raises(ShunterError, match=r"actor cannot have p=2, t=1, tg=1"):
        Actor(station(tmp_path, 0, Hybrid(p=2), ProcessGroups()), **given)
    critic = {**_settings("critic", what), "model": str(what.model)}
    with pytest.raises(ShunterError, match="the actor alone may learn in parts"):
        Critic(station(tmp_path, 0, Hybrid(t=2), ProcessGroups()), **critic)
    assert settings(what.policy, 5).kl > 0
