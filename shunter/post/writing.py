"""The process that writes answers beside one that learns: `python -m shunter.post.writing DESCRIPTOR`.

It holds a copy of the model, and hears weights and requests by a socket that it was born with. Between two
tokens it looks whether there are any; new weights are taken then, and what is being written goes on with
them. `exact`: everything that was asked for is written before the next message is looked at.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shunter.generate.config import SamplingConfig, ToolConfig
from shunter.generate.rollout import RolloutEngine
from shunter.generate.toolbox import Toolbox
from shunter.launch import elastic
from shunter.models.hf import load_model
from shunter.post.roles import wire
from shunter.post.roles.host import describe
from shunter.post.writers import BLOCK, submit
from shunter.train.device import choose_device, prepare_determinism, set_determinism

EVERY = 5.0  # seconds after which it says that it is alive


class Writing:
    """What the process does, by messages of `shunter.post.beside.Beside`."""

    def __init__(self, link: socket.socket, request: Mapping[str, Any]) -> None:
        self.link, self.seed, self.exact = link, int(request["seed"]), bool(request["exact"])
        torch.set_num_threads(request["threads"])
        device = choose_device(request["device"])
        if self.exact:
            prepare_determinism(device)
            set_determinism(True)
        folder = Path(request["model"])
        self.decoder = load_model(folder).to(device)
        self.tools: Toolbox | None = None
        if request["tools"] is not None:
            from shunter.data.tokenizer import Tokenizer

            self.tools = Toolbox(ToolConfig.model_validate(request["tools"]), Tokenizer.load(folder))
        sampling = SamplingConfig.model_validate(request["sampling"])
        self.engine = RolloutEngine(
            self.decoder,
            sampling,
            request["stops"],
            size=BLOCK,
            tokens=sampling.batch * (request["room"] + BLOCK),
            tempered=True,
            reply=self.tools,
        )
        self.asked: dict[int, tuple[int, int]] = {}  # request -> step and place
        self.told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.spoke = time.monotonic()
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> None:
        """Until the other end is gone."""
        while True:
            while not self.engine.busy or not (self.exact or self.told.empty()):
                self._heed(self.told.get())
            self.engine.step()
            if self.engine.finished:
                self._tell()
            elif time.monotonic() - self.spoke > EVERY:
                self._say({"alive": True})

    def _heed(self, message: Mapping[str, Any]) -> None:
        if message["do"] == "ask":
            prompts = {int(at): ids for at, ids in message["prompts"]}
            step = int(message["step"])
            for number, at in submit(self.engine, self.seed, step, prompts).items():
                self.asked[number] = step, at
            return
        weights = {name: torch.from_numpy(array) for name, array in message["weights"].items()}
        self.decoder.load_state_dict(weights)
        self.engine.new_weights(message["version"])

    def _tell(self) -> None:
        steps: dict[int, list[Any]] = {}
        for one in self.engine.finished:
            step, at = self.asked.pop(one.number)
            steps.setdefault(step, []).append([at, vars(one)])
        self.engine.finished.clear()
        self.engine.trace.clear()
        calls = failed = 0
        if self.tools is not None:
            calls, failed, self.tools.calls, self.tools.failed = self.tools.calls, self.tools.failed, 0, 0
        self._say({"answers": [[step, rows] for step, rows in steps.items()], "tools": [calls, failed]})

    def _say(self, message: Mapping[str, Any]) -> None:
        wire.send(self.link, message)
        self.spoke = time.monotonic()

    def _listen(self) -> None:
        try:
            while True:
                self.told.put(wire.receive(self.link)[0])
        except wire.Closed:
            os._exit(0)  # nobody is left to write for


def main(descriptor: str) -> None:
    """Hear the request, then write."""
    elastic.guard()
    link = socket.socket(fileno=int(descriptor))
    try:
        request, _ = wire.receive(link)
        Writing(link, request).run()
    except wire.Closed:
        return
    except Exception as error:
        wire.send(link, {"failed": -1, **describe(error)})


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # the thread that listens would wait for ever
