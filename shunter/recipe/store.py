"""The artefact store: finished work by name and identity, unfinished work, runs.

    <store>/version.json
            artefacts/<name>-<id12>[-rN]/    published; `-rN` is the Nth result of the same identity
            work/<name>-<id12>/              attempts.jsonl, log/, private/, out/ (staging), lock
            runs/<run id>/                   run.json, recipe.yaml, control/, lock

A folder in `artefacts` exists only under a manifest that parses; anything else there is damage, which
`doctor` names and nothing uses.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.recipe import disk, publish
from shunter.recipe.artefact import MANIFEST_FORMAT, Artefact, Manifest
from shunter.recipe.identity import SHORT
from shunter.recipe.runs import RunRecord

STORE_FORMAT = 1
DEFAULT = "shunter-store"
FOLDERS = ("artefacts", "work", "runs")

_FOLDER = re.compile(r"(?P<name>.+)-(?P<id>[0-9a-f]{12})(?:-r(?P<revision>[0-9]+))?")
_REF = re.compile(r"(?P<name>.+)-(?P<id>[0-9a-f]{4,64})(?:-r(?P<revision>[0-9]+))?")


class Damaged(Exception):
    """An artefact folder whose manifest is missing or does not parse."""


class Store:
    """A store that exists or not. Reading one that does not exist finds nothing; `create` makes it."""

    def __init__(self, path: str | Path | None = None) -> None:
        """`path` defaults to $SHUNTER_STORE, then ./shunter-store. Raises ShunterError for a folder
        that is no store, and for a store of a newer format."""
        self.path = Path(path or os.environ.get("SHUNTER_STORE") or DEFAULT).absolute()
        self.artefacts, self.work, self.runs_folder = (self.path / name for name in FOLDERS)
        self._check()

    def _check(self) -> None:
        where = str(self.path)
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ShunterError("this is a file, not a store", where=where, mend="Name a folder with --store.")
        version = self.path / "version.json"
        if not version.exists():
            foreign = [entry.name for entry in self.path.iterdir() if not self._ours(entry.name)]
            if foreign:
                raise ShunterError(
                    f"this folder is no store (it holds {sorted(foreign)[0]!r})",
                    where=where,
                    mend="Name an empty or a new folder with --store.",
                )
            return
        try:
            found = json.loads(version.read_text(encoding="utf-8"))["format"]
        except (OSError, ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, int):
            raise ShunterError(
                "cannot be read",
                where=str(version),
                mend=f'Restore it; in a store of this version it holds {{"format": {STORE_FORMAT}}}.',
            )
        if found > STORE_FORMAT:
            raise ShunterError(
                f"this store has format {found}, newer than this shunter reads ({STORE_FORMAT})",
                where=where,
                mend="Upgrade shunter, or name another folder with --store.",
            )

    def _ours(self, name: str) -> bool:
        return name in FOLDERS or name.startswith(".version.json.") or name == "digests.json"

    def create(self) -> None:
        """Make the store's folders where they are missing. Raises ShunterError where it cannot be written."""
        try:
            for folder in (self.artefacts, self.work, self.runs_folder):
                folder.mkdir(parents=True, exist_ok=True)
            if not (self.path / "version.json").exists():
                disk.write_json(self.path / "version.json", {"format": STORE_FORMAT})
            # Whether a folder can be written is known only by writing.
            probe = self.work / f".probe.{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            if disk.is_full(error):
                raise disk.full(error, self.path) from None
            raise ShunterError(
                f"the store cannot be written ({error.strerror})",
                where=str(self.path),
                mend="Name another folder with --store.",
            ) from None

    # Finding

    def folders(self) -> Iterator[tuple[Path, str, str, int]]:
        """Artefact folders by their names alone: (path, name, id12, revision), sorted."""
        if not self.artefacts.is_dir():
            return
        for entry in sorted(os.listdir(self.artefacts)):
            if found := _FOLDER.fullmatch(entry):
                revision = int(found["revision"] or 1)
                yield self.artefacts / entry, found["name"], found["id"], revision

    def load(self, folder: Path) -> Artefact:
        """The artefact in a folder. Raises Damaged, or ShunterError for a newer format."""
        try:
            text = (folder / "manifest.json").read_text(encoding="utf-8")
            plain = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise Damaged(f"{folder.name}/manifest.json cannot be read: {error}") from None
        version = plain.get("format") if isinstance(plain, dict) else None
        if isinstance(version, int) and version > MANIFEST_FORMAT:
            raise ShunterError(
                f"its manifest has format {version}, newer than this shunter reads ({MANIFEST_FORMAT})",
                where=str(folder),
                mend="Upgrade shunter.",
            )
        try:
            return Artefact(folder, Manifest.model_validate(plain))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise Damaged(f"{folder.name}/manifest.json: {place}: {first['msg']}") from None

    def find(self, name: str, identity: str) -> Artefact | None:
        """The newest artefact of exactly this identity, or None. Damaged ones do not count."""
        short = identity[:SHORT]
        for folder, _, _, _ in sorted(
            (row for row in self.folders() if row[1:3] == (name, short)), key=lambda row: -row[3]
        ):
            try:
                artefact = self.load(folder)
            except Damaged:
                continue
            if artefact.name == name and artefact.id == identity:
                return artefact
        return None

    def all(self) -> list[Artefact]:
        """Every artefact that can be read, oldest first."""
        found = []
        for folder, _, _, _ in self.folders():
            try:
                found.append(self.load(folder))
            except (Damaged, ShunterError):
                continue
        return sorted(found, key=_age)

    def damage(self) -> list[str]:
        """A sentence on each entry of `artefacts` that is no artefact."""
        found = []
        known = {folder.name for folder, _, _, _ in self.folders()}
        for entry in sorted(os.listdir(self.artefacts)) if self.artefacts.is_dir() else []:
            if entry not in known:
                found.append(f"{entry} is no artefact folder")
                continue
            try:
                self.load(self.artefacts / entry)
            except (Damaged, ShunterError) as error:
                found.append(str(error))
        return found

    def newest(self, name: str) -> Artefact | None:
        """The artefact published last under a job's name."""
        found = []
        for folder, known, _, _ in self.folders():
            if known == name:
                try:
                    found.append(self.load(folder))
                except (Damaged, ShunterError):
                    continue
        return max(found, key=_age, default=None)

    def get(self, ref: str | Path) -> Artefact:
        """The artefact that `ref` means: a folder, `name` (its newest), or `name-id` (id from 4 digits on,
        with `-rN` for a revision). Raises ShunterError for none or several."""
        text = str(ref)
        folder = Path(text)
        if (folder / "manifest.json").is_file():
            try:
                return self.load(folder)
            except Damaged as error:
                raise ShunterError(str(error), mend="Make it again with shunter run.") from None
        if artefact := self.newest(text):
            return artefact
        if found := _REF.fullmatch(text):
            rows = [
                (path, name, short, revision)
                for path, name, short, revision in self.folders()
                if name == found["name"]
                and short.startswith(found["id"][:SHORT])
                and revision == int(found["revision"] or revision)
            ]
            if len({row[2] for row in rows}) > 1:
                meant = ", ".join(row[0].name for row in rows)
                raise ShunterError(f"{text!r} means several artefacts: {meant}", mend="Write more of the id.")
            for path, _, _, _ in sorted(rows, key=lambda row: -row[3]):
                try:
                    return self.load(path)
                except Damaged as error:
                    raise ShunterError(str(error), mend="Make it again with shunter run.") from None
        names = list(dict.fromkeys(name for _, name, _, _ in self.folders()))
        variants = [name for name in names if name.startswith(f"{text}[")]
        if variants:
            raise ShunterError(
                f"{text!r} was swept and means several artefacts", mend=f"Name one of: {', '.join(variants)}."
            )
        near = nearest(text, names)
        mend = f"Did you mean {near!r}?" if near else self._known(names)
        raise ShunterError(f"no artefact {text!r} in the store {self.path}", mend=mend)

    # Unfinished work

    def work_folder(self, name: str, identity: str) -> Path:
        """Where a job of this identity works. It need not exist."""
        return self.work / f"{name}-{identity[:SHORT]}"

    # Publication

    def publish(self, staging: Path, log: Path, manifest: Manifest) -> Artefact:
        """Turn a staging folder into an artefact; see `publish.publish`. The caller holds the job's lock."""
        used = [
            revision
            for _, name, short, revision in self.folders()
            if (name, short) == (manifest.name, manifest.id[:SHORT])
        ]
        # A damaged folder keeps its place too: nothing is written over.
        suffix = f"-r{max(used) + 1}" if used else ""
        target = self.artefacts / f"{manifest.name}-{manifest.id[:SHORT]}{suffix}"
        return publish.publish(staging, log, manifest, target)

    def verify(self, artefact: Artefact, *, sizes_only: bool = False) -> list[str]:
        """A sentence on each file that that is not as published; every byte is read unless `sizes_only`."""
        problems = []
        recorded = {record.path: record for record in artefact.manifest.files}
        try:
            there = {path.relative_to(artefact.path).as_posix(): path for path in disk.files(artefact.path)}
        except (OSError, ValueError) as error:
            return [str(error)]
        for path in sorted(recorded.keys() - there.keys()):
            problems.append(f"{artefact.path.name}/{path} is missing")
        for path in sorted(there.keys() - recorded.keys() - {"manifest.json"}):
            problems.append(f"{artefact.path.name}/{path} was added")
        for path, record in recorded.items():
            if path not in there:
                continue
            size = there[path].stat().st_size
            if size != record.bytes:
                problems.append(
                    f"{artefact.path.name}/{path} has {size} bytes, {record.bytes} were published"
                )
            elif not sizes_only and publish.digest(there[path]) != record.sha256:
                problems.append(f"{artefact.path.name}/{path} has another content than was published")
        return problems

    def _known(self, names: Sequence[str]) -> str:
        if names:
            return f"Artefacts: {_tail(names)}."
        return "The store is empty." if self.path.is_dir() else "The store does not exist: correct --store."

    # Runs

    def runs(self) -> list[RunRecord]:
        """Every run that can be read, oldest first."""
        if not self.runs_folder.is_dir():
            return []
        found = (RunRecord.load(folder) for folder in sorted(self.runs_folder.iterdir()))
        return sorted((run for run in found if run), key=lambda run: (run.updated, run.id))

    def run(self, ref: str | Path | None = None) -> RunRecord:
        """The newest run that `ref` means: its id or folder, a recipe's name or file; None: of all.
        Raises ShunterError when there is none."""
        runs = self.runs()
        if not runs:
            raise ShunterError(
                f"no run in the store {self.path}"
                if self.path.is_dir()
                else f"the store {self.path} does not exist",
                mend="Run a recipe first, or name its store with --store.",
            )
        if ref is None:
            return runs[-1]
        text = str(ref)
        for run in reversed(runs):
            if text in (run.id, run.name, str(run.folder), run.recipe) or (
                Path(text).suffix and run.recipe and Path(text).resolve() == Path(run.recipe)
            ):
                return run
        near = nearest(text, [name for run in reversed(runs) for name in (run.name, run.id)])
        mend = f"Did you mean {near!r}?" if near else f"The newest are: {_tail([run.id for run in runs])}."
        raise ShunterError(f"no run {text!r} in the store {self.path}", mend=mend)


def _age(artefact: Artefact) -> tuple[str, str]:
    return artefact.manifest.created, artefact.path.name


def _tail(names: Sequence[str], count: int = 8) -> str:
    return ", ".join([*(["..."] if len(names) > count else []), *names[-count:]])
