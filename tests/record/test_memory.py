"""Peak memory belongs to the job that used it, not to the process's whole life."""

import subprocess
import sys
from pathlib import Path

import pytest

from shunter.record import memory

BLOCK = 64 << 20


def test_peak_sees_a_block_that_is_gone_and_reset_forgets_it():
    if not memory.reset_peak():
        pytest.skip("this system cannot reset the peak")
    before = memory.current_rss()
    block = bytearray(BLOCK)
    for page in range(0, BLOCK, 4096):
        block[page] = 1
    assert memory.current_rss() >= before + BLOCK * 0.9
    del block
    assert memory.peak_rss() >= before + BLOCK * 0.9
    assert memory.reset_peak()
    assert memory.peak_rss() < before + BLOCK * 0.5


def test_the_peak_of_a_job_stays_when_a_part_of_it_begins_a_peak_of_its_own():
    if not memory.begin_job():
        pytest.skip("this system cannot reset the peak")
    before = memory.current_rss()
    block = bytearray(BLOCK)
    for page in range(0, BLOCK, 4096):
        block[page] = 1
    del block
    assert memory.reset_peak()
    assert memory.job_peak() >= before + BLOCK * 0.9
    assert memory.begin_job()
    assert memory.job_peak() < before + BLOCK * 0.5


def test_without_proc_the_lifetime_peak_is_given_and_the_reset_says_no(monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", Path("/nonexistent/status"))
    monkeypatch.setattr(memory, "_CLEAR_REFS", Path("/nonexistent/clear_refs"))
    assert memory.reset_peak() is False
    assert 1 << 20 < memory.peak_rss() < 1 << 40
    assert memory.current_rss() == memory.peak_rss()


def test_a_reset_that_is_accepted_and_ignored_is_told(monkeypatch, tmp_path):
    status, clear = tmp_path / "status", tmp_path / "clear_refs"
    status.write_text("VmHWM:\t 900000 kB\nVmRSS:\t 100000 kB\n")
    monkeypatch.setattr(memory, "_STATUS", status)
    monkeypatch.setattr(memory, "_CLEAR_REFS", clear)
    assert memory.reset_peak() is False
    status.write_text("VmHWM:\t 100100 kB\nVmRSS:\t 100000 kB\n")
    assert memory.reset_peak() is True
    assert clear.read_text() == "5"


def test_the_record_room_imports_without_torch_or_any_tracker():
    code = (
        "import sys, shunter.record.memory, shunter.record.track, shunter.record.events\n"
        "print([m for m in ('torch', 'numpy', 'tensorboard', 'wandb', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
