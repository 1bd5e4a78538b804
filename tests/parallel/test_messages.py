"""Messages: several tensors, skips past a stage, changed shapes, a peer that dies; measured timelines."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shunter.parallel.clock import gather_timeline, offset
from shunter.parallel.executor import Executor
from shunter.parallel.mesh import Groups
from shunter.parallel.stage import LOSS, Stage
from shunter.parallel.tree import Tree
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.costs import Costs
from shunter.schedule.lower import lower
from shunter.schedule.program import Edge, Program
from shunter.schedule.recompute import recomputed
from shunter.schedule.simulate import simulate
from tests import warm
from tests.parallel.pool import Pool, WorkerFailed

CPU = torch.device("cpu")


def skipping(again: bool) -> Program:
    """1F1B over three ranks; stage 0 hands `skip` straight to stage 2, which hands its gradient back."""
    order = schedule("1f1b").build(3, 4)
    program = assemble(recomputed(order) if again else order)
    of = {str(node): node.id for node in program.nodes}
    pairs = [(f"rank 0 0F{m}", f"rank 2 2F{m}") for m in range(4)]
    pairs += [(f"rank 2 2B{m}", f"rank 0 0B{m}") for m in range(4)]
    return lower(program.with_edges(Edge(of[a], of[b], "skip") for a, b in pairs))


def parts() -> list[nn.Linear]:
    torch.manual_seed(3)
    return [nn.Linear(4, 4, dtype=torch.float64) for _ in range(3)]


def inputs_of(microbatch: int) -> torch.Tensor:
    return torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(microbatch))


def skip_task(rank: int, groups: Groups, program: Program) -> list[torch.Tensor]:
    module = parts()[rank]

    def compute(inputs: Tree, microbatch: int) -> Tree:
        if rank == 0:
            x = inputs_of(microbatch)
            return {"x": torch.tanh(module(x)), "mask": x > 0, "skip": module(x) * 2}
        assert ("skip" in inputs) == (rank == 2)
        y = torch.tanh(module(inputs["x"])) * inputs["mask"]
        return {LOSS: (y * inputs["skip"]).sum()} if rank == 2 else {"x": y, "mask": inputs["mask"]}

    Executor(program, rank, {rank: Stage(compute, module)}, groups, CPU).run()
    return [parameter.grad for parameter in module.parameters()]


def check_skips(pool: Pool, *, again: bool) -> None:
    """`again`: with recomputation."""
    found = [gradient for part in pool.run(skip_task, 3, skipping(again)) for gradient in part]
    first, second, third = modules = parts()
    for microbatch in range(4):
        x = inputs_of(microbatch)
        mask = x > 0
        y = torch.tanh(second(torch.tanh(first(x)))) * mask
        (torch.tanh(third(y)) * mask * (first(x) * 2)).sum().backward()
    expected = [parameter.grad for module in modules for parameter in module.parameters()]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_tensor_may_pass_a_stage_by(pool: Pool) -> None:
    check_skips(pool, again=False)


def growing(rank: int, groups: Groups, argument: Any) -> None:
    module = nn.Linear(4, 4)

    def compute(inputs: Tree, microbatch: int) -> Tree:
        if rank:
            return {LOSS: module(inputs["x"]).sum()}
        return {"x": module(torch.ones(1 + microbatch, 4))}

    program = lower(assemble(schedule("gpipe").build(2, 2)))
    Executor(program, rank, {rank: Stage(compute, module)}, groups, CPU).run()


def test_another_shape_under_the_same_key_is_refused() -> None:
    # A pool of its own: the other rank is left waiting.
    pool = Pool()
    try:
        for rank, pipe in enumerate(pool.pipes):
            pipe.send((growing if rank < 2 else None, 2, None, ()))
        good, text = pool.pipes[0].recv()
        assert not good
        assert "rank 0 sends 0SEND_F to rank 1 as x [2, 4]" in text
        assert "told it x [1, 4]" in text
    finally:
        for process in pool.processes:
            process.kill()
        pool.close()


def timed(rank: int, groups: Groups, pad: float) -> Any:
    module = nn.Linear(2, 2)

    def compute(inputs: Tree, microbatch: int) -> Tree:
        time.sleep(pad)
        y = module(inputs.get("x", torch.ones(1, 2)))
        return {LOSS: y.sum()} if rank else {"x": y}

    program = lower(assemble(schedule("gpipe").build(2, 3)))
    executor = Executor(program, rank, {rank: Stage(compute, module)}, groups, CPU)
    assert groups.up is not None
    shift = offset(groups.up, groups.ranks, rank, CPU)
    executor.clock.start()
    executor.run()
    return shift, gather_timeline(executor.clock.stop(), shift, groups.peers(rank), CPU)


def test_a_measured_timeline_has_the_simulated_one_s_spans(pool: Pool) -> None:
    (shift, timeline), (other, nothing) = pool.run(timed, 2, 0.02)
    assert shift == 0
    assert abs(other) < 0.02  # one host, one clock
    assert nothing is None
    program = assemble(schedule("gpipe").build(2, 3))
    simulated = simulate(
        program, Costs({("F", 0): 1.0, ("F", 1): 1.0, ("B", 0): 0.1, ("B", 1): 0.1})
    ).timeline()
    assert {(s.rank, s.name) for s in timeline} == {(s.rank, s.name) for s in simulated}
    assert not timeline.overlaps()
    begins = {(span.rank, span.name): span.begin for span in timeline}
    ends = {(span.rank, span.name): span.end for span in timeline}
    for microbatch in range(3):  # the clocks agree: what was sent arrives later
        assert begins[1, f"1F{microbatch}"] >= ends[0, f"0F{microbatch}"] - 0.005


@pytest.mark.parametrize("how", ["die", "hang"])
def test_a_dead_or_silent_peer_ends_the_others(how: str, tmp_path: Path) -> None:
    ranks = []
    for rank in range(2):
        words = [str(rank), str(tmp_path / "store"), how]
        with (tmp_path / f"{rank}.txt").open("wb") as output:
            ranks.append(
                warm.popen(
                    [sys.executable, "-m", "tests.parallel.dying", *words],
                    cwd=warm.ROOT, stdout=output, stderr=subprocess.DEVNULL,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )  # fmt: skip
    try:
        ranks[0].wait(45)
    finally:
        for process in ranks:
            process.kill()
    text = (tmp_path / "0.txt").read_text()
    assert ranks[0].returncode == 2
    assert text.startswith("PeerLost rank 0 cannot do 0RECV_B")
    assert "rank 1 does not answer" in text


def failing(rank: int, groups: Groups, argument: Any) -> None:
    raise ValueError("on purpose")


def test_the_pool_reports_what_failed(pool: Pool) -> None:
    with pytest.raises(WorkerFailed, match="on purpose"):
        pool.run(failing, 1)
