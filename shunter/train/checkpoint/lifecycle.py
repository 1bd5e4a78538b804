"""Reserve, write, publish, point, prune: the order that survives a kill at any instant.

(copy     in a save that goes on beside the training: the values, to memory that nobody else changes)
reserve   .step-00000012.tmp exists, nothing else knows of it
write     shards and tensors.json are written and fsynced; a second thread takes the digests
manifest  sizes and digests of every file, and the values that are not tensors; written last
rename    the folder becomes step-00000012: from here on the checkpoint exists
point     `latest` is replaced atomically (a hint for people; loading never trusts it)
prune     older checkpoints go; only whole ones count, and the newest whole one never goes
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from shunter.config.errors import ShunterError
from shunter.layout.piece import Piece
from shunter.record.points import reach
from shunter.train.checkpoint.later import Flight, Part, Staging
from shunter.train.checkpoint.parts import joined, write_parts
from shunter.train.checkpoint.storage import TENSORS, ShardReader

FORMAT = 1
MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d{8,})")

State = dict[str, Any]  # nested dicts of tensors, named by strings


class Damaged(ShunterError):
    """A checkpoint whose files are not what its manifest says."""


class Checkpointer:
    """The checkpoints of one training job, in `folder`, of which the `keep` newest whole ones stay.

    One process writes a folder at a time (the runner's lock sees to that). `problems` collects a
    sentence for each damaged checkpoint that was passed over. `blocked` is the seconds that the last save
    kept its caller.
    """

    def __init__(self, folder: Path, keep: int = 2, *, clean: bool = True) -> None:
        if keep < 1:
            raise ValueError("keep must be at least 1")
        self.folder, self.keep = folder, keep
        self.problems: list[str] = []
        self.staging = Staging()
        self.blocked = 0.0
        self._flight: Flight | None = None
        self._verified: dict[Path, _Signature] = {}  # files whose bytes were compared with their digests
        self._wrong: dict[Path, _Signature] = {}  # and those that were found to differ
        folder.mkdir(parents=True, exist_ok=True)
        for left in (
            folder.glob(".step-*") if clean else ()
        ):  # a killed attempt's staging: never visible, never needed
            shutil.rmtree(left)

    def save(self, step: int, state: State, extra: dict[str, Any]) -> Path:
        """Publish `state` (tensors) and `extra` (JSON values) as the checkpoint after `step` steps."""
        begin = time.perf_counter()
        self.wait()
        self._publish(step, self._parts(state), extra)
        self.blocked = time.perf_counter() - begin
        return self._target(step)

    def save_later(self, step: int, state: State, extra: dict[str, Any]) -> None:
        """The same of the values as they are now, on another thread; `state` may change at once.

        One save at a time: it waits for the one before. What that one failed of is raised here, by `look` or
        by `wait`, whichever is first.
        """
        begin = time.perf_counter()
        self.wait()
        said = json.loads(json.dumps(extra, allow_nan=False))
        parts = self._copied(state)

        def work() -> None:
            self.staging.arrive()
            self._publish(step, parts, said)

        self._flight = Flight(work)
        self.blocked = time.perf_counter() - begin

    def look(self, landed: bool | None = None) -> None:
        """Raise what a save that goes on beside the training failed of, if it has ended."""
        if self.landed():
            self.wait()

    def landed(self) -> bool:
        """Whether a save that went on beside the training has ended, well or not, and was not looked at."""
        return self._flight is not None and self._flight.landed

    def wait(self) -> None:
        """Until no save is on its way. Raises what the last one failed of, once."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.land()

    def steps(self) -> list[int]:
        """Steps of the checkpoints whose manifest and file sizes agree, without those found damaged; oldest
        first."""
        return [step for step, path in self._published() if self._is_whole(path)]

    def latest(self) -> int | None:
        """The newest step whose files match their digests; a damaged newer one is noted and passed over."""
        for step, path in reversed(self._published()):
            try:
                self._verify(path)
            except Damaged as damage:
                if str(damage) not in self.problems:
                    self.problems.append(str(damage))
                continue
            return step
        return None

    def load(
        self,
        step: int,
        state: State,
        check: Callable[[dict[str, Any], str], None] | None = None,
        *,
        partly: bool = False,
    ) -> dict[str, Any]:
        """Fill the tensors of `state` in place from the checkpoint of `step`; returns its `extra`.

        `check(extra, where)` may refuse it before anything is filled. A tensor that is missing on either
        side, or has another shape or dtype, is an error; with `partly`, `state` need not hold all.
        """
        path = self.folder / f"step-{step:08d}"
        manifest = self._verify(path)
        if check is not None:
            check(manifest["extra"], str(path))
        flat = flatten(state)
        wanted = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in flat.items()}
        agree(path, wanted, described(path), partly=partly)
        with _alone():
            dcp_load(flat, storage_reader=ShardReader(path), planner=DefaultLoadPlanner(), no_dist=True)
        extra: dict[str, Any] = manifest["extra"]
        return extra

    def _parts(self, state: State) -> list[Part]:
        """What this process writes."""
        return [(name, Piece.full(tensor.shape), tensor) for name, tensor in flatten(state).items()]

    def _copied(self, state: State) -> list[Part]:
        return self.staging.copy(self._parts(state))

    def _publish(self, step: int, parts: list[Part], extra: dict[str, Any]) -> None:
        if self._is_there(step):
            return
        staging = self._reserve(step)
        with self._removed_if_raised(staging):
            files: dict[str, Any] = {}
            self._finish(staging, step, [write_parts(staging, 0, parts, files, step)], files, extra)

    def _target(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _is_there(self, step: int) -> bool:
        """Published checkpoints are never overwritten."""
        target = self._target(step)
        return target.exists() and self._is_whole(target)

    def _reserve(self, step: int) -> Path:
        if self._target(step).exists():  # torn
            shutil.rmtree(self._target(step))
        staging = self.folder / f".step-{step:08d}.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        reach("checkpoint.reserve", step=step)
        return staging

    @contextmanager
    def _removed_if_raised(self, staging: Path) -> Iterator[None]:
        try:
            yield
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _finish(
        self, staging: Path, step: int, described: Iterable[Any], files: dict[str, Any], extra: dict[str, Any]
    ) -> None:
        """Description and manifest, and from reserved to published."""
        path = staging / TENSORS
        path.write_text(json.dumps(joined(described)), encoding="utf-8")
        _fsync(path)
        files = {**files, path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}}
        write_manifest(staging, step, files, extra)
        os.rename(staging, self._target(step))
        _fsync(self.folder)
        pointer = self.folder / ".latest.tmp"
        _write_synced(pointer, self._target(step).name.encode())
        os.replace(pointer, self.folder / "latest")
        reach("checkpoint.prune", step=step)
        self._prune()

    def _published(self) -> list[tuple[int, Path]]:
        found = []
        for path in self.folder.iterdir():
            match = _STEP.fullmatch(path.name)
            if match:
                found.append((int(match[1]), path))
        return sorted(found)

    def _verify(self, path: Path) -> dict[str, Any]:
        """The manifest of a checkpoint whose bytes match it. Each byte is read once, unless its file has
        changed since."""
        manifest = read_manifest(path)
        for name, record in manifest["files"].items():
            signature = _signature(path / name, record["sha256"])
            if self._verified.get(path / name) == signature:
                continue
            if _digest(path / name) != record["sha256"]:
                self._wrong[path / name] = signature
                raise Damaged(f"the content of {name} does not match its digest", where=str(path))
            self._verified[path / name] = signature
        return manifest

    def _is_whole(self, path: Path) -> bool:
        """By sizes, and by the content of those files that this process has compared."""
        try:
            files = read_manifest(path)["files"]
        except ShunterError:
            return False
        return not any(
            path / name in self._wrong
            and self._wrong[path / name] == _signature(path / name, record["sha256"])
            for name, record in files.items()
        )

    def _prune(self) -> None:
        # A torn checkpoint, or one that was found damaged, neither counts among the kept nor pushes out a
        # whole one. It is left in place as evidence until a whole one is newer than it.
        whole = self.steps()
        kept = set(whole[-self.keep :])
        for step, path in self._published():
            if whole and step not in kept and step < whole[-1]:
                try:
                    shutil.rmtree(path)
                except OSError as error:  # the new one stands: what is in the way of tidying is no failure
                    self.problems.append(f"{path.name} is old and could not be removed ({error})")


def flatten(state: State, prefix: str = "") -> dict[str, torch.Tensor]:
    """`{"model": {"a": t}}` -> `{"model.a": t}`. Only tensors: other values belong in `extra`."""
    flat: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = f"{prefix}{key}"
        leaves = flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
        for leaf, tensor in leaves.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{leaf} is {type(tensor).__name__}, not a tensor; put it in `extra`")
            if leaf in flat:
                raise ValueError(f"two tensors are called {leaf}")
            flat[leaf] = tensor
    return flat


@contextmanager
def _alone() -> Iterator[None]:
    """DCP warns each time that there is no process group; one process is what we meant.

    It also wraps whatever is raised inside, even KeyboardInterrupt: the original comes out here, so that
    a full disk and an interruption are still seen as what they are.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as wrapped:
        raise next(iter(wrapped.failures.values()))[0] from None


def write_manifest(folder: Path, step: int, files: dict[str, Any], extra: dict[str, Any]) -> None:
    """The last file of a checkpoint."""
    reach("checkpoint.manifest", step=step)
    manifest = {"format": FORMAT, "step": step, "files": files, "extra": extra}
    _write_synced(folder / MANIFEST, json.dumps(manifest, allow_nan=False).encode())
    _fsync(folder)
    reach("checkpoint.rename", step=step)


def described(path: Path) -> dict[str, Any]:
    """`tensors.json`, checked: name -> dtype, shape and chunks. Raises ShunterError when it is damaged."""
    ShardReader(path).read_metadata()
    found: dict[str, Any] = json.loads((path / TENSORS).read_text(encoding="utf-8"))
    return found


def agree(
    path: Path,
    wanted: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    stored: Mapping[str, Any],
    *,
    partly: bool = False,
) -> None:
    """Raise ShunterError unless these names with dtype and whole shape are stored; `partly`: and others."""
    missing = sorted(wanted.keys() - stored.keys())
    unexpected = [] if partly else sorted(stored.keys() - wanted.keys())
    if missing or unexpected:
        parts = [
            f"{label} {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
            for label, names in (("lacks", missing), ("has unexpected", unexpected))
            if names
        ]
        raise ShunterError(
            f"the checkpoint {' and '.join(parts)}",
            where=str(path),
            mend="Resume with the model and optimizer that it was written with.",
        )
    for name, (dtype, shape) in wanted.items():
        entry = stored[name]
        if tuple(entry["shape"]) != shape or f"torch.{entry['dtype']}" != str(dtype):
            raise ShunterError(
                f"{name} is torch.{entry['dtype']} {tuple(entry['shape'])} in the checkpoint but "
                f"{dtype} {shape} here",
                where=str(path),
            )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files have the sizes that it says. Raises Damaged for others."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        number = manifest["format"]
        files = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"the checkpoint has no readable manifest ({error})", where=str(path)) from error
    if number > FORMAT:
        raise ShunterError(
            f"the checkpoint has format {number}, this shunter reads up to {FORMAT}",
            where=str(path),
            mend="Use a newer shunter.",
        )
    for name, (size, _) in files.items():
        actual = (path / name).stat().st_size if (path / name).is_file() else None
        if Path(name).name != name or actual != size:
            raise Damaged(f"{name} has {actual or 'no'} bytes, its manifest says {size}", where=str(path))
    return dict(manifest)


_Signature = tuple[str, int, int, int]


def _signature(path: Path, digest: str) -> _Signature:
    found = path.stat()
    return digest, found.st_ino, found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
