"""What a cluster can afford: more time and more devices never give a worse model."""

from __future__ import annotations

import pytest

from shunter.cluster import files
from shunter.config.errors import ShunterError
from shunter.plan.afford import EPOCHS, LAW, afford, ladder, parse_time
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import PRACTICES, Coefficients
from shunter.plan.presets import preset


def question(cluster: str) -> Question:
    where = Fabric.of(files.find(cluster))
    return Question(preset("llama-2-7b"), where, 1, 2048, PRACTICES["shunter"], Coefficients())


def test_more_time_and_more_devices_help() -> None:
    few, day = (afford(question("4xa100-80"), parse_time(time))[0] for time in ("2h", "1d"))
    assert day.losses[LAW] < few.losses[LAW]
    assert day.spec.num_parameters >= few.spec.num_parameters
    many = afford(question("8xa100-80"), parse_time("2h"))[0]
    assert many.losses[LAW] < few.losses[LAW]
    # Near what the law's authors call optimal: some twenty tokens a parameter.
    assert 5 < day.tokens / day.spec.num_parameters < 80
    assert day.steps * day.step_seconds <= 86400


def test_little_data_asks_for_a_smaller_model() -> None:
    free = afford(question("4xa100-80"), parse_time("2h"))[0]
    short = afford(question("4xa100-80"), parse_time("2h"), data=5e7)[0]
    assert short.tokens <= EPOCHS * 5e7 * 1.001
    assert short.epochs is not None
    assert short.losses[LAW] > free.losses[LAW]


def test_too_little_time_is_said() -> None:
    with pytest.raises(ShunterError, match="not one model"):
        afford(question("8xa100-80"), 1.0)
    for text in ("12", "h", "-3h", "12 parsec"):
        with pytest.raises(ShunterError, match="no length of time"):
            parse_time(text)


def test_the_ladder_is_of_decoders_that_can_be() -> None:
    sizes = [spec.num_parameters for spec in ladder(32000, 2048)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 2e7
    assert sizes[-1] > 3e11
