"""Small clusters whose devices, nodes or links differ, and questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from shunter.cluster.cluster import Cluster
from shunter.cluster.description import Description
from shunter.models.spec import DecoderSpec
from shunter.plan.choices import Question
from shunter.plan.fabric import Fabric
from shunter.plan.practice import PRACTICES, Coefficients

DEVICES = {
    "quick": {"memory": 80e9, "memory_bandwidth": 2e12, "flops": {"bf16": {"peak": 300e12}}},
    "lame": {"memory": 80e9, "memory_bandwidth": 1e12, "flops": {"bf16": {"peak": 100e12}}},
    "small": {"memory": 12e9, "memory_bandwidth": 2e12, "flops": {"bf16": {"peak": 300e12}}},
}
LINKS = {
    "nvlink": (5e-6, 300e9, "NVLink"), "ib": (8e-6, 25e9, "InfiniBand"), "roce": (15e-6, 20e9, "RoCE"),
    "ethernet": (50e-6, 1.2e9, "Ethernet"), "slow": (50e-6, 0.3e9, "Ethernet"),
}  # fmt: skip
NODES = ("n0.0", "n1.0", "n2.0", "n3.0")


def cluster(
    sizes: Sequence[int] = (2, 2, 2, 2),
    kinds: Sequence[str] | None = None,
    nics: Sequence[str] | None = None,
    links: Sequence[tuple[str, str, str, str | None]] = (),
    price: float | None = None,
) -> Cluster:
    """One node of each size: its kind of device, its NIC; links of pairs of nodes, there and back. Nodes
    with different NICs talk by Ethernet, those with equal ones by these."""
    kinds, nics = kinds or ["quick"] * len(sizes), nics or ["ib"] * len(sizes)
    pairs: list[dict[str, Any]] = [
        {"ends": [a, b], "link": link, **({"back": back} if back else {})} for a, b, link, back in links
    ]
    alone = len(set(nics)) == 1
    if not alone:
        pairs += [
            {"ends": [f"n{a}", f"n{b}"], "link": nics[a]}
            for a, b in combinations(range(len(sizes)), 2)
            if nics[a] == nics[b]
        ]
    tree = {
        "name": "uneven",
        "devices": {name: DEVICES[name] for name in dict.fromkeys(kinds)},
        "links": {
            name: {"latency": wait, "bandwidth": rate, "type": type}
            for name, (wait, rate, type) in LINKS.items()
        },
        "nodes": {
            f"n{number}": {
                "device": kind, "devices": size, "inside": "nvlink", "between": nic,
                **({"price_per_hour": price} if price is not None else {}),
            }
            for number, (size, kind, nic) in enumerate(zip(sizes, kinds, nics, strict=True))
        },
        "between": nics[0] if alone else "ethernet",
        "pairs": pairs,
    }  # fmt: skip
    return Cluster.of(Description.model_validate(tree))


SPEC = DecoderSpec(
    vocab_size=8000, dim=1024, num_layers=12, num_heads=16, num_kv_heads=16, head_dim=64, ffn_dim=2816,
    max_positions=1024, tied=False,
)  # fmt: skip


def question(it: Cluster, batch: int = 48, row: int = 1024, spec: DecoderSpec = SPEC) -> Question:
    return Question(spec, Fabric.of(it), batch, row, PRACTICES["shunter"], Coefficients())
