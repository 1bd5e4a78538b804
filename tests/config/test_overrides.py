"""Dotted overrides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config import overrides, yaml
from shunter.config.errors import ShunterError

TEXT = """\
name: x
jobs:
  base:
    lr: 3
    files: [a, b]
    matrix: {train.lr: [1]}
    empty:
"""


def source() -> yaml.Source:
    return yaml.parse(TEXT, "r.yaml")


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("jobs.base.lr=3e-4", ("jobs", "base", "lr"), 3e-4),
        ("jobs.base.lr=no", ("jobs", "base", "lr"), "no"),
        ("jobs.base.lr=", ("jobs", "base", "lr"), None),
        ("jobs.base.lr=a=b", ("jobs", "base", "lr"), "a=b"),
        ("jobs.base.lr=[1, {a: 2}]", ("jobs", "base", "lr"), [1, {"a": 2}]),
        ("jobs.base.files.1=c", ("jobs", "base", "files", 1), "c"),
        ("jobs.base.files.-1=c", ("jobs", "base", "files", 1), "c"),
        ("jobs.base.matrix.train.lr=[2]", ("jobs", "base", "matrix", "train.lr"), [2]),
        ('jobs.base.matrix."train.wd"=[2]', ("jobs", "base", "matrix", "train.wd"), [2]),
        ("jobs.base.how.device=cpu", ("jobs", "base", "how", "device"), "cpu"),
        ("jobs.base.empty.a=1", ("jobs", "base", "empty", "a"), 1),
        ("jobs.new={kind: x}", ("jobs", "new"), {"kind": "x"}),
    ],
)
def test_sets(text: str, path: yaml.KeyPath, value: object) -> None:
    before = source()
    after = overrides.apply(before, [text])
    found: object = after.data
    for part in path:
        found = found[part]  # type: ignore[index]
    assert found == value
    assert type(found) is type(value)
    assert after.where(path) == f"override {text!r}: {yaml.dotted(path)}"
    assert before.data == source().data, "the source was written into"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "no '=' in the override. Write it as path.to.key=value."),
        ("=1", "an empty part in its path. Write it as path.to.key=value."),
        ("a..b=1", "an empty part in its path. Write it as path.to.key=value."),
        ('"a=1', "a quote is open. Close the quote."),
        ("a=#3", "'#' begins a comment. Put the value in quotes."),
        ("a=[1", "a '[' is not closed. Add ']', or a missing comma."),
        ("a={b: 1, b: 2}", "the key 'b' stands twice, first on line 1. Remove one."),
        ("jobs.bas.lr=1", "jobs has no 'bas'. Did you mean 'base'?"),
        ("jobs.zzzzzz.lr=1", "jobs has no 'zzzzzz'. Known: base."),
        ("jobs.base.lr.x=1", "jobs.base.lr is 3 and has no key 'x'. Set jobs.base.lr as a whole."),
        ("jobs.base.files.2=1", "jobs.base.files has 2 items, none at 2. Its last is jobs.base.files.1."),
        (
            "jobs.base.files.x=1",
            "jobs.base.files is a list and 'x' is no index. Write jobs.base.files.0 for its first item.",
        ),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(ShunterError) as error:
        overrides.apply(source(), [text])
    assert str(error.value) == f"override {text!r}: {message}"


def test_the_later_wins_and_forgets_what_it_replaced() -> None:
    after = overrides.apply(source(), ["jobs.base.lr=1", "jobs.base={lr: 2}", "jobs.base.lr=5"])
    assert after.data["jobs"]["base"] == {"lr": 5}
    assert after.where(("jobs", "base", "lr")).startswith("override 'jobs.base.lr=5'")
    after = overrides.apply(source(), ["jobs.base.lr=1", "jobs.base={lr: 2}"])
    assert after.where(("jobs", "base", "lr")).startswith("override 'jobs.base={lr: 2}'")


def test_what_is_not_overridden_keeps_its_line() -> None:
    after = overrides.apply(source(), ["jobs.base.lr=1"])
    assert after.where(("jobs", "base", "files")) == "r.yaml:5: jobs.base.files"


@given(st.lists(st.text("abc.", min_size=1, max_size=4), min_size=1, max_size=4), st.integers())
def test_a_quoted_path_reaches_any_key(keys: list[str], value: int) -> None:
    text = yaml.dotted(tuple(f"k{key}" for key in keys)) + f"={value}"
    found: object = overrides.apply(yaml.parse("a: 1"), [text]).data
    for key in keys:
        found = found[f"k{key}"]  # type: ignore[index]
    assert found == value
