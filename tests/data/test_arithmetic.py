"""Questions from worked problems: right answers only, each expression under one key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shunter.data.arithmetic import Expression, ask, expressions, phrasings, table


def test_notes_are_found_and_checked() -> None:
    text = "48/2 = <<48/2=24>>24 <<2+2=5>> <<7/2=3>> <<1/0=0>> <<16-3-4=9>> <<5-9=4>> <<.5*4=2>> <<3*4=12>>12"
    assert list(expressions(text)) == [Expression(48, "/", 2), Expression(3, "*", 4)]


@given(st.integers(0, 999), st.sampled_from("+-*/"), st.integers(1, 999))
def test_answers_and_keys(a: int, op: str, b: int) -> None:
    turned, plain = Expression(b, op, a), Expression(a, op, b)
    assert (turned.key == plain.key) == (op in "+*" or a == b)
    questions = set()
    for way in range(phrasings()):
        question, answer = ask(plain, way)
        assert answer["content"] == str({"+": a + b, "-": a - b, "*": a * b, "/": a // b}[op])
        assert str(a) in question["content"]
        assert str(b) in question["content"]
        questions.add(question["content"])
    assert len(questions) == phrasings()


def test_the_table_holds_each_expression_once() -> None:
    found = table(12)
    assert all(key == expression.key for key, expression in found.items())
    assert {e.value for e in found.values() if e.op == "+"} == set(range(25))
    assert all(e.value >= 0 for e in found.values())
    assert len([k for k in found if "*" in k]) == 11 * 12 // 2
    assert table(0) == {}
