"""A batch script for SLURM that saves before its time is over, goes back into the queue and continues."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shunter.config.errors import ShunterError
from shunter.launch import node
from shunter.launch.place import DEFAULTS

WARNING = 120  # seconds before the end of its time at which the run is asked to save
_VALUE = re.compile(r"[A-Za-z0-9_.,:+@%/=-]+")
_TIME = re.compile(r"(?:\d+-)?\d+(?::\d\d){0,2}")


@dataclass(frozen=True)
class Batch:
    """words: after `-m shunter.cli.main`. folder: shared by all nodes; the job starts in it."""

    name: str
    words: Sequence[str]
    folder: str
    python: str
    nodes: int
    per_node: int
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    gpus: int | None = None  # on each node
    variables: Mapping[str, str] = field(default_factory=dict)

    def script(self) -> str:
        """The text. Raises ShunterError for a value that cannot stand in a line for SLURM."""
        requests = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": self.gpus,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "signal": f"B:USR1@{WARNING}",
            "open-mode": "append",
            "output": f"{self.name}-%j.log",
        }
        for key, value in requests.items():
            if value is not None and not (_TIME if key == "time" else _VALUE).fullmatch(str(value)):
                raise ShunterError(
                    f"SLURM cannot take {str(value)!r}",
                    where=f"--{key}",
                    mend="Use letters, digits and _ . , : -",
                )
        lines = [f"#SBATCH --{key}={value}" for key, value in requests.items() if value is not None]
        exports = "".join(
            f"export {name}={shlex.quote(value)}\n" for name, value in {**DEFAULTS, **self.variables}.items()
        )
        words = " ".join(shlex.quote(word) for word in self.words)
        return _TEXT.format(
            name=self.name, nodes=self.nodes, per_node=self.per_node, requests="\n".join(lines),
            minutes=WARNING // 60, folder=shlex.quote(self.folder), exports=exports,
            python=shlex.quote(self.python), shutdown=node.SHUTDOWN, words=words,
        )  # fmt: skip


# Each task of srun is a torchrun. `wait` returns at a trapped signal, hence the loop.
_TEXT = """#!/bin/bash
# {name} on {nodes} nodes with {per_node} processes each, written by `shunter launch --slurm`.
# {minutes} minutes before its time is over the run saves and stops, and the job goes back into the queue.
{requests}
#SBATCH --requeue
set -euo pipefail
cd {folder}
{exports}
# All meet at a port of the first node. A port of its own, for jobs that share a machine.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
meeting="${{hosts[0]}}:$((15000 + SLURM_JOB_ID % 15000))"

# The run saves and stops when this file is there.
export SHUNTER_STOP="$PWD/.shunter-stop-$SLURM_JOB_ID"
rm -f "$SHUNTER_STOP"
again=
trap 'again=yes; touch "$SHUNTER_STOP"' USR1
trap 'touch "$SHUNTER_STOP"' TERM

srun --ntasks-per-node=1 --kill-on-bad-exit=1 \\
  {python} -m torch.distributed.run \\
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node={per_node} \\
  --rdzv-backend=c10d --rdzv-endpoint="$meeting" --rdzv-id="$SLURM_JOB_ID" \\
  --max-restarts=0 --shutdown-timeout={shutdown} \\
  -m shunter.cli.main {words} &
step=$!
code=0
while wait "$step" && code=0 || code=$?; kill -0 "$step" 2>/dev/null; do :; done

rm -f "$SHUNTER_STOP"
if [ "$again" ] && [ "$code" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
"""


def check(path: Path) -> None:
    """Raise RuntimeError, a bug, where bash cannot read a script."""
    bash = shutil.which("bash")
    if bash is None:
        return
    done = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bash cannot read {path}: {done.stderr.strip()}")


def submit(path: Path) -> str:
    """Hand a script to SLURM; what sbatch says. Raises ShunterError where that does not go."""
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise ShunterError(
            "sbatch is not on this machine",
            mend=f"Copy {path} to a login node of the cluster and run: sbatch {path}",
        )
    done = subprocess.run([sbatch, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ShunterError(f"sbatch refused {path}: {said}", mend="Change the options, and submit it again.")
    return done.stdout.strip()
