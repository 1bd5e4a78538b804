"""The job `mix`: corpora become one, of given shares and size."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from shunter.config.errors import ShunterError
from shunter.data import mixing
from shunter.recipe.job import Input, JobConfig, JobContext, Stopped

if TYPE_CHECKING:
    from shunter.data.tokenizer import Tokenizer
    from shunter.data.units import Unit

SPLITS = ("train", "heldout")
PLAIN = ("id", "source", "row", "text")
COPIES = "int32"
ROWS = 1024
FORMAT = 1  # of what units leave; another number begins anew


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
    """Writes train/ (with the column `copies`), heldout/, dropped.jsonl and summary.json.

    Documents are measured and written in units, each once whatever is killed. Memory: about 40 bytes a
    document.
    """

    kind: ClassVar[str] = "mix"
    produces: ClassVar[str] = "corpus"
    version: ClassVar[int] = 2
    Config: ClassVar[type[JobConfig]] = MixConfig

    def check(self, config: MixConfig, base: Path) -> Sequence[str]:
        return []

    def run(self, context: JobContext[MixConfig]) -> dict[str, Any]:
        import numpy as np

        config = context.config
        work = _Work(context)
        labels, inverse, amounts, ranks = work.measured()
        totals = {label: int(amounts[inverse == n].sum()) for n, label in enumerate(labels)}
        absent = sorted(set(config.weights or {}) - set(totals))
        if absent:
            raise ShunterError(
                f"no document has {config.by} {absent[0]!r}; there is {', '.join(totals)}",
                where=context.name,
                mend="Correct the weights.",
            )
        parts = mixing.shares(totals, config.weights, config.budget, config.epochs, config.spread)
        copies = np.zeros(len(amounts), np.int64)
        for n, label in enumerate(labels):
            mine = np.flatnonzero(inverse == n)
            copies[mine] = mixing.copies(amounts[mine], ranks[mine], parts[label].given)
        summary = work.published(copies, {name for name, part in parts.items() if part.given})
        shown = np.bincount(inverse, weights=copies * amounts, minlength=len(labels))
        summary["mixture"] = {
            label: {
                "size": parts[label].size,
                "wanted": round(parts[label].wanted),
                "given": int(shown[n]),
                "share": float(shown[n] / max(shown.sum(), 1)),
                "epochs": float(shown[n] / max(parts[label].size, 1)),
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


class _Work:
    """The units of all corpora, in order; the train part of each before its held-out part."""

    def __init__(self, context: JobContext[MixConfig]) -> None:
        import pyarrow.parquet as pq

        from shunter.data import units

        self.context, self.config = context, context.config
        self.folders = [artefact.path for artefact in context.many("corpora")]
        self.once = units.Once(context.work / "units", FORMAT, self.folders, self.config.model_dump())
        self.units = [
            (f"{place:03}-{split}-{unit.number:06}", split, unit)
            for place, folder in enumerate(self.folders)
            for split in SPLITS
            for unit in units.units(folder / split)
        ]
        schemas = [pq.read_schema(min((f / "train").glob("*.parquet"))) for f in self.folders]
        for folder, schema in zip(self.folders, schemas, strict=True):
            if self.config.by not in schema.names:
                raise ShunterError(
                    f"the corpus has no column {self.config.by!r}; there are {', '.join(schema.names)}",
                    where=str(folder),
                    mend="Set `by`.",
                )
        kinds = [{field.name: field.type for field in schema} for schema in schemas]
        self.extra = {
            name: kind
            for name, kind in kinds[0].items()
            if name not in (*PLAIN, "copies") and all(other.get(name) == kind for other in kinds)
        }
        self.lost = sorted({n for each in kinds for n in each} - {*PLAIN, "copies", *self.extra})

    def measured(self) -> tuple[list[str], Any, Any, Any]:
        """The groups in order, and of every document of the train parts: the place of its group, its size
        (int64) and its rank (uint64)."""
        import numpy as np
        import pyarrow.parquet as pq

        columns: dict[str, list[Any]] = {"group": [], "size": [], "rank": []}
        numbers: dict[str, int] = {}
        files = []
        for name, split, unit in self.units:
            if split != "train":
                continue
            files.append(self.once(f"measured-{name}", partial(self._measure, unit)) / "documents.parquet")
            table = pq.read_table(files[-1], columns=["group", "size", "rank"])
            codes = [numbers.setdefault(each, len(numbers)) for each in table.column("group").to_pylist()]
            columns["group"].append(np.array(codes, np.int32))
            for column in ("size", "rank"):
                columns[column].append(table.column(column).to_numpy())
            self.context.events.progress(unit.begin + unit.rows, None, "documents measured")
        kinds = {"group": np.int32, "size": np.int64, "rank": np.uint64}
        found = {name: np.concatenate([np.zeros(0, kinds[name]), *columns[name]]) for name in columns}
        self._no_name_twice(found["rank"], files)
        labels = sorted(numbers)
        places = np.empty(len(numbers), np.int32)
        places[[numbers[label] for label in labels]] = np.arange(len(labels))
        return labels, places[found["group"]], found["size"], found["rank"]

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        from shunter.data.tokenizer import Tokenizer

        return Tokenizer.load(self.context.one("tokenizer").path) if self.config.tokenizer else None

    def _measure(self, unit: Unit, folder: Path) -> dict[str, Any]:
        """Name, group, size and rank of the documents of one unit."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names: list[str] = []
        groups: list[str] = []
        sizes: list[int] = []
        for batch in unit.batches(list(dict.fromkeys(["id", "text", self.config.by])), ROWS):
            if self.context.control.stop_requested():
                raise Stopped
            names += batch.column("id").to_pylist()
            groups += map(str, batch.column(self.config.by).to_pylist())
            texts = batch.column("text").to_pylist()
            if self._tokenizer is not None:
                sizes += [len(ids) for ids in self._tokenizer.encode_batch(texts)]
            else:
                sizes += [len(text.encode()) if self.config.unit == "bytes" else 1 for text in texts]
        ranks = mixing.ranks(self.config.seed, names)
        columns = {"id": names, "group": groups, "size": pa.array(sizes, pa.int64()), "rank": ranks}
        pq.write_table(pa.table(columns), folder / "documents.parquet")
        return {"documents": len(names)}

    def _no_name_twice(self, ranks: Any, files: list[Path]) -> None:
        """Documents of one name have one rank; only the names of those that do are looked at."""
        import numpy as np
        import pyarrow.parquet as pq

        order = np.argsort(ranks, kind="stable")
        same = np.flatnonzero(ranks[order][1:] == ranks[order][:-1])
        if not len(same):
            return
        wanted = set(ranks[order[same]].tolist())
        seen: set[str] = set()
        for path in files:
            table = pq.read_table(path, columns=["id", "rank"])
            for place in np.flatnonzero(
                [rank in wanted for rank in table.column("rank").to_pylist()]
            ).tolist():
                name = table.column("id")[place].as_py()
                if name in seen:
                    raise ShunterError(
                        f"two documents are called {name!r}",
                        mend="Give the corpora's sources names of their own.",
                    )
                seen.add(name)

    def published(self, copies: Any, wanted: set[str]) -> dict[str, Any]:
        """Write the documents that are shown, and a record of each that is not; the summary of it."""
        from shunter.data import units

        begin, done = 0, []
        for name, split, unit in self.units:
            mine = copies[begin : begin + unit.rows].tolist() if split == "train" else None
            begin += unit.rows if split == "train" else 0
            make = partial(self._write, unit, split, mine, wanted)
            done.append((split, self.once(f"written-{name}", make)))
            self.context.events.progress(begin, len(copies), "documents written")
        told = {place: units.record(place) for _, place in done}
        summary: dict[str, Any] = {"read": len(copies)}
        for split in SPLITS:
            mine = [place for each, place in done if each == split and told[place]["documents"]]
            facts = {**self.extra, "copies": COPIES} if split == "train" else self.extra
            files = (place / split / "00000.parquet" for place in mine)
            units.gathered(files, self.context.out / split, _types(facts))
            summary[split] = {key: sum(told[place][key] for place in mine) for key in ("documents", "bytes")}
        with (self.context.out / "dropped.jsonl").open("wb") as file:
            for _, place in done:
                file.write((place / "dropped.jsonl").read_bytes())
        dropped: Counter[str] = Counter()
        counts: dict[str, Counter[str]] = {}
        for each in told.values():
            dropped.update(each["dropped"])
            for source, number in each["sources"].items():
                counts.setdefault(source, Counter())["train documents"] += number
        known = [
            json.loads((f / "summary.json").read_text(encoding="utf-8")).get("sources", {})
            for f in self.folders
        ]
        sources = {
            name: {"licence": part.get("licence"), **counts.get(name, {})}
            for each in known
            for name, part in each.items()
        }
        dropped_told = dict(sorted(dropped.items()))
        return {**summary, "dropped": dropped_told, "columns_left": self.lost, "sources": sources}

    def _write(
        self, unit: Unit, split: str, copies: list[int] | None, wanted: set[str], folder: Path
    ) -> dict[str, Any]:
        """One unit. copies: of each of its documents; None: it is of a held-out part."""
        from shunter.data import corpus

        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        number = itertools.count()
        facts = self.extra if copies is None else {**self.extra, "copies": COPIES}
        writer = corpus.Writer(folder / split, _types(facts))
        with (folder / "dropped.jsonl").open("w", encoding="utf-8") as file:
            for batch in unit.batches(rows=ROWS):
                if self.context.control.stop_requested():
                    raise Stopped
                for row in batch.to_pylist():
                    told = [row[name] for name in (*PLAIN, *self.extra)]
                    group = str(row.get(self.config.by))
                    if copies is None:
                        if group in wanted:
                            writer.write(*told)
                        continue
                    times = copies[next(number)]
                    if times:
                        writer.write(*told, times)
                        counts[row["source"]] += 1
                        continue
                    reason = "beyond the budget" if group in wanted else "a group without weight"
                    dropped[reason] += 1
                    record = {"id": row["id"], "operator": "mix", "reason": reason, self.config.by: group}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        writer.close()
        return {
            "documents": writer.documents,
            "bytes": writer.bytes,
            "dropped": dict(dropped),
            "sources": dict(counts),
        }


def _types(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Arrow types, of which some are given by their name."""
    import pyarrow as pa

    return {name: pa.type_for_alias(kind) if isinstance(kind, str) else kind for name, kind in facts.items()}


JOB = MixJob()
"""The kind `mix`."""
