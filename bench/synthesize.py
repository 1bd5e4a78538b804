"""Synthesised schedules: beside the catalogue's, against proven optima, and what search adds to listing.

Catalogue: 8 ranks, 16 micro-batches, F = I = W = 1 a rank. Each named schedule is the baseline of an order
found for its placement under its own peak memory. Optima: 4 ranks, 8 micro-batches, by cap and by whether the
gradient of the input or that of the weights releases the activations. Search: even costs and costs drawn from
0.5 to 1.5 of them, under even and uneven caps; the baseline is list scheduling alone (`capped`). Bounds are
what is known without search, or CP-SAT's where OR-Tools is there (extra `solve`) and the case is small: a gap
that is not proven may be the bound's fault.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import random
import statistics
import sys
import time
from typing import Any

from bench.measure import save
from shunter.schedule.assemble import assemble
from shunter.schedule.builders import controlled
from shunter.schedule.catalogue import SCHEDULES, schedule
from shunter.schedule.costs import Costs
from shunter.schedule.order import looped, vee
from shunter.schedule.simulate import simulate
from shunter.schedule.synthesize import Synthesis, synthesize

RANKS, MICROBATCHES = 8, 16
# Proven for p = 4, m = 8: cap, share released at the gradient of the input, shortest elapsed time.
OPTIMA = ((2, 0, 41), (3, 0, 31), (4, 0, 27), (2, 1, 35), (3, 1, 28), (4, 1, 27))
SEARCHED, SEEDS = (4, 8), (0, 1, 2, 3)
SECONDS, PROOF = 2.0, 5.0  # of search in every case; of proof where it is tried
PROVEN = 4  # ranks; for larger cases the solver would take minutes


def timed(*arguments: Any, **more: Any) -> tuple[Synthesis, float]:
    """What is found, and the seconds it took."""
    begin = time.perf_counter()
    found = synthesize(*arguments, **more)
    return found, time.perf_counter() - begin


def row_of(found: Synthesis, seconds: float) -> dict[str, Any]:
    """What every part keeps of an order."""
    return {
        "elapsed": round(found.elapsed, 4), "bound": round(found.bound, 4), "proven": found.proven,
        "how": found.how, "seconds": round(seconds, 2),
    }  # fmt: skip


def beside_catalogue() -> list[dict[str, Any]]:
    """Each named schedule, and an order of its placement that holds no more on any rank."""
    rows = []
    print(f"{'p=8 m=16':<18}{'named':>8}{'peak':>6}{'found':>8}{'peak':>6}{'bound':>8}{'seconds':>9}")
    for name in sorted(SCHEDULES):
        order = schedule(name).build(RANKS, MICROBATCHES)
        costs = Costs.even(order.placement)
        named = simulate(assemble(order), costs)
        if not max(named.peak_activations):
            continue  # forward-only holds nothing
        cap = max(named.peak_activations)
        found, seconds = timed(order.placement, MICROBATCHES, costs, cap, seconds=SECONDS)
        peak = max(simulate(assemble(found.order), costs).peak_activations)
        kept = row_of(found, seconds)
        rows.append(
            {"schedule": name, "named": named.elapsed, "named_peak": cap, **kept, "peak": peak}
        )  # fmt: skip
        print(
            f"{name:<18}{named.elapsed:>8g}{cap:>6g}{found.elapsed:>8g}{peak:>6g}{found.bound:>8g}"
            f"{seconds:>9.2f}{'  proven' if found.proven else ''}",
            flush=True,
        )
    return rows


def against_optima(solver: bool) -> list[dict[str, Any]]:
    """The shortest orders of 4 ranks and 8 micro-batches: found without the solver, proven with it."""
    rows = []
    print(f"{'p=4 m=8':<30}{'optimum':>8}{'found':>8}{'seconds':>9}{'proof':>9}")
    for cap, early, best in OPTIMA:
        placement = looped(4, 1)
        case = (placement, 8, Costs.even(placement), float(cap))
        found, seconds = timed(*case, released_at_input=early, seconds=SECONDS)
        row = {"cap": cap, "released_at": "I" if early else "W", "optimum": best, **row_of(found, seconds)}
        proof = ""
        if solver:
            proven, took = timed(*case, released_at_input=early, seconds=SECONDS, prove=True)
            row["with_solver"] = row_of(proven, took)
            proof = f"{took:>8.2f}s" if proven.proven else "   (none)"
        rows.append(row)
        label = f"cap {cap}, released at {row['released_at']}"
        print(f"{label:<30}{best:>8g}{found.elapsed:>8g}{seconds:>8.2f}s{proof}", flush=True)
    return rows


def searched(solver: bool) -> list[dict[str, Any]]:
    """Listing, search and bound over ranks, placements, caps and costs."""
    rows = []
    for ranks in SEARCHED:
        for placement in (looped(ranks, 1), vee(ranks)):
            even = [float(ranks // 2 + 1)] * ranks
            falling = [float(ranks - rank) for rank in range(ranks)]  # 1F1B's memory
            for caps in (even, falling):
                for seed in (None, *SEEDS):
                    rows.append(case_of(placement, 2 * ranks, caps, seed, solver and ranks <= PROVEN))
                    sys.stdout.write(".")
                    sys.stdout.flush()
    print()
    return rows


def case_of(
    placement: tuple[int, ...], microbatches: int, caps: list[float], seed: int | None, prove: bool
) -> dict[str, Any]:
    """One line: the list scheduler, the search, the bound."""
    costs = Costs.even(placement)
    if seed is not None:
        draw = random.Random(seed)
        costs = Costs({key: value * draw.uniform(0.5, 1.5) for key, value in costs.seconds.items()})
    begin = time.perf_counter()
    listed = simulate(assemble(controlled.capped(placement, microbatches, caps, costs=costs)), costs).elapsed
    listing = time.perf_counter() - begin
    found, seconds = timed(
        placement, microbatches, costs, caps, seconds=PROOF if prove else SECONDS, prove=prove
    )
    return {
        "placement": "vee" if placement == vee(len(caps)) else "looped", "ranks": len(caps),
        "microbatches": microbatches, "caps": caps, "seed": seed, "tried_to_prove": prove,
        "listed": round(listed, 4), "listed_seconds": round(listing, 3), **row_of(found, seconds),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Gaps to the bound in per cent, and how often the search was shorter than listing."""
    listed = [100 * (row["listed"] / row["bound"] - 1) for row in rows]
    found = [100 * max(0.0, row["elapsed"] / row["bound"] - 1) for row in rows]
    return {
        "cases": len(rows),
        "proven": sum(row["proven"] for row in rows),
        "listed_gap_median": round(statistics.median(listed), 2),
        "listed_gap_worst": round(max(listed), 2),
        "gap_median": round(statistics.median(found), 2),
        "gap_worst": round(max(found), 2),
        "shorter_than_listed": sum(row["elapsed"] < row["listed"] - 1e-6 for row in rows),
        "seconds_median": statistics.median(row["seconds"] for row in rows),
    }


def main() -> int:
    """Measure, print, keep. Returns 1 if an optimum is missed or a named schedule is shorter."""
    solver = importlib.util.find_spec("ortools") is not None
    print("with OR-Tools" if solver else "without OR-Tools: nothing is proven by search")
    catalogue, optima = beside_catalogue(), against_optima(solver)
    cases = searched(solver)
    kinds = {
        f"p={ranks} {placement}, {'even' if even else 'drawn'} costs": summary(
            [
                row
                for row in cases
                if (row["ranks"], row["placement"], row["seed"] is None) == (ranks, placement, even)
            ]
        )
        for ranks in SEARCHED
        for placement in ("looped", "vee")
        for even in (True, False)
    }
    print(
        f"{'gap to the bound':<26}{'cases':>6}{'proven':>8}{'listed':>9}{'worst':>8}{'found':>8}{'worst':>8}"
    )
    for name, row in kinds.items():
        print(
            f"{name:<26}{row['cases']:>6}{row['proven']:>8}{row['listed_gap_median']:>8.2f}%"
            f"{row['listed_gap_worst']:>7.2f}%{row['gap_median']:>7.2f}%{row['gap_worst']:>7.2f}%"
        )
    reached = {
        "optima": all(row["elapsed"] == row["optimum"] for row in optima),
        "no_longer_than_named": all(row["elapsed"] <= row["named"] + 1e-9 for row in catalogue),
        "within_named_memory": all(row["peak"] <= row["named_peak"] + 1e-9 for row in catalogue),
    }
    save(
        "synthesize",
        {
            "what": "elapsed time (F = I = W = 1 a rank) and peak activations (micro-batches) of synthesised "
            "orders: beside named schedules, against proven optima, and their gap to the bound in per cent",
            "solver": f"ortools {importlib.metadata.version('ortools')}" if solver else None,
            "seconds_of_search": SECONDS,
            "seconds_of_proof": PROOF,
            "reached": reached,
            "catalogue": catalogue,
            "optima": optima,
            "summary": kinds,
            "cases": cases,
        },
    )
    for name, right in reached.items():
        print(f"goal {name}: {'reached' if right else 'missed'}")
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
