"""Finished answers of reinforcement learning on disk, so that a crash loses none of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from shunter.generate.rollout import Rollout


class Journal:
    """Answers of the steps since the oldest checkpoint that a run may go on from.

    Several writers may share the folder, each with a file a step of its own: what one has written, all read.
    reused: answers that were read and not written again.
    """

    def __init__(self, folder: Path, writer: str = "") -> None:
        """writer: tells this one's files from those of others."""
        self.folder = folder
        self.reused = 0
        self._ending = f"-{writer}.jsonl" if writer else ".jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, answers: Mapping[int, Rollout]) -> None:
        """Append answers, by their place in the step. A number's shortest decimal form is exact."""
        if answers:
            lines = [json.dumps({"at": at, **vars(one)}) + "\n" for at, one in answers.items()]
            with self._mine(step).open("a", encoding="utf-8") as file:
                file.write("".join(lines))

    def read(self, step: int, version: int, oldest: int | None = None) -> dict[int, Rollout]:
        """Answers of a step that weights of this version wrote, of all writers. oldest: and weights since
        that version.

        A torn last line is left out. Of this writer's file it is cut off, as it is about to be written on;
        another's may be in the middle of being written.
        """
        found: dict[int, Rollout] = {}
        mine = self._mine(step)
        for path in sorted(self.folder.glob(f"step-{step:08d}*.jsonl")):
            whole = 0
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    values = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                at = values.pop("at")
                values.setdefault("wrote", [True] * len(values["ids"]))  # as before there were tools
                versions, since = values["versions"], version if oldest is None else oldest
                if versions and since <= min(versions) and max(versions) <= version:
                    found[at] = Rollout(**values)
            if path == mine:
                os.truncate(path, whole)
        return found

    def forget(self, step: int) -> None:
        """Remove those of steps before `step`, which every checkpoint that is kept holds."""
        for path in self.folder.glob("step-*.jsonl"):
            if int(path.stem.split("-")[1]) < step:
                path.unlink(missing_ok=True)

    def _mine(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}{self._ending}"
