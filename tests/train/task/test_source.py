"""A person's file: what it defines is seen before it runs, its mistakes are said as theirs, its neighbours
count.

What this cannot show: names that a file makes in ways that no look at it tells; those are found when it runs.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.train.task.face import load
from shunter.train.task.source import beside, check, told

BASE = "def model(): ...\ntrain = []\ndef collate(x): ...\ndef loss(m, b, d): ...\n"


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BASE, ""),
        (BASE.replace("collate", "colate"), "Is it 'colate'?"),
        (BASE.replace("def loss", "def lose"), "defines no 'loss'"),
        (BASE.replace("def loss", "def step"), ""),
        ("from elsewhere import *\n", ""),
        ("task = make()\n", ""),
        ("if x:\n    from a import model, train\nelse:\n    model = train = 1\ncollate, loss = 1, 2\n", ""),
        ("def model(:\n", "mine.py:1"),
    ],
)
def test_names_are_seen_without_running(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    if not says:
        return check(path)
    with pytest.raises(ShunterError) as caught:
        check(path)
    assert says in str(caught.value)


def test_neighbours_are_found_and_imported(tmp_path: Path) -> None:
    write(tmp_path, "import next_one_of_mine\nSIZE = 3\n", "one_of_mine.py")
    write(tmp_path, "", "next_one_of_mine.py")
    write(tmp_path, "", "package_of_mine/__init__.py")
    path = write(tmp_path, f"import os, json\nfrom one_of_mine import SIZE\nimport package_of_mine\n{BASE}")
    assert sorted(each.name for each in beside(path)) == [
        "__init__.py", "next_one_of_mine.py", "one_of_mine.py",
    ]  # fmt: skip
    assert load(path).train == []


def test_dataclasses_and_pickles_work(tmp_path: Path) -> None:
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    path = write(
        tmp_path,
        f"{head}@dataclass\nclass E:\n    a: int\n" + BASE.replace("[]", "[E(1)]"),
        "classes_of_mine.py",
    )
    (example,) = load(path).train  # type: ignore[misc]
    assert example.a == 1
    assert pickle.dumps(example)  # the class is found under its module's name


def test_a_mistake_of_theirs_is_said_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, f"{BASE}\ndef loss(m, b, d):\n    return b['none']\nhere = undefined_name\n")
    with pytest.raises(ShunterError) as caught:
        load(path)
    assert "NameError" in str(caught.value)
    assert "mine.py:8" in str(caught.value)
    path = write(tmp_path, f"{BASE}\ndef loss(m, b, d):\n    return b['none']\n")
    loss = load(path).loss
    assert loss is not None
    with pytest.raises(ShunterError, match=r"mine\.py:7, in loss"), told(path):
        loss(None, {}, None)  # type: ignore[arg-type]
    with pytest.raises(KeyError), told(path):
        raise KeyError("not theirs")
