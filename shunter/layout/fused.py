"""Products that hold several projections: a cut into equal parts must not go across them.

A fused product is cut projection by projection, or between whole heads where each head has its own three.
Which of the two it is does not stand in its name; a trial at the start of a run has the last word (see
`parallel.generic.trial`), and a product that fails it is computed with its outputs brought together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Name of the layer -> what stands in it. "heads": each head's query, key and value side by side.
FUSED = {
    "c_attn": "qkv",
    "qkv": "qkv",
    "qkv_proj": "qkv",
    "Wqkv": "qkv",
    "wqkv": "qkv",
    "query_key_value": "heads",
    "gate_up_proj": "halves",
    "gate_up": "halves",
}


@dataclass(frozen=True)
class Heads:
    """Of attention. queries, keys: how many heads; 0 where it is not known. arranged: name of a fused layer
    -> qkv, heads or halves, where the model says other than `FUSED`."""

    queries: int = 0
    keys: int = 0
    arranged: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Heads:
        """From the `config.json` of a Hugging Face folder, or the like."""

        inner = config.get("text_config")  # of models that see and hear
        config = inner if isinstance(inner, Mapping) else config

        def first(*names: str) -> int:
            for name in names:
                value = config.get(name)
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
            return 0

        queries = first("num_attention_heads", "n_head", "num_heads", "n_heads")
        keys = first("num_key_value_heads", "num_kv_heads", "n_kv_heads") or queries
        arranged = {}
        if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
            if config.get("multi_query", True):
                keys = 1
                arranged = {"query_key_value": "qkv"}
            else:
                keys = queries
        return cls(queries, keys, arranged)

    def legal(self, parts: int) -> bool:
        """Whether whole heads come out; True where nothing is known."""
        return self.queries % parts == 0 and self.keys % parts == 0

    def nearest(self, parts: int) -> int:
        """The number of parts nearest to `parts` that leaves heads whole."""
        degrees = [n for n in range(1, max(self.queries, 1) + 1) if self.legal(n)]
        return min(degrees, key=lambda n: (abs(n - parts), n))

    def blocks(self, name: str, size: int, parts: int) -> list[int] | None:
        """Sizes of the projections in `size` outputs of the layer `name`, each to be cut by itself.

        [size] for what is one, or cut between heads. None where they cannot be cut so.
        """
        kind = self.arranged.get(name, FUSED.get(name))
        if kind is None:
            return [size]
        if kind == "heads":
            whole = self.keys % parts == 0 and size % parts == 0
            return [size] if whole else None
        if kind == "halves":
            found = [size // 2] * 2
        else:
            queries, keys = self.queries or 1, self.keys or self.queries or 1
            width, odd = divmod(size, queries + 2 * keys)
            if odd:
                return None
            found = [queries * width, keys * width, keys * width]
            if self.queries and not self.legal(parts):
                return None
        return found if all(each % parts == 0 for each in found) and sum(found) == size else None
