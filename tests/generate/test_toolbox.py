"""Tools between two turns: what is asked, what is told, and that no token is encoded anew or learnt from.

Models are random: what they ask is put into their mouths. Whether a model learns to ask is shown by
recipes/rl-tools.yaml.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter.data import chat
from shunter.data.tokenizer import Tokenizer
from shunter.data.tokens import IGNORE
from shunter.generate.config import SamplingConfig, ToolConfig
from shunter.generate.rollout import Rollout, RolloutEngine
from shunter.generate.toolbox import Toolbox, calculator
from shunter.models.decoder import Decoder
from shunter.post.batch import Sample, beside, lay_out
from shunter.post.config import PolicyConfig
from shunter.post.judged import judge
from shunter.post.step import Scorer
from tests.evaluate.small import a_tokenizer
from tests.generate.test_engine import PROMPTS, model
from tests.models.small import redraw, spec_of

STOPS = [4, 9, 17, 30, 33]
TOLD = [50, 51, 52]


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
    if depth == 0 or draw(st.booleans()):
        n = draw(st.integers(0, 99))
        return str(n), Fraction(n)
    (a, x), (b, y) = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    op = draw(st.sampled_from("+-*/" if y else "+-*"))
    value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[op]
    return f"({a}{op} {b})", value


@given(expressions())
def test_the_calculator_calculates(made: tuple[str, Fraction]) -> None:
    text, value = made
    if len(text) <= 100:
        assert Fraction(calculator(text)) == (value if value.denominator == 1 else round(value, 6))


@pytest.mark.parametrize(
    "text", ["", "1+", "2**3", "9" * 90, "(1", "1)", "1/0", "a", "__import__('os')", "-"]
)
def test_what_it_cannot_calculate_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        calculator(text)


def test_operators_bind_as_usual() -> None:
    assert calculator("1" + "0" * 25 + "/3") == "3" * 25 + ".333333", "a float has no room for so many digits"
    assert [calculator(t) for t in ("-1/3", "-1/9999999", "2/3", "1.50")] == [
        "-0.333333",
        "0",
        "0.666667",
        "1.5",
    ]
    assert [calculator(t) for t in ("2+3*4", "2*3-4", "-2*-3", "7/2", "1/3", "10 - 4 - 3")] == [
        "14", "2", "6", "3.5", "0.333333", "3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return a_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def said(tokenizer: Tokenizer, text: str, *, ended: bool = True) -> Rollout:
    ids = [*tokenizer.encode(text), *([tokenizer.special("<|end|>")] if ended else [])]
    reason = "stop" if ended else "length"
    return Rollout(ids, [0.0] * len(ids), reason, wrote=[True] * len(ids), versions=[0] * len(ids))  # type: ignore[arg-type]


def test_calls_are_read_and_answered(tokenizer: Tokenizer) -> None:
    notes, calls = (Toolbox(ToolConfig(form=form), tokenizer) for form in ("note", "json"))  # type: ignore[arg-type]

    def told(box: Toolbox, text: str, **more: bool) -> str | None:
        ids = box(said(tokenizer, text, **more))
        return None if ids is None else tokenizer.decode(ids)

    whole = "<|tool|>{}<|end|><|assistant|>"
    assert told(notes, "that is <<12*7>>") == whole.format("84")
    assert told(notes, "<<12*7>> and that is it") is None, "a call ends its turn"
    assert told(notes, "<<12*7>>", ended=False) is None, "a turn that was cut off asks nothing"
    assert told(notes, "no call") is None
    assert told(notes, "<<1/0>>") == whole.format("error: division by zero")
    named = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2 + 3"}}\n</tool_call>'
    assert told(calls, named) == whole.format("5")
    assert "there is no tool 'search'" in str(told(calls, named.replace("calculator", "search")))
    other = '<tool_call>{"name": "python", "arguments": {}}</tool_call>'
    assert "there is no tool 'python'" in str(told(calls, other))
    assert "no JSON object" in str(told(calls, "<tool_call>{1}</tool_call>"))
    assert (notes.calls, notes.failed, calls.calls, calls.failed) == (2, 1, 4, 3)


def test_a_tool_that_is_not_there_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="python is no function"):
        Toolbox(ToolConfig(tools=["calculator", "python"], form="json"), tokenizer)
    counts = Toolbox(ToolConfig(), tokenizer, {})
    with pytest.raises(RuntimeError, match="answers nothing"):
        counts(said(tokenizer, "<<1+1>>"))


def test_only_so_many_calls_are_answered(tokenizer: Tokenizer) -> None:
    box = Toolbox(ToolConfig(most=2), tokenizer)
    done = said(tokenizer, "<<1+1>>")
    for _ in range(2):
        told = box(done)
        assert told is not None
        more = said(tokenizer, "<<1+1>>")
        done.ids += [*told, *more.ids]
        done.wrote += [False] * len(told) + more.wrote
    assert (done.turns, box(done)) == (3, None)
    assert box.last(done) == "<<1+1>>"


QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [chat.TEMPLATE, QWEN])
def test_what_stands_between_is_what_the_template_writes(tokenizer: Tokenizer, template: str) -> None:
    """Begun, ended by the model and gone on: token by token what encoding the whole conversation gives, where
    the model wrote what the tokenizer would have written. After the model's end a template may write more."""
    other = Tokenizer(tokenizer.engine, template, None, tokenizer.specials)
    talk = [{"role": "user", "content": "the people"}, {"role": "assistant", "content": "<<1+2>>"}]
    tool = {"role": "tool", "content": "3 <|end|>"}
    begun = other.encode_prompt(talk[:1])
    wrote = [*other.encode("<<1+2>>"), other.special("<|end|>")]
    assert begun + wrote + other.encode_between([tool]) == other.encode_prompt([*talk, tool])


def between(done: Rollout) -> list[int] | None:
    return TOLD if done.turns < 3 else None


def trainer(decoder: Decoder, done: Rollout) -> torch.Tensor:
    batch = lay_out([Sample([*done.prompt, *done.ids], [False] * len(done.prompt) + done.wrote)])
    found = Scorer(decoder, torch.device("cpu")).logprobs([batch])[0]
    return torch.from_numpy(found[batch.targets != IGNORE])


def written(done: Rollout) -> torch.Tensor:
    return torch.tensor([p for p, mine in zip(done.logprobs, done.wrote, strict=True) if mine]).double()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 40), st.integers(0, 99))
def test_turns_are_written_as_if_they_had_been_one_prompt(
    batch: int, size: int, spare: int, seed: int
) -> None:
    """With any memory, so that texts are put aside and read anew in every place: what was put in stands after
    the ends of turns, and log-probabilities are the trainer's of the whole text."""
    decoder = model("grouped")
    config = SamplingConfig(max_new_tokens=18, batch=batch)
    engine = RolloutEngine(decoder, config, STOPS, seed, tokens=34 + spare, size=size, reply=between)
    for prompt in PROMPTS:
        engine.submit(prompt)
    found = engine.run()
    assert any(one.turns > 1 for one in found)
    for one in found:
        assert len(one.ids) == len(one.wrote) == len(one.logprobs) == len(one.versions)
        torch.testing.assert_close(written(one), trainer(decoder, one))
        told = [i for i, mine in enumerate(one.wrote) if not mine]
        assert [one.ids[i] for i in told] == TOLD * (one.turns - 1)
        assert all(one.ids[i - 1] in STOPS for i in told[:: len(TOLD)])
    assert (engine.cache.used, engine.cache.live) == (0, 0)


def test_greedy_turns_equal_fresh_requests() -> None:
    decoder = model()
    config = SamplingConfig(max_new_tokens=30, batch=4, temperature=0.0)
    stops = list(range(0, 61, 2))
    engine = RolloutEngine(decoder, config, stops, reply=between)
    for prompt in PROMPTS:
        engine.submit(prompt)
    found = engine.run()
    assert any(one.turns == 3 for one in found)
    for one in found:
        begin = max((i + 1 for i, mine in enumerate(one.wrote) if not mine), default=0)
        fresh = RolloutEngine(decoder, config, stops)
        fresh.submit([*one.prompt, *one.ids[:begin]])
        assert fresh.run()[0].ids[: len(one.ids) - begin] == one.ids[begin:]


def test_limits_count_what_the_model_writes() -> None:
    decoder = model(positions=24)
    for most, reason in ((5, "length"), (60, "context")):
        config = SamplingConfig(max_new_tokens=most, batch=3)
        engine = RolloutEngine(decoder, config, range(61), reply=lambda done: TOLD)
        engine.submit([5, 6])
        done = engine.run()[0]
        assert done.stop_reason == reason
        assert done.count <= most
        assert len(done.prompt) + len(done.ids) <= 24
    assert done.count < 60


def test_at_the_limit_no_tool_is_asked(tokenizer: Tokenizer) -> None:
    """What it says would be thrown away. Who replies is told of the limit, and texts end as before."""
    for last, reason in (([], "length"), (None, "stop")):
        seen: list[tuple[int, str]] = []

        def reply(done: Rollout, seen: Any = seen, last: Any = last) -> list[int] | None:
            seen.append((done.count, done.stop_reason))
            return TOLD if done.count < 3 else last

        engine = RolloutEngine(model(), SamplingConfig(max_new_tokens=3, batch=1), range(61), reply=reply)
        engine.submit([5, 6])
        assert engine.run()[0].stop_reason == reason
        assert seen == [(1, "stop"), (2, "stop"), (3, "length")]
    box = Toolbox(ToolConfig(), tokenizer)
    done = said(tokenizer, "<<1+1>>")
    done.stop_reason = "length"
    assert (box(done), box.calls) == ([], 0)


def test_log_probabilities_of_several_turns_in_float32() -> None:
    """Within 1e-5 of the trainer's, also where answers share a row and their prompt is computed once."""
    decoder = Decoder(spec_of("qwen3-tied"))
    redraw(decoder)
    with torch.no_grad():
        decoder.embed.weight.mul_(0.3)
    stops = range(0, decoder.spec.vocab_size, 7)
    config = SamplingConfig(max_new_tokens=30, batch=6)
    engine = RolloutEngine(decoder, config, stops, tokens=48, size=4, reply=between)
    for _ in range(8):
        engine.submit([1, 5, 7])
    done = engine.run()
    assert sum(one.turns for one in done) >= 12
    assert any(one.preempted for one in done)
    for one in done:
        assert float((written(one) - trainer(decoder, one)).abs().max()) < 1e-5
    samples = judge(PolicyConfig(), done, [float(i) for i in range(8)], [0] * 8, None)
    for sample, one in zip(samples, done, strict=True):
        assert list(sample.wrote) == [False] * 3 + one.wrote
    row = beside(samples)
    says = Scorer(decoder, torch.device("cpu")).logprobs([row])[0]
    apart = abs(says - row.known["old"])[row.targets != IGNORE]
    assert len(apart) == sum(one.count for one in done)
    assert float(apart.max()) < 1e-5


def test_the_tokenizer_is_not_asked_for_what_was_written(tokenizer: Tokenizer) -> None:
    """Two tokens that the tokenizer would write as one stay two."""
    box = Toolbox(ToolConfig(), tokenizer)
    call = [*tokenizer.encode("the peo"), *tokenizer.encode("ple <<1+1>>")]
    assert call != tokenizer.encode("the people <<1+1>>")
    done = Rollout([*call, tokenizer.special("<|end|>")], [], "stop", wrote=[True] * (len(call) + 1))
    assert box(done) == tokenizer.encode_between([{"role": "tool", "content": "2"}])
    assert done.ids[:-1] == call
