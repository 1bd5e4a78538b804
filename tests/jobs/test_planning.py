"""Plans for this program are layouts that it can have."""

from __future__ import annotations

import pytest

from shunter.cluster import files
from shunter.jobs.training import check_combination
from shunter.layout.grid import Grid
from shunter.plan.choices import Choices, Question
from shunter.plan.fabric import Fabric
from shunter.plan.plan import Plan
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset
from shunter.plan.score import predict
from shunter.plan.search import search
from shunter.plan.space import space
from shunter.plan.strategies import AGAIN, ASIDE, KEEP
from shunter.train.config import Parallel
from shunter.train.layout_check import check_layout
from shunter.train.layout_describe import describe
from shunter.train.layout_parts import Plan as Laid

CASES = [
    ("llama-2-7b", "8xa100-80", 64, 2048),
    ("llama-3-8b", "4x2xrtx4090-ethernet", 64, 4096),
    ("llama-3-8b", "8xmi250x", 48, 4096),
    ("mixtral-8x7b", "2x8xh100", 32, 4096),
]


@pytest.mark.parametrize(("model", "cluster", "batch", "row"), CASES)
def test_what_is_planned_can_be_trained(model: str, cluster: str, batch: int, row: int) -> None:
    where = files.find(cluster)
    question = Question(preset(model), Fabric.of(where), batch, row, PRACTICES["shunter"], Coefficients())
    found = [each.prediction for each in search(question, top=4, finalists=4).plans]
    every = space(question, {})
    # And some that nobody would choose.
    found += [predict(question, every.take([n])) for n in range(0, len(every), max(1, len(every) // 8))]
    for prediction in found:
        plan = Plan.of(question, where, prediction)
        parallel = Parallel.model_validate(plan.parallel())
        assert parallel.grid.size == where.world
        settled = parallel.settled(batch, 1)
        check_layout(question.spec, settled, settled.order(), row)
        check_combination(settled)
        assert settled.order().microbatches == plan.microbatches


LAYOUTS = [
    ({"fsdp": 8}, "1f1b", 1, "none", 1),
    ({"fsdp": 8}, "1f1b", 1, "none", 8),  # one micro-batch: gradients are given out layer by layer
    ({"dp": 8}, "1f1b", 1, "none", 2),
    ({"dp": 2, "fsdp": 4}, "1f1b", 1, "none", 2),
    ({"tp": 8}, "1f1b", 1, "none", 2),
    ({"cp": 2, "fsdp": 4}, "1f1b", 1, "none", 2),
    ({"pp": 8}, "1f1b", 1, "none", 1),
    ({"pp": 4, "tp": 2}, "interleaved-1f1b", 2, "none", 1),
    ({"pp": 4, "fsdp": 2}, "zbv", 2, "none", 1),
    ({"pp": 2, "fsdp": 2, "tp": 2}, "1f1b", 1, "stage", 2),
    ({"pp": 4, "fsdp": 2}, "zb1p", 1, "none", 2),
    ({"fsdp": 8, "ep": 4}, "1f1b", 1, "none", 1),
    ({"fsdp": 8}, "1f1b", 1, "layer", 1),
    ({"pp": 4, "fsdp": 2}, "1f1b", 1, "layer", 2),
    ({"dp": 4, "tp": 2, "ep": 4}, "1f1b", 1, "none", 1),
    ({"dp": 2, "tp": 4}, "1f1b", 1, "none", 32),
    ({"pp": 4, "tp": 2}, "gpipe", 1, "none", 16),
    ({"pp": 4, "tp": 2}, "gpipe", 1, "stage", 8),
    ({"pp": 4, "tp": 2}, "1f1b", 1, "none", 32),
]


# Of a device the layout counts nothing, and of logits a chunk.
UNCOUNTED = ("other", "logits")


@pytest.mark.parametrize("practice", ["shunter", "shunter-fp32"])
def test_memory_is_what_the_layout_counts(practice: str) -> None:
    # `shunter layout` counts tensor by tensor, rank by rank, and walks the schedule.
    where = files.find("8xa100-80")
    for degrees, schedule, chunks, recompute, rows in LAYOUTS if practice == "shunter" else LAYOUTS[6:9]:
        model = "mixtral-8x7b" if "ep" in degrees else "llama-3-8b"
        question = Question(preset(model), Fabric.of(where), 64, 2048, PRACTICES[practice], Coefficients())
        choice = Choices.one(Grid(**degrees), rows, schedule, chunks, recompute)
        prediction = predict(question, choice)
        parallel = Parallel.model_validate(Plan.of(question, where, prediction).parallel()).settled(64, rows)
        laid = Laid.make(question.spec, parallel, 2048, 64, bf16=practice == "shunter")
        counted = describe(laid, "adamw", {}, [])
        for stage, parts in enumerate(prediction.bytes):
            rank = next(each for each in counted.ranks if each.place.get("pp", 0) == stage)
            found = sum(size for name, size in parts.items() if name not in UNCOUNTED)
            assert found == pytest.approx(rank.total, rel=0.02), (degrees, schedule, stage)
            names = ["weights", "gradients", "optimizer", "gathered"]
            if rank.together < rank.gradients + rank.at_once:  # they are not all there at the fullest moment
                names.remove("gradients")
            for name in names:
                assert parts[name] == pytest.approx(getattr(rank, name), rel=0.01), (degrees, name)


@pytest.mark.parametrize("practice", ["shunter", "shunter-fp32"])
def test_memory_of_layers_of_their_own_is_what_the_layout_counts(practice: str) -> None:
    """Some computed again, some put aside, some kept; on the fullest rank of each stage."""
    where = files.find("8xa100-80")
    question = Question(preset("llama-3-8b"), Fabric.of(where), 64, 2048, PRACTICES[practice], Coefficients())
    for degrees, again, aside in (
        ({"pp": 2, "tp": 4}, 8, 4),
        ({"pp": 2, "tp": 4}, 0, 16),
        ({"tp": 8}, 16, 0),
        ({"fsdp": 8}, 4, 20),
    ):
        choice = Choices.one(Grid(**degrees), 2, "1f1b", 1, "layer")
        stages = degrees.get("pp", 1)
        each = 32 // stages
        # The cut is even to a layer; every stage has at least so many of each sort.
        part = [AGAIN] * (again // stages) + [ASIDE] * (aside // stages)
        strategies = (part + [KEEP] * (each - len(part))) * stages
        prediction = predict(question, choice, strategies=strategies)
        parallel = Parallel.model_validate(Plan.of(question, where, prediction).parallel()).settled(64, 2)
        assert parallel.again(32) == prediction.which(AGAIN)
        assert parallel.aside(32) == prediction.which(ASIDE)
        laid = Laid.make(question.spec, parallel, 2048, 64, bf16=practice == "shunter")
        counted = describe(laid, "adamw", {}, [])
        for stage, parts in enumerate(prediction.bytes):
            rank = next(each for each in counted.ranks if each.place.get("pp", 0) == stage)
            found = sum(size for name, size in parts.items() if name not in UNCOUNTED)
            assert found == pytest.approx(rank.total, rel=0.03), (degrees, again, aside, stage)
