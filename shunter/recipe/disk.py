"""Files and folders that survive a power cut: fsync, atomic replacement, removal of what is read-only."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems refuse to sync a folder; they have nothing to sync then.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader, or a crash, sees the old text or the new, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None when it is missing or holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def files(folder: Path) -> Iterator[Path]:
    """All regular files below a folder, sorted by path; ValueError for links and special files."""
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        mode = entry.lstat().st_mode
        if stat.S_ISDIR(mode):
            yield from files(entry)
        elif stat.S_ISREG(mode):
            yield entry
        else:
            raise ValueError(f"{entry} is neither a file nor a folder")


def size(path: Path) -> int:
    """Bytes of all files below; entries that vanish meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def remove(folder: Path) -> None:
    """Remove a folder with all in it, also where a person has made it read-only; missing is fine.

    Raises OSError when entries cannot be removed.
    """

    def again(function: Callable[..., Any], path: str, error: BaseException) -> None:
        if isinstance(error, FileNotFoundError):
            return
        if not isinstance(error, PermissionError):
            raise error
        for each in (os.path.dirname(path), path):
            os.chmod(each, stat.S_IRWXU)
        if os.path.isdir(path):
            remove(Path(path))
        else:
            function(path)

    try:
        # onerror: its successor onexc is not in Python 3.11.
        shutil.rmtree(folder, onerror=lambda function, path, info: again(function, path, info[1]))
    except FileNotFoundError:
        return


def free(path: Path) -> int:
    """Bytes that may still be written to the file system of a path that need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def human(count: float) -> str:
    """`12.3 MB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def full(error: BaseException, where: Path) -> ShunterError:
    """The sentence for a disk that is full."""
    return ShunterError(
        "the disk quota is used up" if _number(error) == errno.EDQUOT else "the disk is full",
        where=str(where),
        mend="Free some space (`shunter gc` helps) and run the same command again.",
    )


def is_full(error: BaseException) -> bool:
    """Whether an error says that no more can be written."""
    return _number(error) in (errno.ENOSPC, errno.EDQUOT)


# Libraries written in Rust (safetensors, tokenizers) raise errors of their own that end in this.
_RUST = re.compile(r"\(os error (\d+)\)")


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _RUST.search(str(error)) if isinstance(error, Exception) else None
    return int(found[1]) if found else None
