"""The YAML reader: core schema, lines, bounds and sentences."""

import json
import math
from pathlib import Path

import pytest
import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st

from shunter.config import scalar, yaml
from shunter.config.errors import ShunterError

VALUES = {
    "3e-4": 3e-4,
    "1e3": 1000.0,
    ".5": 0.5,
    "1.": 1.0,
    "-.inf": -math.inf,
    "12": 12,
    "012": 12,
    "+7": 7,
    "0o17": 15,
    "0x1F": 31,
    "true": True,
    "FALSE": False,
    "~": None,
    "null": None,
    "": None,
    # YAML 1.1 reads these otherwise.
    "no": "no",
    "yes": "yes",
    "on": "on",
    "off": "off",
    "y": "y",
    "1_000": "1_000",
    "12:30:45": "12:30:45",
    "2024-01-31": "2024-01-31",
    "0b11": "0b11",
    "0o8": "0o8",
    "tRue": "tRue",
    "1e": "1e",
    ".": ".",
    "-": "-",
    "=": "=",
    "'3'": "3",
    '"no"': "no",
    "!!str 3": "3",
    "!!float 3": 3.0,
}


@pytest.mark.parametrize("text", [text for text in VALUES if text != "-"])
def test_core_schema(text: str) -> None:
    value = yaml.parse(f"a: {text}").data["a"]
    assert value == VALUES[text]
    assert type(value) is type(VALUES[text])


BAD = [
    ("a:\n\tb: 1", 2, "a tab is used for indentation"),
    ("x: 1\na: b: c", 2, "a ':' where no key can stand"),
    ("x: 1\na: [1, 2\nb: 3", 2, "a '[' is not closed"),
    ("x: 1\na: {b: 1", 2, "a '{' is not closed"),
    ("x: 1\na: 'y\nz: 2", 2, "a quote is not closed"),
    ("a: 1\nb\nc: 2", 2, "a line that is neither"),
    ("a:\n  b: 1\n c: 2", 3, "not aligned"),
    ("a: @x", 1, "cannot begin with '@'"),
    ("x: 1\na: *y", 2, "'*y' has no anchor"),
    ("a: &x [*x]", 1, "'*x' has no anchor"),
    (
        "a: !!python/object/apply:os.system [id]",
        1,
        "the tag '!!python/object/apply:os.system' is not allowed",
    ),
    ("a: !secret x", 1, "the tag '!secret' is not allowed"),
    ("a: !!set {x}", 1, "the tag '!!set' is not allowed"),
    ("a: !!int x", 1, "is not a value of its tag '!!int'"),
    ("x: 1\na: 'é\x01'", 2, "control character U+0001"),
    ("a: 1\n--- \nb: 2", 2, "a second document"),
    ("a: 1\nb: 2\n'a': 3", 3, "'a' stands twice, first on line 1"),
    ("b:\n  a: 1\n  a: 1", 3, "'a' stands twice, first on line 2"),
    ("a: {<<: {b: 1}, <<: {c: 1}}", 1, "'<<' stands twice"),
    ("a: {<<: 3}", 1, "'<<' takes a mapping"),
    ("? [1]\n: c", 1, "a key must be text"),
    ("- 1", 1, "the top must be a mapping"),
    ("", 1, "the file is empty"),
    ("# nothing", 1, "the file is empty"),
    ("a: " + "9" * 5000, 1, "an integer of 5000 digits"),
    ("[" * 200_000, 1, "nested deeper than 64"),  # overran the C stack of PyYAML's composer
    ("- " * 100_000 + "a", 1, "nested deeper than 64"),
    ("\udc80: 1", None, "not UTF-8"),
]


@pytest.mark.parametrize(("text", "line", "part"), BAD, ids=[part for _, _, part in BAD])
def test_bad_text_is_one_sentence_with_its_line(text: str, line: int | None, part: str) -> None:
    with pytest.raises(ShunterError) as error:
        yaml.parse(text, "r.yaml")
    message = str(error.value)
    assert part in message
    assert "\n" not in message
    assert error.value.where == (f"r.yaml:{line}" if line else "r.yaml")


def test_alias_bombs_are_refused_without_being_built() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    with pytest.raises(ShunterError, match="aliases counted in full"):
        yaml.parse(bomb)
    merges = "a: &a {" + ",".join(f"k{i}: 1" for i in range(2000)) + "}\n"
    merges += "".join(f"b{i}: {{<<: [{','.join(['*a'] * 50)}]}}\n" for i in range(50))
    with pytest.raises(ShunterError, match="aliases counted in full"):
        yaml.parse(merges)


def test_merge_keys_yield_to_explicit_keys_and_to_earlier_parents() -> None:
    data = yaml.parse("x: &x {p: 1, q: 2}\ny: {q: 3, <<: *x}\nz: {<<: [{p: 9}, *x], r: 4}\n").data
    assert data["y"] == {"p": 1, "q": 3}
    assert data["z"] == {"p": 9, "q": 2, "r": 4}
    assert yaml.parse("a: {'<<': 1}").data == {"a": {"<<": 1}}


def test_keys_are_text() -> None:
    assert yaml.parse("1: a\nno: b\nnull: c\n").data == {"1": "a", "no": "b", "null": "c"}


def test_lines_and_places() -> None:
    source = yaml.parse("top:\n  list:\n    - a: 1\n    - b: 2\n  x: {y: 1,\n      z: 2}\n", "r.yaml")
    assert source.line(("top",)) == 1
    assert source.line(("top", "list", 1)) == 4
    assert source.line(("top", "list", 1, "b")) == 4
    assert source.line(("top", "x", "z")) == 6
    assert source.line(("top", "x", "missing")) == 5
    assert source.line(()) is None
    assert source.where(("top", "list", 1, "b")) == "r.yaml:4: top.list.1.b"
    assert source.where(()) == "r.yaml"
    assert yaml.dotted(("a", "train.lr", 0)) == 'a."train.lr".0'


def test_files(tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(ShunterError) as error:
            yaml.load(tmp_path / name)
        return str(error.value).replace(str(tmp_path), "")

    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * (yaml.MAX_BYTES + 1))
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert refused("none.yaml") == "/none.yaml: file not found. Check the path."
    assert refused("") == ": this is a folder, not a file"
    assert refused("latin.yaml") == "/latin.yaml:2: not UTF-8 (byte 0xe9). Save it as UTF-8."
    assert "larger than 8 MiB" in refused("large.yaml")
    assert yaml.load(tmp_path / "bom.yaml").data == {"a": 1, "b": 2}


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
TREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, TREE, max_size=4).filter(lambda tree: "<<" not in json.dumps(tree)))
def test_round_trip_of_any_tree(tree: dict) -> None:
    # JSON is a subset of YAML 1.2, so it is an oracle for values, nesting and quoting.
    text = json.dumps(tree, ensure_ascii=False).replace("Infinity", ".inf")
    if "inf" not in json.dumps(tree).lower():
        assert yaml.parse(text).data == tree
    assert yaml.parse(pyyaml.safe_dump(tree, allow_unicode=True, default_style='"')).data is not None


@given(st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none())
def test_every_scalar_reads_back_from_its_json(value: object) -> None:
    text = json.dumps(value).replace("Infinity", ".inf")
    read = scalar.parse(text)
    assert read == value
    assert type(read) is type(value)


@given(TEXT.filter(bool))
def test_text_that_needs_no_quotes_reads_back_as_itself(text: str) -> None:
    if not scalar.needs_quotes(text):
        assert yaml.parse(f"a: {text}\n").data == {"a": text}


@given(st.text(max_size=60))
def test_any_text_gives_a_mapping_or_one_sentence(text: str) -> None:
    try:
        message = str(yaml.parse(text).data.keys())
    except ShunterError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
