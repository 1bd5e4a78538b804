"""Memory of this process, in bytes: now, and at its peak since the last reset."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_before = 0  # the largest peak that `reset_peak` has ended since `begin_job`


def current_rss() -> int:
    """Resident set size now. Where /proc is missing, the peak: the only figure the system gives."""
    return _status("VmRSS") or _lifetime_peak()


def peak_rss() -> int:
    """Largest resident set size since `reset_peak` succeeded, else since the process began."""
    return _status("VmHWM") or _lifetime_peak()


def reset_peak() -> bool:
    """Begin a new peak at the current size. False where the system cannot (then `peak_rss` is over the
    whole life of the process, and a caller should say so beside the figure).

    Writing 5 to /proc/self/clear_refs resets the high-water mark (proc(5), Linux 4.0 and later). Some
    sandboxes accept the write and ignore it, so the mark is read back.
    """
    global _before
    _before = max(_before, peak_rss())
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    peak, now = _status("VmHWM"), _status("VmRSS")
    if not peak or not now:
        return False
    # Slack for pages that came in between the reset and the read, and for the kernel's per-thread counts.
    return peak <= now + max(4 << 20, now // 50)


def begin_job() -> bool:
    """Begin the peak of a job, which resets of peaks within it leave; False as of `reset_peak`."""
    global _before
    done = reset_peak()
    _before = 0
    return done


def job_peak() -> int:
    """Largest resident set size since `begin_job` succeeded, whatever was reset since, else as `peak_rss`."""
    return max(_before, peak_rss())


def available() -> int | None:
    """What the machine could still give to a process; None where the system does not say."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _status(field: str) -> int | None:
    """A size field of /proc/self/status (kB there) in bytes; None where there is none."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _lifetime_peak() -> int:
    """ru_maxrss: kilobytes on Linux, bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
