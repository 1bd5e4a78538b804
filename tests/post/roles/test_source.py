"""Rows, messages and references, without processes: what is shared out comes back whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.config.errors import ShunterError
from shunter.layout.generation import Hybrid
from shunter.post.roles import protocol, wire
from shunter.post.roles.rows import Rows, share, strings, texts
from shunter.post.roles.source import Extent, Joined, Part, Share, from_json, resolve, to_json

LAYOUTS = [Hybrid(), Hybrid(d=3), Hybrid(p=2, t=2, d=2), Hybrid(p=2, t=2, d=2, pg=2, tg=1), Hybrid(t=4, tg=2)]


def rows(count: int, begin: int = 0, unit: int = 1) -> Rows:
    each = [np.arange(n % 3, dtype=np.int64) + n for n in range(begin, begin + count)]
    return Rows({"a": each, "b": [x.astype(np.float32) / 3 for x in each]}, unit)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Rows):
        return a.unit == b.unit and a.columns.keys() == b.columns.keys() and all(
            len(a[name]) == len(b[name]) and all(map(same, a[name], b[name])) for name in a.columns
        )  # fmt: skip
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(a == b)


class Shelves:
    """Results of workers; notes how many rows were read."""

    def __init__(self, results: dict[Part, Any]) -> None:
        self.results, self.read_rows = results, 0

    def extent(self, part: Part) -> Extent:
        value = self.results[part]
        return Extent(len(value), value.unit) if isinstance(value, Rows) else Extent(None, 1)

    def read(self, part: Part, begin: int | None = None, end: int | None = None) -> Any:
        value = self.results[part]
        if begin is None or end is None:
            return value
        self.read_rows += end - begin
        return value.take(begin, end)


def test_a_message_comes_out_as_it_went_in() -> None:
    value = {
        "rows": rows(7), "none": None, "list": [1, 2.5, "ü", True, float("inf")],
        "array": np.array([[1.0, np.nan]]), "empty": Rows({"a": []}, 1),
    }  # fmt: skip
    header, body = wire.encode(value)
    found = wire.decode(header, b"".join(body))
    assert same(found.pop("array"), value.pop("array"))
    assert found.keys() == value.keys()
    assert all(same(found[key], value[key]) for key in value)


@pytest.mark.parametrize(
    "header",
    [
        b'{"$array": ["float64", [9], 0]}',
        b'{"$array": ["object", [1], 0]}',
        b'{"$array": ["float64", [-1], 0]}',
        b'{"$array": ["int8", [1], -4]}',
    ],
)
def test_a_message_that_lies_about_its_arrays_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="array"):
        wire.decode(header, bytes(16))


def test_what_is_no_data_is_not_sent() -> None:
    for value in (object(), {"f": print}, np.array([object()]), {"$array": 1}):
        with pytest.raises(ShunterError, match="cannot be sent"):
            wire.encode(value)


def test_texts_as_bytes() -> None:
    told = ["", "sum", "größer \ud800"]
    assert strings(texts(told)) == told


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 3))
def test_shares_of_joined_results_are_the_whole_and_nothing_is_read_twice(
    counts: list[int], parts: int, unit: int
) -> None:
    results = {}
    at = 0
    for worker, count in enumerate(counts):
        results[Part(worker, 5)] = rows(count * unit, at, unit)
        at += count * unit
    whole = Rows.join(list(results.values()))
    reach = Shelves(results)
    source = Joined(tuple(results))
    found = [resolve(from_json(to_json(Share(source, i, parts))), reach) for i in range(parts)]
    assert same(Rows.join(found), whole)
    assert reach.read_rows == len(whole)
    for i, part in enumerate(found):
        begin, end = share(len(whole), unit, parts, i)
        assert same(part, whole.take(begin, end))
        assert len(part) % unit == 0  # no run is parted


def test_shares_of_shares() -> None:
    reach = Shelves({Part(0, 0): rows(11)})
    source = Share(Share(Part(0, 0), 1, 2), 0, 3)
    assert same(resolve({"deep": [source]}, reach)["deep"][0], rows(11).take(6, 8))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_protocol_gives_and_takes_as_its_table_says(layout: Hybrid) -> None:
    value, results = Part(99, 0), [Part(rank, 1) for rank in range(layout.size)]
    seats = [layout.seat(rank) for rank in range(layout.size)]

    def of(name: str) -> tuple[Any, Any]:
        it = protocol.find(name)
        return list(it.distribute(layout, value)), it.collect(layout, results)

    def order(source: Any) -> list[int]:
        return [part.worker for part in ([source] if isinstance(source, Part) else source.parts)]

    given_, taken = of("dp")
    assert given_ == [Share(value, seat.d, layout.d) for seat in seats]
    ends = [r for r, seat in enumerate(seats) if seat.p == layout.p - 1 and seat.t == 0]
    assert order(taken) == sorted(ends, key=lambda r: seats[r].d)
    given_, taken = of("micro_dp")
    assert given_ == [Share(value, seat.copy, layout.copies) for seat in seats]
    assert [seats[rank].copy for rank in order(taken)] == list(range(layout.copies))
    given_, taken = of("pp_only")
    assert given_ == [value] * layout.size
    assert [seats[rank].p for rank in order(taken)] == list(range(layout.p))
    given_, taken = of("spread")
    assert given_ == [Share(value, rank, layout.size) for rank in range(layout.size)]
    assert order(taken) == list(range(layout.size))
    assert of("one_to_all") == ([value] * layout.size, results)
    assert list(protocol.find("all_to_one").ranks(layout)) == [0]
    assert of("all_to_one")[1] == results[0]
    each = protocol.find("all_to_all")
    assert list(each.distribute(layout, list("abcdefgh")[: layout.size])) == list("abcdefgh")[: layout.size]
    with pytest.raises(ShunterError, match="one value for each"):
        each.distribute(layout, [])


def test_protocols_are_known_by_name_and_not_replaced() -> None:
    with pytest.raises(ShunterError, match="Did you mean micro_dp"):
        protocol.find("micro-pd")
    with pytest.raises(ShunterError, match="a protocol dp already"):
        protocol.register("dp", protocol.find("spread"))
    with pytest.raises(ShunterError, match="a float cannot be shared out"):
        protocol.find("dp").distribute(Hybrid(d=2), 1.0)
