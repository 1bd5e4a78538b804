"""A file that the library reads as what was given, and the digest of its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shunter.train.checkpoint.shard import NAMES, write_shard

shapes = st.lists(st.integers(0, 4), max_size=3)


@given(st.lists(st.tuples(st.sampled_from(list(NAMES)), shapes), max_size=8), st.integers(0, 99))
def test_the_library_reads_what_was_given(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[torch.dtype, list[int]]], seed: int
) -> None:
    """Of any dtype, in any order: narrow ones of odd sizes must not push wide ones off their multiples."""
    draw, path = torch.Generator().manual_seed(seed), tmp_path_factory.mktemp("s") / "a.safetensors"
    tensors = {
        f"t{number}": torch.randint(0, 2, shape, generator=draw).to(dtype)
        for number, (dtype, shape) in enumerate(kinds)
    }
    told = write_shard(path, tensors)
    raw = path.read_bytes()
    assert told == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].float(), tensor.float())


def test_strides_and_shared_storage_are_written_out(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "turned": whole.T, "column": whole[:, 1], "same": whole}
    write_shard(tmp_path / "a", tensors)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, tmp_path / "b")
    one, two = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())
