"""What models are asked to answer, and pairs of answers: read from a split's JSONL, encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter.config.errors import ShunterError
from shunter.data import chat
from shunter.data.tokenizer import Tokenizer
from shunter.post.batch import Sample
from shunter.post.config import RewardConfig
from shunter.post.lines import lines
from shunter.post.rewards import Item
from shunter.post.targets import Wanted


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where the assistant answers. target: what it said there, at last; empty where it
    did not. targets: what the rewards of these names compare an answer with instead; None: nothing."""

    id: str
    ids: list[int]
    text: str
    target: str
    targets: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """What people see as wanted: the answer, or the first thing that answers are compared with."""
        return self.target or next((each for each in self.targets.values() if each), "")

    def item(self, answer: str, finished: bool, ids: Sequence[int] = ()) -> Item:
        """An answer to it, to be graded. ids: of prompt and answer."""
        return Item(self.text, answer, self.target, finished, ids, self.targets)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, as samples of which the answer is learnt from."""

    id: str
    chosen: Sample
    rejected: Sample


class Read:
    """Prompts or pairs in order, with an identity, as the loader takes them. too_long: those left out. told:
    sentences on what people should know of them."""

    def __init__(
        self, items: Sequence[Any], texts: Sequence[str], too_long: int, told: Sequence[str] = ()
    ) -> None:
        self.items, self.too_long, self.told = items, too_long, told
        self.num_rows = len(items)
        self._digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()

    @property
    def digest(self) -> str:
        return self._digest

    def closed(self) -> Read:
        """Pairs with one more token after each answer, so that its last one has a place in the batch.

        A batch leaves out a text's last token, because it predicts nothing; a reward is read there. What a
        template writes after the token that ends an answer is cut off: no model writes it.
        """
        self.items = [Pair(pair.id, _closed(pair.chosen), _closed(pair.rejected)) for pair in self.items]
        return self


def read_prompts(
    path: Path,
    tokenizer: Tokenizer,
    task: str | None,
    room: int,
    prefix: str = "",
    rewards: Sequence[RewardConfig] = (),
) -> Read:
    """The conversations of `task` (None: all) that leave their prompt at most `room` tokens.

    prefix: stands before what the person says last. rewards: what answers will be graded by. Raises
    ShunterError when there is none, and for a reward that has nothing to compare any answer with.
    """
    found, texts, tasks, long, wanted = [], [], set(), 0, Wanted(rewards)
    for talk in lines(path, "id", "messages"):
        tasks.add(str(talk.get("task")))
        messages, said = chat.asked(talk["messages"])
        if not messages or (task is not None and talk.get("task") != task):
            continue
        messages = _prefixed(messages, prefix)
        ids = tokenizer.encode_prompt(messages)
        if len(ids) > room:
            long += 1
            continue
        text = tokenizer.render(messages, add_generation_prompt=True)
        found.append(Prompt(str(talk["id"]), ids, text, said or "", wanted.of(talk, said)))
        texts.append(prefix + json.dumps(talk, sort_keys=True))
    if not found:
        _none(path, "prompt", tasks, long, room)
    return Read(found, texts, long, wanted.check(path))


def _prefixed(messages: list[dict[str, str]], prefix: str) -> list[dict[str, str]]:
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    if not prefix or last < 0:
        return messages
    told = {**messages[last], "content": prefix + messages[last]["content"]}
    return [*messages[:last], told, *messages[last + 1 :]]


def read_pairs(path: Path, tokenizer: Tokenizer, room: int, *, empty: bool = False) -> Read:
    """The pairs whose texts have at most `room` tokens. Raises ShunterError when there is none, unless
    `empty` is allowed."""
    found, texts, long = [], [], 0
    for line in lines(path, "id", "messages", "chosen", "rejected"):
        prompt = tokenizer.encode_prompt(line["messages"])
        samples = [
            answered(tokenizer, line["messages"], prompt, line[name]) for name in ("chosen", "rejected")
        ]
        if max(len(sample.ids) for sample in samples) > room:
            long += 1
            continue
        found.append(Pair(str(line["id"]), *samples))
        texts.append(json.dumps(line, sort_keys=True))
    if not found and not empty:
        _none(path, "pair", set(), long, room)
    return Read(found, texts, long)


def answered(tokenizer: Tokenizer, messages: Sequence[Any], prompt: Sequence[int], answer: str) -> Sample:
    """A prompt with an answer, whose tokens are those to learn from, the one that ends it included."""
    ids, mask = tokenizer.encode_chat([*messages, {"role": "assistant", "content": answer}])
    if ids[: len(prompt)] != list(prompt):
        raise ShunterError(
            "the chat template writes a conversation otherwise when an answer follows",
            where=str(tokenizer.folder),
            mend="Use a template whose prompt is the beginning of the whole conversation.",
        )
    begin = len(prompt)
    return Sample(ids, [False] * begin + mask[begin:])


def _closed(sample: Sample) -> Sample:
    end = max((i + 1 for i, wrote in enumerate(sample.wrote) if wrote), default=len(sample.ids))
    return Sample([*sample.ids[:end], 0], [*sample.wrote[:end], False])


def _none(path: Path, what: str, tasks: set[str], long: int, room: int) -> None:
    if long:
        raise ShunterError(
            f"each of {long} {what}s is longer than the {room} tokens that there is room for",
            where=str(path),
            mend="Lower max_new_tokens, or use a model with a longer context.",
        )
    told = f"There are the tasks {', '.join(sorted(tasks))}." if tasks else "The file is empty."
    raise ShunterError(f"there is no {what} to learn from", where=str(path), mend=told)
