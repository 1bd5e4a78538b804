"""A process that does one thing: `python -m tests.small_process tell FILE|exit CODE|fail|kill|sleep`."""

from __future__ import annotations

import os
import signal
import sys
import time


def main(act: str, number: str = "0") -> None:
    """tell: its folder and variables, and a word to a descriptor."""
    if act == "tell":
        print(os.getcwd(), sorted(os.environ))
        os.write(int(number), b"there")
    elif act == "exit":
        sys.exit(int(number))
    elif act == "fail":
        raise ValueError("on purpose")
    elif act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
