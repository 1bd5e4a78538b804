"""Answers that share a prompt: attended to behind copies of it, as with a mask of the row."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shunter.models.decoder import Decoder
from shunter.models.forks import Forks, forked_attention
from shunter.models.segments import SegmentPlan
from shunter.models.spec import DecoderSpec

ROW = st.tuples(st.integers(0, 20), st.lists(st.integers(1, 40), min_size=1, max_size=5))


def rows(lengths: list[tuple[int, list[int]]], extra: int = 0) -> Tensor:
    """Segments [B, T] of rows with a prompt and answers of these lengths, filled up to the longest."""
    made = [
        [0] * prompt + [n for n, each in enumerate(each, 1) for _ in range(each)] for prompt, each in lengths
    ]
    width = max(len(row) for row in made) + extra
    return torch.tensor([row + [-1] * (width - len(row)) for row in made])


def masked(q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Tensor:
    asks, seen = segments[:, None, :, None], segments[:, None, None, :]
    mask = ((asks == seen) | ((seen == 0) & (asks >= 0))).tril()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 2**16))
def test_output_and_gradients_equal_a_masks(lengths, extra, seed):  # type: ignore[no-untyped-def]
    segments = rows(lengths, extra)
    forks = Forks.build(segments, always=True)
    assert forks is not None
    torch.manual_seed(seed)
    shape = (len(segments), 3, segments.shape[1], 8)
    real = (segments >= 0)[:, None, :, None]
    found = []
    given_ = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
    for attend in (lambda *x: forked_attention(*x, forks), lambda *x: masked(*x, segments)):
        q, k, v = (x.clone().requires_grad_() for x in given_[:3])
        out = attend(q, k, v).where(real, 0.0)
        out.backward(given_[3])
        found.append([out.detach(), q.grad, k.grad, v.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_wide_queries_and_keys_beside_narrow_values():
    """As norms give them on a GPU under autocast, where all that is attended with is in the values' width."""
    segments = rows([(5, [30, 30, 30])])
    forks = Forks.build(segments, always=True)
    assert forks is not None
    shape = (1, 2, segments.shape[1], 8)
    q, k = (torch.randn(shape, requires_grad=True) for _ in range(2))
    v = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
    forked_attention(q, k, v, forks).sum().backward()
    assert [x.grad.dtype for x in (q, k, v) if x.grad is not None] == [q.dtype, k.dtype, v.dtype]


def test_an_answer_sees_no_other_one():
    segments = rows([(5, [30, 30, 30])])
    forks = Forks.build(segments, always=True)
    assert forks is not None
    q, k, v = (torch.randn(1, 2, segments.shape[1], 8, requires_grad=True) for _ in range(3))
    forked_attention(q, k, v, forks)[segments.eq(2)[:, None].expand(-1, 2, -1)].sum().backward()
    assert v.grad is not None
    touched = v.grad.abs().sum(dim=(1, 3))[0] > 0
    assert touched.tolist() == [kind in (0, 2) for kind in segments[0].tolist()]


def test_few_short_answers_take_a_mask():
    assert SegmentPlan.sharing(rows([(12, [8] * 8)] * 4)).forks is None
    assert SegmentPlan.sharing(rows([(12, [40] * 8)] * 4)).forks is not None
    assert Forks.build(torch.zeros(2, 64, dtype=torch.int64), always=True) is None


def test_work_is_that_of_the_answers():
    """Scores that are computed, for each token of the answers: its prompt and its own, and no other's."""
    forks = Forks.build(rows([(16, [40] * 8)] * 4))
    assert forks is not None
    computed = sum(
        part.count * part.size * mask.shape[-1] for part, mask in zip(forks.answers, forks.masks, strict=True)
    )
    assert computed == 4 * 8 * 40 * (16 + 40)


def test_a_window_is_refused():
    spec = DecoderSpec(
        vocab_size=8,
        dim=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        ffn_dim=16,
        sliding_window=4,
    )
    model = Decoder(spec)
    segments = rows([(16, [40] * 8)])
    with pytest.raises(ValueError, match="window"):
        model(torch.zeros_like(segments), segments=SegmentPlan.sharing(segments))
