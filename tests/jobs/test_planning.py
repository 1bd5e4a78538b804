"""Plans for this program are layouts that it can have."""

from __future__ import annotations

import pytest

from shunter.cluster import files
from shunter.jobs.training import check_combination
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.plan import Plan
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.score import predict
from shunter.plan.search import search
from shunter.plan.space import space
from shunter.train.config import Parallel
from shunter.train.layout_check import check_layout

CASES = [
    ("llama-2-7b", "8xa100-80", 64, 2048),
    ("llama-3-8b", "4x2xrtx4090-ethernet", 64, 4096),
    ("llama-3-8b", "8xmi250x", 48, 4096),
    ("mixtral-8x7b", "4x8xh100", 256, 4096),
]


@pytest.mark.parametrize(("model", "cluster", "batch", "row"), CASES)
def test_what_is_planned_can_be_trained(model: str, cluster: str, batch: int, row: int) -> None:
    where = files.find(cluster)
    question = Question(preset(model), Fabric.of(where), batch, row, PRACTICES["shunter"], Coefficients())
    found = [each.prediction for each in search(question, top=8, finalists=8).plans]
    every = space(question, {})
    # And some that nobody would choose.
    found += [predict(question, every.take([n])) for n in range(0, len(every), max(1, len(every) // 12))]
    for prediction in found:
        plan = Plan.of(question, where, prediction)
        parallel = Parallel.model_validate(plan.parallel())
        assert parallel.grid.size == where.world
        settled = parallel.settled(batch, 1)
        check_layout(question.spec, settled, settled.order(), row)
        check_combination(settled)
        assert settled.order().microbatches == plan.microbatches
