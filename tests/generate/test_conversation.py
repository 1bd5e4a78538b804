"""A conversation: history, a full context, pieces of text that come in whole characters."""

from __future__ import annotations

from pathlib import Path

import pytest

from shunter.config.errors import ShunterError
from shunter.data.tokenizer import Tokenizer
from shunter.generate.config import SamplingConfig
from shunter.generate.conversation import Conversation, _Stream
from shunter.generate.engine import generate
from tests.evaluate.small import a_model, a_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return a_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def conversation(tokenizer: Tokenizer, context: int = 1024, **more: object) -> Conversation:
    config = SamplingConfig(max_new_tokens=12, batch=1)
    return Conversation(a_model(tokenizer.vocab_size, context=context), tokenizer, config, **more)  # type: ignore[arg-type]


def test_turns_are_rendered_with_all_before_them(tokenizer: Tokenizer) -> None:
    talk = conversation(tokenizer, system="be brief")
    shown: list[str] = []
    for text in ("hello", "and you?"):
        shown.clear()
        completion = talk.reply(text, shown.append)
        ids = [i for i in completion.ids if i not in tokenizer.stop_ids]
        assert "".join(shown) == tokenizer.decode(ids, skip_special=True) == talk.messages[-1]["content"]
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2
    rendered = tokenizer.render([{"role": "system", "content": "be brief"}, *talk.messages[:3]], True)
    talk.messages.pop()
    assert talk._prompt() == tokenizer.encode_control(rendered)


def test_the_same_seed_says_the_same_and_turns_differ(tokenizer: Tokenizer) -> None:
    answers = []
    for seed in (0, 0, 1):
        talk = conversation(tokenizer, seed=seed)
        answers.append(talk.reply("hello", lambda piece: None).ids)
        talk.reset()
        answers.append(talk.reply("hello", lambda piece: None).ids)
    assert answers[:2] == answers[2:4]
    assert answers[0] != answers[1], "a turn draws what the last one drew"
    assert answers[:2] != answers[4:]


def test_a_full_context_forgets_the_oldest_turns(tokenizer: Tokenizer) -> None:
    for context in range(64, 112, 6):
        talk = conversation(tokenizer, context=context)
        for _ in range(5):
            talk.reply("the union of the states", lambda piece: None)
            assert talk.forgotten % 2 == 0, "an answer stands without its question"
        assert talk.forgotten > 0
    talk = conversation(tokenizer, context=100)
    talk.reply("the union of the states", lambda piece: None)
    with pytest.raises(ShunterError, match="of which the model's context of 100 holds"):
        talk.reply("the union of the states " * 40, lambda piece: None)
    assert talk.messages[-1]["role"] == "assistant", "the message that did not fit stayed"


def test_raw_continues_a_text(tokenizer: Tokenizer) -> None:
    talk = conversation(tokenizer, raw=True, seed=3)
    talk.config = SamplingConfig(temperature=0, max_new_tokens=5)
    done = talk.reply("the union", lambda piece: None)
    prompt = [tokenizer.start, *tokenizer.encode("the union")]
    assert done.ids == generate(talk.model, [prompt], talk.config, tokenizer.stop_ids)[0].ids


def test_an_interrupted_answer_is_kept(tokenizer: Tokenizer) -> None:
    talk = conversation(tokenizer)
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.reply("hello", show)
    assert talk.messages[-1]["role"] == "assistant"
    assert "".join(shown).startswith(talk.messages[-1]["content"])
    talk.reply("go on", lambda piece: None)
    assert len(talk.messages) == 4


def test_other_tokens_may_end_an_answer(tokenizer: Tokenizer) -> None:
    talk = conversation(tokenizer)
    talk.config = SamplingConfig(temperature=0, max_new_tokens=12)
    stop = talk.reply("hello", lambda piece: None).ids[2]
    talk.reset()
    talk.stop_ids = [stop]
    done = talk.reply("hello", lambda piece: None)
    assert done.stop_reason == "stop"
    assert done.ids[-1] == stop


def test_characters_come_whole(tokenizer: Tokenizer) -> None:
    shown: list[str] = []
    text = "Numéro \u2014 \U0001f600 strong"
    stream = _Stream(tokenizer, tokenizer.stop_ids, shown.append)
    ids = tokenizer.encode(text)
    for token in [*ids, tokenizer.stop_ids[0]]:
        stream.add(token)
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)
    assert len(shown) > 5, "nothing was streamed"


def test_an_unfinished_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    shown: list[str] = []
    stream = _Stream(tokenizer, [], shown.append)
    for token in tokenizer.encode("a\U0001f600")[:-1]:
        stream.add(token)
    assert "".join(shown) == "a"
    stream.end()
    assert "".join(shown).startswith("a\ufffd")


def test_a_model_folder_without_a_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.folder is not None
    (tmp_path / "tokenizer.json").write_bytes((tokenizer.folder / "tokenizer.json").read_bytes())
    bare = Tokenizer.load(tmp_path)
    with pytest.raises(ShunterError, match="has no chat template"):
        conversation(bare).reply("hello", lambda piece: None)
