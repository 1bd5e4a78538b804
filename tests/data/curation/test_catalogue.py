"""What is told of operators is what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.config.errors import ShunterError
from shunter.data.curation import catalogue, kinds
from shunter.data.curation.operators import Operator

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operators.md"


def test_the_page_is_that_of_the_program() -> None:
    """Where this fails: `python -m shunter.data.curation.catalogue > docs/operators.md`."""
    assert PAGE.read_text(encoding="utf-8") == catalogue.page()


def test_every_option_of_every_operator_is_told() -> None:
    for name, kind in catalogue.operators().items():
        told = {option.name: option for option in catalogue.options(kind)}
        assert set(told) | set(catalogue.INSIDE) >= set(kind.model_fields), name
        assert all(option.says for option in told.values()), name
        assert set(kind.ours) <= set(told), name
        assert kind.source or not kind.ours, name
        given = {option.name: json.loads(option.default) for option in told.values() if plain(option)}
        assert kind.model_validate({"kind": name, **needed(kind), **given}) == kind.model_validate(
            {"kind": name, **needed(kind)}
        )


def plain(option: catalogue.Option) -> bool:
    """Its default is there as a recipe would say it; keys of maps are texts in JSON."""
    short = option.default != "must be given" and not option.default.endswith(" entries")
    return short and "map of whole" not in option.type


def needed(kind: type[Operator]) -> dict[str, object]:
    """What a recipe must give."""
    given = {"lists": {"eng": ["en"]}, "language": "deu", "against": [{"path": "evals"}]}
    return {name: given[name] for name, field in kind.model_fields.items() if field.is_required()}


def test_published_chains_are_of_published_operators() -> None:
    for name in ("gopher", "c4", "fineweb", "fineweb2", "mixturevitae"):
        assert all(operator.source for operator in kinds.preset(name, labelled=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (float | None, "number or null"),
        (dict[str, list[str]], "map of text to list of texts"),
        (kinds.Preset, "`gopher` or `c4` or `fineweb` or `fineweb2` or `mixturevitae`"),
        (list[int], "list of whole numbers"),
    ],
)
def test_types_in_words(annotation: object, told: str) -> None:
    assert catalogue.typed(annotation) == told


def test_a_name_that_none_has() -> None:
    with pytest.raises(ShunterError, match="Did you mean 'near-duplicates'"):
        catalogue.operator("near-duplicate")


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["corpus", "operators"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(catalogue.operators())
    assert all(len(line.split()) > 3 for line in listed)
    assert cli.main(["corpus", "operators", "near-duplicates"]) == 0
    told = capsys.readouterr().out
    assert "Published: FineWeb2, arXiv 2506.20920, section 3.3." in told
    assert "buckets  Buckets; one in common makes a pair. (whole number; 14)" in told
    assert cli.main(["corpus", "operators", "bad-words", "--json"]) == 0
    options = json.loads(capsys.readouterr().out)["options"]
    assert {option["name"]: option["ours"] for option in options}["anywhere"]
    assert cli.main(["corpus", "operators", "bad-word"]) == 2
    assert "Did you mean 'bad-words'?" in capsys.readouterr().err
