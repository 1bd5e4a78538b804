"""A model's programs over documents: chunks, numbers, what is counted. The model is one that is made up."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.data.curation.chain import Documents, run, stages
from shunter.data.curation.edits import execute, parse
from shunter.data.curation.pages import Pages
from shunter.data.curation.refine import Refine, Written, greedy, spread

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@dataclass
class Rules:
    """Deletes the lines that begin with BAD; a token is a character. It sees only what it is shown."""

    most: int = 60
    answer: str | None = None
    seen: list[str] = field(default_factory=list)

    def room(self) -> int:
        return self.most

    def sizes(self, lines: Sequence[str]) -> list[int]:
        return [len(line) for line in lines]

    def write(self, shown: Sequence[str]) -> list[Written]:
        self.seen += shown
        found = []
        for text in shown:
            numbers = re.findall(r"^\[(\d+)\] BAD", text, re.MULTILINE)
            program = "\n".join(f"remove_lines({n}, {n})" for n in numbers) or "keep_all()"
            found.append(Written(self.answer or program, 10, True))
        return found


def refined(
    texts: list[str], writer: Rules, **options: object
) -> tuple[list[str], list[str], dict[str, int]]:
    operator = Refine.model_validate({"kind": "refine", **options}).written_by(writer)
    verdicts = operator.judge_with(Pages(texts), {})
    assert verdicts.texts is not None
    return verdicts.texts, verdicts.facts["program"].tolist(), verdicts.counts


@given(st.lists(st.sampled_from(["BAD", "BAD x", "good", "good y", "", "z" * 70]), min_size=1, max_size=20))
def test_chunks_change_nothing_of_what_is_deleted(lines: list[str]) -> None:
    """However little the model sees at once, the lines that it would delete are deleted, counted from the
    document's beginning; a line that it cannot see stays."""
    text = "\n".join(lines)
    expected = "\n".join(line for line in lines if not line.startswith("BAD"))
    for most in (20, 33, 60, 10_000):
        writer = Rules(most)
        (found,), (program,), counts = refined([text], writer)
        assert found == expected
        assert execute(text, parse(program)[0]).text == found, "the column tells what was done"
        assert all(len(shown) <= most for shown in writer.seen)
        assert (counts.get("lines too long for the model", 0) > 0) == (most < 100 and "z" * 70 in lines)
        assert counts.get("chunks", 0) == len(writer.seen)


@given(SIZES, st.integers(3, 40))
def test_chunks_cover_everything_and_fit(sizes: list[int], room: int) -> None:
    for cut in (greedy, spread):
        found = list(cut(sizes, room))
        assert found[0][0] == 0
        assert found[-1][1] == len(sizes)
        for begin, end in found:
            assert begin < end
            assert sum(sizes[begin:end]) <= room or end == begin + 1
        for (a, b), (c, d) in itertools.pairwise(found):
            assert a < c <= b < d, "no gap, and each goes on"
    assert len(list(greedy(sizes, room))) <= len(list(spread(sizes, room))) <= 2 * len(sizes)


def test_overlaps_are_about_even() -> None:
    """A text of 2.5 rooms is shown in three chunks of which none is half empty."""
    sizes = [1] * 250
    assert list(greedy(sizes, 100)) == [(0, 100), (100, 200), (200, 250)]
    assert list(spread(sizes, 100)) == [(0, 100), (75, 175), (150, 250)]


def test_what_a_model_gets_wrong_is_skipped_and_counted() -> None:
    text = "one\ntwo two\nthree"
    answer = (
        'remove_lines(0, 0)\nremove_lines(7, 9)\nremove_str(1, "two")\nremove_str(2, "no")\nDROP\nremove_l'
    )
    (found,), (program,), counts = refined([text], Rules(1000, answer))
    assert (found, program) == ("two two\nthree", "remove_lines(0,0)")
    assert (counts["calls"], counts["calls skipped"], counts["malformed calls"]) == (1, 3, 2)
    assert counts["characters deleted"] == 4
    assert "new words" not in counts


def test_a_chunk_deletes_no_line_that_it_does_not_show() -> None:
    text = "\n".join(["BAD"] + ["a line of text"] * 20)
    writer = Rules(60, 'remove_lines(0,0)\nremove_lines(0,15)\nremove_str(12,"line")')
    (found,), _, counts = refined([text], writer)
    shown = len(writer.seen)
    assert shown > 5
    assert counts["calls skipped"] == 2 * shown
    assert counts["calls"] == shown
    assert len(found.split("\n")) == 21 - shown


def test_words_are_not_cut_unless_asked() -> None:
    writer = Rules(1000, 'remove_str(0, "ed wo")')
    (found,), _, counts = refined(["joined words"], writer)
    assert (found, counts["calls skipped"]) == ("joined words", 1)
    (found,), _, counts = refined(["joined words"], writer, whole_words=False)
    assert (found, counts["new words"]) == ("joinrds", 1)


def test_what_is_emptied_goes_with_a_record() -> None:
    operator = Refine(kind="refine").written_by(Rules())
    documents = Documents(np.arange(3), ["BAD a\nBAD b", "good", "BAD\ngood"])
    found = run(stages([operator])[0], documents, None)
    assert found.left.texts == ["good", "good"]
    assert found.left.facts["program"].tolist() == ["keep_all()", "remove_lines(0,0)"]
    (record,) = found.dropped
    assert (record["number"], record["operator"], record["reason"]) == (0, "refine", "nothing is left")
    assert found.tallies[0].edits["documents edited"] == 2


def test_an_expert_is_told_what_to_do_and_answers_in_tags() -> None:
    options = {"prompt": "Delete what is noise.", "tag": "refined"}
    writer = Rules(70, "Because of the menu:\n<refined>\nremove_lines(0,0)\n</refined>")
    (found,), _, counts = refined(["menu\ntext"], writer, **options)
    assert (found, "malformed calls" in counts) == ("text", False)
    assert writer.seen == ["Delete what is noise.\n\n[0] menu\n[1] text"]
    writer = Rules(200, "<refined>cut o")
    (found,), _, counts = refined(["menu\ntext"], writer, **options)
    assert (found, counts["answers without the tag"]) == ("menu\ntext", 1)
    anew = Refine.model_validate({"kind": "refine", "writes": "text", **options})
    for answer, expected in (("<refined>new</refined>", "new"), ("new", "menu\ntext")):
        verdicts = anew.written_by(Rules(200, answer)).judge_with(Pages(["menu\ntext"]), {})
        assert verdicts.texts == [expected]
    with pytest.raises(ShunterError, match="leaves no room"):
        refined(["a"], Rules(20), prompt="Far too long for so small a model.")


def test_a_text_written_anew_may_hold_new_words() -> None:
    operator = Refine(kind="refine", writes="text").written_by(Rules(12, "brand new"))
    verdicts = operator.judge_with(Pages(["one two\nthree", "x"]), {})
    assert verdicts.texts == ["brand new\nbrand new", "brand new"]
    assert verdicts.counts["new words"] == 6
    assert verdicts.facts == {}
