"""What can be told of a person's file without running it, and of what it raised. Imports without torch."""

from __future__ import annotations

import ast
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import shunter
from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest

NEEDED = ("model", "train", "collate")
_SHUNTER = Path(shunter.__file__).parent


def parsed(path: Path) -> ast.Module:
    """Raises ShunterError, with the line, for what is no Python."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise ShunterError(
            f"this is no Python ({error.args[0]})", where=f"{path}:{line}" if line else str(path)
        ) from None


def check(path: Path) -> None:
    """Raise ShunterError where the file cannot define a task, by the names at its top level."""
    tree = parsed(path)
    names = set(_names(tree.body))
    if "*" in names or "task" in names:
        return  # what comes from elsewhere is known when it runs
    lacking = [name for name in NEEDED if name not in names]
    if not lacking and not names & {"loss", "step"}:
        lacking = ["loss"]
    if lacking:
        raise undefined(path, lacking[0], names)


def undefined(path: Path, name: str, names: set[str]) -> ShunterError:
    """For a name that a task needs and the file, which has `names`, does not define."""
    near = nearest(name, [each for each in names if not each.startswith("_")])
    return ShunterError(
        f"the file defines no {name!r}",
        where=str(path),
        mend=f"Is it {near!r}?" if near else "A task has model, train, collate, and loss or step.",
    )


def beside(path: Path) -> list[Path]:
    """Modules in the file's folder that it imports, and those that they import."""
    found: dict[Path, None] = {}
    left = [path]
    while left:
        for name in _imported(parsed(left.pop())):
            base = path.parent.joinpath(*name.split("."))
            for each in (base.with_suffix(".py"), base / "__init__.py"):
                if each.is_file() and each != path and each not in found:
                    found[each] = None
                    left.append(each)
    return list(found)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """Names that these statements may bind at the top level of a file."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        else:
            for each in ast.walk(node):
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                    yield each.id
                elif isinstance(each, ast.FunctionDef | ast.ClassDef):
                    yield each.name
                elif isinstance(each, ast.Import | ast.ImportFrom):
                    yield from ((alias.asname or alias.name).partition(".")[0] for alias in each.names)
                elif isinstance(each, ast.Call) and getattr(each.func, "id", "") in ("globals", "exec"):
                    yield "*"


@contextmanager
def told(path: Path) -> Iterator[None]:
    """An exception of the person's own code is their mistake: it is said with file and line of that code. One
    that comes out of shunter's code, or of another place, stays as it is."""
    try:
        yield
    except (ShunterError, SystemExit, KeyboardInterrupt):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [
            frame
            for frame in frames
            if _within(frame.filename, path.parent) or _within(frame.filename, _SHUNTER)
        ]
        if not own or _within(own[-1].filename, _SHUNTER):
            raise
        last = own[-1]
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ShunterError(
            f"your code raised {said}",
            where=f"{last.filename}:{last.lineno}, in {last.name}: {last.line}",
            mend="Mend it there, and run the same command again.",
        ) from error


def _within(name: str, folder: Path) -> bool:
    return Path(name).resolve().is_relative_to(folder.resolve())
