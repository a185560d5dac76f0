"""How a SQLite ledger packs calls: whatever is put in comes out to the byte, and a text that comes again is stored once."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voight_middleware.ledger import open_ledger
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.ledger.sqlite.packed import NUMBERS
from voight_middleware.records.call import Call, LateAttribution
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Component, Usage

from ..support.depth import times
from ..support.factories import make_call
from ..support.made_up_ledger import made_up_calls
from ..support.patching import Patch


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(tmp_path / "ledger.db")) as ledger:
        yield ledger


def count(ledger: SQLiteLedger, table: str) -> int:
    with closing(sqlite3.connect(ledger.path)) as db:
        return int(db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


def test_made_up_calls_come_out_as_they_were(ledger: SQLiteLedger) -> None:
    """In one batch and in many; and what repeats is there once."""
    made = list(made_up_calls(1_500))
    assert ledger.insert(made[:1_200]) == 1_200
    for call in made[1_200:1_250]:
        assert ledger.insert([call]) == 1
    assert ledger.insert(made) == 250
    assert list(ledger.calls()) == made
    for table in ("kinds", "places", "usage_shapes"):
        with closing(sqlite3.connect(ledger.path)) as db:
            rows = [row[1:] for row in db.execute(f"SELECT * FROM {table}")]
        assert len(rows) == len(set(rows)) < 500
    assert count(ledger, "packed_calls WHERE shape_id IS NULL AND raw_usage IS NOT NULL") == 0


USAGES = {
    "no numbers": "{}",
    "zeros": '{"a":0,"b":[],"c":"","d":null}',
    "as many numbers as there are columns": "{" + ",".join(f'"k{number}":{number + 1}' for number in range(NUMBERS)) + "}",
    "one more": "{" + ",".join(f'"k{number}":{number + 1}' for number in range(NUMBERS + 1)) + "}",
    "large": '{"a":999999999999,"b":1000000000000,"c":18446744073709551616}',
    "fractions": '{"a":0.5,"b":1e5,"c":-1,"d":1.0}',
    "spaces": '{ "a": 1,\n "b": 2}',
    "percent": '{"a":"100%d %s %%","b":5}',
    "no object": "[1,2]",
    "no JSON": "tokens:5 }",
    "quotes": '{"a":"it\'s \\"5\\"","b":5}',
    "a NUL": '{"a":1,"b":"\0"}',
    "another script": '{"模型":"é\\u00e9","b":5}',
    "a number in a text": '{"a":"x:5,y:6}","b":5}',
}


@pytest.mark.parametrize("text", USAGES.values(), ids=USAGES)
def test_a_usage_comes_out_to_the_byte(ledger: SQLiteLedger, text: str) -> None:
    ledger.insert([make_call(raw_usage=text), make_call(raw_usage=None)])
    assert {call.raw_usage for call in ledger.calls()} == {text, None}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda inner: st.dictionaries(st.text(), inner)
    )
)
@settings(max_examples=times(50, 2_000))
def test_any_json_comes_out_to_the_byte(ledger_of_module: SQLiteLedger, value: Any) -> None:
    text = msgspec.json.encode(value).decode()
    call = make_call(raw_usage=text)
    ledger_of_module.insert([call])
    kept = ledger_of_module.call(call.call_id)
    assert kept is not None
    assert kept.raw_usage == text


@pytest.fixture(scope="module")
def ledger_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(tmp_path_factory.mktemp("packed") / "ledger.db")) as ledger:
        yield ledger


@pytest.mark.parametrize(
    "call_id",
    ["0" * 32, "f" * 32, "F" * 32, "0123456789abcdef" * 2, "a" * 31, "a" * 33, "x", " " * 32, "é" * 32, "0123456789abcdef0123456789abcde "],
)
def test_an_id_is_any_text(ledger: SQLiteLedger, call_id: str) -> None:
    """Also one that looks almost like ours; and it is found by its beginning."""
    assert ledger.insert([make_call(call_id=call_id)]) == 1
    assert ledger.insert([make_call(call_id=call_id)]) == 0
    (call,) = ledger.calls()
    found = ledger.call(call_id)
    assert found == call
    assert call.call_id == call_id
    if len(call_id) > 9:
        for length in (8, 9, len(call_id) - 1):
            assert ledger.call(call_id[:length]) == call
    assert ledger.call("e" * 8) is None


def test_shapes_are_limited(ledger: SQLiteLedger) -> None:
    """A server that puts a text of its own into each usage does not fill the table of shapes."""
    texts = [f'{{"id":"x{number:05d}","a":{number + 1}}}' for number in range(2_100)]
    for start in range(0, len(texts), 700):
        ledger.insert([make_call(raw_usage=text) for text in texts[start : start + 700]])
    assert 1_000 <= count(ledger, "usage_shapes") < 2_000
    assert {call.raw_usage for call in ledger.calls()} == set(texts)


def test_values_that_few_calls_have(ledger: SQLiteLedger) -> None:
    usage = Usage(
        images=1, seconds=2, characters=0, cache_read_audio=4, cache_read_image=5, image_in=6, image_out=7, tools={"web_search": 2}
    )
    calls = [
        make_call(usage=usage, estimated_input=1, estimated_output=0, list_femto=2**63 - 1, tool_calls={"x": 1}, cost_reasons=("é", '"')),
        make_call(usage=Usage(input=3), components=(Component(usage=Usage(input=1)), Component(model="n", usage=Usage(input=2)))),
        make_call(usage=Usage(input=3), components=()),
        make_call(usage=None, components=()),
    ]
    ledger.insert(calls)
    assert {call.call_id: call for call in ledger.calls()} == {call.call_id: call for call in calls}
    late = LateAttribution(call_ids=tuple(call.call_id for call in calls), tags=Tags(user_id="u", plan="p"))
    ledger.insert([late])
    for call in ledger.calls():
        (before,) = (one for one in calls if one.call_id == call.call_id)
        assert call == msgspec.structs.replace(before, tags=Tags(user_id="u", plan="p"), attribution="settled")


def test_texts_that_another_process_erases(tmp_path: Path) -> None:
    """A process that has seen a place stores it anew after it was erased, and not under the name that it was replaced by."""
    path = str(tmp_path / "ledger.db")
    with closing(open_ledger(path)) as writer, closing(open_ledger(path)) as eraser:
        call = make_call(tags=Tags(plan="ann@example.com", route="GET /"))
        writer.insert([call])
        eraser.erase(["ann@example.com"], "erased_1")
        writer.insert([make_call(tags=Tags(plan="ann@example.com", route="GET /")), make_call(tags=Tags(plan="pro", route="GET /"))])
        assert sorted(call.tags.plan or "" for call in eraser.calls()) == ["ann@example.com", "erased_1", "pro"]
        eraser.erase(["ann@example.com"], "erased_2")
        eraser.purge(["ann@example.com"])
        assert b"ann@example.com" not in (tmp_path / "ledger.db").read_bytes()
        assert {row.dimensions["plan"] for row in writer.spend(["plan"])} == {"erased_1", "erased_2", "pro"}


def test_known_calls_among_new_ones(ledger: SQLiteLedger) -> None:
    """A batch that was here before in part, and one that has a call twice: each call counts once, the first one."""
    first = make_call(5, call_id="x", tags=Tags(user_id="u"))
    ledger.insert([first])
    again = [make_call(7, call_id=name, tags=Tags(user_id="u")) for name in ("x", "y", "z")]
    assert ledger.insert([*again, make_call(9, call_id="y"), *again]) == 2
    assert sorted((call.call_id, call.cost_femto) for call in ledger.calls()) == [("x", 5), ("y", 7), ("z", 7)]
    (row,) = ledger.spend(["user_id"])
    assert (row.calls, row.cost_femto) == (3, 19)


def test_more_texts_than_are_remembered(ledger: SQLiteLedger, patch: Patch) -> None:
    patch("_MOST", 5, within="intake")
    calls: list[Call] = [make_call(tags=Tags(route=f"GET /{number}")) for number in range(60)]
    for start in range(0, 60, 20):
        ledger.insert(calls[start : start + 20])
    ledger.insert([make_call(tags=Tags(route="GET /0"))])
    assert count(ledger, "places") == 60
    assert len(ledger.spend(["route"])) == 60
