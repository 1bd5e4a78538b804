"""All known bugs, by name."""

from __future__ import annotations

from tests.mutants import cuts, rest, states, sums

LISTED = [*sums.MUTANTS, *cuts.MUTANTS, *rest.MUTANTS, *states.MUTANTS]
MUTANTS = {mutant.name: mutant for mutant in LISTED}
