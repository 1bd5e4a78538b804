"""The job graph: a recipe with its kinds resolved, sweeps multiplied and edges checked. Data only."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter.config import overrides as dotted
from shunter.config import yaml
from shunter.config.check import parse
from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.config.yaml import Source
from shunter.recipe import beginnings, fields, matrix
from shunter.recipe.beginnings import StopEarly
from shunter.recipe.fields import Reference
from shunter.recipe.job import Job, JobConfig
from shunter.recipe.matrix import Labels
from shunter.recipe.schema import RECIPE_VERSION, Recipe


@dataclass(frozen=True)
class Node:
    """One job of the graph, a variant when its stem is swept.

    config: its Input fields hold the names of nodes.
    inputs: input field (dotted when nested) -> names of nodes, one for a single input.
    single: the fields that take one artefact.
    where:  file and line, for messages.
    """

    name: str
    stem: str
    kind: str
    job: Job[Any]
    config: JobConfig
    inputs: Mapping[str, tuple[str, ...]]
    single: frozenset[str]
    labels: Labels
    where: str

    @property
    def upstream(self) -> tuple[str, ...]:
        """The jobs that it reads, each once."""
        return tuple(dict.fromkeys(name for names in self.inputs.values() for name in names))


@dataclass(frozen=True)
class Graph:
    """A recipe ready to run. `nodes` is in an order in which every job follows those it reads."""

    name: str
    seed: int
    path: Path
    text: str
    overrides: tuple[str, ...]
    nodes: Mapping[str, Node]
    early: Mapping[str, StopEarly] = field(default_factory=dict)  # by the job whose sweep it is

    @property
    def base(self) -> Path:
        """The recipe's folder, against which relative paths resolve."""
        return self.path.parent

    def named(self, name: str) -> list[str]:
        """The node of this name, or all variants of this swept job. Raises ShunterError for neither."""
        if name in self.nodes:
            return [name]
        found = [node.name for node in self.nodes.values() if node.stem == name]
        if not found:
            known = [*self.nodes, *{node.stem for node in self.nodes.values()}]
            near = nearest(name, known)
            mend = f"Did you mean {near!r}?" if near else f"Jobs: {', '.join(self.nodes)}."
            raise ShunterError(f"no job {name!r} in {self.path}", mend=mend)
        return found

    def upstream(self, names: Iterable[str]) -> set[str]:
        """These jobs and all that they are made from."""
        found = set(names)
        for name in reversed(list(self.nodes)):
            if name in found:
                found.update(self.nodes[name].upstream)
        return found

    def downstream(self, names: Iterable[str]) -> set[str]:
        """These jobs and all that is made from them."""
        found = set(names)
        for node in self.nodes.values():
            if found.intersection(node.upstream):
                found.add(node.name)
        return found

    def select(self, first: str | None = None, last: str | None = None) -> list[str]:
        """The jobs between: those made from `first`, and of these the ones that `last` is made from."""
        chosen = set(self.nodes)
        if first is not None:
            chosen &= self.downstream(self.named(first))
        if last is not None:
            chosen &= self.upstream(self.named(last))
        if not chosen:
            raise ShunterError(f"{last!r} is not made from {first!r}", mend="Leave out --from or --to.")
        return [name for name in self.nodes if name in chosen]


@dataclass
class _Declared:
    """A job as the file declares it: its points, and what each refers to."""

    stem: str
    kind: str
    job: Job[Any]
    early: StopEarly | None = None
    points: list[tuple[Labels, JobConfig, list[Reference]]] = field(default_factory=list)

    def references(self) -> Iterator[tuple[Reference, str]]:
        for _, _, found in self.points:
            for reference in found:
                for target in reference.names:
                    yield reference, target


def load_recipe(path: str | Path, overrides: Sequence[str], kinds: Mapping[str, Job[Any]]) -> Graph:
    """Read a recipe, apply the overrides and build its graph.

    Raises one ShunterError that lists every mistake found, each with file and line: unknown kinds,
    keys, values and jobs, inputs of the wrong type, cycles.
    """
    path = Path(path)
    written = yaml.load(path)
    source = dotted.apply(written, overrides)
    recipe = parse(Recipe, source.data, source)
    if recipe.version > RECIPE_VERSION:
        raise ShunterError(
            f"recipe version {recipe.version} is newer than this shunter reads ({RECIPE_VERSION})",
            where=source.where(("version",)),
            mend="Upgrade shunter.",
        )
    if not recipe.jobs:
        raise ShunterError("no jobs", where=source.where(("jobs",)), mend="Name at least one.")
    mistakes = _Mistakes(
        (stem, lambda stem=stem, data=data: _declare(stem, data, recipe.seed, source, kinds))
        for stem, data in recipe.jobs.items()
    )
    declared = mistakes.results
    found = [
        (stem, reference, target) for stem, job in declared.items() for reference, target in job.references()
    ]
    references = _Mistakes(
        (one[0], lambda one=one: _check_reference(one, declared, list(recipe.jobs), source)) for one in found
    )
    mistakes.tell(references, order=list(recipe.jobs))
    order = _order(declared, source)
    nodes: dict[str, Node] = {}
    for stem in order:
        for node in _expand(declared[stem], nodes, source):
            if node.name in nodes:
                raise ShunterError(f"two jobs would be named {node.name!r}", where=node.where)
            nodes[node.name] = node
    text = path.read_text(encoding="utf-8-sig")
    early = {stem: job.early for stem, job in declared.items() if job.early is not None}
    return Graph(recipe.name, recipe.seed, path.resolve(), text, tuple(overrides), nodes, early)


class _Mistakes:
    """Calls every function and keeps results and mistakes; `tell` raises all mistakes as one error."""

    def __init__(self, calls: Iterable[tuple[str, Any]]) -> None:
        self.results: dict[str, Any] = {}
        self.errors: dict[str, tuple[str, ShunterError]] = {}  # by sentence, so that none is told twice
        for name, call in calls:
            try:
                self.results[name] = call()
            except ShunterError as error:
                self.errors.setdefault(str(error), (name, error))

    def tell(self, *others: _Mistakes, order: Sequence[str] = ()) -> None:
        """Raise what was found here and there, if anything was, by the place of its name in `order`."""
        found = [*self.errors.values(), *(each for other in others for each in other.errors.values())]
        if order:
            found.sort(key=lambda each: order.index(each[0]))
        if len(found) == 1:
            raise found[0][1]
        if found:
            raise ShunterError("\n".join(str(error) for _, error in found))


def _declare(
    stem: str, data: Mapping[str, Any], seed: int, source: Source, kinds: Mapping[str, Job[Any]]
) -> _Declared:
    at = ("jobs", stem)
    if not _plain_name(stem):
        raise ShunterError(
            f"{stem!r} is no name for a job",
            where=source.where(at),
            mend="Use letters, digits, '_', '-' and '.', at most 64, not '-' or '.' first.",
        )
    kind = data.get("kind")
    if kind is None:
        near = nearest("kind", data)
        mend = f"Is {near!r} meant to be 'kind'?" if near else f"Kinds: {', '.join(kinds)}."
        raise ShunterError("this key is required", where=source.where((*at, "kind")), mend=mend)
    if not isinstance(kind, str) or kind not in kinds:
        near = nearest(kind, kinds) if isinstance(kind, str) else None
        mend = f"Did you mean {near!r}?" if near else f"Kinds: {', '.join(kinds)}."
        raise ShunterError(f"unknown kind {kind!r}", where=source.where((*at, "kind")), mend=mend)
    job = kinds[kind]
    asked = data.get("stop_early")
    data = {key: value for key, value in data.items() if key != "stop_early"}
    early = None if asked is None else parse(StopEarly, asked, source, (*at, "stop_early"))
    declared = _Declared(stem, kind, job, early)

    def point(one: matrix.Point) -> None:
        values = {"seed": seed, **one.data} if "seed" in job.Config.model_fields else one.data
        config = parse(job.Config, values, one.source, at)
        declared.points.append((one.labels, config, list(fields.references(config))))

    # An error outside the swept keys is the same in every variant and is told once.
    _Mistakes(
        (str(index), lambda one=one: point(one))
        for index, one in enumerate(matrix.points(stem, data, source))
    ).tell()
    if early is not None:
        try:
            configs = [config for _, config, _ in declared.points]
            beginnings.check(early, job, list(data.get("matrix", {})), configs)
        except ShunterError as error:
            where = source.where((*at, "stop_early"))
            raise ShunterError(error.what, where=where, mend=error.mend) from None
    return declared


def _plain_name(name: str) -> bool:
    return (
        0 < len(name) <= 64
        and name[0] not in "-."
        and all(char.isascii() and (char.isalnum() or char in "_-.") for char in name)
    )


def _stem(name: str) -> str:
    """The declared job that a name means: a variant may be named in full."""
    return name.split("[", 1)[0]


def _check_reference(
    one: tuple[str, Reference, str],
    declared: Mapping[str, _Declared],
    named: Sequence[str],
    source: Source,
) -> None:
    """one: job, reference and the job that it names.  named: all jobs of the file; of those that are not
    declared, whose mistakes are told already, it is not known what they make."""
    stem, reference, target = one
    at = ("jobs", stem, *reference.path)
    able = [name for name, other in declared.items() if other.job.produces in reference.types]
    if _stem(target) not in named:
        near = nearest(target, named)
        mend = f"Did you mean {near!r}?" if near else _able(able, reference.types)
        raise ShunterError(f"no job is named {target!r}", where=source.where(at), mend=mend)
    made = declared[_stem(target)].job.produces if _stem(target) in declared else None
    if made is not None and made not in reference.types:
        wanted = " or ".join(map(_article, reference.types))
        raise ShunterError(
            f"{target!r} makes {_article(made)}, but {wanted} is needed",
            where=source.where(at),
            mend=_able(able, reference.types),
        )


def _able(stems: Sequence[str], types: Sequence[str]) -> str:
    wanted = " or ".join(map(_article, types))
    return f"Jobs that make {wanted}: {', '.join(stems)}." if stems else f"No job here makes {wanted}."


def _article(kind: str) -> str:
    if kind.endswith("s"):
        return kind
    return f"an {kind}" if kind[:1] in "aeiou" else f"a {kind}"


def _order(declared: Mapping[str, _Declared], source: Source) -> list[str]:
    """Every job after those it reads; otherwise as in the file. Raises ShunterError for a cycle."""
    place = {stem: index for index, stem in enumerate(declared)}
    needs = {stem: {_stem(target) for _, target in job.references()} for stem, job in declared.items()}
    users: dict[str, list[str]] = {stem: [] for stem in declared}
    for stem, ups in needs.items():
        for up in ups:
            users[up].append(stem)
    waiting = {stem: len(ups) for stem, ups in needs.items()}
    ready = [place[stem] for stem, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    names, order = list(declared), []
    while ready:
        stem = names[heapq.heappop(ready)]
        order.append(stem)
        for user in users[stem]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, place[user])
    if len(order) < len(declared):
        raise _cycle({stem: ups for stem, ups in needs.items() if stem not in set(order)}, source)
    return order


def _cycle(needs: Mapping[str, set[str]], source: Source) -> ShunterError:
    """Walk up from any job that is left until one comes again: all left either lie on or below a cycle."""
    path = [next(iter(needs))]
    while True:
        up = next(name for name in sorted(needs[path[-1]]) if name in needs)
        if up in path:
            # In the direction of data: each is made from the one before.
            ring = [up, *reversed(path[path.index(up) :])]
            return ShunterError(
                f"the jobs form a cycle: {' -> '.join(ring)}",
                where=source.where(("jobs", up)),
                mend="A job cannot be made from itself; remove one of these inputs.",
            )
        path.append(up)


def _expand(job: _Declared, nodes: Mapping[str, Node], source: Source) -> Iterator[Node]:
    """The variants of a job: its own sweep joined with those of the jobs that it reads singly.

    Two inputs that stem from one sweep are joined on it, not multiplied: a model is evaluated on the
    tokens that it was trained on. A list input gathers the variants that agree with this one.
    """
    for own, config, found in job.points:
        choices: list[tuple[Labels, dict[str, tuple[str, ...]]]] = [({}, {})]
        for reference in found:
            if reference.single:
                variants = _variants(reference, reference.names[0], nodes, job.stem, source)
                choices = [
                    (joined, {**picked, reference.field: (variant.name,)})
                    for labels, picked in choices
                    for variant in variants
                    if (joined := matrix.join(labels, variant.labels)) is not None
                ]
        for labels, picked in choices:
            inputs = dict(picked)
            for reference in found:
                if not reference.single:
                    inputs[reference.field] = tuple(
                        variant.name
                        for target in reference.names
                        for variant in _variants(reference, target, nodes, job.stem, source)
                        if target in nodes or matrix.join(labels, variant.labels) is not None
                    )
            changes: dict[fields.Path, Any] = {
                reference.path: inputs[reference.field][0] if reference.single else [*inputs[reference.field]]
                for reference in found
            }
            every = {**labels, **own}
            yield Node(
                name=matrix.name(job.stem, every),
                stem=job.stem,
                kind=job.kind,
                job=job.job,
                config=fields.replace(config, changes),
                inputs={reference.field: inputs[reference.field] for reference in found},
                single=frozenset(reference.field for reference in found if reference.single),
                labels=every,
                where=source.where(("jobs", job.stem)),
            )


def _variants(
    reference: Reference, target: str, nodes: Mapping[str, Node], stem: str, source: Source
) -> list[Node]:
    if target in nodes:
        # Named in full (or not swept): it stands for itself and multiplies nothing.
        node = nodes[target]
        return [node]
    variants = [node for node in nodes.values() if node.stem == target]
    if not variants:
        known = [node.name for node in nodes.values() if node.stem == _stem(target)]
        near = nearest(target, known)
        raise ShunterError(
            f"no variant is named {target!r}",
            where=source.where(("jobs", stem, *reference.path)),
            mend=f"Did you mean {near!r}?" if near else f"Variants: {', '.join(known)}.",
        )
    return variants
