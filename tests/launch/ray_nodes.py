"""A Ray cluster of two nodes on this machine's loopback, for tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shunter.launch.ray_cluster import LOOPBACK, OWN

PLAIN: dict[str, Any] = {"node_ip_address": LOOPBACK, "include_dashboard": False}
os.environ.update(OWN)  # before Ray is loaded: nothing listens beyond this machine, nobody is told of it


@contextmanager
def nodes(*cpus: int) -> Iterator[Any]:
    """Nodes with so many CPUs each, beside a head that does no work. Yields ray.cluster_utils.Cluster."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'shunter[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **PLAIN})
    try:
        for count in cpus:
            made.add_node(num_cpus=count, **PLAIN)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def until(ready: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, what
        time.sleep(0.05)
