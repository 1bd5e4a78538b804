"""What a line of the log says of the steps since the last one."""

from __future__ import annotations

from shunter.post.course import _Tally, is_largest


def test_of_the_largest_the_largest_is_told_and_of_others_the_mean() -> None:
    tally = _Tally({}, {})
    for gap in (1.0, 4.0, 1.0):
        tally.add({"rl/gap": gap, "rl/largest_gap": gap, "rl/max_staleness": gap})
    assert tally.means() == {"rl/gap": 2.0, "rl/largest_gap": 4.0, "rl/max_staleness": 4.0}
    assert not is_largest("rl/gap")
