"""Known bugs of layouts, each put in on purpose: what compares a layout with one process must see it.

Each stands in one function of the workers for the run of one small case. What this cannot show: that bugs of
other kinds are seen, or these ones elsewhere; those that stop or delay ranks rather than change a value.
"""

from __future__ import annotations

import pytest

from tests.draws import some
from tests.mutants.mutant import Mutant
from tests.mutants.subjects import SUBJECTS, Refused, plainly, with_bug
from tests.mutants.table import LISTED, MUTANTS
from tests.parallel.pool import Pool


def test_the_table_is_of_many_bugs_and_each_case_is_used() -> None:
    assert len(MUTANTS) == len(LISTED) >= 25
    assert {mutant.case for mutant in LISTED} == SUBJECTS.keys()
    assert {mutant.case for mutant in LISTED if mutant.name in SOME} == SUBJECTS.keys()


@some("name", list(SUBJECTS))
def test_without_a_bug_nothing_differs(pool: Pool, name: str) -> None:
    assert SUBJECTS[name].wrong(plainly(pool)) == []


# The first of every case; the others before a release.
SOME = {mutant.name for mutant in {mutant.case: mutant for mutant in reversed(LISTED)}.values()}


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=mutant.name, marks=[] if mutant.name in SOME else [pytest.mark.long])
        for mutant in LISTED
    ],
)
def test_each_bug_is_seen(pool: Pool, mutant: Mutant) -> None:
    if mutant.seen == "error":
        # Every rank raises it: were one left to wait, the pool would say that it does not answer.
        with pytest.raises(Refused):
            SUBJECTS[mutant.case].wrong(with_bug(pool, mutant))
        return
    wrong = SUBJECTS[mutant.case].wrong(with_bug(pool, mutant))
    assert mutant.seen in {each.split()[0] for each in wrong}, wrong
