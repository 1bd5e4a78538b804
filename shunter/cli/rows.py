"""Rows of tokens in colour: learnt text plain, the rest dim, borders and cuts marked."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from shunter.data.show import Part, Row

LEARNT, CONTEXT, BORDER, CUT = "green", "dim", "bold cyan", "bold red"


def print_rows(rows: Sequence[Row]) -> None:
    """A legend, then each row. Without colours, what is learnt stands between guillemets."""
    console = Console(highlight=False, soft_wrap=True)
    plain = console.no_color or not console.is_terminal
    legend = Text.assemble(
        ("learnt", LEARNT),
        (" as «...»" if plain else "", ""),
        "  ",
        ("not learnt", CONTEXT),
        "  ",
        ("|document|", BORDER),
        "  ",
        ("truncated", CUT),
    )
    console.print(legend)
    for row in rows:
        console.print(Text(f"\nrow {row.number}", "bold"))
        line = Text()
        for part in row.parts:
            _part(line, part, plain)
        if row.padding:
            line.append(f"[{row.padding} tokens of padding]", CONTEXT)
        console.print(line)


def _part(line: Text, part: Part, plain: bool) -> None:
    earlier = f", after {part.before} tokens in other rows" if part.before else ""
    line.append(f"|{part.document}{earlier}|", BORDER)
    for piece in part.pieces:
        text = f"«{piece.text}»" if plain and piece.learnt else piece.text
        line.append(text, LEARNT if piece.learnt else CONTEXT)
    if part.truncated:
        line.append(f"[{part.after} tokens cut off]", CUT)
    elif part.after:
        line.append(f"[{part.after} more tokens in other rows]", BORDER)
