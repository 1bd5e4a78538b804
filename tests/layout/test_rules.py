"""One cut dim for each weight, by names and sizes: the published algorithm, and what is added to it.

Names of GPT-J, Llama, T5 and OPT give Megatron's layout; drawn trees obey the published rules, told here in
another way than in the code. What this cannot show: that a model computes the same (tests/parallel/generic).
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.layout.anymodel import check_useful, plan
from shunter.layout.folder import weights_of
from shunter.layout.fused import Heads
from shunter.layout.rules import Kind, Rule, Weight, chosen, overridden, rules

OUT, IN = "out", "in"
# Module -> how it is cut by Megatron; None: whole. A number: an embedding's dim.
FAMILIES: dict[str, dict[str, str | int | None]] = {
    "llama": {
        "model.layers.0.self_attn.q_proj": OUT, "model.layers.0.self_attn.k_proj": OUT,
        "model.layers.0.self_attn.v_proj": OUT, "model.layers.0.self_attn.o_proj": IN,
        "model.layers.0.mlp.gate_proj": OUT, "model.layers.0.mlp.up_proj": OUT,
        "model.layers.0.mlp.down_proj": IN, "model.embed_tokens": 0, "lm_head": OUT, "model.norm": None,
    },
    "gptj": {
        "transformer.h.0.attn.q_proj": OUT, "transformer.h.0.attn.k_proj": OUT,
        "transformer.h.0.attn.v_proj": OUT, "transformer.h.0.attn.out_proj": IN,
        "transformer.h.0.mlp.fc_in": OUT, "transformer.h.0.mlp.fc_out": IN, "transformer.wte": 0,
        "lm_head": OUT, "transformer.h.0.ln_1": None,
    },
    "t5": {
        "encoder.block.0.layer.0.SelfAttention.q": OUT, "encoder.block.0.layer.0.SelfAttention.k": OUT,
        "encoder.block.0.layer.0.SelfAttention.v": OUT, "encoder.block.0.layer.0.SelfAttention.o": IN,
        "decoder.block.0.layer.1.EncDecAttention.o": IN, "decoder.block.0.layer.2.DenseReluDense.wi_0": OUT,
        "decoder.block.0.layer.2.DenseReluDense.wi_1": OUT, "decoder.block.0.layer.2.DenseReluDense.wo": IN,
        "encoder.block.0.layer.1.DenseReluDense.wi": OUT, "shared": 0, "lm_head": OUT,
    },
    "opt": {
        "model.decoder.layers.0.self_attn.q_proj": OUT, "model.decoder.layers.0.self_attn.k_proj": OUT,
        "model.decoder.layers.0.self_attn.v_proj": OUT, "model.decoder.layers.0.self_attn.out_proj": IN,
        "model.decoder.layers.0.fc1": OUT, "model.decoder.layers.0.fc2": IN,
        "model.decoder.embed_tokens": 0, "model.decoder.layers.0.final_layer_norm": None,
    },
    "gpt2": {  # transposed
        "transformer.h.0.attn.c_attn": OUT, "transformer.h.0.attn.c_proj": IN,
        "transformer.h.0.mlp.c_fc": OUT, "transformer.h.0.mlp.c_proj": IN, "transformer.wte": 0,
    },
    "neox": {
        "gpt_neox.layers.0.attention.query_key_value": OUT, "gpt_neox.layers.0.attention.dense": IN,
        "gpt_neox.layers.0.mlp.dense_h_to_4h": OUT, "gpt_neox.layers.0.mlp.dense_4h_to_h": IN,
    },
}  # fmt: skip


def _family(name: str, width: int = 48) -> list[Weight]:
    found = []
    for module, cut in FAMILIES[name].items():
        if cut is None:
            found.append(Weight(f"{module}.weight", (width,)))
        elif isinstance(cut, int):
            found.append(Weight(f"{module}.weight", (96, width), "embedding"))
        else:
            kind: Kind = "transposed" if name == "gpt2" else "linear"
            layer = module.rpartition(".")[2]
            outputs = 3 * width if layer in ("c_attn", "query_key_value") else width
            shape = (width, outputs) if kind == "transposed" else (outputs, width)
            found += [Weight(f"{module}.weight", shape, kind), Weight(f"{module}.bias", (outputs,))]
    return found


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_known_names_give_megatrons_layout(family: str, parts: int) -> None:
    found = plan(_family(family), parts, Heads(8, 8))
    for module, wanted in FAMILIES[family].items():
        cut = found.cuts[f"{module}.weight"]
        outputs = 1 if family == "gpt2" else 0
        right = {OUT: outputs, IN: 1 - outputs, None: None}.get(wanted, wanted)  # type: ignore[arg-type]
        assert cut.dim == right, module
        if wanted in (OUT, IN):  # a bias goes with the outputs
            assert found.cuts[f"{module}.bias"].dim == (0 if wanted == OUT else None)
    assert not found.notes
    assert found.held < found.elements / parts * 1.05


@pytest.mark.parametrize("family", ["llama", "gptj", "t5", "opt"])
def test_the_published_rules_say_the_same_of_the_papers_families(family: str) -> None:
    weights = _family(family)
    ours, theirs = (chosen(rules(weights, 2, published=it), weights) for it in (False, True))
    assert {n: r.dim for n, r in ours.items()} == {n: r.dim for n, r in theirs.items()}


def test_a_fused_projection_is_the_difference() -> None:
    weights = _family("gpt2")
    published = chosen(rules(weights, 2, published=True), weights)
    # By the alphabet: c_attn last, c_fc first, c_proj last.
    dims = [published[f"transformer.h.0.{it}.weight"].dim for it in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")]
    assert dims == [1, 0, 1]


NAMES = [
    "alpha",
    "beta",
    "fc1",
    "fc2",
    "q_proj",
    "o_proj",
    "up",
    "down",
    "wo",
    "wi",
    "x_in",
    "out_y",
    "head",
    "a_head",
]
WEIGHTS = st.lists(
    st.tuples(
        st.sampled_from(["attn", "mlp", "SelfAttention"]),
        st.sampled_from(NAMES),
        st.sampled_from([3, 4, 6, 8]),
        st.sampled_from([3, 4, 6, 8]),
    ),
    min_size=1,
    max_size=12,
)


@given(WEIGHTS, st.sampled_from([2, 3, 4]))
def test_drawn_trees_obey_the_published_rules(drawn: list[tuple[str, str, int, int]], parts: int) -> None:
    weights = [
        Weight(f"{i}.{where}.{name}.weight", (o, n), "linear") for i, (where, name, n, o) in enumerate(drawn)
    ]
    found = {rule.pattern[0]: rule for rule in rules(weights, parts, published=True)}
    others = []
    for name in sorted({name for _, name, _, _ in drawn}):
        same = [(where, n, o) for where, it, n, o in drawn if it == name]
        valid = [dim for dim, at in ((0, 1), (1, 2)) if all(each[at] % parts == 0 for each in same)]  # type: ignore[operator]
        dim = found[name].dim
        if not valid:
            assert dim is None  # of all layers of the name, in every one
            continue
        attention = all(where != "mlp" for where, _, _ in same)
        if (attention and name == "q_proj") or name in ("up", "wi", "x_in", "head", "a_head"):
            assert dim == valid[-1]
        elif (attention and name == "o_proj") or name in ("down", "wo", "out_y"):
            assert dim == valid[0]
        else:
            others.append((dim, valid))
    for (before, _), (dim, valid) in pairwise(others):
        assert dim in valid
        if len(valid) == 2:
            assert dim != before  # alternating
    if others and len(others[0][1]) == 2:
        assert others[0][0] == 1


def test_one_layer_that_does_not_divide_decides_for_all_of_its_name() -> None:
    weights = [Weight(f"{i}.mlp.up.weight", (size, 8), "linear") for i, size in enumerate((8, 6, 8))]
    assert rules(weights, 4)[0].dim == 0  # inputs
    assert (
        rules([*weights, Weight("3.mlp.up.weight", (8, 8, 1), "conv")], 2)[0].dim is None
    )  # of another rank


def test_an_odd_vocabulary_pushes_every_table_to_its_width() -> None:
    tables = [Weight("wte.weight", (50257, 8), "embedding"), Weight("wpe.weight", (64, 8), "embedding")]
    assert {cut.dim for cut in plan(tables, 2).cuts.values()} == {1}


def test_kernels_are_turned_as_torch_stores_them() -> None:
    assert Weight("a.weight", (5, 7), "linear").kernel == (7, 5)
    assert Weight("a.weight", (5, 7), "transposed").kernel == (5, 7)
    assert Weight("a.weight", (5, 7, 2, 3), "conv").kernel == (2, 3, 7, 5)
    assert Weight("a.weight", (7, 5, 2, 3), "transposed").kernel == (2, 3, 7, 5)


@pytest.mark.parametrize(
    ("name", "size", "heads", "parts", "blocks"),
    [
        ("c_attn", 24, Heads(4, 4), 2, (8, 8, 8)),
        ("qkv_proj", 32, Heads(4, 2), 2, (16, 8, 8)),
        ("query_key_value", 24, Heads(4, 4), 2, ()),
        ("gate_up_proj", 24, Heads(4, 4), 4, (12, 12)),
        ("c_attn", 24, Heads(), 2, (8, 8, 8)),
    ],
)
def test_fused_projections_are_cut_one_by_one(
    name: str, size: int, heads: Heads, parts: int, blocks: tuple[int, ...]
) -> None:
    found = plan(
        [Weight(f"h.attn.{name}.weight", (size, 8), "linear"), Weight(f"h.attn.{name}.bias", (size,))],
        parts,
        heads,
    )
    assert found.cuts[f"h.attn.{name}.weight"].blocks == blocks
    pieces = [found.piece(f"h.attn.{name}.weight", index) for index in range(parts)]
    rows = sorted(row for piece in pieces for begin, end in piece.ranges[0] for row in range(begin, end))
    assert rows == list(range(size))  # each once
    at = 0
    for block in blocks:  # each rank has as much of each
        for piece in pieces:
            inside = [row for b, e in piece.ranges[0] for row in range(b, e) if at <= row < at + block]
            assert len(inside) == block // parts
        at += block


@pytest.mark.parametrize(
    ("name", "heads"), [("qkv_proj", Heads(4, 1)), ("c_attn", Heads(3, 3)), ("query_key_value", Heads(3, 3))]
)
def test_fused_projections_are_never_cut_across(name: str, heads: Heads) -> None:
    found = plan([Weight(f"h.attn.{name}.weight", (48, 8), "linear")], 2, heads)
    assert found.cuts[f"h.attn.{name}.weight"].dim is None
    assert any(name in note for note in found.notes)


def test_heads_that_do_not_divide_are_told_with_the_nearest_degree() -> None:
    grouped = plan(_family("llama"), 4, Heads(8, 2))
    assert ["8 heads, 2 of keys and values, cannot be cut into 4" in note for note in grouped.notes] == [True]
    assert "2 parts would keep heads whole" in grouped.notes[0]
    assert plan(_family("llama"), 3, Heads(8, 8)).notes


def test_a_person_overrides_the_list() -> None:
    weights = _family("llama")
    found = plan(weights, 2, overrides=["lm_head=whole", "mlp.down_proj=out", "embed_tokens=1"])
    assert found.cuts["lm_head.weight"].dim is None
    assert found.cuts["model.layers.0.mlp.down_proj.weight"].dim == 0
    assert found.cuts["model.embed_tokens.weight"].dim == 1
    assert [rule.why for rule in found.rules[:3]] == ["as you said"] * 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("down_porj=in", "Did you mean 'down_proj'?"),
        ("down_proj=sideways", "no dim 'sideways'"),
        ("down_proj=2", "no dim '2'"),
        ("down_proj", "is no rule"),
        ("(=in", "no regular expression"),
        ("q_proj=out", "cannot be cut into 5"),
    ],
)
def test_overrides_that_cannot_be_are_refused(text: str, told: str) -> None:
    with pytest.raises(ShunterError) as raised:
        plan(_family("llama"), 5, overrides=[text])
    assert told in str(raised.value)


def test_a_weight_that_no_rule_matches_is_an_error() -> None:
    weights = _family("llama")
    with pytest.raises(ShunterError, match="no rule says how"):
        chosen([Rule(("mlp", ".*", "kernel"), 1, "")], weights)
    assert chosen(overridden([Rule((".*",), None, "")], weights, []), weights)


def _write(folder: Path, shapes: dict[str, list[int]], config: dict[str, object]) -> None:
    at, header = 0, {}
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_is_read_by_its_headers(tmp_path: Path) -> None:
    shapes = {
        "wte.weight": [63, 8], "h.0.ln_1.weight": [8], "h.0.ln_1.bias": [8],
        "h.0.attn.c_attn.weight": [8, 24],
        "h.0.attn.c_attn.bias": [24], "h.0.attn.c_proj.weight": [8, 8], "h.0.attn.c_proj.bias": [8],
        "h.0.mlp.c_fc.weight": [8, 32], "h.0.mlp.c_fc.bias": [32], "h.0.mlp.c_proj.weight": [32, 8],
        "h.0.mlp.c_proj.bias": [8], "lm_head.weight": [63, 8],
    }  # fmt: skip
    _write(tmp_path, shapes, {"model_type": "seer", "text_config": {"n_head": 4}})
    weights, heads = weights_of(tmp_path)
    kinds = {weight.name: weight.kind for weight in weights}
    assert (heads.queries, heads.keys) == (4, 4)
    assert (
        kinds["h.0.attn.c_proj.weight"] == kinds["h.0.mlp.c_fc.weight"] == "transposed"
    )  # by its other layer
    assert kinds["lm_head.weight"] == "linear"
    assert kinds["wte.weight"] == "embedding"
    found = plan(weights, 2, heads)
    assert found.cuts["h.0.attn.c_attn.weight"].blocks == (8, 8, 8)
    assert found.cuts["h.0.mlp.c_proj.weight"].dim == 0


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, (5).to_bytes(8, "little") + b"[1,2]"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ShunterError, match="no safetensors file"):
        weights_of(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ShunterError, match="no safetensors file"):
        weights_of(tmp_path)


def test_a_layout_that_does_nothing_is_refused_with_one_that_does_something() -> None:
    weights = [Weight(f"{name}.weight", (8, 8), "linear") for name in ("up", "down")]
    check_useful(plan(weights, 2), lambda parts: plan(weights, parts))
    with pytest.raises(ShunterError, match=r"tp=3 cuts 0 % of the weights.*Use tp=[24]"):
        check_useful(plan(weights, 3), lambda parts: plan(weights, parts))
    odd = [Weight("up.weight", (13, 17), "linear")]
    with pytest.raises(ShunterError, match="Use dp"):
        check_useful(plan(odd, 2), lambda parts: plan(odd, parts))
