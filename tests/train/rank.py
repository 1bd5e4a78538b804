"""One rank of a group that reads rows: `python -m tests.train.rank REQUEST`, without torch.

REQUEST is JSON: the token folder, the loader's saved state, rank, world, steps, rows a step, and the file for
its ledger, a line a step with the numbers of the rows that this rank took.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from shunter.data.loader import Loader
from shunter.data.tokens import TokenRows


def main() -> None:
    request = json.loads(sys.argv[1])
    loader = Loader(TokenRows(Path(request["rows"])), seed=0)
    loader.restore(request["state"])
    with Path(request["ledger"]).open("w", encoding="utf-8") as ledger:
        for _ in range(request["steps"]):
            mine = loader.take(request["batch_rows"])[request["rank"] :: request["world"]]
            ledger.write(json.dumps(mine.tolist()) + "\n")
    print(json.dumps(loader.state()))


if __name__ == "__main__":
    main()
