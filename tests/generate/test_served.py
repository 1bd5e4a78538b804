"""A server as the generator: token ids go over the wire, weights arrive before anything is written.

Against a small server that speaks the documented form; no real vLLM or SGLang was at hand.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig, ServerConfig
from shunter.generate.engine import generate
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.generate.served import ServedEngine
from shunter.generate.servers import Kind
from shunter.models.decoder import Decoder
from shunter.models.hf import save_model
from tests.generate.serving import Server
from tests.generate.test_engine import PROMPTS, model
from tests.generate.test_rollout import STOPS, trainer

KINDS: list[Kind] = ["vllm", "sglang"]
CONFIG = SamplingConfig(max_new_tokens=12, batch=4)


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    found = Server(request.param, model())
    with torch.no_grad():
        for weight in found.decoder.parameters():  # not what is to be served
            weight.zero_()
    yield found
    found.shutdown()
    found.server_close()


Make = Callable[..., tuple[ServedEngine, Decoder]]


@pytest.fixture
def make(server: Server, tmp_path: Path) -> Make:
    def made(config: SamplingConfig = CONFIG, **more: Any) -> tuple[ServedEngine, Decoder]:
        decoder = model()
        place = ServerConfig(url=server.url, timeout=20.0)
        engine = ServedEngine(
            server.kind, place, config, STOPS, seed=3, save=lambda out: save_model(decoder, out),  # type: ignore[arg-type]
            folder=tmp_path / "weights", context=decoder.spec.max_positions, **more,
        )  # fmt: skip
        return engine, decoder

    return made


def written(engine: ServedEngine) -> list[Rollout]:
    for prompt in PROMPTS:
        engine.submit(prompt)
    return engine.run()


def test_the_likeliest_tokens_are_those_that_our_own_generator_writes(server: Server, make: Make) -> None:
    config = CONFIG.model_copy(update={"temperature": 0.0})
    engine, decoder = make(config)
    found = written(engine)
    expected = generate(decoder, PROMPTS, config, STOPS)
    assert [(one.ids, one.stop_reason) for one in found] == [(one.ids, one.stop_reason) for one in expected]
    assert [one.prompt for one in found] == PROMPTS
    assert 1 < server.most_under_way <= CONFIG.batch


def test_each_token_has_its_log_probability_and_the_weights_that_wrote_it(make: Make, server: Server) -> None:
    engine, decoder = make()
    first = written(engine)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(1.2)
    engine.new_weights(1)
    again = written(engine)
    for version, done in ((0, first), (1, again)):
        assert {each for one in done for each in one.versions} == {version}
        assert all(len(one.ids) == len(one.logprobs) == len(one.versions) == len(one.wrote) for one in done)
    for one in again:
        torch.testing.assert_close(torch.tensor(one.logprobs, dtype=torch.float64), trainer(decoder, one))
    gap = trainer(decoder, first[0]) - torch.tensor(first[0].logprobs, dtype=torch.float64)
    assert gap.abs().max() > 1e-3, "what older weights wrote is theirs"
    load = ["/v1/models", "/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"]
    expected = [*load, *load[1:]] if server.kind == "vllm" else ["/update_weights_from_disk"] * 2
    assert server.paths() == expected, "once for each version, though many texts were written"


def test_only_the_newest_weights_are_kept(make: Make, tmp_path: Path) -> None:
    engine, _ = make()
    for version in range(3):
        engine.new_weights(version)
        engine.submit(PROMPTS[0])
        with pytest.raises(ShunterError, match="weights change only when"):
            engine.new_weights(9)
        engine.run()
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["weights-00000002"]


def test_what_a_tool_says_is_put_in_and_nothing_is_encoded_anew(make: Make, server: Server) -> None:
    told = [7, 8, 9]
    engine, decoder = make(reply=lambda one: told if one.turns < 3 else None)
    done = written(engine)
    assert max(one.turns for one in done) > 1
    for one in done:
        assert one.count <= CONFIG.max_new_tokens
        wrote = torch.tensor(one.wrote)
        found = torch.tensor(one.logprobs, dtype=torch.float64)
        torch.testing.assert_close(found[wrote], trainer(decoder, one)[wrote])
        assert not found[~wrote].any()
    bodies = [body for path, body in server.calls if path in ("/v1/completions", "/generate")]
    sent = [body.get("prompt") or body.get("input_ids") for body in bodies]
    for one in done:
        for turn in range(1, one.turns):
            ends = [
                at
                for at in range(len(one.ids))
                if not one.wrote[at] and (at + 1 == len(one.ids) or one.wrote[at + 1])
            ]
            assert [*one.prompt, *one.ids[: ends[turn - 1] + 1]] in sent


def choice(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer["choices"][0] if "choices" in answer else answer["meta_info"]
    return found


def lose_ids(answer: dict[str, Any]) -> None:
    for name in ("token_ids", "output_token_logprobs"):
        choice(answer).pop(name, None)


def lose_number(answer: dict[str, Any]) -> None:
    at = choice(answer)
    if "logprobs" in at:
        at["logprobs"]["token_logprobs"][0] = None
    else:
        at["output_token_logprobs"][0][0] = None


def abort(answer: dict[str, Any]) -> None:
    choice(answer)["finish_reason"] = "abort" if "choices" in answer else {"type": "abort"}


def other_prompt(answer: dict[str, Any]) -> None:
    at = choice(answer)
    if "choices" in answer:
        at["prompt_token_ids"] = [1, *at["prompt_token_ids"]]
    else:
        at["prompt_tokens"] += 1


def other_end(answer: dict[str, Any]) -> None:
    at = choice(answer)
    at["finish_reason"] = "stop" if "choices" in answer else {"type": "stop", "matched": 60}
    if "choices" in answer:
        at["token_ids"][-1] = 60
    else:
        at["output_token_logprobs"][-1][1] = 60


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lose_ids, "has no (token_ids|output_token_logprobs)"),
        (lose_number, "a log-probability is not a number"),
        (abort, "ended a text because of 'abort'"),
        (other_prompt, "continued other tokens than it was given"),
        (other_end, "ended a text at the token 60"),
    ],
)
def test_an_answer_that_cannot_be_learnt_from_stops(
    make: Make, server: Server, spoil: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    def spoilt(path: str, answer: Any) -> tuple[int, Any]:
        if path in ("/v1/completions", "/generate"):
            spoil(answer)
        return 200, answer

    server.spoil = spoilt
    engine, _ = make()
    with pytest.raises(ShunterError, match=complaint):
        written(engine)


@pytest.mark.parametrize(
    ("status", "answer", "complaint", "mend"),
    [
        (500, b"out of memory", "500 .*: out of memory", "See that it runs"),
        (401, b"", "401", "how.server.key"),
        (200, b"<html>", "no JSON", "of the kind"),
        (200, b'{"choices": 3, "meta_info": 4}', "has no", "version that gives"),
    ],
)
def test_a_server_that_fails_is_named(
    make: Make, server: Server, status: int, answer: bytes, complaint: str, mend: str
) -> None:
    server.spoil = lambda path, fine: (
        (status, answer) if path in ("/v1/completions", "/generate") else (200, fine)
    )
    engine, _ = make()
    with pytest.raises(ShunterError, match=complaint) as caught:
        written(engine)
    assert mend in str(caught.value.mend)


def test_weights_that_do_not_arrive_stop(make: Make, server: Server) -> None:
    def spoilt(path: str, answer: Any) -> tuple[int, Any]:
        if path == "/update_weights_from_disk":
            return 200, {"success": False, "message": "shapes differ"}
        return (404, b"") if path == "/collective_rpc" else (200, answer)

    server.spoil = spoilt
    engine, _ = make()
    engine.submit(PROMPTS[0])
    with pytest.raises(ShunterError, match=r"shapes differ|404"):
        engine.step()
    assert not server.paused


def test_weights_of_somebody_else_are_seen(make: Make, server: Server) -> None:
    if server.kind == "vllm":
        pytest.skip("vLLM tells no version: the trainer's log-probabilities show it")
    engine, _ = make()
    written(engine)
    server.version = "other"
    engine.submit(PROMPTS[0])
    with pytest.raises(ShunterError, match="wrote with the weights 'other', and was given '0'"):
        engine.run()


def test_nobody_listens_or_nobody_answers(tmp_path: Path) -> None:
    decoder = model()

    def engine(url: str) -> ServedEngine:
        place = ServerConfig(url=url, timeout=0.2)
        return ServedEngine(
            "sglang",
            place,
            CONFIG,
            STOPS,
            save=lambda out: save_model(decoder, out),
            folder=tmp_path,
            context=64,
        )

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ShunterError, match=r"nothing came within 0.2 s"):
            written(engine(f"http://127.0.0.1:{port}"))
    with pytest.raises(ShunterError, match="refused"):
        written(engine(f"http://127.0.0.1:{port}"))
    with pytest.raises(ShunterError, match="cannot be continued in a context of 64"):
        engine("http://x").submit([1] * 64)


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def made() -> ServedEngine:
        place = ServerConfig(url="http://x", key="SERVER_KEY")
        return ServedEngine("vllm", place, CONFIG, STOPS, save=lambda out: None, folder=tmp_path, context=64)

    with pytest.raises(ShunterError, match="SERVER_KEY holds no key"):
        made()
    monkeypatch.setenv("SERVER_KEY", "secret")
    engine = made()
    assert "secret" not in json.dumps(ServerConfig(url="http://x", key="SERVER_KEY").model_dump())
    assert not engine.busy


def test_both_engines_are_one_interface() -> None:
    from shunter.generate.rollout import Engine

    asked = [name for name in vars(Engine) if not name.startswith("_")]
    assert {"submit", "step", "busy", "new_weights"} <= set(asked)
    for kind in (RolloutEngine, ServedEngine):
        assert all(hasattr(kind, name) for name in asked)
