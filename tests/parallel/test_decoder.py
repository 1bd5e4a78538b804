"""A decoder in stages has the gradients of the whole one: tied or not, on a V, every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shunter.models.decoder import Decoder
from shunter.models.head import linear_cross_entropy
from shunter.models.segments import SegmentPlan
from shunter.parallel.decoder import Rows, decoder_stages, drop_others
from shunter.parallel.executor import Executor
from shunter.parallel.mesh import Groups
from shunter.parallel.stage import Stage
from shunter.schedule.assemble import assemble
from shunter.schedule.catalogue import schedule
from shunter.schedule.lower import lower
from tests.models.small import CASES, redraw, spec_of
from tests.parallel.pool import Pool

CPU = torch.device("cpu")
LENGTH, COUNT = 12, 4


def model(name: str) -> Decoder:
    spec = spec_of(name).model_copy(update={"num_layers": 4})
    decoder = Decoder(spec).double()
    redraw(decoder)
    return decoder


def rows(microbatch: int, count: int) -> Rows:
    draw = torch.Generator().manual_seed(microbatch)
    tokens = torch.randint(0, 97, (count, LENGTH), generator=draw)
    targets = torch.randint(0, 97, (count, LENGTH), generator=draw)
    segments = torch.arange(LENGTH).expand(count, LENGTH) // 7
    positions = torch.arange(LENGTH).expand(count, LENGTH) % 7
    coefficients = -torch.rand(count, LENGTH, generator=draw, dtype=torch.float64)
    return Rows(tokens, positions, targets, coefficients, SegmentPlan.build(segments), z_loss=0.01)


def sizes() -> list[int]:
    return [2, 1, 2, 3]


def task(rank: int, groups: Groups, case: dict[str, Any]) -> Any:
    decoder = model(case["name"])
    order = schedule(case["schedule"]).build(2, COUNT)
    cut = [0, 1, 2, 3, 4] if order.stages == 4 else [0, 3, 4]
    modules = decoder_stages(decoder, cut, [s for s, r in enumerate(order.placement) if r == rank])
    owned = {name for module in modules.values() for name in module.owned()}
    drop_others(decoder, owned)
    modules = decoder_stages(decoder, cut, list(modules))
    data = [rows(m, size) for m, size in enumerate(sizes())]
    stages = {
        number: Stage(lambda inputs, m, module=module: module(inputs, data[m]), module)
        for number, module in modules.items()
    }
    losses = Executor(lower(assemble(order)), rank, stages, groups, CPU).run(lambda m: sizes()[m])
    gradients = {name: p.grad for name, p in decoder.named_parameters() if name in owned}
    held = sum(p.numel() for p in decoder.parameters() if not p.is_meta)
    return gradients, {m: loss.item() for m, loss in losses.items()}, held


@pytest.mark.parametrize(
    "name", ["llama-gqa-tied", "mistral-window", "qwen2-yarn-tied", "qwen3", "llama-dynamic"]
)
@pytest.mark.parametrize("kind", ["1f1b", "zbv"])
def test_stages_are_the_whole(pool: Pool, name: str, kind: str) -> None:
    assert name in CASES
    whole = model(name)
    for microbatch, size in enumerate(sizes()):
        part = rows(microbatch, size)
        hidden = whole(part.tokens, part.positions, part.plan)
        loss, _ = linear_cross_entropy(
            hidden.flatten(0, 1), whole.head_weight, part.targets.flatten(),
            part.coefficients.flatten(), z_loss=0.01,
        )  # fmt: skip
        loss.backward()
    total: dict[str, torch.Tensor] = {}
    answers = pool.run(task, 2, {"name": name, "schedule": kind})
    for gradients, _, _ in answers:
        for key, gradient in gradients.items():
            # A tied weight is on both ends: its gradient is the sum.
            total[key] = total[key] + gradient if key in total else gradient
    parameters = dict(whole.named_parameters())
    assert total.keys() == parameters.keys()
    for key, parameter in parameters.items():
        torch.testing.assert_close(total[key], parameter.grad, rtol=1e-9, atol=1e-11, msg=key)
    count = sum(p.numel() for p in whole.parameters())
    assert all(held < count for _, _, held in answers) or kind == "zbv"
