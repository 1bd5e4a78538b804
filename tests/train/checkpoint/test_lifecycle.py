"""Checkpoints: what is loaded is what was saved, or the one before, or an error; never something else."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.record import points
from shunter.train.checkpoint.lifecycle import Checkpointer, flatten

Save = Callable[[Checkpointer, int, dict[str, dict[str, torch.Tensor]]], None]


def a_state(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "model": {
            "embed.weight": torch.randn(7, 4, generator=draw),
            "norm": torch.randn(4, generator=draw).bfloat16(),
        },
        "optimizer": {"embed.weight": torch.randn(7, 4, generator=draw, dtype=torch.float64)},
        "rng": {"torch": torch.randint(0, 255, (16,), generator=draw, dtype=torch.uint8)},
        "step": {"count": torch.tensor(float(seed))},
    }


def assert_same(a: dict, b: dict) -> None:
    left, right = flatten(a), flatten(b)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name


@pytest.fixture(autouse=True)
def _no_hook():
    yield
    points.install(None)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    Checkpointer(tmp_path).save(3, a_state(1), {"rows": 12, "best": 0.1 + 0.2})
    again, target = Checkpointer(tmp_path), a_state(2)
    assert again.latest() == 3
    assert again.load(3, target) == {"rows": 12, "best": 0.1 + 0.2}
    assert_same(target, a_state(1))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True), st.integers(1, 4))
def test_retention_keeps_the_newest(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int
) -> None:
    folder = tmp_path_factory.mktemp("c")
    for step in sorted(steps):
        Checkpointer(folder, keep).save(step, {"a": torch.tensor([float(step)])}, {})
    assert Checkpointer(folder, keep).steps() == sorted(steps)[-keep:]


def test_a_damaged_newest_falls_back_and_never_pushes_out_a_whole_one(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path, keep=1)
    keeper.save(1, a_state(1), {})
    points.install(lambda point, facts: "truncate" if point == "checkpoint.shard" else None)
    keeper.save(2, a_state(2), {})
    points.install(None)
    again = Checkpointer(tmp_path, keep=1)
    assert again.latest() == 1
    assert "manifest says" in again.problems[0]
    target = a_state(9)
    again.load(1, target)
    assert_same(target, a_state(1))
    again.save(2, a_state(3), {})  # the damaged one is replaced
    assert Checkpointer(tmp_path).latest() == 2


def test_a_flipped_bit_is_neither_kept_nor_taken_for_done(tmp_path: Path) -> None:
    for step in (10, 20):
        Checkpointer(tmp_path).save(step, a_state(step), {})
    shard = next((tmp_path / "step-00000020").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    keeper = Checkpointer(tmp_path, keep=1)
    assert keeper.latest() == 10
    keeper.save(20, a_state(3), {})  # what comes after 10 is written anew, not skipped
    again = Checkpointer(tmp_path, keep=1)
    assert again.latest() == 20
    target = a_state(9)
    again.load(20, target)
    assert_same(target, a_state(3))


def test_a_flipped_bit_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    for step in (10, 20):
        Checkpointer(tmp_path).save(step, a_state(step), {})
    shard = next((tmp_path / "step-00000020").glob("*.safetensors"))
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    keeper = Checkpointer(tmp_path, keep=2)
    assert keeper.latest() == 10
    keeper.save(30, a_state(3), {})
    assert keeper.steps() == [10, 30]


def test_what_is_in_the_way_of_tidying_fails_no_save(tmp_path: Path) -> None:
    Checkpointer(tmp_path, keep=1).save(1, a_state(1), {})
    manifest = tmp_path / "step-00000001" / "manifest.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**said, "format": 99}))
    keeper = Checkpointer(tmp_path, keep=1)
    keeper.save(2, a_state(2), {})
    assert keeper.latest() == 2


def test_every_byte_is_on_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file as it stands in the checkpoint was fsynced, and its folder, before rename and pointer.

    What it cannot show: that the disk keeps its word.
    """
    synced: dict[str, int] = {}  # path -> bytes at its last fsync, -1 for a folder
    moves: list[tuple[str, dict[str, int]]] = []  # target of each rename, with what was synced by then
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def spy(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        synced[str(path)] = -1 if path.is_dir() else path.stat().st_size
        fsync(fd)

    def renaming(real):
        def moved(source, target, **more) -> None:
            moves.append((str(target), dict(synced)))
            real(source, target, **more)

        return moved

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "rename", renaming(rename))
    monkeypatch.setattr(os, "replace", renaming(replace))
    Checkpointer(tmp_path).save(3, a_state(1), {})
    (published,) = (path for path in tmp_path.iterdir() if path.is_dir())
    sizes = sorted(path.stat().st_size for path in published.iterdir())
    (before,) = (seen for target, seen in moves if Path(target).name == published.name)
    files = {Path(path) for path, size in before.items() if size >= 0}
    assert len({path.name for path in files}) == len(sizes) >= 3, "a file was never synced"
    assert sorted(before[str(path)] for path in files) == sizes
    assert {str(path.parent) for path in files} <= before.keys(), "the folder was never synced"
    (at_pointer,) = (seen for target, seen in moves if Path(target).name == "latest")
    assert str(tmp_path) in at_pointer


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path)
    keeper.save(1, a_state(1), {})
    shard = keeper.save(2, a_state(2), {}) / "00000-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert keeper.latest() == 1
    with pytest.raises(ShunterError, match="does not match its digest"):
        keeper.load(2, a_state(0))


class Killed(BaseException):
    """Stands for the process's end at a point: nothing after it runs."""


def save_beside(keeper: Checkpointer, step: int, state: dict[str, dict[str, torch.Tensor]]) -> None:
    """A save that goes on while the state is overwritten."""
    keeper.save_later(step, state, {})
    for tensor in flatten(state).values():
        tensor.zero_()
    keeper.wait()


def save_now(keeper: Checkpointer, step: int, state: dict[str, dict[str, torch.Tensor]]) -> None:
    keeper.save(step, state, {})


BOTH_WAYS = pytest.mark.parametrize("save", [save_now, save_beside])


@BOTH_WAYS
@pytest.mark.parametrize("point", [p for p in points.POINTS if p.startswith("checkpoint.")])
def test_death_at_any_point_leaves_the_old_or_the_new(tmp_path: Path, point: str, save: Save) -> None:
    # A kill runs no `finally`; here the staging folder's removal in `except` does run. The drills in
    # tests/drills use SIGKILL, where it does not.
    keeper = Checkpointer(tmp_path)
    keeper.save(1, a_state(1), {})

    def die(name: str, facts: dict) -> None:
        if name == point:
            raise Killed

    points.install(die)
    with pytest.raises(Killed):
        save(keeper, 2, a_state(2))
    points.install(None)
    again, target = Checkpointer(tmp_path), a_state(0)
    step = again.latest()
    assert step == (2 if point == "checkpoint.prune" else 1)
    again.load(step, target)
    assert_same(target, a_state(step))


@BOTH_WAYS
def test_a_full_disk_publishes_nothing(tmp_path: Path, save: Save) -> None:
    keeper = Checkpointer(tmp_path)
    keeper.save(1, a_state(1), {})

    def full(name: str, facts: dict) -> None:
        if name == "checkpoint.manifest":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    points.install(full)
    with pytest.raises(OSError, match="No space"):
        save(keeper, 2, a_state(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    keeper = Checkpointer(tmp_path)
    keeper.save(1, {"a": torch.zeros(2), "b": torch.zeros(3)}, {})
    with pytest.raises(ShunterError, match="lacks c and has unexpected b"):
        keeper.load(1, {"a": torch.zeros(2), "c": torch.zeros(3)})
    with pytest.raises(ShunterError, match=r"b is torch.float32 \(3,\) in the checkpoint but"):
        keeper.load(1, {"a": torch.zeros(2), "b": torch.zeros(4)})
    with pytest.raises(ShunterError, match=r"torch\.float64"):
        keeper.load(1, {"a": torch.zeros(2), "b": torch.zeros(3, dtype=torch.float64)})


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = Checkpointer(tmp_path).save(1, a_state(1), {}) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ShunterError, match="format 99, this shunter reads up to 1"):
        Checkpointer(tmp_path).latest()


def test_only_tensors_reach_the_planner() -> None:
    with pytest.raises(TypeError, match="put it in `extra`"):
        flatten({"a": {"step": 3}})


class Trap:
    def __reduce__(self) -> tuple:
        return os.mkdir, (Path(os.environ["TRAP"]),)


def test_a_crafted_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sprung = tmp_path / "sprung"
    monkeypatch.setenv("TRAP", str(sprung))
    keeper = Checkpointer(tmp_path / "c")
    path = keeper.save(1, a_state(1), {})
    for name in (".metadata", "tensors.json", "manifest.json"):
        (path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(ShunterError) if name != ".metadata" else _nothing():
            keeper.load(1, a_state(0))
    assert keeper.latest() is None
    assert not sprung.exists()


def test_shard_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    path = Checkpointer(tmp_path / "c").save(1, {"a": torch.zeros(2)}, {}) / "tensors.json"
    tensors = json.loads(path.read_text())
    tensors["a"]["chunks"][0]["file"] = "../../etc/passwd"
    path.write_text(json.dumps(tensors))
    from shunter.train.checkpoint.storage import ShardReader

    with pytest.raises(ShunterError, match="leaves the folder"):
        ShardReader(path.parent).read_metadata()


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_what_is_raised_inside_comes_out_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # safetensors knows no OSError.
    from safetensors import SafetensorError

    from shunter.recipe import disk

    checkpointer = Checkpointer(tmp_path)
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    for error in (KeyboardInterrupt(), full):

        def write(*args: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("shunter.train.checkpoint.parts.write_shard", write)
        with pytest.raises(type(error)) as found:
            checkpointer.save(1, {"a": torch.zeros(2)}, {})
        assert found.value is error
    assert disk.is_full(full)
    assert not disk.is_full(KeyboardInterrupt())
    assert checkpointer.latest() is None


def test_a_resume_reads_each_byte_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shunter.train.checkpoint import lifecycle

    path = Checkpointer(tmp_path).save(1, a_state(1), {})
    real, hashed = lifecycle._digest, []

    def digest(file: Path) -> str:
        hashed.append(file.name)
        return real(file)

    monkeypatch.setattr(lifecycle, "_digest", digest)
    again = Checkpointer(tmp_path)
    assert again.latest() == 1
    again.load(1, a_state(2))
    assert sorted(hashed) == ["00000-00000.safetensors", "tensors.json"]
    # What has changed since is read again.
    shard = path / "00000-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(ShunterError, match="does not match its digest"):
        again.load(1, a_state(2))
