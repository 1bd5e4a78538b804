"""Make a virtual environment with shunter in it. Plain standard library; safe to run at any time.

It does nothing when the environment already fits what is declared, installs what is missing when the
declarations changed, and starts afresh when the environment is broken or was moved.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM = (3, 11)
EXTRAS = "test,dev"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where to make it")
    parser.add_argument("--extras", default=EXTRAS, help="extras to install, separated by commas")
    args = parser.parse_args()
    if sys.version_info < MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        return refuse(
            f"shunter needs Python {MINIMUM[0]}.{MINIMUM[1]} or newer, and {sys.executable} is {found}",
            "Install a newer one and name it: make install PYTHON=python3.12",
        )
    # Two `make` at once, or `make -j`: the second waits and then finds the work done.
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return install(args.venv.absolute(), args.extras)


def install(venv: Path, extras: str) -> int:
    """Bring `venv` to the declared state. Returns the exit code."""
    stamp = venv / "shunter-install.json"
    wanted = state(venv, extras)
    if healthy(venv) and read(stamp) == wanted:
        return 0
    if not healthy(venv) or read(stamp).get("venv") not in (None, str(venv)):
        problem = create(venv)
        if problem:
            return refuse(*problem)
    stamp.unlink(missing_ok=True)
    print(f"Installing shunter into {venv} (the first time takes minutes: torch is large).", flush=True)
    command = [
        *(str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"),
        *("--quiet", "--constraint", str(ROOT / "constraints.txt"), "--editable", f"{ROOT}[{extras}]"),
    ]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code != 0:
        return refuse(
            "pip could not install the dependencies; its words stand above", "Run `make install` again."
        )
    # Written last: an interrupted installation is not taken for a finished one.
    stamp.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return 0


def state(venv: Path, extras: str) -> dict[str, str]:
    """What the environment must have been made from. The paths, because scripts hold them."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return {"venv": str(venv), "project": str(ROOT), "declared": digest.hexdigest(), "extras": extras}


def read(stamp: Path) -> dict[str, str]:
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def healthy(venv: Path) -> bool:
    """Whether its Python starts, is new enough and has pip."""
    code = f"import sys, pip; sys.exit(sys.version_info < {MINIMUM!r})"
    try:
        done = subprocess.run([str(venv / "bin" / "python"), "-c", code], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def create(venv: Path) -> tuple[str, str] | None:
    """Make an empty environment. Returns what is wrong and the mend, or None."""
    if venv.exists() and not venv.is_dir():
        return f"{venv} is not a folder", "Move it away."
    if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
        return f"{venv} exists and is no virtual environment", "Move it away, or name another with --venv."
    # Debian ships Python without the module that puts pip into an environment.
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        what = f"{sys.executable} has no modules venv and ensurepip; Debian packages them apart"
        return what, f"Install them: apt-get install {package}"
    shutil.rmtree(venv, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        shutil.rmtree(venv, ignore_errors=True)
        words = (done.stderr or done.stdout).strip().splitlines()
        return (
            f"the virtual environment was not made: {words[-1] if words else 'no reason given'}",
            "See above.",
        )
    return None


def refuse(what: str, mend: str) -> int:
    print(f"error: {what}. {mend}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
