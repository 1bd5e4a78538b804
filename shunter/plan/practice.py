"""How a training program computes, as far as its time and memory depend on it. Imports without torch.

The same layout costs another sum in another program: what stays in which precision, what is fused, what is
sent while something else is computed. Described are this one, as it is and compiled, and those whose
published tables the cost model is tested with.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest

# What recomputation keeps of a layer, by name: everything; all but every second product and the activation
# function; its input alone; and nothing, where a stage's input stands for all of its layers.
RECOMPUTE = ("none", "selective", "layer", "stage")


@dataclass(frozen=True)
class Elementwise:
    """Reads and writes of a layer's forward between its products, in elements of the size in products.

    width: times the hidden width (norms, sums). inside: times the feed-forward width (activation function).
    heads: times the width of queries and keys (rotation). routed: times the hidden width for each expert of a
    token (to the experts and back). scaled: times the experts' width, beside `inside` (each row's weight).
    """

    width: float
    inside: float
    heads: float
    routed: float = 6.5
    scaled: float = 0.0


# Counted from the operations; checked on an H100 with a layer of Llama 3 8B, 2 x 8192 tokens: predicted 12.8
# and 13.4 ms forward against 13.1 and 14.2 ms measured, 28.0 and 29.5 ms backward against 28.5 and 31.6.
EAGER = Elementwise(12, 5, 4)
FUSED = Elementwise(8, 3, 2)
# This program in bf16, counted from shunter.models: hidden states have 4 bytes, operands 2. Of the width: a
# norm reads 4, writes 4, and its result is cast (reads 4, writes 2), a sum reads 4 and 2 and writes 4; both
# twice: 48 bytes, 24 elements of 2. Of queries and keys: four products of halves (4), two sums (3), a joining
# (2), and copies of values and of attention's result (2). Of experts' rows: weights of 4 bytes widen them.
# Compiled, a norm is one with the sum before it, and writes 2 bytes: 24 in all.
OWN = Elementwise(24, 5, 11, scaled=6)
OWN_FUSED = Elementwise(12, 3, 4, scaled=6)  # experts are not compiled
# Bias and GELU over 4 h, which is 3 of our 8 h / 3, in one kernel; no rotation.
FUSED_GELU = Elementwise(12, 3, 0)

BUCKET = 64 << 20  # of `shunter.parallel.gradients`


@dataclass(frozen=True)
class Practice:
    """weights, gradients, optimizer: bytes a parameter that stay; matrices: of the optimizer's, those of the
    layers' weights where they are others, as Muon's. compute: bytes of an element in products,
    gathered: of gathered weights, hidden: between layers and in messages between stages.

    products:  number format of matrix products, as a cluster's rates name it.
    fused:     attention without its scores in memory, and half the work where the mask is causal.
    sequence:  tensor ranks have a part of the tokens each between products.
    scatter:   without `sequence`, messages between stages are cut between tensor ranks.
    sharding:  `all`: fsdp cuts weights, gradients and optimizer; `none`: copies are whole.
    context:   context ranks share in that too where fsdp is 1.
    zero:      copies share the optimizer's state (ZeRO-1).
    stage_gathered: with stages, weights are gathered once a step and stay, and gradients wait whole.
    waits: without stages too, where there are several micro-batches, gradients wait whole.
    ends_waited: each micro-batch waits for the gathered weights of embedding and head.
    overlap_tensor: share of tensor messages hidden behind products. overlap_gradients: whether gradients are
    summed while the last backward runs. blocking: stages compute nothing while they exchange.
    inner: feed-forward widths that a layer keeps for its backward. results: how often it keeps attention's.
    repeated: whether it keeps keys and values for each query's head, without context ranks.
    whole_inputs: whether each tensor rank keeps what products take whole. copies: whether each micro-batch
    keeps the layers' matrices as products take them.
    late: a parameter has no gradient before its backward: one micro-batch's activations go as gradients come.
    bucket: bytes of gradients, at most, that are copied to be summed over ranks.
    logits: bytes a token and word of the vocabulary that the head holds. logit_passes: bytes it moves.
    casts: bytes moved an element of a product's operands to turn them into `products`.
    kernels: of a layer's forward, as torch dispatches them: four products, attention, nine fused ones.
    recompute: which ways it has. offers: whether it can choose `layer` for some layers and not for others.
    layers: whether it can give layers degrees of their own.
    offload: whether it can put layers aside in the host's memory, too, where the speed of copies is known.
    schedules, axes: that it knows.
    source: where this is from.
    """

    name: str
    weights: float
    gradients: float
    optimizer: float
    compute: float = 2.0
    gathered: float = 2.0
    hidden: float = 2.0
    products: str = "bf16"
    fused: bool = True
    elementwise: Elementwise = EAGER
    sequence: bool = True
    scatter: bool = False
    sharding: str = "all"
    context: bool = False
    zero: bool = False
    stage_gathered: bool = True
    waits: bool = False
    ends_waited: bool = False
    overlap_tensor: float = 0.0
    overlap_gradients: bool = False
    blocking: bool = False
    inner: float = 4.0
    results: int = 1
    repeated: bool = False
    whole_inputs: bool = False
    copies: bool = False
    late: bool = False
    bucket: float = 0.0
    logits: float = 0.0
    logit_passes: float = 24.0
    casts: float = 0.0
    kernels: int = 14
    recompute: tuple[str, ...] = ("none",)
    offers: bool = False
    layers: bool = False
    offload: bool = False
    schedules: tuple[str, ...] = ("1f1b", "interleaved-1f1b", "zb1p", "zbv", "gpipe")
    axes: tuple[str, ...] = ("pp", "dp", "fsdp", "cp", "tp", "ep", "etp")
    matrices: float | None = None
    source: str = ""

    @property
    def state(self) -> float:
        """Bytes a parameter with all that belongs to it."""
        return self.weights + self.gradients + self.optimizer


PRACTICES: dict[str, Practice] = {
    each.name: each
    for each in (
        Practice(
            "shunter",
            weights=4,
            gradients=4,
            optimizer=8,
            gathered=4,
            hidden=4,
            zero=True,
            waits=True,
            ends_waited=True,
            inner=3,
            repeated=True,
            whole_inputs=True,
            copies=True,
            elementwise=OWN,
            kernels=37,  # counted under autocast, one a norm
            late=True,
            bucket=BUCKET,
            # The product writes 2 bytes a logit, the softmax reads and writes them in four bytes, in passes.
            logit_passes=46,
            recompute=("none", "stage", "layer"),
            offers=True,
            layers=True,
            offload=True,
            source="this program: shunter.train.layout_describe",
        ),
        Practice(
            "shunter-fp32",
            weights=4,
            gradients=4,
            optimizer=8,
            compute=4,
            gathered=4,
            hidden=4,
            products="fp32",
            zero=True,
            waits=True,
            ends_waited=True,
            inner=3,
            repeated=True,
            results=2,  # a CPU's attention has heads outside of tokens, the product the other way round
            whole_inputs=True,
            late=True,
            bucket=BUCKET,
            recompute=("none", "stage", "layer"),
            offers=True,
            layers=True,
            source="this program on a CPU without fast bfloat16",
        ),
        Practice(
            "megatron-2021",
            weights=2,
            gradients=2,  # --fp16 without --accumulate-allreduce-grads-in-fp32
            optimizer=16,  # weights, gradients and two moments, 4 each
            products="fp16",
            fused=False,
            elementwise=FUSED_GELU,
            sequence=False,
            scatter=True,
            sharding="none",
            blocking=True,
            logits=8,
            recompute=("none", "layer"),
            offers=True,
            schedules=("1f1b", "interleaved-1f1b"),
            axes=("pp", "dp", "tp"),
            source="NVIDIA/Megatron-LM at 6985e58, examples/academic_paper_scripts/sc21 (arXiv 2104.04473)",
        ),
        Practice(
            "torchtitan",
            weights=4,
            gradients=4,
            optimizer=8,
            context=True,
            late=True,
            overlap_gradients=True,
            logits=10,
            recompute=("none", "selective", "layer"),
            schedules=("1f1b", "interleaved-1f1b", "gpipe"),
            source="pytorch/torchtitan at 9dec370, train_configs of llama3",
        ),
    )
}


HALVES = ("zb1p", "zbv")  # schedules with backwards in halves


def compilable(practised: Practice) -> Practice:
    """Of what a practice does, what compiled layers can: no halves of backwards, nothing put aside."""
    whole = tuple(each for each in practised.schedules if each not in HALVES)
    return replace(practised, offload=False, schedules=whole)


def _compiled(practised: Practice) -> Practice:
    fused = OWN_FUSED if practised.elementwise == OWN else FUSED
    return replace(compilable(practised), elementwise=fused, kernels=14)


def _float8(practised: Practice) -> Practice:
    # Each operand is read for its largest value, read once more and written: 2 + 2 + 1 bytes.
    return replace(practised, products="fp8", casts=5.0)


def _async(practised: Practice) -> Practice:
    # A product and its message are cut in parts, so that each message but one part's has a product to go
    # behind.
    source = f"{practised.source}; half of tensor parallelism's messages hidden, assumed"
    return replace(practised, overlap_tensor=0.5, source=source)


def _muon(practised: Practice) -> Practice:
    return replace(practised, matrices=practised.optimizer / 2)  # one state in place of AdamW's two


def _unshared(practised: Practice) -> Practice:
    return replace(practised, zero=False)


def _unsplit(practised: Practice) -> Practice:
    return replace(practised, sequence=False)


def _thin(practised: Practice) -> Practice:
    return replace(practised, gathered=2.0)


# What a job may do otherwise than the practice of its program, by what follows the name: `shunter+muon`.
# unshared: copies have the optimizer's state whole; unsplit: tensor ranks have all tokens between products;
# thin: weights travel in two bytes. float8: products of layers; async: tensor parallelism's messages.
OTHERWISE = {
    "compiled": _compiled,
    "muon": _muon,
    "unshared": _unshared,
    "unsplit": _unsplit,
    "thin": _thin,
    "float8": _float8,
    "async": _async,
}


def practice(name: str) -> Practice:
    """The practice of this name, such as `shunter` or `shunter+compiled+muon`. Raises ShunterError, with the
    nearest name, where there is none."""
    base, *more = name.split("+")
    found = PRACTICES.get(base)
    if found is None:
        guess = nearest(base, PRACTICES)
        raise ShunterError(
            f"no practice is called {base!r}",
            mend=f"Did you mean {guess}?" if guess else f"Known are {', '.join(PRACTICES)}.",
        )
    for each in more:
        if each not in OTHERWISE or more.count(each) > 1:
            raise ShunterError(
                f"{each!r} is nothing that {base} may do otherwise, once",
                mend=f"Known are {', '.join(f'{base}+{known}' for known in OTHERWISE)}.",
            )
        found = OTHERWISE[each](found)
    return replace(found, name=name)


def kernels(name: str) -> str:
    """A practice's name with what changes the layers' kernels alone, which coefficients depend on."""
    base, *more = name.split("+")
    return "+".join([base, *(part for part in more if part == "compiled")])


GROUPED, CONTEXT = 0.5397, 0.8403  # calibrated.yaml, h100 and h100-96


@dataclass(frozen=True)
class Coefficient:
    """A number of the cost model that is no plain count, and where it is from."""

    value: float
    source: str


def _defaults() -> dict[str, Coefficient]:
    return {
        "products": Coefficient(
            1.0,
            "share of a device's described rate: not fitted for this kind; where it was, whole steps took "
            "1.1 to 1.7 times as long",
        ),
        "grouped": Coefficient(
            GROUPED, "share of products' rate that experts' grouped products reach, fitted on an H100"
        ),
        "attention": Coefficient(1.0, "share that attention reaches beside products, relative to theirs"),
        "memory": Coefficient(0.86, "copies on an H100: 2.89 of 3.35 TB/s (measured)"),
        "links": Coefficient(0.8, "long collectives of NCCL reach about four fifths of a link, assumed"),
        "collectives": Coefficient(
            1.0, "share of what messages between two reach that collectives do: none was measured"
        ),
        "kernel": Coefficient(4e-6, "seconds of the least kernel, launch included (measured on an H100)"),
        "backward_attention": Coefficient(
            1.6, "seconds of attention's backward by twice its forward's on an H100 (measured, 8192 tokens)"
        ),
        "backward_elementwise": Coefficient(2.5, "bytes moved by backward over forward (measured there)"),
        "context": Coefficient(
            CONTEXT,
            "how much longer attention takes over what other context ranks hold, as a share: fitted to "
            "torchtitan's table 2 (8 H100), and taken for all kinds",
        ),
        "fixed": Coefficient(1.0e9, "bytes of the CUDA context and of NCCL's buffers, assumed"),
        "margin": Coefficient(0.06, "share of a device's memory lost to fragments, assumed"),
    }


@dataclass(frozen=True)
class Coefficients:
    """Those of one machine and practice. kinds: those that differ on some kinds of its devices, by name."""

    known: dict[str, Coefficient] = field(default_factory=_defaults)
    kinds: dict[str, dict[str, Coefficient]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.known[name].value

    @property
    def ring(self) -> float:
        """Share of a link's bandwidth that a collective reaches."""
        return self["links"] * self["collectives"]

    def but(self, source: str, **values: float) -> Coefficients:
        """With some others; on kinds with their own, changed by as much. Raises ShunterError for a name that
        is none."""
        for name in values:
            if name not in self.known:
                raise ShunterError(
                    f"{name!r} is no coefficient of the cost model",
                    mend=f"Known are {', '.join(self.known)}.",
                )
        new = {name: Coefficient(value, source) for name, value in values.items()}
        kinds = {
            kind: {
                name: Coefficient(own.value * values[name] / self[name], source)
                if name in values and self[name]
                else own
                for name, own in theirs.items()
            }
            for kind, theirs in self.kinds.items()
        }
        return Coefficients({**self.known, **new}, kinds)

    def on(self, kind: str) -> Coefficients:
        """Those of one kind of device."""
        return Coefficients({**self.known, **self.kinds[kind]}) if self.kinds.get(kind) else self
