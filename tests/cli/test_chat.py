"""`shunter chat`: lines from a pipe, a terminal, commands, interruption."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter.cli import main as cli
from shunter.jobs import talking
from shunter.models.hf import save_model
from tests.evaluate.small import a_model, a_tokenizer

Piped = Callable[..., tuple[str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small model and its tokenizer."""
    tokenizer = a_tokenizer(tmp_path / "tokenizer")
    place = tmp_path / "model"
    save_model(
        a_model(tokenizer.vocab_size), place, tokenizer_folder=tmp_path / "tokenizer", eos_token_id=[0]
    )
    return place


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Piped:
    """piped(arguments, typed text, code) -> (out, err)."""

    def run(arguments: list[str], typed: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert cli.main(["chat", *arguments, "--max-new-tokens", "8"]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def test_a_line_is_a_turn(folder: Path, piped: Piped) -> None:
    out, err = piped([str(folder)], "hello\n\nand you?\n")
    assert err == ""
    again, _ = piped([str(folder)], "hello\nand you?\n")
    assert again == out, "the same seed said something else, or an empty line was a turn"
    first, _ = piped([str(folder)], "hello\n")
    assert out.startswith(first)
    assert len(out) > len(first)
    other, _ = piped([str(folder), "--seed", "1"], "hello\nand you?\n")
    assert other != out
    with_system, _ = piped([str(folder), "--system", "be brief"], "hello\nand you?\n")
    assert with_system != out


def test_commands(folder: Path, piped: Piped) -> None:
    greedy = [str(folder), "--temperature", "0"]
    once, _ = piped(greedy, "hello\n")
    twice, _ = piped(greedy, "hello\n/reset\nhello\n/quit\nhello\n")
    assert twice == once * 2, "/reset kept the turns, or /quit did not leave"
    unforgotten, _ = piped(greedy, "hello\nhello\n")
    assert unforgotten != twice, "the case does not show what /reset does"
    out, err = piped(greedy, "/rest\nhello\n")
    assert out == once
    assert "no such command: /rest" in err


def test_models_that_cannot_talk(folder: Path, piped: Piped, tmp_path: Path) -> None:
    out, err = piped([str(tmp_path)], "hello\n", 2)
    assert out == ""
    assert "holds no model" in err
    (folder / "manifest.json").write_text('{"kind": "pretrain"}')
    assert "has seen no conversation" in piped([str(folder)], "hello\n")[1]
    assert piped([str(folder), "--raw"], "the union\n")[1] == ""
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "no chat template. Continue text with --raw." in piped([str(folder)], "hello\n", 2)[1]
    assert piped([str(folder), "--raw"], "the union\n")[0] != ""


def test_a_setting_out_of_range(folder: Path, piped: Piped) -> None:
    assert "top_p" in piped([str(folder), "--top-p", "1.5"], "hello\n", 2)[1]


class Terminal(io.StringIO):
    """Output that says it is a terminal, and interrupts once after some pieces of an answer."""

    interrupt_at = -1

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.interrupt_at -= 1
        if self.interrupt_at == 0:
            raise KeyboardInterrupt
        return super().write(text)


def test_an_interrupt_stops_the_answer_and_not_the_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["hello", "and you?", "/quit", "never asked"])
    out = Terminal()

    def ask(prompt: str) -> str:
        assert prompt == talking.PROMPT
        text = next(typed)
        if text == "hello":
            out.interrupt_at = 3
        return text

    monkeypatch.setattr("builtins.input", ask)
    sampling = {"temperature": 0.7, "max_new_tokens": 8}
    talking.talk("", str(folder), sampling, system=None, seed=0, raw=False, lines=Terminal(), out=out)
    shown = out.getvalue()
    assert shown.count("[stopped]") == 1
    assert shown.index("[stopped]") < len(shown.rstrip()) - len("[stopped]"), "the second turn said nothing"
    assert list(typed) == ["never asked"]
