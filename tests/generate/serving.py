"""A small server that speaks as vLLM's and SGLang's do by their documents, with our own engine inside.

It refuses what they would refuse of the fields that are used here. What it cannot show: that the real ones do
what their documents say.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shunter.generate.config import SamplingConfig
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.models.decoder import Decoder
from shunter.models.hf import load_model


class Server(ThreadingHTTPServer):
    """calls: paths with bodies, in order. spoil: an answer and its status, before it is sent."""

    daemon_threads = True

    def __init__(self, kind: str, decoder: Decoder) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind, self.decoder = kind, decoder
        self.lock = threading.Lock()
        self.calls: list[tuple[str, Any]] = []
        self.spoil: Callable[[str, dict[str, Any]], tuple[int, Any]] = lambda path, answer: (200, answer)
        self.paused = False
        self.version = "default"
        self.under_way = self.most_under_way = self.drawn = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def paths(self) -> list[str]:
        """Of the calls that change weights."""
        return [path for path, _ in self.calls if path not in ("/v1/completions", "/generate")]

    def write(self, ids: list[int], seed: int | None, most: int, stops: list[int], **more: Any) -> Rollout:
        """One text at a time."""
        with self.lock:
            self.drawn += 1
            config = SamplingConfig(max_new_tokens=most, **more)
            engine = RolloutEngine(
                self.decoder, config, stops, self.drawn if seed is None else seed, tempered=True
            )
            engine.submit(ids, stream=0)
            (done,) = engine.run()
            return done

    def load(self, folder: str) -> None:
        with self.lock:
            dtype = self.decoder.embed.weight.dtype
            self.decoder.load_state_dict(load_model(Path(folder), dtype).state_dict())

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        routes: dict[str, Callable[[Any], Any]] = {
            "vllm": {
                "/v1/models": lambda _: {"object": "list", "data": [{"id": "tiny", "object": "model"}]},
                "/v1/completions": self.completions, "/pause": lambda _: self.pause(True),
                "/resume": lambda _: self.pause(False), "/collective_rpc": self.rpc,
                "/reset_prefix_cache": lambda _: None,
            },
            "sglang": {"/generate": self.generate, "/update_weights_from_disk": self.update},
        }[self.kind]  # type: ignore[assignment]  # fmt: skip
        route = routes.get(path.partition("?")[0])
        if route is None:
            return 404, {"detail": "Not Found"}
        try:
            return self.spoil(path, route(body))
        except Refused as refused:
            return 400, {"error": {"message": str(refused), "code": 400}}

    def completions(self, body: Any) -> dict[str, Any]:
        known = {
            "model": str, "prompt": list, "max_tokens": int, "temperature": float, "top_p": float,
            "top_k": int, "seed": int, "logprobs": int, "stop_token_ids": list, "return_token_ids": bool,
            "skip_special_tokens": bool,
        }  # fmt: skip
        check(body, known)
        if body["model"] != "tiny":
            raise Refused(f"The model `{body['model']}` does not exist.")
        if self.paused:
            raise Refused("it is paused, and would let this wait")
        done = self.write(
            body["prompt"], body["seed"], body["max_tokens"], body["stop_token_ids"],
            temperature=body["temperature"], top_p=body["top_p"], top_k=max(0, body["top_k"]),
        )  # fmt: skip
        named = [f"<{id}>" for id in done.ids]
        stopped = done.stop_reason == "stop"
        choice = {
            "index": 0, "text": "".join(named), "finish_reason": "stop" if stopped else "length",
            "stop_reason": done.ids[-1] if stopped else None,
            "logprobs": {
                "text_offset": [0] * len(named), "tokens": named, "token_logprobs": done.logprobs,
                "top_logprobs": [{name: value} for name, value in zip(named, done.logprobs, strict=True)],
            },
            "token_ids": done.ids, "prompt_token_ids": body["prompt"], "prompt_logprobs": None,
        }  # fmt: skip
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(done.ids)}
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": "tiny",
            "choices": [choice],
            "usage": usage,
        }

    def generate(self, body: Any) -> dict[str, Any]:
        check(body, {"input_ids": list, "sampling_params": dict, "return_logprob": bool})
        asked = body["sampling_params"]
        known = {
            "max_new_tokens": int, "temperature": float, "top_p": float, "top_k": int, "stop_token_ids": list,
            "skip_special_tokens": bool,
        }  # fmt: skip
        check(asked, known)
        done = self.write(
            body["input_ids"], None, asked["max_new_tokens"], asked["stop_token_ids"],
            temperature=asked["temperature"], top_p=asked["top_p"], top_k=max(0, asked["top_k"]),
        )  # fmt: skip
        stopped = done.stop_reason == "stop"
        reason = (
            {"type": "stop", "matched": done.ids[-1]}
            if stopped
            else {"type": "length", "length": len(done.ids)}
        )
        told = {
            "id": "1", "finish_reason": reason, "prompt_tokens": len(body["input_ids"]),
            "completion_tokens": len(done.ids), "weight_version": self.version,
            "output_token_logprobs": [[p, id, None] for p, id in zip(done.logprobs, done.ids, strict=True)],
        }  # fmt: skip
        return {"text": "", "output_ids": done.ids, "meta_info": told}

    def pause(self, value: bool) -> dict[str, str]:
        self.paused = value
        return {"status": "paused" if value else "resumed"}

    def rpc(self, body: Any) -> dict[str, Any]:
        if not self.paused:
            raise Refused("weights are changed while it writes")
        assert body["method"] == "reload_weights"
        self.load(body["kwargs"]["weights_path"])
        return {"results": [None]}

    def update(self, body: Any) -> dict[str, Any]:
        check(body, {"model_path": str, "weight_version": str, "flush_cache": bool})
        if not Path(body["model_path"]).is_dir():
            return {"success": False, "message": "no such folder", "num_paused_requests": 0}
        self.load(body["model_path"])
        self.version = body["weight_version"]
        return {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}


class Refused(ValueError):
    """What a server answers with 400."""


def check(body: Any, known: dict[str, type]) -> None:
    """As a server checks a request: no unknown field, no field of another type."""
    for name, value in body.items():
        if name not in known:
            raise Refused(f"unexpected field {name!r}")
        if not isinstance(value, (float, int) if known[name] is float else known[name]):
            raise Refused(f"{name} is {value!r}")


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._reply(json.loads(self.rfile.read(length)) if length else None)

    def _reply(self, body: Any) -> None:
        with self.server.lock:
            self.server.calls.append((self.path, body))
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        status, answer = self.server.answer(self.path, body)
        with self.server.lock:
            self.server.under_way -= 1
        data = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *told: Any) -> None:
        """Nothing is printed."""
