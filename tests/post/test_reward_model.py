"""What a reward model says of an answer does not depend on what else is read, and a prompt is read once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.models.decoder import Decoder
from shunter.models.init import init_weights
from shunter.models.spec import DecoderSpec
from shunter.post import reward_model
from shunter.post.reward_model import Learnt
from shunter.post.rewards import Item

VOCAB = 40


def learnt(**changes: Any) -> Learnt:
    spec = DecoderSpec(
        **{
            "vocab_size": VOCAB, "max_positions": 64, "dim": 32, "num_layers": 2, "num_heads": 2,
            "num_kv_heads": 1, "head_dim": 16, "ffn_dim": 48, "tied": True, **changes,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    decoder, head = Decoder(spec), torch.nn.Linear(32, 1)
    init_weights(decoder, 0)
    with torch.no_grad():
        for weight in decoder.layers.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    return Learnt(decoder, head, torch.device("cpu"))


def alone(rule: Learnt, item: Item) -> float:
    """The head at the last token, of this text and nothing else."""
    with torch.no_grad():
        hidden = rule.scorer.decoder(torch.tensor([item.ids]))
        assert rule.scorer.value is not None
        return float(rule.scorer.value(hidden[0, -1]))


ids = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
groups = st.lists(st.tuples(ids, st.lists(ids | st.just([]), min_size=1, max_size=5)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(groups, st.sampled_from([24, 100, 4096]), st.randoms(use_true_random=False))
def test_each_answer_has_the_reward_that_it_has_alone(
    asked: list[tuple[list[int], list[list[int]]]], tokens: int, order: Any
) -> None:
    """Whatever answers to a prompt have in common: all of it, one of them whole, or not even the prompt."""
    rule = learnt()
    items = [
        Item(f"q{number}", "", "", ids=[*prompt, *answer])
        for number, (prompt, answers) in enumerate(asked)
        for answer in answers
    ]
    items.append(Item("q0", "", "", ids=[VOCAB - 1]))
    order.shuffle(items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_model, "TOKENS", tokens)
        found = rule.grade(items)
    assert found == pytest.approx([alone(rule, item) for item in items], abs=1e-5)


def test_equal_answers_are_worth_the_same() -> None:
    """To the last bit: a group of them teaches nothing."""
    rule = learnt()
    draw = torch.Generator().manual_seed(2)
    items = []
    for number, (prompt, answer, count) in enumerate([(24, 6, 8), (33, 1, 8), (40, 20, 16), (1, 3, 5)] * 4):
        ids = torch.randint(0, VOCAB, (prompt + answer,), generator=draw).tolist()
        items += [Item(f"q{number}", "", "", ids=ids)] * count
        items += [Item(f"q{number}", "", "", ids=[*ids[:prompt], n, *ids[prompt + 1 :]]) for n in range(3)]
    torch.manual_seed(0)
    order = torch.randperm(len(items)).tolist()
    found: dict[tuple[int, ...], set[Any]] = {}
    for item, score in zip([items[i] for i in order], rule.grade([items[i] for i in order]), strict=True):
        found.setdefault(tuple(item.ids), set()).add(score)
    assert all(len(scores) == 1 for scores in found.values())
    assert len(set.union(*found.values())) == len(found)


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [({}, 24 + 8 * 6, 24 + 8 * 7 + 8), ({"sliding_window": 8}, 8 * 30, 8 * 32)],
    ids=["shared", "windowed"],
)
def test_a_prompt_is_read_once(changes: dict[str, Any], least: int, most: int) -> None:
    """24 tokens, before eight answers of six; not where the model counts what it sees."""
    rule = learnt(**changes)
    seen: list[int] = []
    rule.scorer.decoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].numel()))
    draw = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, VOCAB, (24,), generator=draw).tolist()
    items = [
        Item("q", "", "", ids=[*prompt, n, *torch.randint(0, VOCAB, (5,), generator=draw).tolist()])
        for n in range(8)
    ]
    found = rule.grade(items)
    assert least <= sum(seen) <= most
    assert found == pytest.approx([alone(rule, item) for item in items], abs=1e-5)
