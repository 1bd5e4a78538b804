"""Answers of reinforcement learning on disk, so that a crash loses none of them: those that are finished, and
what there is of those that are being written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shunter.generate.rollout import Rollout

TOKENS = ("ids", "logprobs", "versions", "wrote")  # a value of each for each token


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
        self._kept: dict[tuple[int, int], int] = {}  # tokens on disk of answers that are not finished
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, answers: Mapping[int, Rollout]) -> None:
        """Append answers, by their place in the step. A number's shortest decimal form is exact."""
        self._append(step, [{"at": at, **vars(one)} for at, one in answers.items()])
        for at in answers:
            self._kept.pop((step, at), None)

    def keep(self, step: int, answers: Mapping[int, Rollout]) -> None:
        """Append what answers that are not finished have more than when this was last called."""
        lines = []
        for at, one in answers.items():
            begin = self._kept.get((step, at), 0)
            if len(one.ids) > begin:
                more = {name: getattr(one, name)[begin:] for name in TOKENS}
                lines.append({"at": at, "from": begin, "prompt": [] if begin else one.prompt, **more})
                self._kept[step, at] = len(one.ids)
        self._append(step, lines)

    def read(self, step: int, version: int, oldest: int | None = None) -> dict[int, Rollout]:
        """Answers of a step that weights of this version wrote, of all writers. oldest: and weights since
        that version.

        A torn last line is left out. Of this writer's file it is cut off, as it is about to be written on;
        another's may be in the middle of being written.
        """
        found: dict[int, Rollout] = {}
        mine = self._mine(step)
        for path in self._files(step):
            whole = 0
            for values, size in _lines(path):
                whole += size
                at = values.pop("at")
                if "from" in values:
                    continue
                values.setdefault("wrote", [True] * len(values["ids"]))  # as before there were tools
                if _fits(values["versions"], version, oldest):
                    found[at] = Rollout(**values)
            if path == mine:
                os.truncate(path, whole)
        return found

    def begun(self, step: int, version: int, oldest: int | None = None) -> dict[int, Rollout]:
        """What is there of answers that were not finished, where `read` would give the whole."""
        found: dict[int, Rollout] = {}
        for path in self._files(step):
            parts: dict[int, Rollout] = {}
            for values, _ in _lines(path):
                at = values["at"]
                if "from" not in values:
                    parts.pop(at, None)
                    continue
                if values["from"] == 0:
                    parts[at] = Rollout(prompt=values["prompt"])
                if at in parts and len(parts[at].ids) == values["from"]:
                    for name in TOKENS:
                        getattr(parts[at], name).extend(values[name])
            for at, one in parts.items():
                longer = at not in found or len(one.ids) > len(found[at].ids)
                if longer and _fits(one.versions, version, oldest):
                    found[at] = one
        return found

    def forget(self, step: int) -> None:
        """Remove those of steps before `step`, which every checkpoint that is kept holds."""
        for path in self.folder.glob("step-*.jsonl"):
            if int(path.stem.split("-")[1]) < step:
                path.unlink(missing_ok=True)

    def _append(self, step: int, lines: list[dict[str, Any]]) -> None:
        if lines:
            with self._mine(step).open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))

    def _files(self, step: int) -> list[Path]:
        return sorted(self.folder.glob(f"step-{step:08d}*.jsonl"))

    def _mine(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}{self._ending}"


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole lines with their bytes, as far as there are any."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n"):
            return
        yield values, len(line)


def _fits(versions: list[int], version: int, oldest: int | None) -> bool:
    since = version if oldest is None else oldest
    return bool(versions) and since <= min(versions) and max(versions) <= version
