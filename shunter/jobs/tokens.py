"""The job `tokens`: documents, conversations or both become packed rows of token ids."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

if TYPE_CHECKING:
    from shunter.data.tokenizer import Tokenizer

PART_BYTES = 1 << 18  # of text that is tokenised at once
AHEAD = 2  # parts that are tokenised at the same time
SAMPLE_BYTES = 1 << 20  # of text that tells how many bytes a token has
SPLITS = ("train", "heldout")


class TokensConfig(JobConfig):
    """Tokenises a corpus, conversations or both and packs them into rows, with borders and loss masks."""

    corpus: Annotated[str | None, Input("corpus")] = Field(None, description="Job that made the documents.")
    conversations: Annotated[str | None, Input("conversations")] = Field(
        None, description="Job that made the conversations, instead of a corpus."
    )
    replay: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="With both, about which share of the train tokens are documents, among conversations.",
    )
    tokenizer: Annotated[str, Input("tokenizer", "model")] = Field(
        description="Job that made the tokenizer, or a model that has one."
    )
    row_length: int = Field(1024, ge=8, le=1 << 20, description="Tokens in a row.")
    packer: Literal["auto", "concat", "best_fit"] = Field(
        "auto",
        description="concat fills every row; best_fit keeps examples whole; auto: by the sort of input.",
    )
    overlong: Literal["split", "truncate", "error"] = Field(
        "split", description="What best_fit does with an example longer than a row."
    )
    loss: Literal["auto", "all", "assistant"] = Field(
        "auto", description="Tokens that are learnt; auto: all of a document, the assistant's of a talk."
    )

    @model_validator(mode="after")
    def _inputs(self) -> TokensConfig:
        both = self.corpus is not None and self.conversations is not None
        if both != bool(self.replay) or (self.corpus is None and self.conversations is None):
            raise ValueError("give either corpus or conversations, or both with replay")
        if self.conversations is None and self.loss == "assistant":
            raise ValueError("a corpus has no assistant; leave loss out")
        return self


@dataclass
class _Encoded:
    """Some examples: ids and masks [n] each, names, bytes of text."""

    tokens: list[Any]
    masks: list[Any] | None
    ids: list[str]
    text_bytes: list[int]


class TokensJob:
    """Writes train/, heldout/ (see `shunter.data.tokens`) and a copy of the tokenizer."""

    kind: ClassVar[str] = "tokens"
    produces: ClassVar[str] = "tokens"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = TokensConfig

    def check(self, config: TokensConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[TokensConfig]) -> dict[str, Any]:
        from shunter.data import tokenizer as tokenizers

        config = context.config
        source = context.one("tokenizer").path
        tokenizer = tokenizers.Tokenizer.load(source)
        (context.out / "tokenizer").mkdir()
        tokenizers.copy(source, context.out / "tokenizer")
        index = {split: self._split(context, tokenizer, split) for split in SPLITS}
        if index["train"]["rows"] == 0:
            raise ShunterError("there is nothing to train on", mend="Give more text or conversations.")
        tokens, rows = index["train"]["tokens"], index["train"]["rows"]
        return {
            "tokens": tokens,
            "rows": rows,
            "heldout_tokens": index["heldout"]["tokens"],
            "heldout_rows": index["heldout"]["rows"],
            "bytes_per_token": index["train"]["text_bytes"] / max(tokens, 1),
            "filled": 1 - index["train"]["padding"] / (rows * config.row_length),
            "overlong": index["train"]["overlong"]["documents"],
        }

    def _split(self, context: JobContext[TokensConfig], tokenizer: Tokenizer, split: str) -> dict[str, Any]:
        from shunter.data.tokens import TokenWriter

        config = context.config
        talks = config.conversations is not None
        masked = talks and config.loss != "all"
        writer = TokenWriter(context.out / split, vocab_size=tokenizer.vocab_size, masked=masked)
        source = context.one("conversations" if talks else "corpus").path
        unanswered: list[str] | None = [] if masked else None
        parts = (
            conversations(source / f"{split}.jsonl", tokenizer, unanswered=unanswered)
            if talks
            else ahead(documents(source / split, tokenizer, repeat=split == "train"))
        )
        if config.replay and split == "train":
            # Held-out rows stay conversations: their loss tells what the tuning is for.
            parts = replayed(parts, context.one("corpus").path / split, tokenizer, config.replay, config.seed)
        done = 0
        for part in parts:
            writer.append(part.tokens, part.ids, part.text_bytes, part.masks if masked else None)
            done += len(part.ids)
            context.events.progress(done, None, f"{split} {'conversations' if talks else 'documents'}")
            if context.control.stop_requested():
                raise Stopped
        if unanswered:
            told = f"{len(unanswered)} conversations of {split} have no answer to learn from and are left out"
            context.events.write("problem", problem=told)
        packer = config.packer
        if packer == "auto":
            packer = "best_fit" if talks else "concat"
        return writer.finish(config.row_length, packer, config.overlong, pad=tokenizer.pad)


def documents(
    folder: Path,
    tokenizer: Tokenizer,
    chosen: Callable[[str], bool] = lambda name: True,
    repeat: bool = False,
) -> Iterator[Callable[[], _Encoded]]:
    """Work to do: each makes a part of the documents of a `chosen` name; with `repeat` in all their copies.

    A start, the document, end-of-text: each token of the text is predicted, and its end is too. The start is
    the tokenizer's: where it has none of its own, the end of the text before.
    """
    import numpy as np

    from shunter.data import corpus

    start = np.asarray([tokenizer.start], dtype=np.uint32)
    end = np.asarray([tokenizer.end_of_text], dtype=np.uint32)

    def encode(texts: list[str], names: list[str], sizes: list[int]) -> _Encoded:
        encoded = tokenizer.encode_batch(texts)
        return _Encoded([np.concatenate([start, ids, end]) for ids in encoded], None, names, sizes)

    for every in corpus.batches(folder):
        batch = [d for d in every if chosen(d.id) for _ in range(d.copies if repeat else 1)]
        sizes = [len(document.text.encode()) for document in batch]
        for part in _parts(sizes):
            texts, names = [d.text for d in batch[part]], [d.id for d in batch[part]]
            yield partial(encode, texts, names, sizes[part])


def _parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Slices of about PART_BYTES: the library keeps over a hundred bytes a token until it is done."""
    begin = held = 0
    for at, size in enumerate(sizes, 1):
        held += size
        if held >= PART_BYTES or at == len(sizes):
            yield slice(begin, at)
            begin, held = at, 0


def ahead(work: Iterator[Callable[[], _Encoded]]) -> Iterator[_Encoded]:
    """What each piece of work makes, in order, the next ones done in threads meanwhile.

    The library works without the GIL. That its ids become an array needs it, and two threads see to it that
    a core is never without text for as long as that takes.
    """
    with ThreadPoolExecutor(AHEAD) as pool:
        coming: deque[Future[_Encoded]] = deque()
        for each in work:
            coming.append(pool.submit(each))
            if len(coming) > AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def conversations(
    path: Path, tokenizer: Tokenizer, batch: int = 512, unanswered: list[str] | None = None
) -> Iterator[_Encoded]:
    """Conversations by the chat template, end-of-text after each (not learnt: answers end themselves).

    unanswered: takes the ids of those without an answer, which are left out; none: they are taken too.
    """
    import numpy as np

    part = _Encoded([], [], [], [])
    with path.open(encoding="utf-8") as file:
        for line in file:
            talk = json.loads(line)
            if unanswered is not None and all(m["role"] != "assistant" for m in talk["messages"]):
                unanswered.append(talk["id"])
                continue
            ids, mask = tokenizer.encode_chat(talk["messages"])
            part.tokens.append(np.asarray([*ids, tokenizer.end_of_text], dtype=np.uint32))
            assert part.masks is not None
            part.masks.append(np.asarray([*mask, False]))
            part.ids.append(talk["id"])
            part.text_bytes.append(sum(len(m["content"].encode()) for m in talk["messages"]))
            if len(part.ids) == batch:
                yield part
                part = _Encoded([], [], [], [])
    yield part


def replayed(
    talks: Iterator[_Encoded], folder: Path, tokenizer: Tokenizer, share: float, seed: int
) -> Iterator[_Encoded]:
    """The conversations, then documents of `folder`, all of them learnt, as about `share` of all tokens.

    Tuned on conversations alone, a model forgets the text that it has read; some of it among them prevents
    that. Each document is drawn by its name; where the corpus is too small, all of it is taken.
    """
    import numpy as np

    from shunter.data import corpus

    def below(ratio: float) -> Callable[[str], bool]:
        return lambda name: derive_seed(seed, "replay", name) < ratio * 2**63

    tokens = 0
    for part in talks:
        tokens += sum(map(len, part.tokens))
        yield part
    size = sum(len(document.text.encode()) for document in corpus.texts(folder))
    # How many bytes a token has is known from a part of the text that is tokenised already.
    few = list(ahead(documents(folder, tokenizer, below(SAMPLE_BYTES / max(size, 1)))))
    counted = sum(len(ids) for part in few for ids in part.tokens)
    ratio = tokens * share / (1 - share) * sum(sum(part.text_bytes) for part in few) / max(counted, 1)
    for part in ahead(documents(folder, tokenizer, below(ratio / max(size, 1)))):
        part.masks = [np.ones(len(ids), dtype=np.bool_) for ids in part.tokens]
        yield part


JOB = TokensJob()
