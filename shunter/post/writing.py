"""The process that writes answers beside one that learns: `python -m shunter.post.writing DESCRIPTOR`.

It holds a copy of the model, and hears weights and requests by a socket that it was born with. Between two
tokens it looks whether there are any; new weights are taken then, and what is being written goes on with
them. `whole`, `exact`, and where a server writes: everything that was asked for is written before the next
message is looked at.

When the other end is gone, or it is asked to end, what there is of answers is put on disk, and it ends.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from shunter.generate.config import SamplingConfig, ServerConfig, ToolConfig
from shunter.generate.rollout import Engine, Rollout, RolloutEngine
from shunter.generate.toolbox import Toolbox
from shunter.models.footprint import cache_tokens
from shunter.models.hf import load_model, save_model
from shunter.post import parcel
from shunter.post.cores import Cores
from shunter.post.journal import Journal
from shunter.post.roles import wire
from shunter.post.roles.host import describe
from shunter.post.writers import KEEP, load, submit, tensors
from shunter.train.device import (
    choose_device,
    memory_peak,
    prepare_determinism,
    set_determinism,
    writes_in,
)

EVERY = 5.0  # seconds after which it says that it is alive
LEFT = 10.0  # seconds for the token at hand when nobody hears it any more


class Writing:
    """What the process does, by messages of `shunter.post.beside.Beside`."""

    def __init__(self, link: socket.socket, request: Mapping[str, Any]) -> None:
        self.link, self.seed, self.exact = link, int(request["seed"]), bool(request["exact"])
        torch.set_num_threads(request["threads"])
        self.cores = None if request["cores"] is None else Cores(*request["cores"])
        self.device = device = choose_device(request["device"])
        if self.exact:
            prepare_determinism(device)
            set_determinism(True)
        folder = Path(request["model"])
        self.decoder = load_model(folder).to(device)
        self.tools: Toolbox | None = None
        if request["tools"] is not None:
            from shunter.data.tokenizer import Tokenizer
            from shunter.post.interpreter import Tools

            self.tools = Tools(ToolConfig.model_validate(request["tools"]), Tokenizer.load(folder))
        sampling = SamplingConfig.model_validate(request["sampling"])
        stops = [int(id) for id in request["stops"]]
        self.ordered = self.exact or request["whole"] or request["server"] is not None
        self.engine: Engine
        if request["server"] is None:
            room, block = int(request["room"]), int(request["block"])
            tokens = cache_tokens(sampling.batch, room, block, int(request["cache"]))
            self.engine = RolloutEngine(
                self.decoder, sampling, stops, size=block, tokens=tokens, tempered=True, reply=self.tools,
                rounded=writes_in(device, request["precision"]),
            )  # fmt: skip
        else:
            self.engine = self._served(request["server"], sampling, stops, folder)
        self.asked: dict[int, tuple[int, int]] = {}  # request -> step and place
        self.journal = Journal(Path(request["journal"]), request["name"])
        self.told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.next: deque[dict[str, Any]] = deque()  # of those told, in order
        self.over = False
        self.spoke = self.kept = time.monotonic()
        threading.Thread(target=self._listen, daemon=True).start()

    def _served(
        self, server: Mapping[str, Any], sampling: SamplingConfig, stops: Sequence[int], folder: Path
    ) -> Engine:
        """A server that writes; its weights go through this process and a folder."""
        from shunter.generate.served import ServedEngine

        special = server["special"]
        return ServedEngine(
            server["kind"],
            ServerConfig.model_validate(server["config"]),
            sampling,
            stops,
            save=lambda out: save_model(self.decoder, out, tokenizer_folder=folder, **special),
            folder=Path(server["folder"]),
            context=self.decoder.spec.max_positions,
            reply=self.tools,
        )

    def run(self) -> None:
        """Until the other end is gone."""
        with suppress(wire.Closed):
            while True:
                while not self.over and not (self.engine.busy and (self.ordered or not self._asked())):
                    self._heed(self._message())
                if self.over:
                    break
                if self.cores is not None:
                    self.cores.take()
                self.engine.step()
                if self.engine.finished:
                    self._tell()
                elif time.monotonic() - self.spoke > EVERY:
                    self._say({"alive": True})
                if time.monotonic() - self.kept > KEEP:
                    self._keep()
        self._keep()

    def end(self, *signal: object) -> None:
        """Write no more than the token at hand."""
        self.over = True
        self.told.put({"do": "nothing"})

    def _asked(self) -> bool:
        """Whether there is a message."""
        return bool(self.next) or not self.told.empty()

    def _message(self) -> dict[str, Any]:
        """The next one. Weights are left out where newer ones come before anything is asked for: to take them
        is to read all texts anew."""
        if not self.next:
            self.next.append(self.told.get())
        while not self.told.empty():
            self.next.append(self.told.get())
        message = self.next.popleft()
        while message["do"] == "weights" and self.next and self.next[0]["do"] == "weights":
            message = self.next.popleft()
        return message

    def _heed(self, message: Mapping[str, Any]) -> None:
        if message["do"] == "raise":
            raise message["error"]
        if message["do"] == "nothing":
            return
        if message["do"] == "ask":
            prompts = {int(at): ids for at, ids in message["prompts"]}
            step = int(message["step"])
            begun = {int(at): Rollout(**values) for at, values in message["begun"]}
            for number, at in submit(self.engine, self.seed, step, prompts, begun).items():
                self.asked[number] = step, at
            return
        load(self.decoder, tensors(message["weights"], self.decoder))
        self.engine.new_weights(message["version"])

    def _keep(self) -> None:
        """Parts of answers to disk, where a part is of use."""
        self.kept = time.monotonic()
        if not self.exact and isinstance(self.engine, RolloutEngine):
            for step, parts in self._by_step(self.engine.begun).items():
                self.journal.keep(step, parts)

    def _by_step(self, answers: Sequence[Rollout]) -> dict[int, dict[int, Rollout]]:
        steps: dict[int, dict[int, Rollout]] = {}
        for one in answers:
            step, at = self.asked[one.number]
            steps.setdefault(step, {})[at] = one
        return steps

    def _tell(self) -> None:
        """On disk first: who learns may be long in hearing of it."""
        found = self._by_step(self.engine.finished)
        for step, answers in found.items():
            self.journal.write(step, answers)
        for one in self.engine.finished:
            del self.asked[one.number]
        self.engine.finished.clear()
        self.engine.trace.clear()
        calls, failed = (0, 0) if self.tools is None else self.tools.taken()
        told = [[step, [[at, vars(one)] for at, one in rows.items()]] for step, rows in found.items()]
        self._say({"answers": told, "tools": [calls, failed], "memory": memory_peak(self.device)})

    def _say(self, message: Mapping[str, Any]) -> None:
        wire.send(self.link, message)
        self.spoke = time.monotonic()

    def _listen(self) -> None:
        try:
            while True:
                self.told.put(parcel.receive(self.link))
        except wire.Closed:
            self.end()  # nobody is left to write for
            time.sleep(LEFT)
            os._exit(0)  # it waits for a server
        except BaseException as error:  # raised where the next message is heeded
            self.told.put({"do": "raise", "error": error})


def main(descriptor: str) -> None:
    """Hear the request, then write."""
    link = socket.socket(fileno=int(descriptor))
    try:
        request, _ = wire.receive(link)
        writing = Writing(link, request)
        signal.signal(signal.SIGTERM, writing.end)  # which comes when the learner is killed, too
        try:
            writing.run()
        finally:
            if writing.tools is not None:
                writing.tools.close()
    except wire.Closed:
        return
    except Exception as error:
        wire.send(link, {"failed": -1, **describe(error)})


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # the thread that listens would wait for ever
