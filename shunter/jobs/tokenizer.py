"""The job `tokenizer`: byte-level BPE learnt from a corpus."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from shunter.config.errors import ShunterError
from shunter.recipe.job import Input, JobConfig, JobContext

MIN_VOCABULARY = 256 + 6  # every byte, and the special tokens


class TokenizerConfig(JobConfig):
    """Learns a byte-level BPE vocabulary from the corpus's train split, and from conversations'."""

    corpus: Annotated[str, Input("corpus")] = Field(description="Job whose text it learns from.")
    conversations: Annotated[str | None, Input("conversations")] = Field(
        None,
        exclude_if=lambda value: value is None,  # jobs without are those that they were before there were any
        description="Job whose conversations it learns from too, such as programs that no text has.",
    )
    vocab_size: int = Field(
        4096, ge=MIN_VOCABULARY, le=1 << 20, description="Tokens, the special ones included."
    )
    digits: bool = Field(True, description="Each digit is a token of its own, which arithmetic needs.")
    sample_bytes: int = Field(
        200_000_000, ge=1, description="Text to learn from at most; more teaches little."
    )
    max_length: int = Field(1 << 20, ge=1, description="Context length noted in the tokenizer's files.")


class TokenizerJob:
    """Writes a Hugging Face tokenizer folder with a chat template."""

    kind: ClassVar[str] = "tokenizer"
    produces: ClassVar[str] = "tokenizer"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = TokenizerConfig

    def check(self, config: TokenizerConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[TokenizerConfig]) -> dict[str, Any]:
        from shunter.data import corpus
        from shunter.data.tokenizer import Tokenizer, save, train

        config = context.config
        folder = context.one("corpus").path / "train"
        texts = _sample(folder, config.sample_bytes)
        if config.conversations is not None:
            texts = itertools.chain(texts, _said(context.one("conversations").path, config.sample_bytes))
        engine = train(texts, config.vocab_size, digits=config.digits)
        save(engine, context.out, max_length=config.max_length)
        tokenizer = Tokenizer.load(context.out)
        if tokenizer.vocab_size < config.vocab_size:
            # A model's embedding is sized by it; an odd size that nobody asked for would surprise later.
            raise ShunterError(
                f"the text gives only {tokenizer.vocab_size} tokens, not {config.vocab_size}",
                mend=f"Set vocab_size to {tokenizer.vocab_size} or less, or give more text.",
            )
        text = next(corpus.batches(folder))
        size = sum(len(document.text.encode()) for document in text)
        count = sum(len(ids) for ids in tokenizer.encode_batch([document.text for document in text]))
        return {"vocab_size": tokenizer.vocab_size, "bytes_per_token": size / max(count, 1)}


def _sample(folder: Path, limit: int) -> Iterator[str]:
    from shunter.data import corpus

    for document in corpus.texts(folder):
        limit -= len(document.text.encode())
        yield document.text
        if limit <= 0:
            return


def _said(folder: Path, limit: int) -> Iterator[str]:
    """What all sides say in the conversations to learn from, up to so many bytes."""
    with (folder / "train.jsonl").open(encoding="utf-8") as file:
        for line in file:
            for message in json.loads(line)["messages"]:
                limit -= len(message["content"].encode())
                yield message["content"]
            if limit <= 0:
                return


JOB = TokenizerJob()
