"""`rl` whose answers a server writes: the same lessons, another engine, the same log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.jobs import rl
from shunter.models.hf import load_model
from shunter.record import events
from tests.generate.serving import Server
from tests.jobs.conftest import Work
from tests.jobs.test_post_jobs import HOW, model, reinforce, talks

__all__ = ["model", "talks"]  # fixtures


@pytest.fixture(params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest, model: Path) -> Iterator[Server]:
    found = Server(request.param, load_model(model))
    yield found
    found.shutdown()
    found.server_close()


def test_a_server_writes_and_the_policy_learns(work: Work, model: Path, talks: Path, server: Server) -> None:
    how = {**HOW, "server": {"url": server.url}}
    out, metrics = reinforce(
        work, model, talks, generator=server.kind, how=how, train={"steps": 4, "lr": 2e-3}
    )
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert 0 < metrics["largest_gap"] < 1e-4, "the server has the weights that the trainer has, in every step"
    assert all(row["rl/staleness"] == 0 for row in rows)
    updates = [path for path in server.paths() if path in ("/collective_rpc", "/update_weights_from_disk")]
    assert len(updates) == 4
    written = load_model(out).state_dict()
    assert any(not value.equal(server.decoder.state_dict()[name]) for name, value in written.items())


@pytest.mark.long
@pytest.mark.parametrize("writer", ["here", "process"])
def test_a_server_writes_with_weights_a_step_old(
    work: Work, model: Path, talks: Path, server: Server, writer: str
) -> None:
    """By hand of another process, which gets the weights and hands them on; or in turns."""
    how = {**HOW, "server": {"url": server.url}, "writer": writer}
    train = {"steps": 4, "lr": 2e-3}
    out, metrics = reinforce(work, model, talks, generator=server.kind, how=how, train=train, staleness=1)
    rows = events.read_metrics(out.parent / "log" / "events.jsonl")
    assert 0 < metrics["largest_gap"] < 1e-4, "the server has the weights that it should have"
    assert [row["rl/staleness"] for row in rows] == [0, 1, 1, 1]


def test_a_server_with_other_weights_stops_the_run(
    work: Work, model: Path, talks: Path, server: Server
) -> None:
    """As one that was started anew, and has those that it began with."""
    load = server.load
    loads = [0]

    def once(folder: str) -> None:
        loads[0] += 1
        if loads[0] == 1:
            load(folder)

    server.load = once  # type: ignore[method-assign]
    how = {**HOW, "server": {"url": server.url}}
    with pytest.raises(ShunterError, match="trainer and generator differ by"):
        reinforce(
            work, model, talks, generator=server.kind, how=how, max_gap=1e-4, train={"steps": 4, "lr": 2e-2}
        )


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"generator": "vllm"}, "belong together"),
        ({"how": {"server": {"url": "http://x"}}}, "belong together"),
        ({"generator": "vllm", "how": {"server": {"url": "x"}}}, "url"),
        (
            {"generator": "sglang", "how": {"server": {"url": "http://x"}, "deterministic": True}},
            "draws by itself",
        ),
        ({"generator": "vlm", "how": {"server": {"url": "http://x"}}}, "generator"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], complaint: str) -> None:
    config = {
        "kind": "rl", "model": "m", "prompts": "t", "rewards": [{"kind": "number"}],
        "train": {"steps": 1}, **given,
    }  # fmt: skip
    with pytest.raises(ShunterError, match=complaint):
        parse(rl.RlConfig, config)


def test_without_a_server_a_job_is_the_one_that_it_was() -> None:
    config = {
        "kind": "rl",
        "model": "m",
        "prompts": "t",
        "rewards": [{"kind": "number"}],
        "train": {"steps": 1},
    }
    assert "generator" not in rl.RlConfig.model_validate(config).model_dump()
