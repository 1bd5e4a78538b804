"""The writer of YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from shunter.config import shape, write, yaml
from shunter.config.base import Config

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "no",
        "1",
        "~",
        "a: b",
        "x #y",
        "<<",
        "- a",
        "'",
        '"',
        "a\nb",
        "\x85",
        "\u2028",
        "---",
        "[x",
        "*a",
        "é",
        "\ufeff",
    ]
)
TREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=15,
)


@given(st.dictionaries(TEXT, TREE, min_size=1, max_size=4), st.booleans())
def test_what_is_written_reads_back(tree: dict[str, Any], commented: bool) -> None:
    text = write.dumps(tree, lambda path: f"About {path[-1]!r}." if commented else None)
    read = yaml.parse(text).data
    assert read == tree
    assert repr(read) == repr(tree), "the types changed"


def test_layout() -> None:
    tree = {
        "name": "x",
        "list": [1, "a", "b: c", 2.0, 3e-4],
        "empty": {},
        "jobs": {"a": {"sources": [{"path": "texts/*.txt", "limit": None}, {"path": "y"}], "lr": 1e-3}},
    }
    long = "word " * 30
    comments = {
        ("name",): "A name.",
        ("jobs", "a", "lr"): long,
        ("jobs", "a", "sources", 0, "path"): "Where.",
    }
    text = write.dumps(tree, comments.get)
    assert text.startswith(
        "name: x  # A name.\n"
        'list: [1, a, "b: c", 2.0, 0.0003]\n'
        "empty: {}\n"
        "jobs:\n"
        "  a:\n"
        "    sources:\n"
        "      - path: texts/*.txt  # Where.\n"
        "        limit: null\n"
        "      - path: y\n"
        "    # word word"
    )
    assert text.endswith("    lr: 0.001\n")
    assert max(map(len, text.splitlines())) <= write.WIDTH
    assert yaml.parse(text).data == tree


class Inner(Config):
    kind: Literal["inner"] = Field(description="Which.")
    depth: int = Field(1, description="How deep.")


class Other(Config):
    kind: Literal["other"] = Field(description="Which.")
    width: int = Field(1, description="How wide.")


class Outer(Config):
    parts: list[Annotated[Inner | Other, Field(discriminator="kind")]] = Field(description="Parts.")
    named: dict[str, Inner] = Field(description="By name.")
    maybe: Inner | None = Field(None, description="Perhaps.")


def test_sentences_of_keys() -> None:
    assert shape.describe(Outer, ("parts",)) == "Parts."
    assert shape.describe(Outer, ("parts", 0, "depth")) == "How deep."
    assert shape.describe(Outer, ("parts", 3, "width")) == "How wide."
    assert shape.describe(Outer, ("named", "x")) is None
    assert shape.describe(Outer, ("named", "x", "depth")) == "How deep."
    assert shape.describe(Outer, ("maybe", "depth")) == "How deep."
    assert shape.describe(Outer, ("nothing", "depth")) is None
