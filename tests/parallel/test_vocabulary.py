"""Vocabulary Parallelism on real processes: loss and gradients of one process, whoever holds what."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shunter.models.decoder import Decoder
from shunter.models.head import linear_cross_entropy
from shunter.models.segments import SegmentPlan
from shunter.models.spec import DecoderSpec
from shunter.parallel.decoder import Rows, decoder_stages
from shunter.parallel.executor import Executor
from shunter.parallel.lost import PeerLost
from shunter.parallel.mesh import Groups
from shunter.parallel.side import Side
from shunter.parallel.stage import Stage
from shunter.parallel.tree import Tree
from shunter.parallel.vocabulary import VocabularyPart, vocabulary_rows
from shunter.schedule.action import WEIGHT
from shunter.schedule.assemble import assemble
from shunter.schedule.builders.single import forward_waves
from shunter.schedule.catalogue import schedule
from shunter.schedule.lower import lower
from shunter.schedule.order import Order
from shunter.schedule.vocabulary import parallel_vocabulary
from tests.parallel.pool import Pool

CPU = torch.device("cpu")
VOCABULARY, LENGTH, Z = 37, 12, 0.01  # 37 rows: no number of ranks divides them


def model(case: dict[str, Any]) -> Decoder:
    spec = DecoderSpec(
        vocab_size=VOCABULARY, dim=16, num_layers=case["layers"], num_heads=2, num_kv_heads=1, head_dim=8,
        ffn_dim=24, max_positions=LENGTH, tied=case["tied"],
    )  # fmt: skip
    decoder = Decoder(spec).double()
    draw = torch.Generator().manual_seed(case["seed"])
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            # Logits of about +-1e4 where `extreme`: exp of them overflows unless the maximum is global.
            far = 2000.0 if case["extreme"] and name in ("head.weight", "norm.weight") else 0.3
            parameter.copy_(far * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return decoder


def rows_of(case: dict[str, Any]) -> list[Rows]:
    """Micro-batches of different sizes; targets within `only`, one of them without any weight."""
    draw = torch.Generator().manual_seed(case["seed"] + 1)
    low, high = case["only"]
    found = []
    for microbatch in range(case["microbatches"]):
        shape = (1 + microbatch % 2, LENGTH)
        weights = torch.randn(shape, generator=draw, dtype=torch.float64)
        weights *= torch.rand(shape, generator=draw) < (0.0 if microbatch == 1 else 0.7)
        found.append(
            Rows(
                torch.randint(VOCABULARY, shape, generator=draw),
                torch.arange(LENGTH).expand(shape),
                torch.randint(low, high, shape, generator=draw).masked_fill_(weights == 0, -1),
                weights,
                SegmentPlan.build(torch.zeros(shape, dtype=torch.int64)),
                Z,
            )
        )
    return found


def order_of(case: dict[str, Any]) -> Order:
    """The schedule's, its ranks renamed so that any of them may have the ends."""
    order = schedule(case["schedule"]).build(case["ranks"], case["microbatches"])
    names = case["names"]
    actions = [order.actions[names.index(rank)] for rank in range(case["ranks"])]
    placement = tuple(names[rank] for rank in order.placement)
    return Order(placement, tuple(actions), case["microbatches"])


def task(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    """Gradients of a second step (buffers are used again), its losses, and those without gradients."""
    decoder, rows, order = model(case), rows_of(case), order_of(case)
    layers, stages = case["layers"], order.stages
    cut = [number * layers // stages for number in range(stages + 1)]
    mine = [stage for stage, holder in enumerate(order.placement) if holder == rank]
    begin, end = vocabulary_rows(VOCABULARY, rank, case["ranks"])
    ends = [module for module in (decoder.embed, decoder.head) if module is not None]
    for module in ends:
        module.weight = nn.Parameter(module.weight.detach()[begin:end].clone())
    pieces = [name for name, p in decoder.named_parameters() if any(p is m.weight for m in ends)]
    part = VocabularyPart(
        decoder.embed.weight,
        decoder.head_weight,
        begin,
        groups,
        rank,
        order.placement[0],
        order.placement[-1],
        rows.__getitem__,
        algorithm=case["algorithm"],
    )
    halves = any(action.op == WEIGHT for actions in order.actions for action in actions)
    modules = decoder_stages(decoder, cut, mine, layers_only=True)

    def stage_of(number: int) -> Stage:
        module = modules[number]

        def compute(inputs: Tree, microbatch: int) -> Tree:
            made: Tree = module(inputs, rows[microbatch])
            return made

        return Stage(compute, module, defer=halves)

    own = {number: stage_of(number) for number in mine}
    told = []
    for train, base in ((True, order), (False, forward_waves(order.placement, case["microbatches"]))):
        program = lower(assemble(parallel_vocabulary(base, case["algorithm"])))
        executor = Executor(program, rank, own, groups, CPU, handlers=part.handlers())
        for _ in range(2):
            if train:
                decoder.zero_grad()
            part.prepare(train)
            executor.run(lambda microbatch: len(rows[microbatch].tokens))
            losses = {microbatch: loss.item() for microbatch, loss in part.losses.items()}
            part.drop()
        told.append(losses)
    owned = {name for module in modules.values() for name in module.owned()} | set(pieces)
    return {name: p.grad for name, p in decoder.named_parameters() if name in owned}, pieces, told


def reference(case: dict[str, Any]) -> tuple[dict[str, Tensor | None], list[float]]:
    decoder, losses = model(case), []
    for rows in rows_of(case):
        hidden = decoder(rows.tokens, rows.positions, rows.plan)
        loss, _ = linear_cross_entropy(
            hidden.flatten(0, 1), decoder.head_weight, rows.targets.flatten(), rows.coefficients.flatten(),
            z_loss=Z,
        )  # fmt: skip
        loss.backward()
        losses.append(loss.item())
    return {name: p.grad for name, p in decoder.named_parameters()}, losses


def compare(pool: Pool, case: dict[str, Any]) -> None:
    gradients, losses = reference(case)
    found: dict[str, Tensor] = {}
    pieces: dict[str, list[Tensor]] = {}
    told: list[dict[int, float]] = [{}, {}]
    for mine, cut, numbers in pool.run(task, case["ranks"], case):
        for name, gradient in mine.items():
            if name in cut:
                assert len(gradient) == cut[name].end - cut[name].begin
                pieces.setdefault(name, []).append(gradient)
            else:
                found[name] = gradient
        for into, some in zip(told, numbers, strict=True):
            into.update(some)
    found |= {name: torch.cat(parts) for name, parts in pieces.items()}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient is not None
        assert found[name].isfinite().all()
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12 * max(1.0, scale), msg=name)
    for numbers in told:
        assert [numbers[m] for m in range(case["microbatches"])] == pytest.approx(losses, rel=1e-9, abs=1e-12)


@settings(max_examples=16)
@given(
    st.sampled_from([1, 2]),
    st.sampled_from(["1f1b", "gpipe", "zb1p", "zbv", "v-half", "interleaved-1f1b"]),
    st.sampled_from([(2, 4), (2, 5), (3, 6), (4, 8)]),
    st.booleans(),
    st.integers(0, 1000),
    st.data(),
)
def test_gradients_are_those_of_one_process(
    pool: Pool, algorithm: int, name: str, shape: tuple[int, int], tied: bool, seed: int, data: Any
) -> None:
    ranks, microbatches = shape
    low = data.draw(st.sampled_from([0, 12, 30]))
    compare(
        pool,
        {
            "algorithm": algorithm, "schedule": name, "ranks": ranks, "microbatches": microbatches,
            "layers": 8, "tied": tied, "seed": seed, "extreme": False,
            "names": data.draw(st.permutations(range(ranks))),
            "only": data.draw(st.sampled_from([(0, VOCABULARY), (low, low + 6)])),  # all owned by one rank
        },
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", [1, 2])
def test_extreme_logits_stay_finite(pool: Pool, algorithm: int) -> None:
    case = {
        "algorithm": algorithm, "schedule": "1f1b", "ranks": 2, "microbatches": 3, "layers": 2, "tied": False,
        "seed": 3, "extreme": True, "names": [0, 1], "only": (0, VOCABULARY),
    }  # fmt: skip
    decoder, rows = model(case), rows_of(case)[0]
    logits = decoder.logits(decoder(rows.tokens, rows.positions, rows.plan))
    assert logits.abs().max() > 1e4
    compare(pool, case)


def test_what_goes_wrong_beside_the_compute_is_told_to_whoever_waits() -> None:
    side = Side(1, CPU)

    def gone() -> Tree:
        raise RuntimeError("Connection closed by peer\nlong")

    work = side.begin("add up", gone)
    fine = side.begin("go on", lambda: {"x": torch.ones(1)})
    with pytest.raises(PeerLost, match="rank 1 cannot add up: another rank does not answer"):
        work.wait()
    assert fine.wait()["x"] == 1


def test_the_compute_goes_on_meanwhile() -> None:
    side, asked = Side(0, CPU), threading.Event()

    def patient() -> Tree:
        return {"x": torch.ones(1)} if asked.wait(30) else {}

    work = side.begin("wait until asked", patient)
    asked.set()  # reached only if `begin` returned before the collective ended
    assert work.wait()["x"] == 1
