"""The ladder of `shunter plan --time`: real runs of tiny models, made once, shown beside the laws.

What this cannot show: that the line through so small models holds for large ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.config.errors import ShunterError
from shunter.jobs import ladder
from shunter.jobs.ladder import PARTS, climb, smaller
from shunter.models.spec import DecoderShape, DecoderSpec

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart-short.yaml"
TOKENS = 4 * 20 * 8 * 128  # the shortest run has 20 steps


def test_smaller_models_are_of_the_same_sort() -> None:
    for heads, keys in ((8, 8), (8, 2), (12, 4), (32, 8)):
        shape = DecoderShape(
            dim=64 * heads, num_layers=9, num_heads=heads, num_kv_heads=keys, head_dim=64, ffn_dim=999,
            qk_norm=True, tied=True, family="qwen3",
        )  # fmt: skip
        sizes = []
        for dim in ladder.DIMS:
            small = smaller(shape, dim)
            assert (small.qk_norm, small.tied, small.family) == (True, True, "qwen3")
            assert small.num_heads * small.head_dim == dim
            assert small.num_heads % small.num_kv_heads == 0
            sizes.append(DecoderSpec(**small.model_dump(), vocab_size=600).num_parameters)
        assert sizes == sorted(sizes)


def test_what_cannot_be_climbed(tmp_path: Path) -> None:
    with pytest.raises(ShunterError, match=r"Give at least 81,920 tokens"):
        climb(RECIPE, "base", TOKENS - 1e4, tmp_path)
    with pytest.raises(ShunterError, match="does not begin a new model"):
        climb(RECIPE, "chat", TOKENS, tmp_path)


@pytest.mark.long
def test_it_is_measured_once_and_stands_beside_the_laws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ask = ["plan", "--cluster", "1xa100-80", "--time", "2h", "--ladder", str(RECIPE), "--job", "base"]
    ask += ["--ladder-tokens", str(TOKENS), "--ladder-folder", str(tmp_path / "ladder")]
    assert cli.main([*ask, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rungs = told["ladder"]["rungs"]
    assert len(rungs) == 3 + len(PARTS)
    seen = sorted({rung["tokens"] for rung in rungs})  # but for the padding of some rows
    assert seen == pytest.approx([TOKENS // 4, TOKENS // 2, TOKENS], rel=0.01)
    assert all(3 < rung["loss"] < 6.4 for rung in rungs)  # of 600 words, ln 600 by chance
    assert all(rung["seconds"] > 0 and rung["predicted"] > 0 for rung in rungs)
    middle = [rung["loss"] for rung in rungs if rung["dim"] == rungs[1]["dim"]]
    assert middle == sorted(middle)  # fewer and fewer tokens
    for each in told["models"]:
        assert each["spec"]["vocab_size"] == 600
        assert each["own"][1] <= each["own"][2]
    made = sorted(path.name for path in (tmp_path / "ladder").rglob("manifest.json"))
    assert cli.main(ask) == 0
    text = capsys.readouterr().out
    assert "a ladder of small runs of base" in text
    assert "by your ladder" in text
    assert sorted(path.name for path in (tmp_path / "ladder").rglob("manifest.json")) == made  # nothing anew
