"""How each kind of block may be cut over ranks: declarations, applied elsewhere. Imports without torch.

Tensor parallelism (arXiv 1909.08053, section 3): the first product of a pair is cut by columns, the second
by rows, so that nothing between them needs another rank. Our fused products hold several projections, of
which each is cut by itself. Whole heads stay together; keys and values of a head that more than one rank
needs stand on each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from shunter.config.errors import ShunterError
from shunter.layout.grid import Grid
from shunter.layout.holding import Holding, Shared
from shunter.layout.piece import Piece, Range
from shunter.models.spec import DecoderSpec, ExpertsSpec

DATA = ("dp", "fsdp", "cp")  # their ranks see other tokens with the same weights
ENDS = ("embed.weight", "norm.weight", "head.weight")  # what is no layer's


def shapes(spec: DecoderSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each parameter and stored buffer of a decoder, in its order."""
    yield "embed.weight", (spec.vocab_size, spec.dim)
    qkv = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    for layer in range(spec.num_layers):
        at = f"layers.{layer}"
        yield f"{at}.attention_norm.weight", (spec.dim,)
        yield f"{at}.attention.qkv.weight", (qkv, spec.dim)
        if spec.qkv_bias:
            yield f"{at}.attention.qkv.bias", (qkv,)
        yield f"{at}.attention.out.weight", (spec.dim, spec.num_heads * spec.head_dim)
        if spec.qk_norm:
            yield f"{at}.attention.q_norm.weight", (spec.head_dim,)
            yield f"{at}.attention.k_norm.weight", (spec.head_dim,)
        yield f"{at}.ffn_norm.weight", (spec.dim,)
        if spec.experts is not None and spec.experts.inside(layer):
            yield from _mixture(f"{at}.ffn", spec.dim, spec.experts)
        else:
            yield f"{at}.ffn.gate_up.weight", (2 * spec.ffn_dim, spec.dim)
            yield f"{at}.ffn.down.weight", (spec.dim, spec.ffn_dim)
    yield "norm.weight", (spec.dim,)
    if not spec.tied:
        yield "head.weight", (spec.vocab_size, spec.dim)


def _mixture(at: str, dim: int, experts: ExpertsSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{at}.router.weight", (experts.num_experts, dim)
    if experts.biased:
        yield f"{at}.router.bias", (experts.num_experts,)
    yield f"{at}.experts.gate_up", (experts.num_experts, 2 * experts.ffn_dim, dim)
    yield f"{at}.experts.down", (experts.num_experts, dim, experts.ffn_dim)
    if experts.shared_ffn_dim:
        yield f"{at}.shared.gate_up.weight", (2 * experts.shared_ffn_dim, dim)
        yield f"{at}.shared.down.weight", (dim, experts.shared_ffn_dim)


def layer_of(name: str) -> int | None:
    """Number of the layer that a parameter belongs to; None of embedding, head and the last norm."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else None


def holdings(
    spec: DecoderSpec, grid: Grid, place: Mapping[str, int], *, sequence: bool = True
) -> dict[str, Holding]:
    """What the rank at `place` holds of each parameter, whatever its stage, before weights are sharded.

    sequence: between the pairs of products each tensor rank has its own tokens (sequence parallelism, arXiv
    2205.05198), so what is not cut has a part of its gradient on each. Raises ShunterError for a layout that
    the model cannot have.
    """
    check(spec, grid, sequence)
    index = place["tp"]
    found = {}
    for name, shape in shapes(spec):
        whole = Holding(Piece.full(shape), DATA)
        if name.endswith("router.bias"):
            whole = Holding(Piece.full(shape))  # moved by the load of all, not by a gradient
        elif ".experts." in name and spec.experts is not None:
            whole = expert_holding(spec.experts, name.endswith("gate_up"), whole, grid, place)
        elif grid.tp > 1:
            whole = _tensor(spec, name, whole, index, grid.tp, sequence)
        found[name] = whole
    return found


def end_holdings(
    spec: DecoderSpec, grid: Grid, place: Mapping[str, int], *, sequence: bool = True
) -> dict[str, Holding]:
    """The same of embedding, last norm and head alone, which no number of heads keeps from being cut."""
    check_vocabulary(spec, grid)
    found = {}
    for name, shape in shapes(spec):
        if name in ENDS:
            whole = Holding(Piece.full(shape), DATA)
            found[name] = _tensor(spec, name, whole, place["tp"], grid.tp, sequence) if grid.tp > 1 else whole
    return found


def expert_holding(
    experts: ExpertsSpec, columns: bool, whole: Holding, grid: Grid, place: Mapping[str, int]
) -> Holding:
    """Some experts, and some columns of each gate, of each up and rows of each down."""
    piece = whole.piece.share(0, place["ep"], grid.ep)
    if columns:
        piece = piece.share(1, place["etp"], grid.etp, [experts.ffn_dim] * 2)
    else:
        piece = piece.share(2, place["etp"], grid.etp)
    return Holding(piece, ("edp",), ("ep", "etp"))


def check(spec: DecoderSpec, grid: Grid, sequence: bool = True) -> None:
    """Raise ShunterError, with the nearest legal degree, for a grid that the model cannot be laid out on."""
    tp = grid.tp

    def legal(degree: int) -> bool:
        kv = spec.num_kv_heads
        return spec.num_heads % degree == 0 and (kv % degree == 0 or degree % kv == 0)

    if not legal(tp):
        degrees = [degree for degree in range(1, spec.num_heads + 1) if legal(degree)]
        nearest = min(degrees, key=lambda degree: abs(degree - tp))
        raise ShunterError(
            f"{spec.num_heads} heads with {spec.num_kv_heads} of keys and values cannot be cut into tp={tp}",
            mend=f"Use tp={nearest}.",
        )
    _check_experts(spec, grid, sequence)
    check_vocabulary(spec, grid)
    if spec.ffn_dim < tp:
        raise ShunterError(
            f"a ffn_dim of {spec.ffn_dim} cannot be cut into tp={tp} parts", mend=f"Use tp={spec.ffn_dim}."
        )


def check_vocabulary(spec: DecoderSpec, grid: Grid) -> None:
    """Raise ShunterError for more tensor ranks than the vocabulary has words."""
    if spec.vocab_size < grid.tp:
        raise ShunterError(
            f"a vocabulary of {spec.vocab_size} cannot be cut into tp={grid.tp} parts",
            mend=f"Use tp={spec.vocab_size}.",
        )


def _check_experts(spec: DecoderSpec, grid: Grid, sequence: bool) -> None:
    if spec.experts is None:
        if grid.ep * grid.etp > 1:
            raise ShunterError(
                "the model has no experts to spread over ep and etp", mend="Use ep=1 and etp=1."
            )
        return
    if grid.tp > 1 and not sequence:
        raise ShunterError(
            "without sequence, tensor ranks have the same tokens, and experts would see them twice",
            mend="Set sequence to true, or tp to 1.",
        )
    numbers = (
        ("ep", spec.experts.num_experts, "experts"),
        ("etp", spec.experts.ffn_dim, "columns of an expert"),
    )
    for axis, size, what in numbers:
        if size % grid.degree(axis):
            legal = [degree for degree in range(1, size + 1) if size % degree == 0]
            nearest = min(legal, key=lambda degree: abs(degree - grid.degree(axis)))
            raise ShunterError(
                f"{size} {what} cannot be cut into {axis}={grid.degree(axis)}", mend=f"Use {axis}={nearest}."
            )


def kv_heads(spec: DecoderSpec, index: int, parts: int) -> Range:
    """Heads of keys and values that part `index` of `parts` needs for its heads of queries."""
    kv = spec.num_kv_heads
    if kv % parts == 0:
        return index * (kv // parts), (index + 1) * (kv // parts)
    head = index * kv // parts
    return head, head + 1


def _tensor(spec: DecoderSpec, name: str, whole: Holding, index: int, parts: int, sequence: bool) -> Holding:
    """Cut over the tensor ranks."""
    piece = whole.piece
    if ".attention.qkv." in name:
        return _qkv(spec, whole, index, parts)
    if name.endswith("attention.out.weight"):
        return replace(
            whole, piece=piece.share(1, index, parts, [spec.num_heads * spec.head_dim]), cut=("tp",)
        )
    if name.endswith(".gate_up.weight"):
        return replace(whole, piece=piece.share(0, index, parts, [piece.shape[0] // 2] * 2), cut=("tp",))
    if name.endswith(".down.weight"):
        return replace(whole, piece=piece.share(1, index, parts), cut=("tp",))
    if name in ("embed.weight", "head.weight"):
        return replace(whole, piece=piece.share(0, index, parts), cut=("tp",))
    # The norms of heads see this rank's heads only; the others see its tokens, or all of them.
    heads_only = name.endswith(("q_norm.weight", "k_norm.weight"))
    return replace(whole, partial=(*whole.partial, "tp")) if sequence or heads_only else whole


def _qkv(spec: DecoderSpec, whole: Holding, index: int, parts: int) -> Holding:
    width, queries = spec.head_dim, spec.num_heads // parts
    low, high = kv_heads(spec, index, parts)
    starts: Sequence[tuple[int, int, int]] = (
        (0, index * queries, (index + 1) * queries),
        (spec.num_heads, low, high),
        (spec.num_heads + spec.num_kv_heads, low, high),
    )
    rows = [((start + begin) * width, (start + end) * width) for start, begin, end in starts]
    shared: tuple[Shared, ...] = ()
    if parts > spec.num_kv_heads:
        local = queries * width, (queries + 2 * (high - low)) * width
        shared = (Shared(*local, "tp", parts // spec.num_kv_heads),)
    return replace(whole, piece=whole.piece.take(0, *rows), cut=("tp",), shared=shared)
