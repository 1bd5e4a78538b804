"""A step on scores: the same gradient however the batch is cut, padded or packed, and in two passes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from shunter.models.decoder import Decoder
from shunter.models.scores import linear_scores
from shunter.post.batch import Answers, Sample, by_prompt, grouped, lay_out, micro_batches, sharing
from shunter.post.objective import ScoreObjective, coefficients
from shunter.post.policy import Policy, PolicySettings
from shunter.post.preference import DPO
from shunter.post.preferences import of_each
from shunter.post.step import Gradient, ScoredResult, Scorer, scored_step
from shunter.train.config import TrainConfig
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass
from tests.models.small import redraw, spec_of
from tests.post.layouts import draw, packed

CPU = torch.device("cpu")
LENGTHS = [5, 1, 0, 8, 3, 3]
OBJECTIVES: dict[str, ScoreObjective] = {
    "dpo": DPO(0.3, normalised=True),
    "grpo": Policy(PolicySettings(kl=0.05)),
    "gspo": Policy(PolicySettings(ratio="sequence", clip_low=0.1, clip_high=0.1)),
    "with entropy": Policy(PolicySettings(average="token", entropy=0.05)),
}


def model() -> Decoder:
    made = Decoder(spec_of("qwen3-tied")).double()
    redraw(made)
    return made


def near(decoder: Decoder, lengths: Sequence[int], seed: int = 0) -> list[Sample]:
    """Samples whose `old` and `reference` lie near what the model says, lest all ratios be clipped."""
    samples = draw(lengths, seed)
    scorer = Scorer(decoder, CPU)
    found = []
    for sample in samples:
        batch = lay_out([sample])
        says = scorer.logprobs([batch])[0][batch.targets != -100]
        known = {name: says + 0.2 * sample.known[name] for name in ("old", "reference")}
        found.append(Sample(sample.ids, sample.wrote, {**sample.known, **known}))
    return found


def stepped(
    objective: ScoreObjective, batches: Sequence[Answers], decoder: Decoder, begun: Gradient | None = None
) -> tuple[ScoredResult, list[torch.Tensor]]:
    config = TrainConfig(steps=1, optimizer="adamw")
    kept: list[torch.Tensor] = []
    optimizers = Optimizers(decoder, config)
    optimizers.step = lambda rate: kept.extend(p.grad.clone() for p in decoder.parameters())  # type: ignore
    scorer = Scorer(decoder, CPU)
    done = scored_step(scorer, optimizers, objective, batches, step=0, rate=0.1, clip=1e9, begun=begun)
    return done, kept


def gradient(
    objective: ScoreObjective, batches: Sequence[Answers], decoder: Decoder
) -> tuple[float, list[torch.Tensor]]:
    done, kept = stepped(objective, batches, decoder)
    return done.loss, kept


@pytest.mark.parametrize("name", OBJECTIVES)
def test_cutting_and_padding_change_nothing(name: str) -> None:
    decoder = model()
    samples = near(decoder, LENGTHS)
    pairs = [samples[i : i + 2] for i in range(0, 6, 2)]
    ways = {
        "one": [lay_out(samples)],
        "wide": [lay_out(samples, pad=9, width=40)],
        "packed": [packed(samples)],
        "small": micro_batches(pairs, tokens=16),
        "large": micro_batches(pairs, tokens=1000),
    }
    assert [len(ways[key]) for key in ("small", "large")] == [3, 1]
    loss, grads = gradient(OBJECTIVES[name], ways.pop("one"), decoder)
    assert max(float(grad.abs().max()) for grad in grads) > 1e-6
    for batches in ways.values():
        other, others = gradient(OBJECTIVES[name], batches, decoder)
        assert other == pytest.approx(loss, rel=1e-9)
        for a, b in zip(grads, others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["grpo", "gspo", "with entropy"])
def test_answers_that_share_a_prompt_learn_the_same(name: str) -> None:
    """A prompt once for all of its answers, in rows of other widths, against a row for each answer."""
    decoder = model()
    groups = []
    for number, lengths in enumerate(([5, 1, 8], [3, 3], [2])):
        alone = draw(lengths, number)
        prompt = [7 + number, 9, 11][: 1 + number]
        shared = []
        for sample in alone:
            ids = [*prompt, *[i for i, wrote in zip(sample.ids, sample.wrote, strict=True) if wrote]]
            shared.append(Sample(ids, [i >= len(prompt) for i in range(len(ids))], sample.known))
        groups.append(shared)
    everyone = [sample for group in groups for sample in group]
    loss, grads = gradient(OBJECTIVES[name], [lay_out(everyone)], decoder)
    for tokens in (16, 1000):
        batches = grouped(groups, tokens)
        assert sum(batch.num_valid for batch in batches) == 22
        other, others = gradient(OBJECTIVES[name], batches, decoder)
        assert other == pytest.approx(loss, rel=1e-9)
        for a, b in zip(grads, others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("prompt", "answer", "count", "tokens", "rows"),
    [
        (2000, 128, 16, 4096, [1] * 16),  # copies of a long prompt
        (500, 100, 16, 4096, [6, 6, 4]),
        (100, 28, 16, 4096, [16]),
        (40, 4, 32, 600, [32]),  # a mask costs less: nothing is copied
        (40, 4, 4, 46, [1] * 4),
    ],
)
def test_a_row_has_no_more_answers_than_there_is_room_for_with_copies_of_their_prompt(
    prompt: int, answer: int, count: int, tokens: int, rows: list[int]
) -> None:
    wrote = [False] * prompt + [True] * answer
    found = by_prompt([Sample([1] * len(wrote), wrote)] * count, tokens)
    assert [len(row) for row in found] == rows


@pytest.mark.parametrize(
    ("device", "prompt", "answer", "shares"),
    [("cpu", 5, 500, True), ("cuda", 5, 500, False), ("cuda", 200, 256, True), ("cuda", 900, 40, True)],
)
def test_where_a_mask_costs_more_than_it_saves_each_answer_has_its_prompt(
    device: str, prompt: int, answer: int, shares: bool
) -> None:
    """And rows under a mask are bounded, whatever a micro-batch may hold."""
    sample = Sample(range(prompt + answer), [False] * prompt + [True] * answer)
    rows = sharing([sample] * 32, 100_000, model().spec, device)
    assert (rows is not None) == shares
    if rows is not None and device == "cuda":
        assert all(prompt + len(row) * answer <= 4096 for row in rows)
        assert sum(map(len, rows)) == 32


def test_what_is_said_of_each_answer_is_the_same_where_answers_share_prompts() -> None:
    decoder, draw = model(), torch.Generator().manual_seed(0)
    groups = []
    for number, lengths in enumerate(([5, 1, 8], [3, 3], [2])):
        prompt = [7 + number, 9, 11]
        answers = [torch.randint(1, 30, (n,), generator=draw).tolist() for n in lengths]
        groups.append([Sample(prompt + ids, [False] * 3 + [True] * len(ids)) for ids in answers])
    everyone = [sample for group in groups for sample in group]

    def cut(samples: Sequence[Sample]) -> list[Answers]:
        return grouped([samples[0:3], samples[3:5], samples[5:]], 32)

    alone, shared = (of_each(Scorer(decoder, CPU), everyone, 16, cut=how) for how in (None, cut))
    for a, b, sample in zip(alone, shared, everyone, strict=True):
        assert len(a) == sum(sample.wrote)
        assert a == pytest.approx(b, rel=1e-9)


BY_SEQUENCES = {
    "grpo": PolicySettings(kl=0.05),
    "dr_grpo": PolicySettings(average="constant", length=9),
    "rloo": PolicySettings(ratio="sum"),
    "gspo": PolicySettings(ratio="sequence", clip_low=0.1, clip_high=0.1),
}


@pytest.mark.parametrize("name", BY_SEQUENCES)
def test_a_gradient_that_is_begun_early_is_that_of_the_whole(name: str) -> None:
    """In whatever parts its answers come, before the number of their tokens is known; and what is told."""
    assert BY_SEQUENCES[name].by_sequences
    decoder, objective = model(), Policy(BY_SEQUENCES[name])
    samples = near(decoder, [5, 1, 8, 3, 3, 2])
    whole, grads = stepped(objective, [lay_out(samples)], decoder)
    for cuts in ([2], [1, 4], [2, 3, 6]):
        decoder.zero_grad()
        begun = Gradient.early(Scorer(decoder, CPU), objective, len(samples))
        begins = [0, *cuts]
        for begin, end in zip(begins, cuts, strict=False):
            begun.add(lay_out(samples[begin:end]))
        left = samples[begins[-1] :]
        done, others = stepped(objective, [lay_out(left)] if left else [], decoder, begun)
        assert done.loss == pytest.approx(whole.loss, rel=1e-9)
        assert done.grad_norm == pytest.approx(whole.grad_norm, rel=1e-7)
        assert done.told == pytest.approx(whole.told, rel=1e-9)
        for a, b in zip(grads, others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_what_counts_tokens_cannot_begin_early() -> None:
    assert not PolicySettings(average="token").by_sequences
    assert not PolicySettings(entropy=0.1).by_sequences


@pytest.mark.parametrize("name", ["dpo", "grpo", "gspo"])
def test_two_passes_give_the_same_gradient(name: str) -> None:
    """What lays an objective of log-probabilities out: coefficients first, then any `Passes`."""
    decoder, objective = model(), OBJECTIVES[name]
    batches = micro_batches([near(decoder, LENGTHS)[i : i + 2] for i in range(0, 6, 2)], tokens=16)
    _, grads = gradient(objective, batches, decoder)
    counts: dict[str, float] = {}
    for batch in batches:
        for key, value in objective.weights(batch).items():
            counts[key] = counts.get(key, 0.0) + value
    found = [
        coefficients(objective, torch.from_numpy(says), batch, counts)
        for says, batch in zip(Scorer(decoder, CPU).logprobs(batches), batches, strict=True)
    ]
    OnePass(decoder, decoder, CPU, "fp32").gradients(batches, found, 0.0)
    for parameter, grad in zip(decoder.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_and_their_gradients(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from shunter.models import head

    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(150, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (150,), generator=draw)
    factors = torch.randn(2, 150, generator=draw, dtype=torch.float64)
    known = (hidden @ weight.T / temperature).log_softmax(-1)
    expected = known.gather(1, targets[:, None]).squeeze(1), -(known.exp() * known).sum(-1)
    want = torch.autograd.grad((factors[0] * expected[0] + factors[1] * expected[1]).sum(), (hidden, weight))
    for size in (1 << 23, 1):
        monkeypatch.setattr(head, "CHUNK_BYTES", size)
        got = linear_scores(hidden, weight, targets, temperature=temperature, entropies=True)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
        grads = torch.autograd.grad((factors[0] * got[0] + factors[1] * got[1]).sum(), (hidden, weight))
        for a, b in zip(grads, want, strict=True):
            torch.testing.assert_close(a, b)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    decoder = model()
    samples = near(decoder, [2, 2])
    broken = Sample(samples[0].ids, samples[0].wrote, {**samples[0].known, "old": [float("nan")] * 2})
    before = [p.detach().clone() for p in decoder.parameters()]
    optimizers = Optimizers(decoder, TrainConfig(steps=1, optimizer="adamw"))
    done = scored_step(
        Scorer(decoder, CPU), optimizers, OBJECTIVES["grpo"], [lay_out([broken, samples[1]])],
        step=0, rate=0.1, clip=1.0,
    )  # fmt: skip
    assert not done.updated
    assert all(torch.equal(a, b) for a, b in zip(before, decoder.parameters(), strict=True))


def test_a_guard_may_stop_before_the_update() -> None:
    decoder = model()
    before = [p.detach().clone() for p in decoder.parameters()]

    def guard(told: object) -> None:
        raise RuntimeError("apart")

    with pytest.raises(RuntimeError, match="apart"):
        scored_step(
            Scorer(decoder, CPU), Optimizers(decoder, TrainConfig(steps=1, optimizer="adamw")),
            OBJECTIVES["grpo"], [lay_out(near(decoder, [3]))], step=0, rate=0.1, clip=1.0, guard=guard,
        )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(before, decoder.parameters(), strict=True))
