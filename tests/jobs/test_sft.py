"""What `sft` does where a recipe says little: the rates at which models that have learnt are tuned."""

from __future__ import annotations

from typing import Any

import pytest

from shunter.jobs.sft import SftConfig
from shunter.recipe import identity
from shunter.train.schedule import rate


def config(train: dict[str, Any], **more: Any) -> SftConfig:
    return SftConfig.model_validate(
        {"kind": "sft", "model": "m", "tokens": "t", "train": {"steps": 200, **train}, **more}
    )


def test_where_no_rate_is_named_it_is_that_of_a_model_that_has_learnt() -> None:
    """As the reference configuration of arXiv 2412.13337: 2e-5, from the first step to the last."""
    plain = config({})
    assert plain == config({}, like="lab").model_copy(update={"like": None})
    assert plain.train.optimizer == "adamw"
    assert {rate(plain.train, step) for step in range(200)} == {2e-5}


def test_the_other_reference_warms_up_and_falls_to_zero() -> None:
    train = config({}, like="tulu").train
    rates = [rate(train, step) for step in range(200)]
    assert train.warmup == 6
    assert max(rates) == rates[5] == pytest.approx(2e-5)
    assert rates[:6] == sorted(rates[:6])
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[-1] == 0.0


def test_what_train_says_counts() -> None:
    told = {"lr": 1e-3, "schedule": "cosine", "optimizer": "muon"}
    for like in ("lab", "tulu"):
        train = config(told, like=like).train
        assert {name: getattr(train, name) for name in told} == told
    plain = config({"lr": 1e-3}).train
    assert (plain.optimizer, plain.schedule) == ("muon", "cosine"), "as it was before there were any"


def test_the_name_is_in_no_identity_and_what_it_stands_for_is() -> None:
    written = {"lr": 2e-5, "optimizer": "adamw", "schedule": "constant"}
    assert identity.what(config({}, like="lab")) == identity.what(config(written))
    assert identity.what(config({}, like="lab")) != identity.what(config({}, like="tulu"))


def test_adapters_have_rates_of_their_own() -> None:
    assert config({}, adapter={}).train.lr == 3e-3
    with pytest.raises(ValueError, match=r"name train\.lr"):
        config({}, adapter={}, like="lab")
    with pytest.raises(ValueError, match="lab"):
        config({}, like="labs")
