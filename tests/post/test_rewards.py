"""Weighted sums, canaries, and rules that cannot grade."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from shunter.config.errors import ShunterError
from shunter.post import rewards
from shunter.post.config import RewardConfig
from shunter.post.rewards import Grader, Item, Matches, Unbounded, Verified, named, rule


def items(*answers: str, target: str = "7") -> list[Item]:
    return [Item("q", answer, target) for answer in answers]


def test_a_sum_of_weighted_rules() -> None:
    rules = [
        (rule(RewardConfig(kind="number")), 2.0),
        (rule(RewardConfig(kind="format", pattern=r"[\d ]+")), -0.5),
    ]
    graded = Grader(rules).grade(items("so 7", "7", "8", "eight"))
    assert [one.total for one in graded] == [2.0, 1.5, -0.5, 0.0]
    assert graded[1].parts == {"number": 1.0, "format": 1.0}


def test_an_answer_that_was_cut_off_has_exactly_the_reward_given_for_that() -> None:
    grader = Grader([(rule(RewardConfig(kind="number")), 10.0)], unfinished=-10.0)
    graded = grader.grade([Item("q", "7", "7", finished=False), Item("q", "7", "7")])
    assert [one.total for one in graded] == [-10.0, 10.0]


@pytest.mark.parametrize("kind", ["number", "boxed", "exact", "contains", "f1"])
def test_canaries_ride_in_every_batch_and_a_broken_rule_is_seen(kind: str) -> None:
    made = rule(RewardConfig(kind=kind))  # type: ignore[arg-type]
    seen: list[int] = []
    grade = made.grade

    def count(batch: Sequence[Item]) -> list[float | str]:
        seen.append(len(batch))
        return grade(batch)

    made.grade = count  # type: ignore[method-assign]
    grader = Grader([(made, 1.0)])
    for _ in range(3):
        assert len(grader.grade(items("a", "b"))) == 2
    assert len(seen) == 3
    assert all(n > 2 for n in seen)
    for forged in (0.0, 1.0):
        made.grade = lambda batch, forged=forged: [forged] * len(batch)  # type: ignore[method-assign]
        with pytest.raises(ShunterError, match="whose score is known to be"):
            grader.grade(items("a", "b"))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 24])
def test_canaries_ride_once_in_a_step_that_is_graded_in_parts(size: int) -> None:
    """Not always with its first part; with parts that are more than a step, in each."""
    made = Verified("same", lambda answer, target: 1.0, lambda target: [("known", "", 1.0)])
    grader = Grader([(made, 1.0)])
    grader.every = 8
    places: list[int] = []
    for part in range(96 // size):
        before = grader.canaries
        grader.grade(items(*["a"] * size))
        places += [part * size] * (grader.canaries - before)
    assert [place // max(8, size) for place in places] == list(range(96 // max(8, size)))
    assert len({place % 8 for place in places}) > 1 or size >= 8


def test_a_step_that_is_graded_in_parts_ends_only_where_no_part_could_be() -> None:
    grader = Grader([(rule(RewardConfig(kind="constraints")), 1.0)], patient=True)
    good, bad = '{"no_commas": ""}', "no object"
    parts = [grader.grade(items("a", target=bad)), grader.grade(items("a", "b", target=bad))]
    with pytest.raises(ShunterError, match="constraints could grade no answer of a step"):
        grader.check([one for part in parts for one in part])
    grader.check([one for part in [*parts, grader.grade(items("a", target=good))] for one in part])


def test_a_rule_is_held_against_the_answers_that_it_was_asked_about() -> None:
    """In parts as at once: answers that it has nothing to compare with do not hide that it grades none."""
    made = [(rule(RewardConfig(kind=kind)), 1.0) for kind in ("constraints", "exact")]  # type: ignore[arg-type]
    bad, good = "no object", '{"no_commas": ""}'
    mixed = [Item("q", "a", "a", targets={"constraints": target}) for target in (None, bad, None, bad)]
    with pytest.raises(ShunterError, match="constraints could grade no answer of a step"):
        Grader(made).grade(mixed)
    grader = Grader(made, patient=True)
    parts = [one for begin in (0, 2) for one in grader.grade(mixed[begin : begin + 2])]
    assert [one.unasked for one in parts] == [["constraints"], []] * 2
    with pytest.raises(ShunterError, match="constraints could grade no answer of a step"):
        grader.check(parts)
    grader.check(parts[::2])  # it was asked about none
    grader.check([*parts, *grader.grade([Item("q", "a", "a", targets={"constraints": good})])])


def test_a_rule_that_raises_counts_as_nothing_and_is_counted() -> None:
    grader = Grader([(rule(RewardConfig(kind="constraints")), 1.0)])
    good, bad = '{"no_commas": ""}', "no object"
    graded = grader.grade([Item("q", "a", good), Item("q", "a", bad), Item("q", "a", '{"tall": "1"}')])
    assert [one.total for one in graded] == [1.0, 0.0, 0.0]
    assert [len(one.failed) for one in graded] == [0, 1, 1]
    assert grader.failures == {"constraints": 2}
    fixed = Grader([(rule(RewardConfig(kind="constraints", constraints={"paragraphs": "a"})), 1.0)])
    with pytest.raises(ShunterError, match="invalid literal"):
        fixed.grade(items("a"))


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("constraints", ["no json", "{}", "[1]", '{"no_commas": ""}']),
        ("boxed", [r"\frac{1}{2", "a}b", r"\boxed{}", "7"]),
        ("number", ["none", "", "7"]),
        ("exact", ["", "\ud800", "7"]),
        ("contains", ["", "\ud800", "7"]),
    ],
)
def test_no_target_makes_a_canary_wrong(kind: str, targets: list[str]) -> None:
    made = rule(RewardConfig(kind=kind))  # type: ignore[arg-type]
    for first in targets:
        Grader([(made, 1.0)]).grade([Item("q", "7", t) for t in (first, targets[-1])])


def test_a_rule_that_takes_for_ever_counts_as_nothing_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(answer: str, _: str) -> float:
        while answer == "slow":
            pass
        return 1.0

    monkeypatch.setattr(rewards, "RULE_SECONDS", 0.1)
    grader = Grader([(Verified("own", slow), 1.0)])
    graded = grader.grade([Item("q", answer, "") for answer in ("a", "slow", "b")])
    assert [one.total for one in graded] == [1.0, 0.0, 1.0]
    assert graded[1].failed == ["own: it took more than 0.1 CPU seconds"]
    assert grader.failures == {"own": 1}
    graded = grader.grade([Item("q", answer, "") for answer in (*["slow"] * 5, "b")])
    assert graded[-1].total == 1.0, "no answer is worth less for what others are"
    assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL


def test_where_all_may_fail_nothing_ends() -> None:
    made = rule(RewardConfig(kind="number"))
    with pytest.raises(ShunterError, match="the target has no number"):
        Grader([(made, 1.0)]).grade(items("7", target="none"))
    grader = Grader([(made, 1.0)], patient=True)
    assert [one.total for one in grader.grade(items("7", target="none"))] == [0.0]
    assert grader.failures == {"number": 1}


@pytest.mark.parametrize("weight", [-2.0, 0.0, 2.0])
def test_no_answer_gains_by_making_a_rule_fail(weight: float) -> None:
    def verify(answer: str, _: str) -> float:
        if answer == "hostile":
            raise ValueError("it is lost")
        return float(answer)

    grader = Grader([(rule(RewardConfig(kind="exact")), 1.0), (Verified("own", verify), weight)])
    zero, one, hostile = grader.grade(items("0", "1", "hostile"))
    assert hostile.total == min(zero.total, one.total)
    assert hostile.total == weight * hostile.parts["own"]
    assert grader.failures == {"own": 1}
    (unasked,) = grader.grade([Item("q", "hostile", "7", targets={"own": None})])
    assert (unasked.total, unasked.failed) == (0.0, []), "nothing was asked of it"


class Unsure(Unbounded):
    """A rule with scores of any size."""

    name = "any"

    def grade(self, items: Sequence[Item]) -> list[float | str]:
        return [float(item.answer) if item.answer else "it is lost" for item in items]

    def canaries(self, like: Item) -> list[tuple[Item, float]]:
        return []


@pytest.mark.parametrize("weight", [-2.0, 2.0])
@pytest.mark.parametrize("kind", ["checker", "model"])
def test_what_a_failure_of_a_rule_without_bounds_counts_is_said(kind: str, weight: float) -> None:
    config = {"kind": kind, "weight": weight} | ({"file": "own.py"} if kind == "checker" else {})
    for given, counts in (({}, 0.0), ({"failed": -50.0}, -50.0)):
        made = named(Unsure(), RewardConfig.model_validate({**config, **given}))
        told, failed = Grader([(made, weight)]).grade(items("-7", ""))
        assert told.total == weight * -7
        assert (failed.total, failed.parts) == (weight * counts, {kind: counts})


@pytest.mark.parametrize(
    ("config", "target", "mend"),
    [
        ({"kind": "number"}, "none", "Look at the targets"),
        ({"kind": "constraints"}, "none", "Look at the targets"),
        ({"kind": "constraints", "constraints": {"paragraphs": "a"}}, "7", "values of its `constraints`"),
        ({"kind": "format", "pattern": "(a+)+b"}, "7", "its `pattern`"),
    ],
)
def test_where_nothing_can_be_graded_people_are_sent_to_what_is_at_fault(
    config: dict[str, object], target: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rule(RewardConfig.model_validate(config))
    monkeypatch.setattr(made, "canaries", lambda like: [])
    grader = Grader([(made, 1.0)])
    if isinstance(made, Matches):
        made.patterns.seconds = 0.05
    try:
        with pytest.raises(ShunterError, match="could grade no answer of a step") as caught:
            grader.grade(items("a" * 60, target=target))
    finally:
        grader.close()
    assert mend in str(caught.value.mend)


@pytest.mark.parametrize("lost", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_a_number_counts_as_nothing_and_is_counted(lost: float) -> None:
    grader = Grader([(Verified("own", lambda answer, _: lost if answer == "b" else 1.0), 1.0)])
    graded = grader.grade(items("a", "b"))
    assert [one.total for one in graded] == [1.0, 0.0]
    assert "not a number" in graded[1].failed[0]
    assert grader.failures == {"own": 1}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"kind": "format"}, "which needs one"),
        ({"kind": "constraints", "constraints": {"words_at_mots": "3"}}, "Did you mean words_at_most"),
        ({"kind": "checker"}, "which needs one"),
        ({"kind": "number", "file": "x.py"}, "file belongs to"),
        ({"kind": "number", "language": "c"}, "belong to rewards of the kinds code and checker"),
        ({"kind": "format", "pattern": ".", "seconds": 9}, "seconds belong to"),
        ({"kind": "number", "failed": -1}, "failed belongs to"),
        ({"kind": "model", "failed": float("nan")}, "finite"),
        ({"kind": "number", "pattern": "a"}, "belongs to a reward of the kind format"),
        ({"kind": "format", "pattern": "("}, "no regular expression"),
        ({"kind": "number", "constraints": {"json": ""}}, "belong to a reward of the kind constraints"),
    ],
)
def test_configurations_that_contradict(config: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RewardConfig.model_validate(config)


@pytest.mark.parametrize("says", [123.4, -5.0, float("nan")])
def test_a_reward_model_with_the_weight_zero_leaves_the_verifiers_alone(says: float) -> None:
    class Says:
        name = "model"

        def grade(self, items: Sequence[Item]) -> list[float | str]:
            return [says for _ in items]

        def canaries(self, like: Item) -> list[tuple[Item, float]]:
            return []

    number = rule(RewardConfig(kind="number"))
    answers = items("7", "8", "77", "it is 7")
    alone = [one.total for one in Grader([(number, 10.0)]).grade(answers)]
    beside = Grader([(number, 10.0), (Says(), 0.0)], patient=True).grade(answers)
    assert [one.total for one in beside] == alone == [10.0, 0.0, 0.0, 10.0]


def test_two_rules_of_one_name_are_refused() -> None:
    """The second would stand in the place of the first."""
    twice = [(rule(RewardConfig(kind="format", pattern=pattern)), 1.0) for pattern in ("a", "b")]
    with pytest.raises(ShunterError, match="two rules have one name"):
        Grader(twice)


@pytest.mark.parametrize(
    ("target", "graded"),
    [
        ("1/2", True),
        ("1e5", True),
        ("2^8", False),
        ("x^{12}", False),
        ("10/2 = 5", True),
        ("#### 1,234", True),
    ],
)
def test_a_target_that_is_a_power_is_not_graded_by_its_last_digits(target: str, graded: bool) -> None:
    score = rule(RewardConfig(kind="number")).grade([Item("q", "it is 2", target)])[0]
    assert score == 0.0 if graded else isinstance(score, str)


def test_a_target_within_a_longer_word_is_not_contained() -> None:
    contains = rule(RewardConfig(kind="contains"))
    answers = ["not 120", "it is 12.", "12", "a 112 b", "c12"]
    assert contains.grade([Item("q", answer, "12") for answer in answers]) == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert contains.grade([Item("q", "so (a+b).", "(a+b)"), Item("q", "x", "")]) == [1.0, 1.0]
