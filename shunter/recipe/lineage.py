"""From a score back to the documents: what an artefact was made from, and what was made from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shunter.recipe import disk
from shunter.recipe.artefact import Artefact, InputRecord
from shunter.recipe.identity import SHORT
from shunter.recipe.status import code_of, made_by_other_code
from shunter.recipe.store import Store

# Files outside the store that are named one by one; of more, the rest is counted.
MAX_FILES = 5


class Lineage:
    """The graph above one artefact, each artefact once."""

    def __init__(self, store: Store, artefact: Artefact) -> None:
        self.store, self.root = store, artefact
        self._by_content: dict[tuple[str, str, str], Artefact] = {}
        self._all = store.all()
        for each in self._all:
            self._by_content[each.name, each.id, each.content] = each

    def resolve(self, record: InputRecord) -> Artefact | None:
        """The artefact that an input record means, with the very content that was used; None when removed."""
        return self._by_content.get((record.name, record.id, record.content))

    def users(self, artefact: Artefact) -> list[Artefact]:
        """Artefacts made from this one directly, oldest first."""
        key = (artefact.name, artefact.id, artefact.content)
        return [
            each
            for each in self._all
            if any((one.name, one.id, one.content) == key for one in each.manifest.inputs)
        ]

    def data(self) -> dict[str, Any]:
        """Plain data: `artefact` (the root's key), `nodes` by key, `edges` from an input to its user.

        A key is an artefact's folder name, `name-id` for a removed one, `file:path` for a file.
        """
        nodes: dict[str, dict[str, Any]] = {}
        edges: list[dict[str, str]] = []
        queue = [self.root]
        while queue:
            artefact = queue.pop(0)
            key = artefact.path.name
            if key in nodes:
                continue
            nodes[key] = {**_facts(artefact), "used_by": [user.path.name for user in self.users(artefact)]}
            for record in artefact.manifest.inputs:
                found = self.resolve(record)
                up = found.path.name if found else f"{record.name}-{record.id[:SHORT]}"
                edges.append({"from": up, "to": key, "field": record.field})
                if found:
                    queue.append(found)
                elif up not in nodes:
                    nodes[up] = {"name": record.name, "type": None, "state": "removed", "id": record.id}
            for file in artefact.manifest.reads:
                up = f"file:{file.path}"
                nodes[up] = {"name": file.path, "type": "file", "bytes": file.bytes, "sha256": file.sha256}
                edges.append({"from": up, "to": key, "field": "reads"})
        return {"artefact": self.root.path.name, "nodes": nodes, "edges": edges}

    def tree(self) -> str:
        """The graph as an indented tree, the artefact on top; what was shown before is only named."""
        lines = [_label(self.root)]
        lines += self._below(self.root, "", {self.root.path.name})
        if users := self.users(self.root):
            lines.append(f"used by: {', '.join(user.path.name for user in users)}")
        return "\n".join(lines)

    def _below(self, artefact: Artefact, indent: str, shown: set[str]) -> Iterator[str]:
        inputs: dict[tuple[str, str, str], list[str]] = {}
        for record in artefact.manifest.inputs:
            inputs.setdefault((record.name, record.id, record.content), []).append(record.field)
        files = artefact.manifest.reads
        rows: list[tuple[str, Artefact | None]] = []
        for (name, identifier, content), fields in inputs.items():
            found = self._by_content.get((name, identifier, content))
            label = _label(found) if found else f"{name}-{identifier[:SHORT]}  (removed)"
            rows.append((f"{', '.join(dict.fromkeys(fields))}: {label}", found))
        rows += [(f"file {file.path}  {disk.human(file.bytes)}", None) for file in files[:MAX_FILES]]
        if len(files) > MAX_FILES:
            total = sum(file.bytes for file in files[MAX_FILES:])
            rows.append((f"and {len(files) - MAX_FILES} more files  {disk.human(total)}", None))
        for index, (label, found) in enumerate(rows):
            last = index == len(rows) - 1
            again = found is not None and found.path.name in shown
            yield f"{indent}{'`-' if last else '|-'} {label}{'  (see above)' if again else ''}"
            if found is not None and not again:
                shown.add(found.path.name)
                yield from self._below(found, f"{indent}{'   ' if last else '|  '}", shown)


def of(store: Store, ref: str) -> Lineage:
    """The lineage of any artefact reference. Raises ShunterError when there is no such artefact."""
    return Lineage(store, store.get(ref))


def needed(store: Store) -> dict[str, set[str]]:
    """Folder name -> folder names of the artefacts that it was made from directly and that are there."""
    every = store.all()
    folders = {(each.name, each.id, each.content): each.path.name for each in every}
    return {
        each.path.name: {
            folders[key]
            for one in each.manifest.inputs
            if (key := (one.name, one.id, one.content)) in folders
        }
        for each in every
    }


def _facts(artefact: Artefact) -> dict[str, Any]:
    manifest = artefact.manifest
    return {
        "name": manifest.name,
        "kind": manifest.kind,
        "type": manifest.type,
        "id": manifest.id,
        "content": manifest.content,
        "state": "there",
        "created": manifest.created,
        "bytes": sum(record.bytes for record in manifest.files),
        "metrics": manifest.metrics,
        "code": dict(code_of(artefact)),
        "other_code": made_by_other_code(artefact),
    }


def _label(artefact: Artefact) -> str:
    manifest = artefact.manifest
    size = disk.human(sum(record.bytes for record in manifest.files))
    other = "  [other code]" if made_by_other_code(artefact) else ""
    return f"{artefact.path.name}  {manifest.type} by {manifest.kind}, {size}, {manifest.created[:19]}{other}"
