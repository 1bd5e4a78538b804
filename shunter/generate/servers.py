"""How servers of vLLM and SGLang are asked to write, and given weights: HTTP in their documented form.

vLLM: `/v1/completions` with a prompt of token ids, `return_token_ids` and `logprobs`; new weights by what
`VLLM_SERVER_DEV_MODE=1` adds (`/pause`, `/collective_rpc` of `reload_weights`, `/reset_prefix_cache`,
`/resume`). SGLang: `/generate` with `input_ids` and `return_logprob`; new weights by
`/update_weights_from_disk`, whose version comes back with each answer.

Neither was at hand when this was written: it is tried against a small server that speaks in the same form.
"""

from __future__ import annotations

import http.client
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from shunter.config.errors import ShunterError
from shunter.generate.config import SamplingConfig, ServerConfig

Kind = Literal["vllm", "sglang"]


@dataclass(frozen=True)
class Said:
    """What a server wrote. version: of the weights, where it tells."""

    ids: list[int]
    logprobs: list[float]
    reason: str
    prompt: list[int] | int | None  # the prompt as it saw it, or how many tokens that were
    version: str | None = None


class Dialect(Protocol):
    """How one kind of server is spoken to."""

    def write(self, text: list[int], most: int, seed: int, config: SamplingConfig, stops: list[int]) -> Said:
        """Continue a text of token ids by at most so many. Raises ShunterError."""

    def load(self, folder: Path, version: str) -> None:
        """Take the weights of a folder. Raises ShunterError."""


class Wire:
    """JSON over HTTP, a connection a request, past any proxy."""

    def __init__(self, server: ServerConfig) -> None:
        """Raises ShunterError where the key's variable is not set."""
        self.server = server
        self.headers = {"Content-Type": "application/json"}
        if server.key is not None:
            key = os.environ.get(server.key)
            if not key:
                raise ShunterError(
                    f"the environment variable {server.key} holds no key",
                    where="how.server.key",
                    mend="Set it.",
                )
            self.headers["Authorization"] = f"Bearer {key}"

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON. Raises ShunterError for no answer, an error, or none of JSON."""
        place = urlsplit(self.server.url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = kind(place.hostname or "", place.port, timeout=self.server.timeout)
        sent = None if body is None else json.dumps(body)
        try:
            connection.request(method, place.path.rstrip("/") + path, sent, self.headers)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except TimeoutError:
            raise self._failed(path, f"nothing came within {self.server.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(path, str(error) or type(error).__name__) from None
        finally:
            connection.close()
        if answer.status != 200:
            raise self._failed(
                path, f"{answer.status} {answer.reason}: {' '.join(text.split())[:300]}", answer.status
            )
        if not text:
            return None
        try:
            return json.loads(text)
        except ValueError:
            raise self._failed(path, f"what it said is no JSON: {text[:100]!r}") from None

    def _failed(self, path: str, what: str, status: int = 0) -> ShunterError:
        mend = "See that it runs, and is of the kind that is asked for; the same command then goes on."
        if status in (401, 403):
            mend = "Name the environment variable that holds its key in how.server.key."
        if status == 404 and not path.startswith(("/v1", "/generate")):
            mend = "Start vLLM with VLLM_SERVER_DEV_MODE=1, which lets weights be changed."
        return ShunterError(f"the server failed at {path}: {what}", where=self.server.url, mend=mend)


def _field(value: Any, *path: str | int) -> Any:
    """A field of an answer. Raises ShunterError where it is not there."""
    at = value
    for key in path:
        try:
            at = at[key]
        except (KeyError, IndexError, TypeError):
            at = None
        if at is None:
            name = ".".join(map(str, path))
            raise ShunterError(
                f"the server's answer has no {name}",
                mend="Use a version that gives them: vLLM has token ids since 0.10.2.",
            )
    return at


class Vllm:
    """vLLM's server, which tells no version of its weights: a restarted one has its first ones again, and the
    trainer sees that by its log-probabilities alone."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.model = wire.server.model

    def write(self, text: list[int], most: int, seed: int, config: SamplingConfig, stops: list[int]) -> Said:
        body = {
            "model": self.model, "prompt": text, "max_tokens": most, "temperature": config.temperature,
            "top_p": config.top_p, "top_k": config.top_k or -1, "seed": seed, "logprobs": 1,
            "stop_token_ids": stops, "return_token_ids": True, "skip_special_tokens": False,
        }  # fmt: skip
        choice = _field(self.wire("POST", "/v1/completions", body), "choices", 0)
        logprobs = [
            math.nan if each is None else float(each) for each in _field(choice, "logprobs", "token_logprobs")
        ]
        ids = [int(id) for id in _field(choice, "token_ids")]
        return Said(ids, logprobs, str(choice.get("finish_reason")), choice.get("prompt_token_ids"))

    def load(self, folder: Path, version: str) -> None:
        if self.model is None:
            self.model = str(_field(self.wire("GET", "/v1/models"), "data", 0, "id"))
        self.wire("POST", "/pause?mode=wait")
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self.wire("POST", "/collective_rpc", call)
            self.wire("POST", "/reset_prefix_cache")  # keys of old weights never meet new ones
        finally:
            self.wire("POST", "/resume")


class Sglang:
    """SGLang's server. It takes no seed: what it draws is its own."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def write(self, text: list[int], most: int, seed: int, config: SamplingConfig, stops: list[int]) -> Said:
        body = {
            "input_ids": text,
            "sampling_params": {
                "max_new_tokens": most, "temperature": config.temperature, "top_p": config.top_p,
                "top_k": config.top_k or -1, "stop_token_ids": stops, "skip_special_tokens": False,
            },
            "return_logprob": True,
        }  # fmt: skip
        said = self.wire("POST", "/generate", body)
        told = _field(said, "meta_info")
        pairs = _field(told, "output_token_logprobs")
        logprobs = [math.nan if pair[0] is None else float(pair[0]) for pair in pairs]
        version = told.get("weight_version")
        return Said(
            [int(pair[1]) for pair in pairs], logprobs, str(_field(told, "finish_reason", "type")),
            told.get("prompt_tokens"), None if version is None else str(version),
        )  # fmt: skip

    def load(self, folder: Path, version: str) -> None:
        body = {"model_path": str(folder), "weight_version": version, "flush_cache": True}
        said = self.wire("POST", "/update_weights_from_disk", body)
        if not _field(said, "success"):
            raise ShunterError(
                f"the server did not load new weights: {said.get('message')}",
                where=self.wire.server.url,
                mend="It must see the folder under the same name, and serve a model of the same shape.",
            )


DIALECTS: Mapping[Kind, Callable[[Wire], Dialect]] = {"vllm": Vllm, "sglang": Sglang}
