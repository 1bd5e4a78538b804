"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from shunter.config.base import Config
from shunter.record.points import POINTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "shunter"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL = [
    path for top in ("shunter", "tests", "scripts", "bench") for path in sorted((ROOT / top).rglob("*.py"))
]

TORCH_FREE_ROOMS = ("config", "record", "recipe", "data", "report", "cli", "jobs", "plan")
TORCH_FREE_FILES = (
    "models/spec.py",
    "models/sharding.py",
    "train/config.py",
    "train/layout_check.py",
    "train/layout_describe.py",
    "train/layout_moments.py",
    "train/layout_parts.py",
    "train/layout_traffic.py",
    "generate/config.py",
    "evaluate/config.py",
    "post/config.py",
    "post/layout.py",
)


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TORCH_FREE = [
    module(path)
    for path in SOURCES
    if path.relative_to(PACKAGE).parts[0] in TORCH_FREE_ROOMS
    or path.relative_to(PACKAGE).as_posix() in TORCH_FREE_FILES
]


def dotted(node: ast.expr) -> str:
    """`a.b.c`; empty for what is no chain of names."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def test_torch_free_modules_import_without_torch() -> None:
    # One fresh process; each module is imported in turn, and the first to bring torch in is named.
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "    heavy = [m for m in ('torch', 'transformers') if m in sys.modules]\n"
        "    if heavy: sys.exit(f'{name} imports {heavy}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(TORCH_FREE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_files_stay_short() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): count
        for path in ALL
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long, "a file over 500 lines needs to be taken apart"


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "common", "misc", "helpers", "helper", "tools"}
    assert not [path for path in SOURCES if path.stem in drawers or drawers & set(path.parts)]


def test_package_files_hold_only_a_docstring() -> None:
    for path in SOURCES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1, f"{path} holds more than its docstring"
            assert isinstance(body[0], ast.Expr)


# What runs code that stands in data. `torch.load` needs weights_only=True.
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
FORBIDDEN_ATTRIBUTES = {
    *{
        ("yaml", name)
        for name in ("load", "load_all", "full_load", "unsafe_load", "FullLoader", "UnsafeLoader")
    },
    *{("os", name) for name in ("system", "popen")},
    ("tempfile", "mktemp"),
}


def dangers(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    # Our own reader is called `yaml` too: only PyYAML's is meant.
    pyyaml = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "yaml"
    }
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.split(".")[0] in FORBIDDEN_MODULES:
                yield node.lineno, f"import {name}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            pair = (node.value.id, node.attr)
            if pair in FORBIDDEN_ATTRIBUTES and (pair[0] != "yaml" or "yaml" in pyyaml):
                yield node.lineno, ".".join(pair)
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            shell = keywords.get("shell")
            if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
                yield node.lineno, "shell="
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                yield node.lineno, node.func.id
            if dotted(node.func) == "torch.load":
                only = keywords.get("weights_only")
                if not (isinstance(only, ast.Constant) and only.value is True):
                    yield node.lineno, "torch.load without weights_only=True"


def test_nothing_runs_code_that_stands_in_data() -> None:
    assert found(dangers) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "import pickle",
        "from pickle import loads",
        "import yaml\nyaml.load(x)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
    ],
)
def test_the_danger_check_sees(code: str) -> None:
    assert list(dangers(list(ast.walk(ast.parse(code)))))


def points(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, object]]:
    for node in nodes:
        if isinstance(node, ast.Call) and dotted(node.func) in ("reach", "points.reach"):
            argument = node.args[0]
            yield node.lineno, argument.value if isinstance(argument, ast.Constant) else None


def test_points_and_code_agree() -> None:
    reached = {point: (name, line) for name, line, point in found(points)}
    assert None not in reached, f"{reached.get(None)}: a point is named by a literal"
    assert set(reached) == set(POINTS), "every named point is passed by some line, and no other is"


def configs() -> list[type[Config]]:
    for name in TORCH_FREE:
        importlib.import_module(name)
    found: list[type[Config]] = []
    queue: list[type[Config]] = [Config]
    while queue:
        for child in queue.pop().__subclasses__():
            queue.append(child)
            if child.__module__.startswith("shunter."):
                found.append(child)
    return found


def plain(kind: object) -> Iterator[object]:
    """A type and all types inside it."""
    yield get_origin(kind) or kind
    for part in get_args(kind):
        yield from plain(part)


def test_every_field_of_a_configuration_carries_a_sentence() -> None:
    for config in configs():
        for name, info in config.model_fields.items():
            text = info.description or ""
            place = f"{config.__module__}.{config.__qualname__}.{name}"
            assert text.strip(), f"{place} has no description"
            assert text.strip().endswith((".", "?", ")")), f"{place}: {text!r} is no sentence"
            # YAML has lists only, and strict validation takes no list for these.
            assert not {tuple, set, frozenset, Path} & set(plain(info.annotation)), (
                f"{place}: use list or str"
            )


def undocumented(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    tree = nodes[0]
    assert isinstance(tree, ast.Module)
    if not ast.get_docstring(tree):
        yield 1, "the file"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.lineno, node.name


def test_public_names_have_docstrings() -> None:
    assert found(undocumented) == []


# Parallelism, optimizers, recomputation and compilation are applied to a model from above.
FOREIGN = ("torch.distributed", "torch.optim", "torch.utils.checkpoint", "torch._dynamo")


def above_models(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [dotted(node)]
        for name in names:
            if name.startswith(FOREIGN) or (name == "torch.compile" and isinstance(node, ast.Attribute)):
                yield node.lineno, name


def test_a_model_file_holds_arithmetic_only() -> None:
    assert [each for each in found(above_models) if each[0].startswith("shunter/models/")] == []
    assert [name for _, name in above_models(list(ast.walk(ast.parse("import torch.optim"))))]


def not_ascii(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Name) and not node.id.isascii():
            yield node.lineno, node.id


def test_source_is_ascii_where_it_is_code() -> None:
    # Letters that look alike cannot hide in names. Strings and comments are free.
    assert found(not_ascii) == []


def imported(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


def test_packages_of_the_base_install_are_the_declared_ones() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [
        *declared["dependencies"],
        *(t for extra in declared["optional-dependencies"].values() for t in extra),
    ]
    names = {text.split("=")[0].split(">")[0].strip().lower().replace("-", "_") for text in texts}
    # Modules of PyYAML and lingua-language-detector; parts that pydantic, jinja2, and torch for CUDA bring.
    allowed = names | {"yaml", "lingua", "typing_extensions", "pydantic_core", "markupsafe", "triton"}
    used = {top: name for name, _, top in found(imported)}
    foreign = {top: name for top, name in used.items() if top not in sys.stdlib_module_names}
    foreign.pop("shunter", None)
    assert {top: name for top, name in foreign.items() if top not in allowed} == {}


Rule = Callable[[Sequence[ast.AST]], Iterator[tuple[int, Any]]]
RULES: tuple[Rule, ...] = (dangers, points, undocumented, above_models, not_ascii, imported)


@cache
def all_found() -> dict[Rule, list[tuple[str, int, Any]]]:
    """Each file is read once for all rules, and its tree forgotten: they are millions of nodes."""
    made: dict[Rule, list[tuple[str, int, Any]]] = {rule: [] for rule in RULES}
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        for rule in RULES:
            made[rule] += [(name, *each) for each in rule(nodes)]
    return made


def found(rule: Rule) -> list[tuple[str, int, Any]]:
    """File, line and what of all that this rule looks for."""
    return all_found()[rule]


# What counts bytes that are sent or alive: a prediction is held to it, so it must not rest on one.
COUNTERS = (
    "parallel/live.py",
    "parallel/saved.py",
    "parallel/counted.py",
    "parallel/emulate.py",
    "record/memory.py",
    "train/recording.py",
    "train/traffic.py",
    "train/layout_describe.py",
    "train/layout_moments.py",
    "train/layout_traffic.py",
    "jobs/memory.py",
)


def test_no_counter_of_bytes_imports_the_planner() -> None:
    files = {module(path): path for path in SOURCES}
    wanted = [(module(PACKAGE / name), "") for name in COUNTERS]
    by: dict[str, str] = {}
    while wanted:
        name, importer = wanted.pop()
        if name in by or name not in files:
            continue
        by[name] = importer
        tree = ast.parse(files[name].read_text(encoding="utf-8"))
        # Of others what they import in a function does not count: a layout may be read from a plan's file.
        for node in ast.walk(tree) if importer == "" else tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted += [
                    (node.module, name),
                    *((f"{node.module}.{each.name}", name) for each in node.names),
                ]
            elif isinstance(node, ast.Import):
                wanted += [(each.name, name) for each in node.names]
    planners = {name: importer for name, importer in by.items() if name.startswith("shunter.plan")}
    assert not planners, planners
    assert all(module(PACKAGE / name) in by for name in COUNTERS)
