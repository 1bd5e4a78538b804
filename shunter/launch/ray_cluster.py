"""A Ray cluster: one that is there already, or one of this machine alone, made for a job.

Whoever reaches the ports of a Ray cluster may run anything on its nodes as the one who started it, and what
Ray itself sends is pickled. So a cluster that is made here listens on loopback only, and nothing that Ray
pickles is ever kept: what jobs save is theirs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import shunter
from shunter.config.errors import MissingExtra, ShunterError

LOOPBACK = "127.0.0.1"
ANSWER = 10.0  # seconds in which a cluster's head must take a connection
PATIENCE = 60.0  # seconds in which a node must have answered whether it sees a folder
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# For a cluster of one's own: nothing is told to anyone, and devices are left as they are. The last has Ray
# listen on loopback alone: it is meant for systems whose firewalls would ask, and works on all.
OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
SET_BY_RAY = ("RAY_AUTH_MODE",)  # in this process, when it makes a cluster


def ready(purpose: str) -> None:
    """Raise MissingExtra where Ray is not installed. purpose: what needs it."""
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", extra="ray", purpose=purpose)


@dataclass(frozen=True)
class Node:
    """name: its address. cpus: what it says that it has; one without any does no work."""

    id: str
    name: str
    cpus: float


class Cluster:
    """A connection to a cluster, as a context. One at a time: a process has one connection to Ray."""

    def __init__(self, address: str = "", cpus: int = 1) -> None:
        """address: HOST:PORT of one that is there, of which this machine is a node, or `auto` for the one
        that runs here; empty: made here with so many `cpus`, and ended with the context.

        Raises MissingExtra without Ray, ShunterError where no cluster answers."""
        ready("Work on a Ray cluster")
        self.address, self._cpus = address, cpus
        self._folder: Path | None = None
        self._connected = False
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> Cluster:
        if "://" in self.address:
            raise ShunterError(
                f"{self.address} is no address of a node",
                mend="Run on a node of the cluster, and give HOST:PORT of its head, or auto.",
            )
        with _signals():
            # A cluster on loopback is found on loopback by the same switch alone.
            if not self.address or self._host() in ("localhost", "::1") or self._host()[:4] == "127.":
                self._before = {name: os.environ.get(name) for name in (*OWN, *SET_BY_RAY)}
                os.environ.update(OWN)
            import ray

            if ray.is_initialized():
                self._forget()
                self._agree(str(ray.get_runtime_context().gcs_address))
                return self
            try:
                self._answers()
                ray.init(**(self._there() if self.address else self._own()))
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                self._forget()
                raise self._refused(error) from None
            except BaseException:
                ray.shutdown()
                self._forget()
                raise
        self._connected = True
        if self.own and any(node.name != LOOPBACK for node in self.nodes()):
            self.__exit__(None, None, None)
            raise ShunterError(
                "Ray would listen beyond this machine: it was loaded before by this process",
                mend="Name a cluster by its address, or let shunter load Ray.",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connected:
            import ray

            with _signals():
                ray.shutdown()
            self._connected = False
        self._forget()

    def _agree(self, address: str) -> None:
        """A process that has a connection already keeps it."""
        if self.address not in ("", "auto", address):
            raise ShunterError(
                f"this process works with the Ray cluster at {address} already",
                mend=f"Leave it (ray.shutdown()) before work at {self.address}.",
            )

    def _host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    def _answers(self) -> None:
        """Raise OSError where nobody listens: Ray itself would try for ten minutes."""
        if self.address not in ("", "auto"):
            host, port = self._host(), self.address.rpartition(":")[2]
            if not host or not port.isdigit():
                raise ValueError("it is not HOST:PORT")
            socket.create_connection((host, int(port)), timeout=ANSWER).close()

    def _there(self) -> dict[str, Any]:
        return {"address": self.address, "log_to_driver": False, "logging_level": logging.ERROR}

    def _own(self) -> dict[str, Any]:
        # Sockets and logs lie in a folder that this user alone may enter, and go with the job.
        self._folder = Path(tempfile.mkdtemp(prefix="shunter-"))
        return {
            "address": "local", "num_cpus": self._cpus, "num_gpus": 0, "include_dashboard": False,
            "log_to_driver": False, "logging_level": logging.ERROR, "_temp_dir": str(self._folder),
        }  # fmt: skip

    def _refused(self, error: Exception) -> ShunterError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if not self.address:
            return ShunterError(f"Ray did not begin on this machine ({reason})")
        return ShunterError(
            f"no Ray cluster can be used at {self.address} ({reason})",
            mend="Run on a node of it, with the same Python and Ray, and give HOST:PORT of its head.",
        )

    def _forget(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}

    @property
    def own(self) -> bool:
        """Whether it was made here."""
        return self._folder is not None

    def nodes(self) -> list[Node]:
        """Those that are there now and have CPUs."""
        import ray

        found = [node for told in ray.nodes() if told["Alive"] and (node := _node(told)).cpus >= 1]
        return sorted(found, key=lambda node: (node.name, node.id))

    @property
    def cpus(self) -> int:
        """Of all nodes. Raises ShunterError where there are none."""
        nodes = self.nodes()
        if not nodes:
            raise ShunterError("no node of the Ray cluster has a CPU to work on", mend="Add a node.")
        return sum(int(node.cpus) for node in nodes)

    def sees(self, folder: Path) -> Sight:
        """Ask every node whether it sees this folder as this process does, and has this shunter.

        Raises ShunterError that names the first that does not, or does not answer in a minute."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        sight = Sight.of(folder)
        remote = ray.remote(num_cpus=0, max_retries=0)(look)
        asked = {}
        for node in self.nodes():
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked[remote.options(scheduling_strategy=there).remote(sight, node.id)] = node
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE) if asked else ([], [])
        for ref in late:
            raise ShunterError(f"the node {asked[ref].name} of the Ray cluster does not answer")
        for ref in done:
            self._heard(sight, asked[ref], ref)
        return sight

    def _heard(self, sight: Sight, node: Node, ref: Any) -> None:
        import ray

        lost = (ray.exceptions.TaskUnschedulableError, ray.exceptions.WorkerCrashedError)
        try:
            told = ray.get(ref)
        except ray.exceptions.RayError as error:
            if node.id not in {each.id for each in self.nodes()}:
                return  # it has gone meanwhile, and gets no work
            if isinstance(error, lost):
                raise ShunterError(
                    f"the node {node.name} of the Ray cluster is not reached",
                    mend="Wait until the cluster knows that it is lost, or bring it back.",
                ) from None
            raise ShunterError(
                f"the node {node.name} of the Ray cluster cannot run shunter ({reason_of(error)})",
                mend="Install the same shunter for the same Python there.",
            ) from None
        wrote = sight.path.with_name(f"{sight.path.name}.{node.id}")
        if not told["sees"] or not wrote.exists():
            raise sight.hidden(node.name)
        wrote.unlink()
        if told["version"] != shunter.__version__:
            raise ShunterError(
                f"the node {node.name} of the Ray cluster has shunter {told['version']}, this process "
                f"{shunter.__version__}",
                mend="Install the same one on all nodes.",
            )


@dataclass(frozen=True)
class Sight:
    """A file that every node must see: its path and what stands in it."""

    path: Path
    token: str

    @classmethod
    def of(cls, folder: Path) -> Sight:
        """A new one; it lies in the folder until the next one is made."""
        for left in folder.glob("seen-by-nodes*"):
            left.unlink(missing_ok=True)
        sight = cls(folder.absolute() / "seen-by-nodes", secrets.token_hex(16))
        sight.path.write_text(sight.token, encoding="utf-8")
        return sight

    def there(self) -> bool:
        """Whether the file is here, and is the one."""
        try:
            return self.path.read_text(encoding="utf-8") == self.token
        except OSError:
            return False

    def hidden(self, node: str) -> ShunterError:
        """What is said of a node that does not see it."""
        return ShunterError(
            f"the node {node} of the Ray cluster does not see the store",
            where=str(self.path.parent),
            mend="Put the store on a file system that all nodes share, under one path.",
        )


def _node(told: Mapping[str, Any]) -> Node:
    cpus = float(told["Resources"].get("CPU", 0.0))
    return Node(str(told["NodeID"]), str(told["NodeManagerAddress"]), cpus)


def look(sight: Sight, node: str) -> Mapping[str, Any]:
    """On a node: whether it sees the file, and can write beside it."""
    sees = sight.there()
    if sees:
        with contextlib.suppress(OSError):
            sight.path.with_name(f"{sight.path.name}.{node}").touch()
    return {"sees": sees, "version": shunter.__version__}


def this_node() -> Node:
    """In a process of the cluster: its node."""
    import ray

    id = ray.get_runtime_context().get_node_id()
    told = next(each for each in ray.nodes() if each["NodeID"] == id)
    return _node(told)


def reason_of(error: BaseException) -> str:
    """One line of what Ray says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Ray answers signals in its own way from its import on; who handled them before goes on to."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: then nobody could change them
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)
