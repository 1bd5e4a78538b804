"""A Hugging Face tokenizer folder: byte-level BPE, special tokens, a chat template."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from shunter.config.errors import ShunterError
from shunter.data import chat

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = (END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END)
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class Tokenizer:
    """Text to ids and back. Special tokens written inside a text are text, not control."""

    def __init__(
        self, engine: Engine, template: str | None, folder: Path | None, specials: dict[str, Any]
    ) -> None:
        self.engine, self.template, self.folder, self.specials = engine, template, folder, specials
        # A second engine for plain text, in which "<|end|>" is seven characters and not a command.
        self._plain = Engine.from_str(engine.to_str())
        self._plain.encode_special_tokens = True
        added = engine.get_added_tokens_decoder().values()
        self._controls = [token.content for token in added if token.special]

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Open a folder with tokenizer.json (and, for chat, a template)."""
        path = folder / "tokenizer.json"
        try:
            engine = Engine.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for anything unreadable
            raise ShunterError(f"no readable tokenizer ({error})", where=str(path)) from error
        config_path = folder / "tokenizer_config.json"
        config = _settings(folder / "special_tokens_map.json") | _settings(config_path)
        template_path = folder / "chat_template.jinja"
        template = template_path.read_text("utf-8") if template_path.exists() else config.get("chat_template")
        return cls(engine, _default(template, config_path), folder, config)

    @property
    def vocab_size(self) -> int:
        return int(self.engine.get_vocab_size(with_added_tokens=True))

    def special(self, name: str) -> int:
        """The id of a special token. Raises ShunterError when the tokenizer has none of that name."""
        found = self.engine.token_to_id(name)
        if found is None:
            raise ShunterError(f"the tokenizer has no token {name!r}", where=str(self.folder))
        return int(found)

    @property
    def end_of_text(self) -> int:
        """The token that ends a document: <|endoftext|>, or the folder's eos_token."""
        return self.special(self._name("eos_token", END_OF_TEXT))

    @property
    def start(self) -> int:
        """The token that a text begins after: the folder's bos_token, or the end of the text before."""
        name = self._name("bos_token", "")
        return self.special(name) if name else self.end_of_text

    @property
    def bos(self) -> int | None:
        """The folder's bos_token; None where there is none."""
        name = self._name("bos_token", "")
        return self.special(name) if name else None

    @property
    def pad(self) -> int:
        if self.engine.token_to_id(PAD) is None:
            return self.end_of_text
        return self.special(PAD)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        found = (self.engine.token_to_id(name) for name in (END, self._name("eos_token", END_OF_TEXT)))
        return sorted({int(i) for i in found if i is not None})

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Ids of many texts, on all cores."""
        encoded = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        # array converts a list three times as fast as numpy does.
        return [np.frombuffer(array("I", e.ids), dtype=np.uint32) for e in encoded]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        return str(self.engine.decode([int(i) for i in ids], skip_special_tokens=skip_special))

    def render(self, messages: Sequence[chat.Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation by the chat template."""
        return chat.render(self._chat_template(), messages, add_generation_prompt, self.specials)

    def encode_chat(self, messages: Sequence[chat.Message]) -> tuple[list[int], list[bool]]:
        """Ids of a conversation, and which of them the assistant wrote (its end token included)."""
        ids: list[int] = []
        mask: list[bool] = []
        guarded = self._guard(messages)
        for text, written in chat.pieces(self._chat_template(), guarded, self.specials):
            part = self._encode_guarded(text)
            ids += part
            mask += [written] * len(part)
        if ids != self._encode_guarded(self.render(guarded)):
            raise ShunterError(
                "the chat template puts a border between roles where the tokenizer merges across it",
                where=str(self.folder),
                mend="Let special tokens stand on both sides of what the assistant writes.",
            )
        return ids, mask

    def encode_prompt(self, messages: Sequence[chat.Message]) -> list[int]:
        """Ids of a conversation up to where the assistant begins to write."""
        return self._encode_guarded(self.render(self._guard(messages), add_generation_prompt=True))

    def encode_between(self, messages: Sequence[chat.Message]) -> list[int]:
        """Ids to put after an answer that the model ended, so that it writes on with `messages` before it.

        What the model wrote is not encoded anew: the same text may have other tokens.
        """
        guarded = self._guard(messages)
        return self._encode_guarded(chat.after_answer(self._chat_template(), guarded, self.specials))

    def _guard(self, messages: Sequence[chat.Message]) -> list[dict[str, str]]:
        """Messages whose control tokens are marked: a person who writes "<|end|>" ends nothing.

        NUL begins a mark, so each that stands in a message is marked too.
        """
        marked = [*self._controls, "\x00"]
        names = {name: f"\x00{index};" for index, name in enumerate(marked)}
        pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
        return [
            {"role": m["role"], "content": pattern.sub(lambda found: names[found[0]], m["content"])}
            for m in messages
        ]

    def _encode_guarded(self, text: str) -> list[int]:
        ids: list[int] = []
        marked = [*self._controls, "\x00"]
        for number, part in enumerate(re.split("\x00(\\d+);", text)):
            ids += self.encode(marked[int(part)]) if number % 2 else self.encode_control(part)
        return ids

    def encode_control(self, text: str) -> list[int]:
        """Ids of a rendered template, in which special tokens are control."""
        return list(self.engine.encode(text, add_special_tokens=False).ids)

    def _chat_template(self) -> str:
        if not self.template:
            raise ShunterError("the tokenizer has no chat template", where=str(self.folder))
        return self.template

    def _name(self, key: str, default: str) -> str:
        value = self.specials.get(key, default)
        return str(value["content"]) if isinstance(value, dict) else str(value or default)


def train(texts: Iterable[str], vocab_size: int, *, digits: bool = True) -> Engine:
    """Byte-level BPE (as GPT-2's): any text round-trips, no unknown token.

    digits: each digit is a token of its own, which arithmetic needs. Deterministic: the same texts in
    the same order give the same merges.
    """
    engine = Engine(models.BPE())
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    engine.pre_tokenizer = pre_tokenizers.Sequence(steps)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer=trainer)
    return engine


def save(engine: Engine, folder: Path, *, max_length: int) -> None:
    """Write the folder that transformers' AutoTokenizer opens."""
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(str(folder / "tokenizer.json"))
    names = {"eos_token": END_OF_TEXT, "bos_token": None, "pad_token": PAD, "unk_token": None}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **names,
        "chat_template": chat.TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", {k: v for k, v in names.items() if v})
    (folder / "chat_template.jinja").write_text(chat.TEMPLATE, encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    """Copy a tokenizer's files into a model's folder."""
    for name in FILES:
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())


def _settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty without one."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ShunterError(f"not JSON ({error})", where=str(path), mend="Download it again.") from error
    if not isinstance(found, dict):
        raise ShunterError(f"a {type(found).__name__}, not an object", where=str(path))
    return found


def _default(template: Any, where: Path) -> str | None:
    """The chat template; of several with names, the one called default."""
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, list) and all(isinstance(each, dict) for each in template):
        for each in template:
            if each.get("name") == "default" and isinstance(each.get("template"), str):
                return str(each["template"])
    raise ShunterError(
        "chat_template is neither a text nor a list with one called default",
        where=str(where),
        mend="Put the template to use into chat_template.jinja beside it.",
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
