"""What each reward compares answers with, by field, and rewards of one kind under names of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.post.config import RewardConfig
from shunter.post.prompts import Prompt
from shunter.post.rewards import Grader, Rule, rule
from shunter.post.targets import Wanted, survey


def rewards(*given: dict[str, Any]) -> list[RewardConfig]:
    return [RewardConfig.model_validate(each) for each in given]


def grader(configs: list[RewardConfig]) -> Grader:
    made: list[tuple[Rule, float]] = [(rule(config), config.weight) for config in configs]
    return Grader(made, patient=True)


def prompts(talks: list[dict[str, Any]], configs: list[RewardConfig]) -> list[Prompt]:
    wanted = Wanted(configs)
    return [Prompt(str(i), [], "q", talk.get("said", ""), wanted.of(talk, talk.get("said")))
            for i, talk in enumerate(talks)]  # fmt: skip


NUMBERS = st.one_of(st.none(), st.integers(0, 3))
TALKS = st.lists(
    st.fixed_dictionaries({}, optional={"said": st.sampled_from("0123"), "a": NUMBERS, "b": NUMBERS})
)


@given(talks=TALKS, answers=st.lists(st.sampled_from("0123"), min_size=1, max_size=3))
def test_the_sum_is_that_of_each_reward_on_its_own_field(
    talks: list[dict[str, Any]], answers: list[str]
) -> None:
    """Three rewards of one kind, some of which the data has nothing for: each gives its own part."""
    configs = rewards(
        {"kind": "number"},
        {"kind": "number", "name": "of_a", "target": "a", "weight": 10},
        {"kind": "number", "name": "of_b", "target": "b", "weight": 100},
    )
    items, wanted = [], []
    for prompt, talk in zip(prompts(talks, configs), talks, strict=True):
        for answer in answers:
            items.append(prompt.item(answer, True))
            wanted.append(
                (talk.get("said") == answer)
                + 10 * (talk.get("a") == int(answer))
                + 100 * (talk.get("b") == int(answer))
            )
    made = grader(configs)
    graded = made.grade(items)
    assert [one.total for one in graded] == wanted
    assert made.failures == {}, "what is not asked has not failed"
    assert all(one.parts.keys() == {"number", "of_a", "of_b"} for one in graded)


def test_a_field_is_text_as_it_is_or_json_and_several_are_one_object() -> None:
    talk = {"a": "x", "b": [1, {"c": "\u00e9"}], "c": None, "d": 1.5}
    configs = rewards(
        {"kind": "exact", "name": "a", "target": "a"},
        {"kind": "exact", "name": "b", "target": "b"},
        {"kind": "exact", "name": "d", "target": "d"},
        {"kind": "exact", "name": "ab", "target": ["a", "b"]},
        {"kind": "exact", "name": "ac", "target": ["a", "c"]},
        {"kind": "exact", "name": "said"},
    )
    found = Wanted(configs).of(talk, "hello")
    both = json.dumps({"a": "x", "b": talk["b"]}, ensure_ascii=False)
    assert found == {
        "a": "x", "b": '[1, {"c": "\u00e9"}]', "d": "1.5", "ab": both,
        "ac": None,
    }  # fmt: skip
    assert Wanted(configs).of(talk, None)["said"] is None, "there is nothing that an empty answer could equal"


def test_ifevals_own_columns() -> None:
    (config,) = rewards({"kind": "constraints", "target": ["instruction_id_list", "kwargs"]})
    talk = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}
    (prompt,) = prompts([talk], [config])
    graded = grader([config]).grade([prompt.item(answer, True) for answer in ("a", "a,")])
    assert [one.total for one in graded] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("config", "talks", "says"),
    [
        ({"target": "truth"}, [{"truht": "7"}], "Did you mean truht?"),
        ({"target": "truth"}, [{"other_field": "7"}], "There are: other_field"),
        ({"target": "truth"}, [{}], "Name it in their `columns`"),
        ({"target": ["a", "b"]}, [{"a": 1}, {"b": 1}], "no conversation has all of a, b"),
        ({}, [{}, {}], "it answers nowhere"),
        ({"kind": "constraints"}, [{"said": "no_comma"}], "can read no target"),
        ({"kind": "constraints"}, [{"said": '{"no_comas": ""}'}], "Did you mean no_commas?"),
        ({"kind": "code"}, [{"id": "p7", "said": "13"}], "can read no target (p7: the target is no list"),
        ({"kind": "code"}, [{"id": "p7", "said": "a sum"}], "(p7: the target is no JSON (Expecting value"),
        ({"kind": "code"}, [{"said": '[{"input": "1"}]'}], 'as in [{"input": "1 2", "output": "3"}]'),
    ],
)
def test_a_reward_that_nothing_is_there_for_is_refused(
    config: dict[str, Any], talks: list[dict[str, Any]], says: str
) -> None:
    wanted = Wanted(rewards({"kind": "number", **config}))
    for talk in talks:
        wanted.of(talk, talk.get("said"))
    with pytest.raises(ShunterError) as caught:
        wanted.check(Path("train.jsonl"))
    assert says in str(caught.value)


def test_what_is_there_for_some_is_told(tmp_path: Path) -> None:
    ask, say = {"role": "user", "content": "q"}, {"role": "assistant", "content": '{"no_commas": ""}'}
    lines = [
        {"id": 0, "task": "t", "messages": [ask, say]},
        {"id": 1, "task": "t", "messages": [ask, {**say, "content": "{}"}, ask]},
        {"id": 2, "task": "t", "messages": [ask, {**say, "content": "none"}]},
        {"id": 3, "task": "u", "messages": [ask, {**say, "content": "none"}]},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = survey(path, "t", rewards({"kind": "constraints"}))
    assert told[0].startswith("1 of 2 targets cannot be read by the reward constraints, first 2: ")
    assert told[1].startswith("1 of 3 prompts have nothing that the reward constraints compares")
    assert survey(path, "t", rewards({"kind": "format", "pattern": "."})) == []
    lines[0]["messages"] = [ask, {**say, "content": '[{"input": "1", "output": "2"}]'}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = survey(path, "t", rewards({"kind": "code"}))
    assert told[0].startswith("1 of 2 targets cannot be read by the reward code, first 2: ")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"kind": "format", "pattern": ".", "target": "a"}, "target belongs to"),
        ({"kind": "model", "target": "a"}, "target belongs to"),
        ({"kind": "constraints", "constraints": {"json": ""}, "target": "a"}, "target belongs to"),
        ({"kind": "number", "target": []}, "or none"),
        ({"kind": "number", "target": ["a", "a"]}, "twice"),
        ({"kind": "number", "name": "length"}, "that of another number of a step"),
        ({"kind": "number", "name": "a/b"}, "pattern"),
    ],
)
def test_configurations_that_contradict(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RewardConfig.model_validate(config)


def test_what_is_not_asked_for_is_in_no_identity() -> None:
    assert not {"name", "target", "failed"} & RewardConfig(kind="number").model_dump().keys()
