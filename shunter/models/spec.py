"""The specification of a decoder, as plain data. Imports without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from shunter.config.base import Config

Family = Literal["llama", "mistral", "qwen2", "qwen3"]


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


class DecoderShape(Config):
    """A decoder of the Llama lineage, but for what the data decide: vocabulary and context."""

    dim: int = Field(ge=1, description="Width of the residual stream.")
    num_layers: int = Field(ge=1, description="Blocks.")
    num_heads: int = Field(ge=1, description="Query heads.")
    num_kv_heads: int = Field(ge=1, description="Key and value heads; divides num_heads.")
    head_dim: int = Field(ge=2, description="Width of one head; even.")
    ffn_dim: int = Field(ge=1, description="Width of the SwiGLU.")
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
        return self


class DecoderSpec(DecoderShape):
    """A decoder of the Llama lineage: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    vocab_size: int = Field(ge=1, description="Rows of the embedding.")
    max_positions: int = Field(2048, ge=1, description="Longest context.")

    @property
    def num_parameters(self) -> int:
        """Parameters, a tied head counted once."""
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        attention = self.dim * qkv + self.num_heads * self.head_dim * self.dim
        attention += qkv if self.qkv_bias else 0
        attention += 2 * self.head_dim if self.qk_norm else 0
        block = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        embeddings = self.vocab_size * self.dim * (1 if self.tied else 2)
        return self.num_layers * block + embeddings + self.dim

    def flops_per_token(self, context: int, *, training: bool = True) -> float:
        """Floating-point operations a token: 2 a weight and 4 an attended pair and width forward, times
        3 with the backward pass (arXiv 2001.08361, section 2.1). `context` tokens, causal."""
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        block = self.dim * (qkv + self.num_heads * self.head_dim) + 3 * self.dim * self.ffn_dim
        weights = self.num_layers * block + self.vocab_size * self.dim
        window = min(context, self.sliding_window or context)
        seen = window - window * (window - 1) / (2 * context)  # a token's mean number of visible ones
        attention = 4 * self.num_layers * self.num_heads * self.head_dim * seen
        return (2 * weights + attention) * (3 if training else 1)
