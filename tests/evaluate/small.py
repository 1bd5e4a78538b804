"""A tokenizer, held-out rows and random models, small enough to check by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from shunter.data import tokenizer as tokenizers
from shunter.data.tokenizer import Tokenizer
from shunter.data.tokens import TokenWriter
from shunter.evaluate.subject import Subject
from shunter.models.decoder import Decoder
from shunter.models.spec import DecoderSpec

SENTENCE = "the union of the states is strong and the people of this nation are called to work"


def a_text(number: int, words: int = 60) -> str:
    """Sentences that differ from text to text, with letters of several bytes."""
    generator = np.random.default_rng(number)
    return f"Numéro {number} \u2014 " + " ".join(generator.choice(SENTENCE.split(), words).tolist()) + "."


TEXTS = {f"{source}:{n}": a_text(n + len(source)) for source in ("alpha", "be-ta") for n in range(4)}


def a_tokenizer(folder: Path, vocab_size: int = 300) -> Tokenizer:
    tokenizers.save(tokenizers.train(list(TEXTS.values()), vocab_size), folder, max_length=1024)
    return Tokenizer.load(folder)


def rows(folder: Path, texts: dict[str, str] = TEXTS, row_length: int = 32, masked: bool = False) -> Path:
    """A `tokens` artefact's folder with its held-out part and tokenizer."""
    tokenizer = a_tokenizer(folder / "tokenizer")
    writer = TokenWriter(folder / "heldout", vocab_size=tokenizer.vocab_size, masked=masked)
    end = [tokenizer.end_of_text]
    ids = [np.asarray([*end, *tokenizer.encode(text), *end], dtype=np.uint32) for text in texts.values()]
    masks = [np.ones(len(part), dtype=np.bool_) for part in ids] if masked else None
    writer.append(ids, texts, [len(text.encode()) for text in texts.values()], masks)
    writer.finish(row_length, "concat")
    return folder


def a_model(vocab_size: int, seed: int = 0, context: int = 1024) -> Decoder:
    spec = DecoderSpec(
        vocab_size=vocab_size,
        dim=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        ffn_dim=24,
        max_positions=context,
    )
    model = Decoder(spec)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=draw)
    return model.eval()


def a_subject(tokenizer: Tokenizer, seed: int = 0, context: int = 1024, name: str = "base") -> Subject:
    model = a_model(tokenizer.vocab_size, seed, context)
    return Subject(name, model, tokenizer, torch.device("cpu"))


@torch.no_grad()
def reference(model: Decoder, ids: list[int], begin: int = 1) -> float:
    """Sum of log p(ids[i] | ids[:i]) from `begin` on, by full logits in one row."""
    logits = model.logits(model(torch.tensor([ids[:-1]]))).double().log_softmax(-1)[0]
    return float(sum(logits[i - 1, ids[i]] for i in range(begin, len(ids))))


def no_tick(done: int, total: int, unit: str) -> None:
    assert 0 <= done <= total
