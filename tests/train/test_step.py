"""One step: accumulation changes nothing, what is not finite changes nothing at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shunter.data.tokens import IGNORE, Batch
from shunter.models.decoder import Decoder
from shunter.models.segments import SegmentPlan
from shunter.record import points
from shunter.train.config import TrainConfig
from shunter.train.objective import CrossEntropy, total
from shunter.train.optim import Optimizers
from shunter.train.passes import OnePass
from shunter.train.step import StepResult, train_step
from tests.train import corpora

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> corpora.TokenRows:
    return corpora.rows(tmp_path_factory.mktemp("rows"))


def wide(model: Decoder) -> Decoder:
    """In float64, with weights that are not zero where the initialisation has zeros."""
    model.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def gradient(model: Decoder, batches: list[Batch], z_loss: float) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    objective = CrossEntropy()
    counts = total(objective, batches)
    coefficients = [torch.from_numpy(objective.coefficients(batch, counts)) for batch in batches]
    whole, _ = OnePass(model, model, CPU, "fp32").gradients(batches, coefficients, z_loss)
    return float(whole), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def naive(model: Decoder, batch: Batch, z_loss: float) -> torch.Tensor:
    """Full logits and torch's own cross-entropy, document by document, row by row."""
    loss = torch.zeros((), dtype=torch.float64)
    count = batch.num_valid
    for row in range(len(batch.tokens)):
        for segment in range(int(batch.segments[row].max()) + 1):
            here = batch.segments[row] == segment
            tokens = torch.from_numpy(batch.tokens[row][here])[None]
            targets = torch.from_numpy(batch.targets[row][here])
            logits = model.logits(model(tokens))[0]
            loss = loss + torch.nn.functional.cross_entropy(
                logits, targets, ignore_index=IGNORE, reduction="sum"
            )
            squares = logits.logsumexp(-1)[targets != IGNORE].square().sum()
            loss = loss + z_loss * squares
    return loss / count


@given(
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    mask=st.integers(0, 3),
    z=st.sampled_from([0.0, 0.01]),
)
def test_accumulation_changes_neither_loss_nor_gradient(
    rows: corpora.TokenRows, cuts: list[int], mask: int, z: float
) -> None:
    """Any split into micro-batches, ragged, and with rows that have no target, against full logits."""
    model = wide(corpora.decoder())
    whole = rows.rows(np.arange(7))
    if mask:  # some rows without any target, as instruction data has
        whole.targets[:mask] = IGNORE
    parts, at = [], 0
    for cut in [*cuts, 7]:
        ids = slice(at, min(at + cut, 7))
        at = ids.stop
        if ids.start < 7:
            parts.append(Batch(*(getattr(whole, name)[ids] for name in Batch.__dataclass_fields__)))
    loss, grads = gradient(model, parts, z)
    model.zero_grad()
    expected = naive(model, whole, z)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-9, atol=1e-12)


def step(model: Decoder, optimizers: Optimizers, rows: corpora.TokenRows, micro: int) -> StepResult:
    ids = np.arange(8)
    batches = [rows.rows(ids[i : i + micro]) for i in range(0, 8, micro)]
    return train_step(
        OnePass(model, model, CPU, "fp32"),
        optimizers,
        CrossEntropy(),
        batches,
        step=0,
        rate=1e-3,
        clip=1.0,
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_micro_batches_give_equivalent_weights(rows: corpora.TokenRows, optimizer: str) -> None:
    """fp32 sums in another order: 1e-4 of the update is the stated tolerance (Adam divides by it)."""
    config = TrainConfig(steps=1, optimizer=optimizer)
    models = [corpora.decoder() for _ in range(2)]
    before = [p.clone() for p in models[0].parameters()]
    for model, micro in zip(models, (8, 3), strict=True):
        step(model, Optimizers(model, config), rows, micro)
    for a, b, old in zip(models[0].parameters(), models[1].parameters(), before, strict=True):
        change = (a - old).detach().norm()
        assert float((a - b).detach().norm()) <= 1e-3 * float(change) + 1e-9


def test_the_loss_is_told_without_its_z_term(rows: corpora.TokenRows) -> None:
    """The figure is nats a token, comparable with a run that has no z-loss; the whole is what is learnt."""
    batches = [rows.rows(np.arange(5)), rows.rows(np.arange(5, 8))]
    plain = run_step(batches)
    wide_z = run_step(batches, z_loss=0.1)
    assert wide_z.loss == pytest.approx(plain.loss, rel=1e-12)
    assert plain.z_loss == 0.0
    assert wide_z.grad_norm != plain.grad_norm
    model = wide(corpora.decoder())
    whole, _ = gradient(model, batches, 0.1)
    assert wide_z.loss + wide_z.z_loss == pytest.approx(whole, rel=1e-12)
    assert wide_z.z_loss > 0


def run_step(batches: list[Batch], z_loss: float = 0.0) -> StepResult:
    model = wide(corpora.decoder())
    return train_step(
        OnePass(model, model, CPU, "fp32"),
        Optimizers(model, TrainConfig(steps=1)),
        CrossEntropy(),
        batches,
        step=0,
        rate=1e-3,
        clip=1e9,
        z_loss=z_loss,
    )


def test_padding_and_position_of_rows_do_not_matter(rows: corpora.TokenRows) -> None:
    model = wide(corpora.decoder())
    one = rows.rows(np.arange(6))
    other = rows.rows(np.arange(6)[::-1].copy())
    a, grads_a = gradient(model, [one], 0.0)
    b, grads_b = gradient(model, [other], 0.0)
    assert a == pytest.approx(b, rel=1e-12)
    for name, grad in grads_a.items():
        torch.testing.assert_close(grad, grads_b[name], rtol=1e-9, atol=1e-12)


def test_packing_changes_neither_loss_nor_gradient(rows: corpora.TokenRows) -> None:
    """Documents that share rows, against one a row and padding behind it."""
    model = wide(corpora.decoder())
    packed = rows.rows(np.arange(5))
    packed.targets[:, ::3] = IGNORE  # as in conversations, not all is learnt from
    apart = [
        (row, packed.segments[row] == segment)
        for row in range(5)
        for segment in range(int(packed.segments[row].max()) + 1)
    ]
    assert len(apart) > 5
    longest = max(int(here.sum()) for _, here in apart)

    def alone(values: np.ndarray, fill: int) -> Any:
        return np.stack(
            [np.pad(v := values[r][h], (0, longest - len(v)), constant_values=fill) for r, h in apart]
        )

    single = Batch(
        alone(packed.tokens, 0), alone(packed.targets, IGNORE), alone(packed.segments * 0, -1),
        alone(packed.positions, 0), np.arange(len(apart)),
    )  # fmt: skip
    a, grads_a = gradient(model, [packed], 0.01)
    b, grads_b = gradient(model, [single], 0.01)
    assert a == pytest.approx(b, rel=1e-12)
    for name, grad in grads_a.items():
        torch.testing.assert_close(grad, grads_b[name], rtol=1e-9, atol=1e-12)


@pytest.fixture
def _poison() -> Iterator[None]:
    points.install(lambda point, facts: "nan" if point == "train.step" else None)
    yield
    points.install(None)


@pytest.mark.usefixtures("_poison")
def test_a_step_that_is_not_finite_changes_nothing(rows: corpora.TokenRows) -> None:
    model = corpora.decoder()
    optimizers = Optimizers(model, TrainConfig(steps=1))
    before = [p.clone() for p in model.parameters()]
    state = {n: {k: v.clone() for k, v in s.items()} for n, s in optimizers.state().items()}
    result = step(model, optimizers, rows, 8)
    assert not result.updated
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    for name, values in optimizers.state().items():
        for key, value in values.items():
            assert torch.equal(value, state[name][key])


class Overflowing(OnePass):
    """One number of the gradient is not finite, though the loss is."""

    value = math.inf

    def gradients(
        self, batches: Sequence[Batch], coefficients: Sequence[torch.Tensor], z_loss: float, *more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums = super().gradients(batches, coefficients, z_loss, *more)
        gradient = self.decoder.norm.weight.grad
        assert gradient is not None
        gradient[0] = self.value
        return sums


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_changes_nothing(
    rows: corpora.TokenRows, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss alone does not tell: the gradient of a finite loss may overflow."""
    monkeypatch.setattr(Overflowing, "value", value)
    model = corpora.decoder()
    optimizers = Optimizers(model, TrainConfig(steps=1))
    before = [p.clone() for p in model.parameters()]
    passes = Overflowing(model, model, CPU, "fp32")
    batches = [rows.rows(np.arange(8))]
    result = train_step(passes, optimizers, CrossEntropy(), batches, step=0, rate=1e-3, clip=1.0)
    assert math.isfinite(result.loss)
    assert not math.isfinite(result.grad_norm)
    assert not result.updated
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(v.any() for s in optimizers.state().values() for v in s.values())


def test_decay_and_muon_reach_the_right_parameters() -> None:
    model = corpora.decoder()
    optimizers = Optimizers(model, TrainConfig(steps=1, optimizer="muon"))
    kinds = {
        optimizers.names[id(p)]: (type(part).__name__, group["weight_decay"] > 0)
        for part in optimizers.parts
        for group in part.param_groups
        for p in group["params"]
    }
    assert set(kinds) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2
        muon = matrix and name.startswith("layers.")
        assert kinds[name] == ("Muon" if muon else "AdamW", matrix), name


def test_segments_are_planned_from_the_batch(rows: corpora.TokenRows) -> None:
    batch = rows.rows(np.arange(3))
    assert SegmentPlan.build(torch.from_numpy(batch.segments)).mask is not None
