"""The operators of a Transformer, forward and backward, with the letters of their dims.

Letters: b rows, t tokens (queries), s tokens that are looked at (keys), d width of a head, k heads of keys
and values, g heads of queries for each of those, i and o widths, v words. `Steps` writes a forward into a
graph and keeps what `backward` has to write. Work is counted of products and attention: what reads and writes
more than it computes is taken as free to repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from shunter.layout.graph import Graph
from shunter.layout.placement import Reduction
from shunter.layout.signatures import Expression


def einsum(text: str) -> Expression:
    """`"bti,oi->bto"`: one product; linear in each input by itself."""
    left, right = text.split("->")
    inputs = tuple(left.split(","))
    letters = "".join(dict.fromkeys("".join(inputs)))
    return Expression(inputs, (right,), letters, linear=tuple(frozenset({it}) for it in range(len(inputs))))


def elementwise(
    word: str, inputs: int, outputs: int = 1, *, linear: Sequence[Sequence[int]] = ()
) -> Expression:
    """All tensors alike. linear: groups of inputs in which it is linear."""
    return Expression((word,) * inputs, (word,) * outputs, word, linear=tuple(map(frozenset, linear)))


def softmax(word: str) -> Expression:
    """Over the last dim, which stays whole."""
    return Expression((word,), (word,), word[:-1])


def transpose(text: str) -> Expression:
    """`"bthd->bhtd"`; parts of any reduction stay parts."""
    left, right = text.split("->")
    return Expression((left,), (right,), left, linear=(frozenset({0}),), keeps=("sum", "max", "min"))


def heads(text: str, joined: str, parts: str) -> Expression:
    """A width seen as heads, or heads as a width: `heads("btn->bthd", "n", "hd")`. A cut goes between
    heads.
    """
    left, right = text.split("->")
    free = "".join(letter for letter in dict.fromkeys(left + right) if letter not in (joined, *parts[1:]))
    return Expression(
        (left,),
        (right,),
        free,
        linear=(frozenset({0}),),
        keeps=("sum", "max", "min"),
        joined=((joined, parts),),
    )


def cast(word: str) -> Expression:
    """Another dtype. Parts of a sum stay parts, though each is rounded by itself."""
    return Expression((word,), (word,), word, linear=(frozenset({0}),), keeps=("sum", "max", "min"))


def reduction(text: str, op: Reduction = "sum") -> Expression:
    """`"btv->bt"`, by sum, max or min."""
    left, right = text.split("->")
    return Expression((left,), (right,), left, linear=(frozenset({0}),), reduces=op, keeps=(op,))


NORM = Expression(("btd", "d"), ("btd",), "bt", linear=(frozenset({1}),))
NORM_GRAD = Expression(("btd", "d", "btd"), ("btd", "d"), "bt", linear=(frozenset({2}),))
ATTENTION = Expression(("btkgd", "bskd", "bskd"), ("btkgd",), "btkg", linear=(frozenset({2}),))
ATTENTION_GRAD = Expression(
    ("btkgd", "bskd", "bskd", "btkgd"), ("btkgd", "bskd", "bskd"), "btkg", linear=(frozenset({3}),)
)
EMBEDDING = Expression(("bt", "vd"), ("btd",), "btvd", linear=(frozenset({1}),))
EMBEDDING_GRAD = Expression(("bt", "btd"), ("vd",), "btvd", linear=(frozenset({1}),))
SOFTMAX_GRAD = Expression(("btv", "btv"), ("btv",), "bt", linear=(frozenset({1}),))
# Cross-entropy with a vocabulary that may be cut: the largest logit, the sum of exponentials, the target's
# logit.
TOP = reduction("btv->bt", "max")
TOTAL = Expression(("btv", "bt"), ("bt",), "btv")
PICKED = Expression(("btv", "bt"), ("bt",), "btv", linear=(frozenset({0}),))
TOKEN_LOSS = elementwise("bt", 3)
LOGITS_GRAD = Expression(("btv", "bt", "bt", "bt", "bt"), ("btv",), "btv", linear=(frozenset({4}),))


class Steps:
    """Writes operators into a graph; `backward` adds their gradients in reverse."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._undo: list[Callable[[], None]] = []

    def _elements(self, name: str) -> int:
        return prod(self.graph.values[name].shape) if name in self.graph.values else 0

    def source(self, name: str, word: str, *lengths: int, itemsize: int | None = None) -> str:
        """What is there from the start: weights, tokens, a block's input. Cut along any dim, or copied."""
        sizes = dict(zip(word, lengths, strict=True))
        self.graph.add("source", (), (name,), Expression((), (word,), word), sizes=sizes, itemsize=itemsize)
        return name

    def update(self, weight: str) -> None:
        """The weight after a step: elementwise, of itself and its gradient."""
        word, (name,) = self.graph.values[weight].word, (f"new {weight}",)
        gradient = str(self.graph.gradient(weight))
        self.graph.add("update", (weight, gradient), (name,), elementwise(word, 2))
        self.graph.carry(name, weight)

    def linear(
        self, x: str, words: str, weights: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]
    ) -> list[str]:
        """Products of one input with several weights at once (a fused projection).

        words: letters of x; weights and outputs: (name, letters) each.
        """
        inputs, made = (x, *(name for name, _ in weights)), tuple(name for name, _ in outputs)
        terms = tuple(((0, index + 1),) for index in range(len(weights)))
        every = (words, *(word for _, word in weights))
        expression = Expression(
            every,
            tuple(word for _, word in outputs),
            "".join(dict.fromkeys("".join(every))),
            terms,
            linear=(frozenset({0}), frozenset(range(1, len(every)))),
        )
        self.graph.add("linear", inputs, made, expression, work=self._product_work(x, words, inputs, every))

        def undo() -> None:
            grads = [self.graph.gradient(name) for name in made]
            present = [index for index, grad in enumerate(grads) if grad is not None]
            dys = [str(grads[index]) for index in present]
            ws, w_words = [weights[i][0] for i in present], [weights[i][1] for i in present]
            o_words = [outputs[i][1] for i in present]
            n = len(present)
            letters = "".join(dict.fromkeys("".join((words, *o_words, *w_words))))
            into = Expression(
                (*o_words, *w_words),
                (words,),
                letters,
                (tuple((i, n + i) for i in range(n)),),
                linear=(frozenset(range(n)), frozenset(range(n, 2 * n))),
            )
            work = self._product_work(x, words, inputs, every)
            self.graph.contribute(
                x, *self.graph.add("linear", (*dys, *ws), (f"d {x} by {made[0]}",), into, work=work)
            )
            of_weights = Expression(
                (words, *o_words),
                tuple(w_words),
                letters,
                tuple(((0, i + 1),) for i in range(n)),
                linear=(frozenset({0}), frozenset(range(1, n + 1))),
            )
            names = tuple(f"d {w} by {made[0]}" for w in ws)
            for w, name in zip(
                ws, self.graph.add("linear", (x, *dys), names, of_weights, work=work), strict=True
            ):
                self.graph.contribute(w, name)

        self._undo.append(undo)
        return list(made)

    def _product_work(self, x: str, words: str, inputs: Sequence[str], every: Sequence[str]) -> float:
        sizes: dict[str, int] = {}
        for name, word in zip(inputs, every, strict=True):
            sizes.update(zip(word, self.graph.values[name].shape, strict=True))
        return sum(2.0 * prod(sizes[letter] for letter in dict.fromkeys(words + word)) for word in every[1:])

    def norm(self, x: str, weight: str, name: str) -> str:
        """RMSNorm over the width."""
        self.graph.add("norm", (x, weight), (name,), NORM)

        def undo() -> None:
            dy = str(self.graph.gradient(name))
            names = (f"d {x} by {name}", f"d {weight} by {name}")
            self.graph.add("norm gradient", (x, weight, dy), names, NORM_GRAD)
            self.graph.contribute(x, names[0])
            self.graph.contribute(weight, names[1])

        self._undo.append(undo)
        return name

    def rope(self, x: str, word: str, name: str) -> str:
        """Each pair of a head's dims turned by its token's position."""
        expression = Expression((word,), (word,), word[:-1], linear=(frozenset({0}),))
        self.graph.add("rope", (x,), (name,), expression)

        def undo() -> None:
            dy = str(self.graph.gradient(name))
            (dx,) = self.graph.add("rope", (dy,), (f"d {x}",), expression, facts={"back": 1})
            self.graph.contribute(x, dx)

        self._undo.append(undo)
        return name

    def attention(self, q: str, k: str, v: str, name: str) -> str:
        """Causal; each of k's heads serves g of q's. Heads, rows or queries may be cut."""
        work = 4.0 * self._elements(q) * self.graph.values[k].shape[1]
        self.graph.add("attention", (q, k, v), (name,), ATTENTION, work=work)

        def undo() -> None:
            dy = str(self.graph.gradient(name))
            names = tuple(f"d {it} by {name}" for it in (q, k, v))
            self.graph.add("attention gradient", (q, k, v, dy), names, ATTENTION_GRAD, work=2.5 * work)
            for it, grad in zip((q, k, v), names, strict=True):
                self.graph.contribute(it, grad)

        self._undo.append(undo)
        return name

    def swiglu(self, gate: str, up: str, word: str, name: str) -> str:
        """silu(gate) * up."""
        self.graph.add("swiglu", (gate, up), (name,), elementwise(word, 2, linear=[[1]]))

        def undo() -> None:
            dy = str(self.graph.gradient(name))
            names = (f"d {gate}", f"d {up}")
            back = elementwise(word, 3, 2, linear=[[2]])
            self.graph.add("swiglu gradient", (gate, up, dy), names, back)
            self.graph.contribute(gate, names[0])
            self.graph.contribute(up, names[1])

        self._undo.append(undo)
        return name

    def gelu(self, x: str, word: str, name: str) -> str:
        """The exact GELU."""
        self.graph.add("gelu", (x,), (name,), elementwise(word, 1))

        def undo() -> None:
            dy = str(self.graph.gradient(name))
            back = elementwise(word, 2, linear=[[1]])
            self.graph.contribute(x, *self.graph.add("gelu gradient", (x, dy), (f"d {x}",), back))

        self._undo.append(undo)
        return name

    def add(self, a: str, b: str, word: str, name: str) -> str:
        """a + b, of one shape."""
        joint = elementwise(word, 2, linear=[[0, 1]])
        self.graph.add("add", (a, b), (name,), joint)

        def undo() -> None:
            dy = str(self.graph.gradient(name))
            self.graph.contribute(a, dy)
            self.graph.contribute(b, dy)

        self._undo.append(undo)
        return name

    def embedding(self, tokens: str, table: str, name: str) -> str:
        """Rows of a table; where the words are cut, a device gives zeros for those of others."""
        self.graph.add("embedding", (tokens, table), (name,), EMBEDDING)

        def undo() -> None:
            dy = str(self.graph.gradient(name))
            words = {"v": self.graph.values[table].shape[0]}
            names = (f"d {table} by {name}",)
            self.graph.contribute(
                table, *self.graph.add("embedding gradient", (tokens, dy), names, EMBEDDING_GRAD, sizes=words)
            )

        self._undo.append(undo)
        return name

    def cross_entropy(self, logits: str, targets: str, name: str) -> str:
        """Sum over all tokens of -log p(target), with rows, tokens or words cut."""
        top, total, picked, each = (f"{name}: {part}" for part in ("top", "total", "picked", "each"))
        self.graph.add("max", (logits,), (top,), TOP)
        self.graph.add("sum of exponentials", (logits, top), (total,), TOTAL)
        self.graph.add("pick", (logits, targets), (picked,), PICKED)
        self.graph.add("token loss", (top, total, picked), (each,), TOKEN_LOSS)
        self.graph.add("sum", (each,), (name,), reduction("bt->"))

        def undo() -> None:
            tokens = dict(zip("bt", self.graph.values[targets].shape, strict=True))
            expand = Expression(("",), ("bt",), "bt", linear=(frozenset({0}),))
            dy = str(self.graph.gradient(name))
            (spread,) = self.graph.add("expand", (dy,), (f"d {each}",), expand, sizes=tokens)
            taken = (logits, top, total, targets, spread)
            self.graph.contribute(
                logits, *self.graph.add("logits gradient", taken, (f"d {logits}",), LOGITS_GRAD)
            )

        self._undo.append(undo)
        return name

    def backward(self, output: str, gradient: str) -> None:
        """Append all gradients, given that of the output (a tensor that is there)."""
        self.graph.contribute(output, gradient)
        while self._undo:
            self._undo.pop()()
