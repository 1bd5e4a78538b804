"""What each operator of a graph computes on the part of its tensors that one rank holds.

Inputs and outputs are local; `ranges` says which indices of each letter they cover, for operators to which
the place in the whole matters: which words a part of a table has, which positions a part of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from shunter.config.errors import ShunterError
from shunter.layout.signatures import Operator
from shunter.models.rope import rotate

Ranges = Mapping[str, tuple[int, int]]
Compute = Callable[[Operator, Sequence[Tensor], Ranges], Sequence[Tensor]]

EPS, THETA = 1e-5, 10000.0


def compute(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    """The local outputs. Raises ShunterError for a kind that nothing computes."""
    found = KINDS.get(operator.kind)
    if found is None:
        raise ShunterError(
            f"nothing computes {operator.kind!r} ({operator.name!r})",
            mend=f"Kinds that are there: {', '.join(sorted(KINDS))}.",
        )
    return found(operator, inputs, ranges)


def _linear(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    expression = operator.expression
    found = []
    for index, word in enumerate(expression.outputs):
        total: Tensor | None = None
        for group in expression.groups(index):
            text = ",".join(expression.inputs[it] for it in group)
            term = torch.einsum(f"{text}->{word}", *(inputs[it] for it in group))
            total = term if total is None else total + term
        assert total is not None
        found.append(total)
    return found


def _inverse_rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=-1, keepdim=True).add(EPS).rsqrt()


def _norm(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    x, weight = inputs
    return (x * _inverse_rms(x) * weight,)


def _norm_gradient(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    x, weight, dy = inputs
    inverse = _inverse_rms(x)
    unit = x * inverse
    wide = dy * weight
    dx = inverse * (wide - unit * (wide * unit).mean(dim=-1, keepdim=True))
    return dx, (dy * unit).flatten(0, -2).sum(0)


def _rope(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    (x,) = inputs
    begin, end = ranges["t"]
    half = torch.arange(0, x.shape[-1], 2, dtype=torch.float32, device=x.device) / x.shape[-1]
    angles = torch.arange(begin, end, dtype=torch.float32, device=x.device)[:, None] * (1.0 / THETA**half)
    angles = angles.view(-1, *([1] * (x.dim() - 3)), angles.shape[-1])  # from dim 1, the tokens, on
    sign = -1.0 if operator.facts.get("back") else 1.0
    return (rotate(x, angles.cos().to(x.dtype), sign * angles.sin().to(x.dtype)),)


def _probabilities(q: Tensor, k: Tensor, ranges: Ranges) -> Tensor:
    scores = torch.einsum("btkgd,bskd->bkgts", q, k) * q.shape[-1] ** -0.5
    rows = torch.arange(*ranges["t"], device=q.device)
    hidden = torch.arange(*ranges["s"], device=q.device)[None, :] > rows[:, None]
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)


def _attention(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    q, k, v = inputs
    return (torch.einsum("bkgts,bskd->btkgd", _probabilities(q, k, ranges), v),)


def _attention_gradient(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    q, k, v, dy = inputs
    p = _probabilities(q, k, ranges)
    dp = torch.einsum("btkgd,bskd->bkgts", dy, v)
    ds = p * (dp - (dp * p).sum(dim=-1, keepdim=True)) * q.shape[-1] ** -0.5
    return (
        torch.einsum("bkgts,bskd->btkgd", ds, k),
        torch.einsum("bkgts,btkgd->bskd", ds, q),
        torch.einsum("bkgts,btkgd->bskd", p, dy),
    )


def _swiglu_gradient(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    gate, up, dy = inputs
    s = torch.sigmoid(gate)
    return dy * up * s * (1 + gate * (1 - s)), dy * F.silu(gate)


def _gelu_gradient(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    x, dy = inputs
    inside = 0.5 * (1 + torch.erf(x * 0.5**0.5))
    return (dy * (inside + x * torch.exp(-0.5 * x * x) * (2 * torch.pi) ** -0.5),)


def _own(words: Tensor, ranges: Ranges) -> tuple[Tensor, Tensor]:
    """Rows of this part for word numbers, and whether they are this part's."""
    begin, end = ranges["v"]
    row = words - begin
    return row.clamp(0, end - begin - 1), (row >= 0) & (row < end - begin)


def _embedding(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    row, own = _own(inputs[0], ranges)
    return (inputs[1][row] * own[..., None],)


def _embedding_gradient(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    tokens, dy = inputs
    row, own = _own(tokens, ranges)
    begin, end = ranges["v"]
    found = dy.new_zeros(end - begin, dy.shape[-1])
    return (found.index_add_(0, row[own], dy[own]),)


def _total(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    logits, top = inputs
    return ((logits - top[..., None]).exp().sum(dim=-1),)


def _pick(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    logits, targets = inputs
    row, own = _own(targets, ranges)
    return (logits.gather(-1, row[..., None]).squeeze(-1) * own,)


def _token_loss(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    top, total, picked = inputs
    return (top + total.log() - picked,)


def _logits_gradient(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    logits, top, total, targets, dy = inputs
    row, own = _own(targets, ranges)
    found = (logits - top[..., None]).exp() / total[..., None]
    found.scatter_add_(-1, row[..., None], -own[..., None].to(found.dtype))
    return (found * dy[..., None],)


def _expand(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    lengths = [ranges[letter][1] - ranges[letter][0] for letter in operator.expression.outputs[0]]
    return (inputs[0].expand(lengths),)


def _reduce(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    (word,), (kept,) = operator.expression.inputs, operator.expression.outputs
    dims = [index for index, letter in enumerate(word) if letter not in kept]
    if operator.kind == "sum":
        return (inputs[0].sum(dim=dims),)
    return ((torch.amax if operator.kind == "max" else torch.amin)(inputs[0], dim=dims),)


def _view(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    """Heads as a width or a width as heads; the joined letter covers what its parts cover."""
    joined = dict(operator.expression.joined)
    lengths = {letter: end - begin for letter, (begin, end) in ranges.items()}
    for whole, parts in joined.items():
        lengths[whole] = 1
        for part in parts:
            lengths[whole] *= lengths[part]
    return (inputs[0].reshape([lengths[letter] for letter in operator.expression.outputs[0]]),)


def _transpose(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    (word,), (wanted,) = operator.expression.inputs, operator.expression.outputs
    return (inputs[0].permute([word.index(letter) for letter in wanted]),)


def _softmax_gradient(operator: Operator, inputs: Sequence[Tensor], ranges: Ranges) -> Sequence[Tensor]:
    y, dy = inputs
    return (y * (dy - (dy * y).sum(dim=-1, keepdim=True)),)


KINDS: Mapping[str, Compute] = {
    "linear": _linear,
    "norm": _norm,
    "norm gradient": _norm_gradient,
    "rope": _rope,
    "attention": _attention,
    "attention gradient": _attention_gradient,
    "swiglu": lambda operator, it, ranges: (F.silu(it[0]) * it[1],),
    "swiglu gradient": _swiglu_gradient,
    "gelu": lambda operator, it, ranges: (F.gelu(it[0]),),
    "gelu gradient": _gelu_gradient,
    "add": lambda operator, it, ranges: (it[0] + it[1],),
    "embedding": _embedding,
    "embedding gradient": _embedding_gradient,
    "max": _reduce,
    "min": _reduce,
    "sum": _reduce,
    "sum of exponentials": _total,
    "pick": _pick,
    "token loss": _token_loss,
    "logits gradient": _logits_gradient,
    "expand": _expand,
    "softmax": lambda operator, it, ranges: (it[0].softmax(dim=-1),),
    "softmax gradient": _softmax_gradient,
    "heads": _view,
    "transpose": _transpose,
    "cast": lambda operator, it, ranges: (
        it[0].to(torch.bfloat16 if operator.facts.get("half") else torch.float32),
    ),
    "update": lambda operator, it, ranges: (it[0] - it[1],),  # gradient descent
}
