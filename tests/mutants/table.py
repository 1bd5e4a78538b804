"""All known bugs, by name."""

from __future__ import annotations

from tests.mutants import cuts, rest, sums

LISTED = [*sums.MUTANTS, *cuts.MUTANTS, *rest.MUTANTS]
MUTANTS = {mutant.name: mutant for mutant in LISTED}
