"""What each attempt at a job is recorded with: when, how, by which code, where, and how it ended."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shunter
from shunter.recipe import disk
from shunter.record import events

PACKAGE = Path(shunter.__file__).parent
# Packages whose version may change a result or explain a time.
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "pyarrow", "pydantic")
# Variables of the environment that are recorded. A list of what to take, so that no secret slips in.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "HIP_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SHUNTER_INJECT",
    "TORCH_LOGS",
)


@functools.cache
def code_digest() -> str:
    """Digest of shunter's own source files, 12 hex digits: tells code apart without git."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:12]


@functools.cache
def code_record() -> dict[str, Any]:
    """Version, source digest, and in a git checkout the commit and whether the package differs from it."""
    record: dict[str, Any] = {"version": shunter.__version__, "digest": code_digest()}
    commit = _git("rev-parse", "--verify", "HEAD")
    # A site-packages folder inside somebody's own repository is not a checkout of shunter.
    if commit and _git("ls-files", "--error-unmatch", "__init__.py"):
        record["commit"] = commit
        record["dirty"] = bool(_git("status", "--porcelain", "--", "."))
    return record


@functools.cache
def environment_record() -> dict[str, Any]:
    """Interpreter, packages, machine and devices, without importing torch."""
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": cpu_model(),
        "memory_bytes": memory_bytes(),
        "devices": devices(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
    }
    if variables := {name: os.environ[name] for name in VARIABLES if name in os.environ}:
        record["variables"] = variables
    return record


def installed(package: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the next line knows less
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def devices() -> list[str]:
    """Names of accelerators as their drivers list them, `[]` without one."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    if not names and Path("/dev/kfd").exists():
        names.append("AMD GPU")
    return names


def read_attempts(work: Path) -> list[dict[str, Any]]:
    """The records of a work folder, oldest first."""
    found = []
    path = work / "attempts.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                found.append(record)
    return found


class Attempts:
    """`attempts.jsonl` of a work folder: one line an attempt, replaced as a whole at each change."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.records = read_attempts(work)
        for record in self.records:
            # Nobody but the holder of the job's lock writes here: it ran, and it runs no more.
            if record.get("outcome") == "running":
                record["outcome"] = "killed"
                record.setdefault("seconds", self._seconds(record))

    def begin(self, how: Mapping[str, Any]) -> int:
        """Record a new attempt and return its number, from 1."""
        number = 1 + max((int(record.get("attempt", 0)) for record in self.records), default=0)
        self.records.append(
            {
                "attempt": number,
                "begin": time.time(),
                "pid": os.getpid(),
                "how": dict(how),
                "code": code_record(),
                "environment": environment_record(),
                "outcome": "running",
            }
        )
        self._write()
        return number

    def end(self, outcome: str, **facts: Any) -> None:
        """Record how the attempt ended: done, failed or stopped, with seconds and peak memory."""
        self.note(outcome, **facts)
        self._write()

    def note(self, outcome: str, **facts: Any) -> None:
        """As `end`, in memory only."""
        self.records[-1].update({"outcome": outcome, **facts})

    def _seconds(self, record: Mapping[str, Any]) -> float | None:
        """How long a killed attempt lived: until its last event."""
        times = [
            float(event["t"])
            for event in events.read(self.work / "log" / "events.jsonl")
            if event.get("attempt") == record.get("attempt") and isinstance(event.get("t"), int | float)
        ]
        return round(max(0.0, max(times) - float(record.get("begin", max(times)))), 3) if times else None

    def _write(self) -> None:
        lines = [json.dumps(record, ensure_ascii=False) for record in self.records]
        disk.write_atomic(self.work / "attempts.jsonl", "\n".join(lines) + "\n")


def _git(*arguments: str) -> str:
    """Output of a git command in the package's folder; empty when it fails or there is no git."""
    if not shutil.which("git"):
        return ""
    # GIT_DIR and the like would point to another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", *arguments], cwd=PACKAGE, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
