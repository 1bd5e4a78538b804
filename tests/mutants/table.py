"""All known bugs, by name."""

from __future__ import annotations

from tests.mutants import cuts, drops, rest, states, sums

LISTED = [*sums.MUTANTS, *cuts.MUTANTS, *rest.MUTANTS, *states.MUTANTS, *drops.MUTANTS]
MUTANTS = {mutant.name: mutant for mutant in LISTED}
