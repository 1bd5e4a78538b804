"""Vocabulary Parallelism on real processes: loss and gradients of one process, whoever holds what."""

from __future__ import annotations

import threading
from itertools import pairwise
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
from shunter.schedule.program import Node
from shunter.schedule.vocabulary import parallel_vocabulary
from tests.draws import examples
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


def cut_ends(decoder: Decoder, rank: int, ranks: int) -> tuple[int, dict[str, range]]:
    """Leave the decoder a rank's rows of both ends; the first one, and the rows of what was cut."""
    begin, end = vocabulary_rows(VOCABULARY, rank, ranks)
    ends = [module for module in (decoder.embed, decoder.head) if module is not None]
    for module in ends:
        module.weight = nn.Parameter(module.weight.detach()[begin:end].clone())
    names = [name for name, p in decoder.named_parameters() if any(p is m.weight for m in ends)]
    return begin, dict.fromkeys(names, range(begin, end))


def task(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    """Gradients of a second step (buffers are used again), its losses, and those without gradients."""
    decoder, rows, order = model(case), rows_of(case), order_of(case)
    layers, stages = case["layers"], order.stages
    cut = [number * layers // stages for number in range(stages + 1)]
    mine = [stage for stage, holder in enumerate(order.placement) if holder == rank]
    begin, pieces = cut_ends(decoder, rank, case["ranks"])
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
                assert len(gradient) == len(cut[name])
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


@settings(max_examples=examples(5, 60))
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


@pytest.mark.parametrize(
    ("algorithm", "name", "ranks", "names"),
    [
        (1, "1f1b", 2, [0, 1]),
        (2, "1f1b", 2, [0, 1]),
        (1, "zb1p", 3, [2, 0, 1]),
        (2, "v-half", 2, [1, 0]),
        (2, "zb1p", 4, [3, 1, 0, 2]),
        (1, "zbv", 4, [0, 1, 2, 3]),
    ],
)
def test_extreme_logits_stay_finite(
    pool: Pool, algorithm: int, name: str, ranks: int, names: list[int]
) -> None:
    case = {
        "algorithm": algorithm, "schedule": name, "ranks": ranks, "microbatches": 3 if ranks == 2 else 8,
        "layers": 8 if "v" in name else ranks, "tied": False, "seed": 3, "extreme": True, "names": names,
        "only": (0, VOCABULARY),
    }  # fmt: skip
    decoder, rows = model(case), rows_of(case)[0]
    logits = decoder.logits(decoder(rows.tokens, rows.positions, rows.plan))
    assert logits.abs().max() > 1e4
    compare(pool, case)


def in_bf16(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    """Loss and this part's gradient of one micro-batch whose products are in bfloat16, its statistics, and
    the same by one softmax in float64 over the same logits."""
    ranks, draw = len(groups.ranks), torch.Generator().manual_seed(5)
    hidden, table = torch.randn(1, LENGTH, 16, generator=draw), torch.randn(997, 16, generator=draw)
    table *= case["scale"]
    rows = rows_of({"seed": 5, "only": (0, 997), "microbatches": 1})[0]
    rows.coefficients = rows.coefficients.float()
    bounds = [r * len(table) // ranks for r in range(ranks + 1)]
    head = nn.Parameter(table[bounds[rank] : bounds[rank + 1]].clone())
    part = VocabularyPart(
        head, head, bounds[rank], groups, rank, 0, ranks - 1, lambda _: rows, algorithm=case["algorithm"]
    )
    part.prepare(True, torch.bfloat16)
    node = Node(0, rank, "vocabulary", "", 0, 0)
    part._share(node, {"hidden": hidden}).wait()
    part._softmax(node, {})
    kind = part._flights[0].stats.dtype
    part._stats(node, {}).wait()
    part._head(node, {})
    if case["algorithm"] == 1:
        part._head_grad(node, {}).wait()
    active = rows.coefficients.flatten() != 0
    x, factor = hidden.flatten(0, 1)[active].bfloat16(), rows.coefficients.flatten()[active].double()
    pieces = [x @ table[a:b].bfloat16().t() for a, b in pairwise(bounds)]
    logits = torch.cat(pieces, dim=1).double().requires_grad_()
    normaliser, target = logits.logsumexp(dim=-1), rows.targets.flatten()[active, None]
    loss = (factor * (logits.gather(1, target)[:, 0] - normaliser)).sum()
    loss = loss + Z * (factor.abs() * normaliser.square()).sum()
    loss.backward()
    assert logits.grad is not None
    grad = (logits.grad.T @ x.double())[bounds[rank] : bounds[rank + 1]]
    return part.losses.get(0), loss.detach(), head.grad, grad, kind, logits.detach().abs().max()


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize(("ranks", "scale"), [(2, 0.3), (3, 2000.0)])
def test_statistics_are_in_fp32_where_products_are_in_bf16(
    pool: Pool, algorithm: int, ranks: int, scale: float
) -> None:
    """In bfloat16, a sum of 997 exponentials would be off by up to 0.4 %, and its log by as much."""
    answers = pool.run(in_bf16, ranks, {"algorithm": algorithm, "scale": scale})
    for rank, (loss, expected, grad, wanted, kind, largest) in enumerate(answers):
        assert kind == torch.float32
        assert largest > (1e4 if scale > 1 else 1)
        assert grad.isfinite().all()
        torch.testing.assert_close(grad.double(), wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())
        if rank == ranks - 1:
            torch.testing.assert_close(loss, expected, rtol=2e-6, atol=1e-6)


def test_what_goes_wrong_beside_the_compute_is_told_to_whoever_waits() -> None:
    side = Side(1, CPU)

    def gone() -> Tree:
        raise RuntimeError("Connection closed by peer\nlong")

    work = side.begin("add up", gone)
    fine = side.begin("go on", lambda: {"x": torch.ones(1)})
    with pytest.raises(PeerLost, match="rank 1 cannot add up: another rank does not answer"):
        work.wait()
    assert fine.wait()["x"] == 1


def reached(collective: Any) -> dict[int, Tensor]:
    """Tensors that a collective has in its closure, or in what a micro-batch keeps there."""
    found: dict[int, Tensor] = {}
    for cell in collective.__closure__ or ():
        value = cell.cell_contents
        held = [value] if isinstance(value, Tensor) else list(vars(value).values()) if hasattr(
            value, "softmax") else []  # fmt: skip
        found |= {id(tensor): tensor for tensor in held if isinstance(tensor, Tensor)}
    return found


def declaring(rank: int, groups: Groups, algorithm: int) -> list[tuple[str, int, int]]:
    """(collective, tensors that it reads, those that it does not say), of one micro-batch's walk."""
    case = {
        "layers": 2,
        "tied": False,
        "seed": 1,
        "extreme": False,
        "microbatches": 1,
        "only": (0, VOCABULARY),
    }
    decoder, rows = model(case), rows_of(case)
    cut_ends(decoder, rank, 2)
    part = VocabularyPart(
        decoder.embed.weight, decoder.head_weight, rank * VOCABULARY // 2, groups, rank, 0, 1,
        rows.__getitem__, algorithm=algorithm,
    )  # fmt: skip
    told: list[tuple[str, int, int]] = []
    forgotten: list[int] = []
    begin = part.side.begin

    def spy(what: str, collective: Any, reads: Any = (), leaves: Any = ()) -> Any:
        need = reached(collective)
        told.append((what.split(" (")[0], len(need), len(need.keys() - {id(t) for t in reads})))

        def watched() -> Tree:
            made: Tree = collective()
            if "softmax" in what:  # read by T and after the walk, on the compute stream
                kept = [part._flights[0].scale, *part.losses.values()] + [rows[0].plain] * (rank == 1)
                forgotten.append(len({id(t) for t in kept} - {id(t) for t in (*leaves, *made.values())}))
            return made

        return begin(what, watched, reads, leaves)

    part.side.begin = spy  # type: ignore[method-assign]
    order = parallel_vocabulary(schedule("1f1b").build(2, 1), algorithm)
    modules = decoder_stages(decoder, [0, 1, 2], [rank], layers_only=True)
    stages = {
        number: Stage(lambda inputs, m, module=module: module(inputs, rows[m]), module)
        for number, module in modules.items()
    }
    Executor(lower(assemble(order)), rank, stages, groups, CPU, handlers=part.handlers()).run()
    assert forgotten == [0]
    return told


@pytest.mark.parametrize("algorithm", [1, 2])
def test_collectives_say_what_they_read_and_leave(pool: Pool, algorithm: int) -> None:
    """On CUDA what is not said may be overwritten while it is read. That it is then not overwritten, no
    test without a GPU can show."""
    for told in pool.run(declaring, 2, algorithm):
        assert len(told) == {1: 5, 2: 4}[algorithm]
        assert all(need for _, need, _ in told), told
        assert all(missing == 0 for _, _, missing in told), told


def test_the_compute_goes_on_meanwhile() -> None:
    side, asked = Side(0, CPU), threading.Event()

    def patient() -> Tree:
        return {"x": torch.ones(1)} if asked.wait(30) else {}

    work = side.begin("wait until asked", patient)
    asked.set()  # reached only if `begin` returned before the collective ended
    assert work.wait()["x"] == 1
