"""The job `mix`: corpora become one, of given shares and size."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.data import mixing
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

SPLITS = ("train", "heldout")
ROWS = 1024


class MixConfig(JobConfig):
    """Chooses how often each document is shown, by weights of groups, a budget and a limit on repeats."""

    corpora: Annotated[list[str], Input("corpus")] = Field(
        min_length=1, description="Jobs whose corpora are mixed."
    )
    by: str = Field("source", description="Column that says the group: source, language, tier, ...")
    weights: dict[str, float] | None = Field(
        None,
        description="Group -> weight; groups without one are left out. null: as much as there is of each.",
    )
    budget: int | None = Field(
        None, ge=1, description="Size of the mixture; null: the largest with these weights and epochs."
    )
    unit: Literal["bytes", "tokens", "documents"] = Field(
        "bytes", description="Of the budget and the weights."
    )
    tokenizer: Annotated[str | None, Input("tokenizer")] = Field(
        None, description="Job whose tokenizer counts, for `unit: tokens`."
    )
    epochs: float = Field(
        mixing.EPOCHS, gt=0, description="A document is shown so often at most; Muennighoff et al. 2023: 4."
    )
    spread: bool = Field(
        False, description="What a group cannot give for that limit is taken from the others, by weight."
    )

    @model_validator(mode="after")
    def _units(self) -> MixConfig:
        if (self.unit == "tokens") != (self.tokenizer is not None):
            raise ValueError("unit tokens needs a tokenizer, and only that unit does")
        if self.weights is not None and (
            not any(self.weights.values()) or any(weight < 0 for weight in self.weights.values())
        ):
            raise ValueError("weights are zero or more, and one at least is more")
        return self


class MixJob:
    """Writes train/ (with the column `copies`), heldout/, dropped.jsonl and summary.json."""

    kind: ClassVar[str] = "mix"
    produces: ClassVar[str] = "corpus"
    version: ClassVar[int] = 1
    Config: ClassVar[type[JobConfig]] = MixConfig

    def check(self, config: MixConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[MixConfig]) -> dict[str, Any]:
        import numpy as np

        config = context.config
        folders = [artefact.path for artefact in context.many("corpora")]
        names, groups, sizes = _measured(context, folders)
        ranks = mixing.ranks(config.seed, names)
        labels, inverse = np.unique(np.array(groups, np.str_), return_inverse=True)
        amounts = np.array(sizes, np.int64)
        totals = {str(label): int(amounts[inverse == n].sum()) for n, label in enumerate(labels)}
        absent = sorted(set(config.weights or {}) - set(totals))
        if absent:
            raise ShunterError(
                f"no document has {config.by} {absent[0]!r}; there is {', '.join(totals)}",
                where=context.name,
                mend="Correct the weights.",
            )
        parts = mixing.shares(totals, config.weights, config.budget, config.epochs, config.spread)
        copies = np.zeros(len(names), np.int64)
        for n, label in enumerate(labels):
            mine = np.flatnonzero(inverse == n)
            copies[mine] = mixing.copies(amounts[mine], ranks[mine], parts[str(label)].given)
        summary = _publish(
            context, folders, copies.tolist(), {name for name, part in parts.items() if part.given}
        )
        shown = np.bincount(inverse, weights=copies * amounts, minlength=len(labels))
        summary["mixture"] = {
            str(label): {
                "size": parts[str(label)].size,
                "wanted": round(parts[str(label)].wanted),
                "given": int(shown[n]),
                "share": float(shown[n] / max(shown.sum(), 1)),
                "epochs": float(shown[n] / max(parts[str(label)].size, 1)),
            }
            for n, label in enumerate(labels)
        }
        summary["unit"] = config.unit
        (context.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        if not summary["train"]["documents"]:
            raise ShunterError(
                "the mixture has no document", mend="Raise the budget, or correct the weights."
            )
        told = {f"share of {label}": values["share"] for label, values in summary["mixture"].items()}
        return {
            "documents": summary["train"]["documents"],
            "bytes": summary["train"]["bytes"],
            f"shown_{config.unit}": int(shown.sum()),
            **(told if len(told) <= 12 else {}),
        }


def _batches(folder: Path, columns: list[str] | None = None) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=ROWS, columns=columns)


def _measured(context: JobContext[MixConfig], folders: list[Path]) -> tuple[list[str], list[str], list[int]]:
    """Name, group and size of every document of the train parts."""
    from shunter.data.tokenizer import Tokenizer

    config = context.config
    tokenizer = Tokenizer.load(context.one("tokenizer").path) if config.tokenizer else None
    names: list[str] = []
    groups: list[str] = []
    sizes: list[int] = []
    for folder in folders:
        for batch in _batches(folder / "train"):
            if context.control.stop_requested():
                raise Stopped
            if config.by not in batch.schema.names:
                raise ShunterError(
                    f"the corpus has no column {config.by!r}; there are {', '.join(batch.schema.names)}",
                    where=str(folder),
                    mend="Set `by`.",
                )
            names += batch.column("id").to_pylist()
            groups += map(str, batch.column(config.by).to_pylist())
            texts = batch.column("text").to_pylist()
            if tokenizer is not None:
                sizes += [len(ids) for ids in tokenizer.encode_batch(texts)]
            else:
                sizes += [len(text.encode()) if config.unit == "bytes" else 1 for text in texts]
            context.events.progress(len(names), None, "documents measured")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ShunterError(
            f"two documents are called {twice!r}", mend="Give the corpora's sources names of their own."
        )
    return names, groups, sizes


def _publish(
    context: JobContext[MixConfig], folders: list[Path], copies: list[int], wanted: set[str]
) -> dict[str, Any]:
    """Write the documents that are shown, and a record of each that is not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from shunter.data import corpus

    config = context.config
    schemas = [
        {
            field.name: field.type
            for field in pq.read_schema(next(iter(sorted((f / "train").glob("*.parquet")))))
        }
        for f in folders
    ]
    plain = ("id", "source", "row", "text")
    extra = {
        name: kind
        for name, kind in schemas[0].items()
        if name not in (*plain, "copies") and all(other.get(name) == kind for other in schemas)
    }
    lost = sorted({name for schema in schemas for name in schema} - {*plain, "copies", *extra})
    counts: dict[str, Counter[str]] = {}
    dropped: Counter[str] = Counter()
    number = itertools.count()
    train = corpus.Writer(context.out / "train", {**extra, "copies": pa.int32()})
    held = corpus.Writer(context.out / "heldout", extra)
    with (context.out / "dropped.jsonl").open("w", encoding="utf-8") as file:
        for folder, split in itertools.product(folders, SPLITS):
            for batch in _batches(folder / split):
                if context.control.stop_requested():
                    raise Stopped
                for row in batch.to_pylist():
                    told = [row[name] for name in extra]
                    place = [row[name] for name in plain]
                    group = str(row[config.by])
                    if split == "heldout":
                        if group in wanted:
                            held.write(*place, *told)
                        continue
                    times = copies[next(number)]
                    if times:
                        train.write(*place, *told, times)
                        counts.setdefault(row["source"], Counter())["train documents"] += 1
                        continue
                    reason = "beyond the budget" if group in wanted else "a group without weight"
                    dropped[reason] += 1
                    record = {"id": row["id"], "operator": "mix", "reason": reason, config.by: group}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    for writer in (train, held):
        writer.close()
    licences = [
        json.loads((f / "summary.json").read_text(encoding="utf-8")).get("sources", {}) for f in folders
    ]
    return {
        "read": len(copies),
        "train": {"documents": train.documents, "bytes": train.bytes},
        "heldout": {"documents": held.documents, "bytes": held.bytes},
        "dropped": dict(sorted(dropped.items())),
        "columns_left": lost,
        "sources": {
            name: {"licence": known.get("licence"), **counts.get(name, {})}
            for part in licences
            for name, known in part.items()
        },
    }


JOB = MixJob()
"""The kind `mix`."""
