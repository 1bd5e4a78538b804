"""Complaints about a configuration: place, value, mend; no noise from unions."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Discriminator, Field, Tag, model_validator

from shunter.config import check, yaml
from shunter.config.base import Config
from shunter.config.errors import ShunterError
from shunter.config.nearest import distance, nearest


class Text(Config):
    kind: Literal["text"]
    text: str
    limit: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _is_not_silly(self) -> "Text":
        if self.text == "silly":
            raise ValueError("the text is silly")
        return self


class Lines(Config):
    kind: Literal["jsonl", "json"]
    fields: list[str]


class Optimizer(Config):
    learning_rate: float = Field(gt=0)
    name: Literal["adamw", "muon"] = "adamw"
    nesterov: bool = False


class Left(Config):
    a: int


class Right(Config):
    b: int
    c: int = 0

    @model_validator(mode="after")
    def _differ(self) -> "Right":
        if self.b == self.c:
            raise ValueError("b and c are equal")
        return self


class Top(Config):
    sources: list[Annotated[Text | Lines, Field(discriminator="kind")]] = Field([])
    optimizer: Optimizer | None = None
    steps: int | Literal["auto"] = 1
    side: Left | Right | None = None
    named: dict[str, Optimizer] = Field({})
    numbers: list[Annotated[int, Field(ge=0)]] = Field([], max_length=3)
    tagged: (
        Annotated[
            Annotated[Text, Tag("x")] | Annotated[Lines, Tag("y")],
            Discriminator(lambda value: "x" if "text" in value else "y"),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _auto_needs_sources(self) -> "Top":
        if self.steps == "auto" and not self.sources:
            raise ValueError("steps: auto needs sources")
        return self


def complaint(text: str) -> str:
    source = yaml.parse(text, "r.yaml")
    with pytest.raises(ShunterError) as error:
        check.parse(Top, source.data, source)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stps: 3", "r.yaml:1: stps: unknown key. Did you mean 'steps'?"),
        (
            "optimizer: {learning_rat: 1}",
            "optimizer.learning_rat: unknown key. Did you mean 'learning_rate'?",
        ),
        ("optimizer: {steps: 3, learning_rate: 1}", "optimizer.steps: unknown key. It belongs to the top of"),
        ("learning_rate: 3", "learning_rate: unknown key. Did you mean 'optimizer.learning_rate'?"),
        ("Optimizer: {}", "Optimizer: unknown key. Did you mean 'optimizer'?"),
        ("qqqqqqqqq: 1", "qqqqqqqqq: unknown key. Known keys: sources, optimizer, steps, side,"),
        ("optimizer: {}", "optimizer.learning_rate: this key is required"),
        ("optimizer: {learning_rate: '3e-4'}", "must be a number (got '3e-4'). Write 3e-4 without quotes."),
        ("optimizer: {learning_rate: 1_0}", "must be a number (got '1_0'). Write 10."),
        ("optimizer: {learning_rate: 0}", "optimizer.learning_rate: must be greater than 0.0 (got 0)"),
        ("optimizer: {learning_rate: .nan}", "must be a finite number (got nan)"),
        ("optimizer: {learning_rate: true}", "must be a number (got true)"),
        ("optimizer: {learning_rate: 1, nesterov: yes}", "must be true or false (got 'yes'). Write true."),
        (
            "optimizer: {learning_rate: 1, name: adamv}",
            "must be 'adamw' or 'muon' (got 'adamv'). Did you mean",
        ),
        ("optimizer: 3", "r.yaml:1: optimizer: must be a mapping (got 3)"),
        ("numbers: 3", "numbers: must be a list (got 3). Write [3]."),
        ("numbers: [1, -1]", "r.yaml:1: numbers.1: must be at least 0 (got -1)"),
        ("numbers: [1, 1e3]", "numbers.1: must be an integer (got 1000.0). Write 1000."),
        ("numbers: [1, 2, 3, 4]", "numbers: must have at most 3 items, has 4"),
        ("named:\n  k:\n    learning_rate: x", "r.yaml:3: named.k.learning_rate: must be a number (got 'x')"),
        # Branches of unions: the tag is not part of the path, even if a key has its name.
        ("sources:\n- kind: text\n  text: 3", "r.yaml:3: sources.0.text: must be text (got 3). Put it in"),
        ("sources: [{kind: json, fields: [a, 1]}]", "sources.0.fields.1: must be text (got 1)."),
        ("sources: [{kind: tex}]", "sources.0.kind: unknown value (got 'tex'). Did you mean 'text'?"),
        ("sources: [{text: a}]", "r.yaml:1: sources.0.kind: this key is required"),
        (
            "sources: [{knd: text, text: a}]",
            "sources.0.kind: this key is required. Is 'knd' meant to be 'kind'?",
        ),
        ("sources: [{kind: text, txt: a}]", "sources.0.txt: unknown key. Did you mean 'text'?"),
        ("tagged: {kind: text, text: 3}", "r.yaml:1: tagged.text: must be text (got 3)."),
        ("steps: x", "r.yaml:1: steps: must be an integer or 'auto' (got 'x')"),
        ("side: {a: x}", "r.yaml:1: side.a: must be an integer (got 'x')"),
        ("side: {b: 1, e: 2}", "r.yaml:1: side.e: unknown key. Known keys: b, c."),
        ("sources: [{kind: text, text: silly}]", "r.yaml:1: sources.0: the text is silly"),
        ("side: {b: 1, c: 1}", "r.yaml:1: side: b and c are equal"),
        ("steps: auto", "r.yaml: steps: auto needs sources"),
    ],
)
def test_one_mistake_is_one_line(text: str, message: str) -> None:
    found = complaint(text)
    assert message in found
    assert "\n" not in found


def test_several_mistakes_in_the_order_of_the_file() -> None:
    text = "steps: x\nnumbers: [-1]\noptimizer:\n  name: y\n  learning_rate: 1\nzzzzzzzz: 1\n"
    places = [line.split(": ")[0] for line in complaint(text).split("\n")]
    assert places == ["r.yaml:1", "r.yaml:2", "r.yaml:4", "r.yaml:6"]
    many = complaint("named:\n" + "".join(f"  k{i}: {{}}\n" for i in range(50)))
    assert many.endswith("\nand 30 more")


def test_the_place_of_a_part() -> None:
    source = yaml.parse("jobs:\n  base:\n    learning_rate: -1\n", "r.yaml")
    with pytest.raises(ShunterError, match=r"^r.yaml:3: jobs\.base\.learning_rate: must be greater than 0"):
        check.parse(Optimizer, source.data["jobs"]["base"], source, at=("jobs", "base"))
    with pytest.raises(ShunterError, match=r"^learning_rate: must be a number"):
        check.parse(Optimizer, {"learning_rate": "x"})


def test_valid_data_passes_and_an_int_is_taken_for_a_float() -> None:
    top = check.parse(Top, {"optimizer": {"learning_rate": 1}, "sources": [{"kind": "text", "text": "x"}]})
    assert top.optimizer is not None
    assert top.optimizer.learning_rate == 1.0
    assert isinstance(top.optimizer.learning_rate, float)
    assert isinstance(top.sources[0], Text)


class Wide(Config):
    learning_rate: float = 0.0
    weight_decay: float = 0.0
    steps: int = 1
    sequence_length: int = 1
    checkpoint_every: int = 1
    lr: float = 0.0


EDITS = st.sampled_from(["insert", "delete", "replace", "swap"])


@given(st.sampled_from(list(Wide.model_fields)), EDITS, st.integers(0, 30), st.sampled_from("abelrs_xz9"))
def test_every_key_one_edit_away_is_refused_with_the_right_suggestion(
    key: str, edit: str, at: int, char: str
) -> None:
    at %= len(key)
    wrong = {
        "insert": key[:at] + char + key[at:],
        "delete": key[:at] + key[at + 1 :],
        "replace": key[:at] + char + key[at + 1 :],
        "swap": key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
    }[edit]
    if wrong in Wide.model_fields:
        return
    assert distance(wrong, key) == 1
    source = yaml.parse(f"'{wrong}': 1", "r.yaml")
    with pytest.raises(ShunterError) as error:
        check.parse(Wide, source.data, source)
    assert str(error.value) == f"r.yaml:1: {wrong}: unknown key. Did you mean '{key}'?"


def test_a_misspelt_required_key_is_one_mistake() -> None:
    assert complaint("optimizer: {learning_rat: 1}").count("\n") == 0


@given(st.text("abc", max_size=5), st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_distance_is_a_distance(a: str, b: str, c: str) -> None:
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))


def test_nearest_gives_nothing_when_nothing_is_near() -> None:
    assert nearest("zebra", ["lr", "steps"]) is None
    assert nearest("show_batch", ["show-batch", "status"]) == "show-batch"
    assert nearest("x", ["y"]) is None
