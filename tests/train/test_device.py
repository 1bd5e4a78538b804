"""What is known of devices, and what a deterministic run needs of them.

No device is used here: that kernels are deterministic is torch's promise, which it checks itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from shunter.config.errors import ShunterError
from shunter.record import processor
from shunter.train import device
from shunter.train.session import Session
from tests.train import corpora

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100X", None),
        ("Tesla T4", None),
    ],
)
def test_a_peak_belongs_to_one_product(name: str, peak: float | None) -> None:
    """What is not listed is measured, not guessed from a similar name."""
    assert device.known_peak(name) == peak


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ({"avx512_bf16", "avx2"}, "bf16"),
        ({"amx_bf16"}, "bf16"),
        ({"avx512f", "avx2"}, "fp32"),
        (set(), "fp32"),
    ],
)
def test_auto_takes_bf16_where_the_processor_multiplies_it(
    flags: set[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the processor is, not by a measurement: the same machine must decide the same every time."""
    monkeypatch.setattr(processor, "_flags", lambda: frozenset(flags))
    assert device.choose_precision("auto", torch.device("cpu")) == precision
    assert device.choose_precision("fp32", torch.device("cpu")) == "fp32"


def test_determinism_prepares_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.CUBLAS, "x")  # so that it is removed or restored afterwards
    monkeypatch.delenv(device.CUBLAS)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    device.prepare_determinism(torch.device("cpu"))
    assert device.CUBLAS not in os.environ
    device.prepare_determinism(CUDA)
    assert os.environ[device.CUBLAS] == ":4096:8"
    monkeypatch.setenv(device.CUBLAS, ":16:8")
    device.prepare_determinism(CUDA)
    assert os.environ[device.CUBLAS] == ":16:8", "what a person chose stays"


def test_determinism_that_comes_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.CUBLAS, "x")
    monkeypatch.delenv(device.CUBLAS)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ShunterError, match="before the first use of CUDA"):
        device.prepare_determinism(CUDA)


def test_it_is_prepared_before_the_model_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("shunter.train.loop.choose_device", lambda name: CUDA)
    monkeypatch.setattr("shunter.train.loop.choose_precision", lambda wanted, where: "fp32")
    monkeypatch.setattr("shunter.train.loop.prepare_determinism", lambda where: order.append(f"{where}"))
    model = corpora.decoder()
    monkeypatch.setattr(model, "to", lambda where: order.append("moved"))
    corpora.training(tmp_path, {}, {"deterministic": True}, model=model)
    assert order == ["cuda", "moved"]


def test_the_devices_own_random_numbers_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"now": torch.tensor([1, 2, 255], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda where: states["now"])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, where: states.update(now=state))
    text = device.generator_state(CUDA)
    assert text == "0102ff"
    states["now"] = torch.zeros(3, dtype=torch.uint8)
    device.restore_generator(CUDA, None)  # a run that began on a CPU has none
    device.restore_generator(torch.device("cpu"), text)
    assert states["now"].tolist() == [0, 0, 0]
    device.restore_generator(CUDA, text)
    assert states["now"].tolist() == [1, 2, 255]
    assert device.generator_state(torch.device("cpu")) is None

    # Through a checkpoint, as if the model stood there.
    monkeypatch.setattr(Session, "_device", CUDA)
    training = corpora.training(tmp_path, {})
    training.session.save(training.checkpointer)
    states["now"] = torch.zeros(3, dtype=torch.uint8)
    corpora.training(tmp_path, {}).session.load(training.checkpointer, 0)
    assert states["now"].tolist() == [1, 2, 255]
