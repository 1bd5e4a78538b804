"""The specification of a decoder, as plain data. Imports without torch."""

from __future__ import annotations

from math import ceil
from typing import Literal

from pydantic import Field, model_validator

from shunter.config.base import Config

Family = Literal["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "glm4_moe"]


class RopeSpec(Config):
    """Rotary position embedding (arXiv 2104.09864) and its stretchings beyond the original context."""

    theta: float = Field(10000.0, gt=0, description="Base of the wavelengths.")
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn"] = Field(
        "none", description="How positions past the original context are handled."
    )
    factor: float = Field(1.0, ge=1, description="How many times longer the stretched context is.")
    original_positions: int = Field(0, ge=0, description="Context before stretching; 0 takes max_positions.")
    low_freq_factor: float = Field(1.0, gt=0, description="llama3: wavelengths beyond it are stretched.")
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: wavelengths below it are kept.")
    beta_fast: float = Field(32.0, gt=0, description="yarn: rotations above which nothing is stretched.")
    beta_slow: float = Field(1.0, gt=0, description="yarn: rotations below which all is stretched.")
    attention_factor: float | None = Field(None, gt=0, description="yarn: scale of cos and sin.")


class ExpertsSpec(Config):
    """Several SwiGLUs in a layer, of which each token passes through a few (arXiv 1701.06538).

    Capacity, losses and the update of the bias act in training alone: they are not part of a published
    model, which drops nothing. Those that look at a whole row give the same result however rows are split
    into micro-batches and over ranks; those that do not say so.
    """

    num_experts: int = Field(ge=1, description="Experts of a layer.")
    per_token: int = Field(ge=1, description="Experts that each token passes through.")
    ffn_dim: int = Field(ge=1, description="Width of an expert's SwiGLU.")
    shared_ffn_dim: int = Field(
        0, ge=0, description="Width of a SwiGLU for every token beside them; 0: none."
    )
    router: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="How scores become probabilities: against each other, or each by itself."
    )
    normalise: bool = Field(
        True,
        description="Divide a token's probabilities by their sum: softmax over the chosen experts alone "
        "(Mixtral); false: over all experts. With per_token 1 only losses then reach the router.",
    )
    scale: float = Field(1.0, gt=0, description="Factor on the sum of the chosen experts.")
    dense_first: int = Field(0, ge=0, description="First layers that have no experts.")
    every: int = Field(
        1, ge=1, description="Of the layers after them, each whose number it divides has some."
    )
    capacity: float | None = Field(
        None,
        gt=0,
        description="Most tokens of an expert, as a multiple of the mean; none: nothing is dropped.",
    )
    drop: Literal["probs", "position"] = Field(
        "probs", description="Which tokens stay: the most probable of an expert, or the first."
    )
    capacity_scope: Literal["sequence", "local"] = Field(
        "sequence",
        description="Among which tokens: those of a row, or those that a rank has of a micro-batch, which "
        "needs no communication and by definition depends on the layout.",
    )
    balance_loss: float = Field(
        0.0,
        ge=0,
        description="Weight of each layer's loss for uneven load (Switch; arXiv 2101.03961, eq. 4).",
    )
    balance_scope: Literal["sequence", "microbatch"] = Field(
        "sequence",
        description="Among which tokens load is to be even: those of a row, or those of a micro-batch, which "
        "by definition depends on its size.",
    )
    z_loss: float = Field(
        0.0, ge=0, description="Weight of the mean squared log-sum-exp of scores (arXiv 2202.08906, eq. 5)."
    )
    bias_update: float = Field(
        0.0,
        ge=0,
        description="After a step, add or subtract it where fewer or more than the mean were chosen.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ExpertsSpec:
        if self.per_token > self.num_experts:
            raise ValueError(f"per_token {self.per_token} exceeds num_experts {self.num_experts}")
        return self

    @property
    def biased(self) -> bool:
        """Whether a bias takes part in the choice of experts, but not in their weights (arXiv 2408.15664)."""
        return self.router == "sigmoid" or self.bias_update > 0

    def room(self, rows: int, length: int, parts: int = 1) -> int | None:
        """Most choices of one expert that can stay among `rows` with `length` tokens each, known without
        looking at them; parts: so many ranks have as many tokens of the same rows. None: all can."""
        if self.capacity is None:
            return None
        local = self.capacity_scope == "local"
        among = rows * length if local else length * parts
        most = ceil(among * self.per_token * self.capacity / self.num_experts - 1e-9)
        return min(most, rows * length) if local else rows * min(most, length)

    def inside(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer >= self.dense_first and (layer + 1) % self.every == 0


class DecoderShape(Config):
    """A decoder of the Llama lineage, but for what the data decide: vocabulary and context."""

    dim: int = Field(ge=1, description="Width of the residual stream.")
    num_layers: int = Field(ge=1, description="Blocks.")
    num_heads: int = Field(ge=1, description="Query heads.")
    num_kv_heads: int = Field(ge=1, description="Key and value heads; divides num_heads.")
    head_dim: int = Field(ge=2, description="Width of one head; even.")
    ffn_dim: int = Field(ge=1, description="Width of the SwiGLU, in layers without experts.")
    experts: ExpertsSpec | None = Field(
        None, description="Mixture of experts in place of SwiGLUs; none: dense."
    )
    norm_eps: float = Field(1e-5, gt=0, description="Offset inside RMSNorm's root.")
    rope: RopeSpec = Field(default_factory=RopeSpec, description="Position embedding.")
    qkv_bias: bool = Field(False, description="Bias on the query, key and value projections (Qwen2).")
    qk_norm: bool = Field(False, description="RMSNorm on each head's queries and keys (Qwen3).")
    tied: bool = Field(False, description="The head is the embedding.")
    sliding_window: int | None = Field(None, ge=1, description="Positions a token sees (Mistral); none: all.")
    family: Family = Field("llama", description="Hugging Face architecture to export as.")

    @model_validator(mode="after")
    def _consistent(self) -> DecoderShape:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")
        if self.qkv_bias and self.qk_norm:
            raise ValueError("no Hugging Face architecture here has qkv_bias and qk_norm together")
        if self.sliding_window is not None and (self.qkv_bias or self.qk_norm):
            other = "qkv_bias" if self.qkv_bias else "qk_norm"
            raise ValueError(f"no Hugging Face architecture here has sliding_window and {other} together")
        if self.experts is not None:
            if not any(self.experts.inside(layer) for layer in range(self.num_layers)):
                raise ValueError("no layer has experts (dense_first, every)")
            if why := _no_family(self, self.experts):
                raise ValueError(f"no Hugging Face architecture here has {why}")
        return self

    def ffn_weights(self, layer: int, *, active: bool = False) -> int:
        """Weights of a layer's feed-forward part; active: those that one token meets."""
        experts = self.experts
        if experts is None or not experts.inside(layer):
            return 3 * self.dim * self.ffn_dim
        met = experts.per_token if active else experts.num_experts
        widths = met * experts.ffn_dim + experts.shared_ffn_dim
        return self.dim * (3 * widths + experts.num_experts)

    def product_weights(self, *, active: bool = True) -> int:
        """Weights of all layers' matrix products; active: those that one token meets."""
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        attention = self.dim * (qkv + self.num_heads * self.head_dim)
        ffn = sum(self.ffn_weights(layer, active=active) for layer in range(self.num_layers))
        return self.num_layers * attention + ffn


def _no_family(shape: DecoderShape, experts: ExpertsSpec) -> str | None:
    """What of a shape with experts cannot be exported, and so is refused before it is trained."""
    if experts.router == "softmax":
        for name, there in (
            ("shared_ffn_dim", experts.shared_ffn_dim),
            ("a scale", experts.scale != 1.0),
            ("bias_update", experts.bias_update),
            ("qkv_bias", shape.qkv_bias),
        ):
            if there:
                return f"a softmax router and {name} together"
        if not shape.qk_norm and (experts.dense_first or experts.every > 1 or not experts.normalise):
            return "dense layers, or normalise false, beside a softmax router without qk_norm"
        return None
    if not experts.shared_ffn_dim or experts.shared_ffn_dim % experts.ffn_dim:
        return "a sigmoid router without a shared_ffn_dim that is a multiple of experts.ffn_dim"
    if shape.sliding_window is not None or experts.every > 1:
        return "a sigmoid router with sliding_window or every"
    return None


class DecoderSpec(DecoderShape):
    """A decoder of the Llama lineage: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    vocab_size: int = Field(ge=1, description="Rows of the embedding.")
    max_positions: int = Field(2048, ge=1, description="Longest context.")

    @property
    def num_parameters(self) -> int:
        """Parameters, a tied head counted once."""
        return self._parameters(active=False)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: of the experts, only as many as it passes through."""
        return self._parameters(active=True)

    def _parameters(self, *, active: bool) -> int:
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        small = 2 * self.dim  # of a block: norms and biases
        small += qkv if self.qkv_bias else 0
        small += 2 * self.head_dim if self.qk_norm else 0
        embeddings = self.vocab_size * self.dim * (1 if self.tied else 2)
        return self.product_weights(active=active) + self.num_layers * small + embeddings + self.dim

    def flops_per_token(self, context: int, *, training: bool = True) -> float:
        """Floating-point operations a token: 2 a weight that it meets and 4 an attended pair and width
        forward, times 3 with the backward pass (arXiv 2001.08361, section 2.1). `context` tokens, causal."""
        weights = self.product_weights() + self.vocab_size * self.dim
        window = min(context, self.sliding_window or context)
        seen = window - window * (window - 1) / (2 * context)  # a token's mean number of visible ones
        attention = 4 * self.num_layers * self.num_heads * self.head_dim * seen
        return (2 * weights + attention) * (3 if training else 1)
