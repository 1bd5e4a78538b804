"""An operator that tells where it works, and takes its time. Apart from tests, so workers load it fast."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import numpy as np

from shunter.data.curation.operators import Operator, Verdicts
from shunter.data.curation.pages import Pages


class Teller(Operator):
    """Leaves a file named PPID-PID in a folder: workers of one node have one parent. Keeps everything."""

    kind: Literal["teller"] = "teller"
    folder: str
    seconds: float = 0.0

    def judge(self, pages: Pages) -> Verdicts:
        (Path(self.folder) / f"{os.getppid()}-{os.getpid()}").touch()
        time.sleep(self.seconds)
        return Verdicts([], np.full(len(pages), -1, np.int16), np.zeros(len(pages)), np.zeros(len(pages)))
