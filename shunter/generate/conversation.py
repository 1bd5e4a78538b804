"""A conversation with a model: history, streaming, what to do when the context is full."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from shunter.config.errors import ShunterError
from shunter.config.seed import derive_seed
from shunter.data.tokenizer import Tokenizer
from shunter.generate.config import SamplingConfig
from shunter.generate.engine import Completion, generate
from shunter.models.decoder import Decoder


@dataclass
class Conversation:
    """Turns of a person and a model. `raw` continues plain text instead, without a chat template.

    stop_ids:  tokens that end an answer besides the tokenizer's own.
    forgotten: messages left out of the last prompt because the context was full.
    """

    model: Decoder
    tokenizer: Tokenizer
    config: SamplingConfig
    system: str | None = None
    seed: int = 0
    raw: bool = False
    stop_ids: Sequence[int] = ()
    messages: list[dict[str, str]] = field(default_factory=list)
    turns: int = 0
    forgotten: int = 0

    def reply(self, text: str, show: Callable[[str], None]) -> Completion:
        """Answer a message; `show` gets the answer piece by piece as it is written.

        Interrupted (Ctrl-C), what was written so far is kept in the history and the interrupt goes on.
        """
        self.messages.append({"role": "user", "content": text})
        stops = {*self.tokenizer.stop_ids, *self.stop_ids}
        stream = _Stream(self.tokenizer, stops, show)
        seed = derive_seed(self.seed, "turn", self.turns)
        self.turns += 1
        try:
            done = generate(
                self.model,
                [self._prompt()],
                self.config,
                list(stops),
                seed,
                lambda _, token: stream.add(token),
            )[0]
            stream.end()
            return done
        except ShunterError:
            self.messages.pop()
            raise
        finally:
            if self.messages and self.messages[-1]["role"] == "user":
                self.messages.append({"role": "assistant", "content": stream.text})

    def reset(self) -> None:
        """Forget all turns."""
        self.messages.clear()
        self.forgotten = 0

    def _prompt(self) -> list[int]:
        """Ids of the newest turns that leave a quarter of the context, or what was asked for, to write."""
        context = self.model.spec.max_positions
        room = context - min(self.config.max_new_tokens, max(1, context // 4))
        if self.raw:
            self.forgotten = len(self.messages) - 1
            return [self.tokenizer.start, *self.tokenizer.encode(self.messages[-1]["content"])]
        head = [{"role": "system", "content": self.system}] if self.system else []
        for first in range(0, len(self.messages), 2):
            ids = self.tokenizer.encode_prompt([*head, *self.messages[first:]])
            if len(ids) <= room:
                self.forgotten = first
                return ids
        raise ShunterError(
            f"the message has {len(ids)} tokens, of which the model's context of {context} holds {room}",
            mend="Write a shorter one.",
        )


class _Stream:
    """Turns ids into text as they come; bytes of an unfinished character wait for the rest."""

    def __init__(self, tokenizer: Tokenizer, stops: Collection[int], show: Callable[[str], None]) -> None:
        self.tokenizer, self.stops, self.show = tokenizer, stops, show
        # Decoded anew with each token: those shown last, whose neighbours decide on spaces, and the new ones.
        self.text = ""
        self.last: list[int] = []
        self.new: list[int] = []

    def add(self, token: int) -> None:
        if token in self.stops:
            return
        self.new.append(token)
        self._show(whole=True)

    def end(self) -> None:
        """Nothing more comes: show also a character that was left unfinished."""
        self._show(whole=False)

    def _show(self, whole: bool) -> None:
        before = self.tokenizer.decode(self.last, skip_special=True)
        text = self.tokenizer.decode([*self.last, *self.new], skip_special=True)
        if len(text) <= len(before) or (whole and text.endswith("\ufffd")):
            return
        self.text += text[len(before) :]
        self.show(text[len(before) :])
        self.last, self.new = self.new, []
