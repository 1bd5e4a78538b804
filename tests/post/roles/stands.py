"""A role that stands in for models."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from shunter.config.errors import ShunterError
from shunter.post.roles.protocol import operation
from shunter.post.roles.role import Role
from shunter.post.roles.rows import Rows


class Stand(Role):
    """Makes rows, tells what it was given, waits, fails."""

    @operation("all_to_one")
    def make(self, *, count: int, size: int = 1, unit: int = 1) -> Rows:
        return Rows({"x": [np.full(size, row, dtype=np.float64) for row in range(count)]}, unit)

    @operation("dp")
    def pass_on(self, rows: Rows) -> Rows:
        self.tell(rows=len(rows))
        return Rows({"x": [x + 1 for x in rows["x"]]}, rows.unit)

    @operation("spread")
    def mine(self, rows: Rows) -> Rows:
        return Rows({"x": [np.append(x, self.station.rank) for x in rows["x"]]}, rows.unit)

    @operation("one_to_all")
    def seen(self, rows: Any, *, more: float = 0.0) -> list[float]:
        return [float(x[0]) + more for x in rows["x"]]

    @operation("all_to_all")
    def own(self, value: Any) -> Any:
        return [self.station.rank, value]

    @operation("reversed")
    def backwards(self, rows: Rows) -> Rows:
        return Rows({"x": list(rows["x"])[::-1]}, rows.unit)

    @operation("spread")
    def sleep(self, rows: Rows, *, seconds: float) -> Rows:
        time.sleep(seconds)
        return rows

    @operation("one_to_all")
    def fail(self, *, how: str) -> None:
        if how == "user":
            raise ShunterError("the fish is not fresh", mend="Buy another.")
        if how == "silent":
            time.sleep(60)
        if self.station.rank == 0:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.zeros(1), group=self.station.everyone.group)
