"""One worker process: `python -m shunter.post.roles.worker REQUEST.json`."""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from shunter.launch import elastic
from shunter.parallel.mesh import Peers, ProcessGroups
from shunter.post.roles import wire
from shunter.post.roles.host import Host, describe
from shunter.post.roles.shelf import Reader, Server, Shelf


def main(path: str) -> None:
    """Serve the controller until it is gone or says that it is enough."""
    elastic.guard()
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    if request["exact"]:
        torch.use_deterministic_algorithms(True)
    number, folder = request["number"], Path(request["folder"])
    shelf = Shelf(request["timeout"])
    Server(shelf, folder / f"{number}.sock")
    control = socket.socket(socket.AF_UNIX)
    control.connect(str(folder / "control.sock"))
    wire.send(control, {"number": number, "pid": os.getpid()})
    # The controller's messages are taken as they come, so that it never waits to be heard.
    waiting: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(control, waiting), daemon=True).start()
    paths = {other: folder / f"{other}.sock" for other in range(request["count"])}
    reader = Reader({number: shelf}, paths, request["timeout"])
    try:
        peers = _meet(request, folder)
    except Exception as error:
        wire.send(control, {"failed": -1, **describe(error)})
        return
    wait = timedelta(seconds=request["timeout"])
    work = Path(request["work"])
    host = Host(request["rank"], peers, ProcessGroups(timeout=wait), shelf, reader, work, request["exact"])
    while (message := waiting.get())["do"] != "end":
        answer = host.do(message)
        if answer is not None:
            wire.send(control, answer)


def _listen(control: socket.socket, waiting: queue.Queue[dict[str, Any]]) -> None:
    try:
        while True:
            waiting.put(wire.receive(control)[0])
    except wire.Closed:
        os._exit(1)  # nobody is left to work for


def _meet(request: dict[str, Any], folder: Path) -> Peers:
    """The processes of this pool."""
    rank, size = request["rank"], request["size"]
    if size == 1:
        return Peers.alone()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nothing listens beyond this machine
    store = FileStore(str(folder / f"pool-{request['pool']}"), size)
    wait = timedelta(seconds=request["timeout"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
    return Peers(dist.group.WORLD, tuple(range(size)), rank)


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # process groups whose peers are gone would wait for them
