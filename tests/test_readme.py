"""Every command in README.md and docs/ is run.

A ```sh block is executed line by line. A comment on the line above it says how, when the default does not do:

    <!-- test: in=clone exit=2 long short="shunter ..." stdin="hello" -->

in=empty   an empty folder with a folder `texts/` of text files (the default)
in=model   an empty folder with a random Hugging Face model `my-model`, conversations `talks.jsonl`, a peft
           adapter `their-adapter`, and the page's YAML blocks that name a file
in=page    an empty folder with the page's YAML and Python blocks that name a file
in=clone   a copy of recipes/ in which `recipes/quickstart.yaml` is its short form with fewer documents and
           steps, already run
exit=N     every command ends with N
long       the block takes minutes: it runs in `make test-all`, and `short` is run in its place otherwise
stdin      what is typed

`make TARGET` is checked against the Makefile, not run. Any other program is an error here, so nothing is left
out in silence.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shunter.cli import main as cli
from tests import warm
from tests.cli import elsewhere
from tests.cli.documents import ROOT, Block, blocks, markdown

BLOCKS = [block for file in markdown() for block in blocks(file) if block.language == "sh"]
# Lines that a person types and that need no test.
HARMLESS = ("cd ", "git clone ", "pip install ", "source .venv/bin/activate")


def commands(text: str) -> Iterator[str]:
    """The command lines of a block: continued lines joined, comments and empty lines left out."""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.split(" #")[0].strip()
        if line and not line.startswith("#"):
            yield line


def run(command: str, block: Block, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{warm.server().folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "120",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        input=block.directive.get("stdin", ""),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    expected = int(block.directive.get("exit", "0"))
    assert done.returncode == expected, (
        f"{block.place}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )


# Of the clone's quickstart: what the commands of the pages show of it does not hang on its size, and .ci/run
# runs the short form whole. One thread, as the other core is another test's.
SMALLER = {
    "name: quickstart-short": "name: quickstart",
    "limit: 120": "limit: 40",
    "steps: 40": "steps: 10",
    "steps: 20": "steps: 10",
    "    train:\n": "    how: {threads: 1}\n    train:\n",
    "how: {divergence: true}": "how: {divergence: true, threads: 1}",
}


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose quickstart is smaller than the short one and has been run."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    text = (folder / "recipes" / "quickstart-short.yaml").read_text(encoding="utf-8")
    for given, smaller in SMALLER.items():
        assert given in text, f"the short quickstart has no {given!r}"
        text = text.replace(given, smaller)
    (folder / "recipes" / "quickstart.yaml").write_text(text, encoding="utf-8")
    subprocess.run(
        [warm.server().folder / "shunter", "run", "recipes/quickstart.yaml"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder that the block asks for."""
    block: Block = request.getfixturevalue("block")
    if block.directive.get("in", "empty") == "clone":
        found: Path = request.getfixturevalue("clone")
        return found
    if (place := block.directive.get("in")) in ("model", "page"):
        if place == "model":
            elsewhere.write(tmp_path)
        for other in blocks(block.file):
            if other.language in ("yaml", "python") and other.info:
                (tmp_path / other.info).write_text(other.text, encoding="utf-8")
        return tmp_path
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(60):
        sentence = f"This is sentence number {number} of a text that somebody wrote. "
        (texts / f"{number:02}.txt").write_text(sentence * (20 + number), encoding="utf-8")
    return tmp_path


def missing(command: str) -> str | None:
    """The verb of a command if its module is not there."""
    words = command.split("shunter ", 1)[1].split() if "shunter " in command else []
    if words and words[0] in cli.VERBS:
        try:
            cli.load(words[0])
        except ModuleNotFoundError as error:
            if str(error.name).startswith("shunter.cli."):
                return words[0]
    return None


def check(block: Block, text: str, folder: Path) -> None:
    for command in commands(text):
        if command.startswith("make "):
            targets = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert f"\n{command.split()[1]}:" in targets, (
                f"{block.place}: the Makefile has no such target: {command}"
            )
        elif "shunter " in command:
            if verb := missing(command):
                pytest.skip(
                    f"the verb {verb!r} is not there yet (tests/cli/test_main.py says so as a failure)"
                )
            run(command, block, folder)
        else:
            assert command.startswith(HARMLESS), f"{block.place}: this test cannot run: {command}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if "long" not in b.directive], ids=lambda b: b.place)
def test_commands(block: Block, folder: Path) -> None:
    check(block, block.text, folder)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "long" in b.directive], ids=lambda b: b.place)
def test_short_forms_of_long_commands(block: Block, folder: Path) -> None:
    assert block.directive.get("short"), f"{block.place}: a long block names its short form"
    check(block, block.directive["short"], folder)


@pytest.mark.long
@pytest.mark.parametrize("block", [b for b in BLOCKS if "long" in b.directive], ids=lambda b: b.place)
def test_long_commands(block: Block, folder: Path) -> None:
    check(block, block.text, folder)


def test_no_command_escapes_the_tests() -> None:
    # Indented code and other fences are not executed here; docs/errors.md is by tests/cli/test_bad_input.py.
    for file in markdown():
        inside = {n for b in blocks(file) for n in range(b.line, b.line + b.text.count("\n") + 2)}
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            assert number in inside or not line.startswith(("    shunter ", "\tshunter ", "    $ ")), (
                f"{file.name}:{number}: put the command into a ```sh block"
            )
        for block in blocks(file):
            if block.language in ("sh", "yaml") or (block.language == "console" and file.name == "errors.md"):
                continue
            typed = [line for line in block.text.splitlines() if line.startswith(("shunter ", "$ shunter "))]
            assert not typed, f"{block.place}: commands stand in ```sh blocks"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    assert [page for page in pages if f"({page})" not in index] == []


def test_links_lead_somewhere() -> None:
    for file in [*markdown(), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (file.parent / target).exists(), f"{file.name} links to {target}, which is not there"


def test_the_numbers_of_the_models_page_are_those_measured() -> None:
    """Each row of its two tables: the case's recorded ratio, and whether a goal is said to be missed."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    names = {
        "float32": "eager-fp32",
        "compiled float32": "compiled-fp32",
        "compiled bfloat16": "compiled-bf16",
    }
    rows = re.findall(
        r"^\| (\d+M)( parameters)?(?:, ([a-z0-9 ]+))? \| (.+?) \| (.+?) \|$", text, re.MULTILINE
    )
    assert len(rows) == 9
    results = ROOT / "bench" / "results"
    steps = json.loads((results / "train_step.json").read_text("utf-8"))["cases"]
    written = json.loads((results / "generate.json").read_text("utf-8"))["cases"]
    for size, _, mode, *cells in rows:
        if mode in names:
            case = steps[f"{size}-{names[mode]}-rows"]
            found = [(case["ratio"], case["reached"]), (case["peak_ratio"], case["peak_reached"])]
        else:
            stem = f"{size}-grouped" if mode else size
            pair = [written[f"{stem}-{how}"] for how in ("greedy", "sampled")]
            found = [(case["ratio"], case["reached"]) for case in pair]
        for cell, (value, reached) in zip(cells, found, strict=True):
            assert cell.split()[0] == f"{value:.2f}", f"{size} {mode}: {cell} is recorded as {value}"
            assert ("not reached" in cell) == (not reached), f"{size} {mode}: {cell}"


def test_every_verb_stands_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [verb for verb in cli.VERBS if f"`shunter {verb}" not in text] == []


def test_excerpts_of_recipes_stand_in_the_recipe() -> None:
    excerpts = [
        b for file in markdown() for b in blocks(file) if b.language == "yaml" and "from" in b.directive
    ]
    for block in excerpts:
        whole = (ROOT / block.directive["from"]).read_text(encoding="utf-8")
        for part in block.text.split("  # ...\n"):
            assert part in whole, f"{block.place} does not stand in {block.directive['from']}:\n{part}"
