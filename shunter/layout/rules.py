"""One cut dim for each weight of any model, chosen by names and sizes alone (arXiv 2310.16355, and its code).

The paper's two rules: products that follow each other are cut along outputs, inputs, outputs, .., so that one
sum a pair suffices; in attention queries, keys and values are cut along their heads and the output product
along its inputs. A layer's name says which it is; where no name is known, dims alternate in the order of the
alphabet. All layers of one name get one rule.

The published rules speak of Flax kernels, [.., in, out]. Torch's Linear has [out, in], a convolution
[out, in, ..], and Conv1D of Hugging Face [in, out]: `Weight.dims` says where each kernel dim stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.layout.fused import FUSED

Kind = Literal["linear", "transposed", "conv", "embedding", "other"]
Key = tuple[str, ...]
OUTPUTS = ("dense", "proj")  # of attention beside fused projections, in GPT-NeoX, BLOOM, vision transformers
KERNEL, TABLE = "kernel", "embedding"


@dataclass(frozen=True)
class Weight:
    """A parameter. name: dotted path. shape: as it is stored. kind: of the layer that multiplies with it;
    `transposed` has [in, out, ..]; `other` is what no layer multiplies with."""

    name: str
    shape: tuple[int, ...]
    kind: Kind = "other"

    @property
    def path(self) -> Key:
        """Parts of the name, the last one as Flax calls it: what rules are matched with."""
        *modules, leaf = self.name.split(".")
        if self.kind == "embedding":
            leaf = TABLE
        elif self.kind != "other":
            leaf = KERNEL
        return (*modules, leaf)

    @property
    def key(self) -> Key:
        """What decides its rule: module and `kernel`, else the last part."""
        return self.path[-2:] if self.path[-1] == KERNEL else self.path[-1:]

    @property
    def module(self) -> str:
        """Path of the module that has it."""
        return self.name.rpartition(".")[0]

    @property
    def dims(self) -> tuple[int, ...]:
        """For each dim of the kernel, in Flax's order, the dim of `shape`."""
        if self.kind in ("linear", "conv"):
            return (*range(2, len(self.shape)), 1, 0)
        if self.kind == "transposed":
            return (*range(2, len(self.shape)), 0, 1)
        return tuple(range(len(self.shape)))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes in Flax's order."""
        return tuple(self.shape[dim] for dim in self.dims)

    @property
    def in_attention(self) -> bool:
        return any("attention" in part.lower() or "attn" in part.lower() for part in self.path)


@dataclass(frozen=True)
class Rule:
    """Weights whose path has a window that `pattern` (one regular expression a part) matches are cut along
    `dim` of their kernel, in Flax's order; None: every rank has the whole. why: for people."""

    pattern: Key
    dim: int | None
    why: str

    def matches(self, weight: Weight) -> bool:
        return _window(self.pattern, weight.path)

    @property
    def told(self) -> str:
        """The layer's name, as a person would write it in an override."""
        return ".".join(part.replace("\\", "") for part in self.pattern if part != KERNEL)


def rules(weights: Sequence[Weight], parts: int, *, published: bool = False) -> list[Rule]:
    """A rule for each key, in alphabetical order.

    published: exactly as the authors' code. Otherwise fused projections are cut along their outputs, as
    queries, keys and values are (the code leaves them to alternation, because its compiler repairs a cut
    across them), and the product beside them along its inputs.
    """
    if parts == 1:
        return [Rule((".*",), None, "one part")]
    valid: dict[Key, list[bool] | None] = {}
    attention: dict[Key, bool] = {}
    for weight in weights:
        key = weight.key
        if key[-1] not in (KERNEL, TABLE):
            valid[key] = None
            continue
        fits = [size % parts == 0 and size > 0 for size in weight.kernel]
        if key not in valid:
            valid[key], attention[key] = fits, weight.in_attention
            continue
        before = valid[key]
        valid[key] = (
            [a and b for a, b in zip(before, fits, strict=True)]
            if before is not None and len(before) == len(fits)
            else None
        )
        attention[key] = attention.get(key, True) and weight.in_attention
    found, last = [], None
    for key in sorted(valid):
        fits_or_none = valid[key]
        pattern = tuple(re.escape(part) for part in key)
        if fits_or_none is None or not any(fits_or_none):
            lone = key[-1] not in (KERNEL, TABLE)
            why = (
                "no product's weight" if lone else f"no size that {parts} divides, or layers of several ranks"
            )
            found.append(Rule(pattern, None, why))
            continue
        candidates = [dim for dim, fit in enumerate(fits_or_none) if fit][::-1]
        special = _special(key, attention[key], published)
        if special is None:
            dim = candidates[0]
            if dim == last and len(candidates) > 1:
                dim = candidates[1]
            last, why = dim, "no known name: alternating"
        else:
            first, why = special
            dim = candidates[-1] if first else candidates[0]
        found.append(Rule(pattern, dim, why))
    return found


def _special(key: Key, in_attention: bool, published: bool) -> tuple[bool, str] | None:
    """Whether the first valid dim is taken, not the last, with the reason; None for an unknown name."""
    if key[-1] == TABLE:
        return True, "table: vocabulary if it divides"
    name = key[0] if len(key) > 1 else ""
    parts = name.split("_")
    if in_attention and (name[:1] in ("q", "k", "v") or name[-1:] in ("q", "k", "v")) and name:
        return False, "queries, keys, values: heads"
    if in_attention and (name[:1] == "o" or name[-1:] == "o"):
        return True, "output of attention"
    if name.startswith(("up", "gate", "wi")) or "in" in parts:
        return False, "into a feed-forward layer"
    if name.startswith(("down", "wo")) or "out" in parts:
        return True, "out of a feed-forward layer"
    if name.startswith("head") or name.endswith("head"):
        return False, "head"
    if name in FUSED and not published:
        return False, "fused projections"
    if in_attention and name in OUTPUTS and not published:
        return True, "output of attention"
    if name.endswith("4h_to_h") and not published:
        return True, "out of a feed-forward layer"
    return None


def overridden(found: Sequence[Rule], weights: Sequence[Weight], wanted: Iterable[str]) -> list[Rule]:
    """The rules with a person's own before them.

    wanted: `NAME=out`, `NAME=in`, `NAME=whole` or `NAME=N`, N a dim as the weight is stored. NAME is the last
    parts of a module's path, or of a parameter's name; between dots stand regular expressions, as in
    `layers.[0-3].mlp.up_proj`. Raises ShunterError for one that matches nothing, naming the nearest.
    """
    own = []
    for text in wanted:
        name, equals, where = text.rpartition("=")
        if not equals or not name:
            raise ShunterError(
                f"{text!r} is no rule", mend="Write NAME=out, NAME=in, NAME=whole or NAME=DIM."
            )
        pattern = tuple(name.split("."))
        try:
            matched = [weight for weight in weights if _meant(pattern, weight)]
        except re.error as error:
            raise ShunterError(f"{name!r} is no regular expression ({error})") from None
        if not matched:
            known = {part for weight in weights for part in weight.path[:-1]}
            known |= {weight.module for weight in weights} | {weight.name for weight in weights}
            near = nearest(name, sorted(known))
            raise ShunterError(
                f"no weight is called {name!r}",
                mend=f"Did you mean {near!r}?" if near else "`shunter layout --model` lists them.",
            )
        for weight in matched:
            dim = _dim(where, weight, text)
            own.append(Rule(tuple(re.escape(part) for part in weight.path), dim, "as you said"))
    return [*own, *found]


def chosen(found: Sequence[Rule], weights: Sequence[Weight]) -> Mapping[str, Rule]:
    """The first rule that matches each weight. Raises ShunterError for a weight that none does."""
    placed = {}
    for weight in weights:
        rule = next((rule for rule in found if rule.matches(weight)), None)
        if rule is None:
            raise ShunterError(
                f"no rule says how {weight.name!r} is cut",
                mend=f"Add one, such as {weight.path[-2] if len(weight.path) > 1 else weight.name}=whole.",
            )
        placed[weight.name] = rule
    return placed


def _meant(pattern: Key, weight: Weight) -> bool:
    """Whether a person's NAME means this weight: by its module's path, or by its own name."""
    path = tuple(weight.name.split("."))
    if weight.kind == "other":
        return _ends(pattern, path)
    return _ends(pattern, path[:-1]) or _ends(pattern, path)


def _dim(where: str, weight: Weight, text: str) -> int | None:
    if where == "whole":
        return None
    kernel = len(weight.shape)
    if where in ("in", "out") and kernel >= 2:
        return kernel - 1 if where == "out" else kernel - 2
    if where.isdigit() and int(where) < kernel:
        return weight.dims.index(int(where))
    raise ShunterError(
        f"{text!r}: {weight.name} of shape {list(weight.shape)} has no dim {where!r}",
        mend="Write out, in, whole, or the number of a dim.",
    )


def _window(pattern: Key, path: Key) -> bool:
    size = len(pattern)
    return any(_fits(pattern, path[at : at + size]) for at in range(len(path) - size + 1))


def _ends(pattern: Key, path: Key) -> bool:
    return len(pattern) <= len(path) and _fits(pattern, path[len(path) - len(pattern) :])


def _fits(pattern: Key, parts: Key) -> bool:
    return all(re.fullmatch(each, part) for each, part in zip(pattern, parts, strict=True))
