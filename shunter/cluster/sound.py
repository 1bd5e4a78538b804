"""What a cluster's file must say beyond its keys: that every name in it means something, and only once."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shunter.cluster.description import Description
from shunter.config.errors import ShunterError
from shunter.config.nearest import nearest
from shunter.config.yaml import KeyPath, Source, dotted

_END = re.compile(r"(?P<node>[A-Za-z0-9][A-Za-z0-9._-]*)(?:/(?P<place>\d+))?")


def check(it: Description, source: Source | None = None) -> None:
    """Raise ShunterError for the first name that means nothing, for packages that do not fill a node, and for
    pairs that stand twice; with the line where there is a source."""
    for group, node in it.nodes.items():
        at: KeyPath = ("nodes", group)
        _known(node.device, it.devices, (*at, "device"), "kind of device", source)
        _known(node.inside, it.links, (*at, "inside"), "link", source)
        _known(node.between, it.links, (*at, "between"), "link", source)
        if node.package:
            _known(node.package.link, it.links, (*at, "package", "link"), "link", source)
            if node.devices % node.package.size:
                what = f"{node.devices} devices are no whole packages of {node.package.size}"
                raise ShunterError(what, where=_where((*at, "package", "size"), source))
    _known(it.between, it.links, ("between",), "link", source)
    _pairs(it, source)


def _pairs(it: Description, source: Source | None) -> None:
    seen: dict[frozenset[str], int] = {}
    for number, pair in enumerate(it.pairs):
        at: KeyPath = ("pairs", number)
        _known(pair.link, it.links, (*at, "link"), "link", source)
        _known(pair.back, it.links, (*at, "back"), "link", source)
        where = _where((*at, "ends"), source)
        kinds = {_sort(end, it, where) for end in pair.ends}
        first, second = pair.ends
        if len(kinds) > 1:
            raise ShunterError(f"{first} and {second} are not of one sort", where=where)
        if first == second and (kinds != {"group"} or pair.back):
            what = "a way back that differs" if pair.back else "a link to itself"
            raise ShunterError(f"{first} cannot have {what}", where=where)
        before = seen.setdefault(frozenset(pair.ends), number)
        if before != number:
            raise ShunterError(
                f"the link between {first} and {second} stands in pairs.{before} already",
                where=where,
                mend="Where its way back differs, name that one there as `back`.",
            )


def _sort(end: str, it: Description, where: str) -> str:
    """Whether an end is a group, a node or a device."""
    if end in it.nodes:
        return "group"
    found = _END.fullmatch(end)
    group, _, number = (found["node"] if found else "").rpartition(".")
    if found and group in it.nodes and number.isdecimal() and int(number) < it.nodes[group].count:
        if found["place"] is None:
            return "node"
        if int(found["place"]) < it.nodes[group].devices:
            return "device"
    known = [*it.nodes, *(f"{name}.0" for name in it.nodes), *(f"{name}.0/0" for name in it.nodes)]
    guess = nearest(end, known)
    mend = f"Did you mean {guess!r}?" if guess else f"Write it as one of {', '.join(known[:6])}."
    raise ShunterError(f"{end!r} is no group, node or device", where=where, mend=mend)


def _known(name: str | None, among: Iterable[str], at: KeyPath, what: str, source: Source | None) -> None:
    known = list(among)
    if name is None or name in known:
        return
    guess = nearest(name, known)
    mend = f"Did you mean {guess!r}?" if guess else f"Known are {', '.join(known)}." if known else None
    raise ShunterError(f"there is no {what} {name!r}", where=_where(at, source), mend=mend)


def _where(at: KeyPath, source: Source | None) -> str:
    return source.where(at) if source else dotted(at)
