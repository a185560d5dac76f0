"""The SQLite ledger keeps calls exactly, once, and answers what they cost."""

import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voight_middleware.call import ATTRIBUTIONS, OUTCOMES, Call, Settlement, Submission, job_call_id, new_call_id
from voight_middleware.ledger import DIMENSIONS, ForeignLedger, LedgerError, Progress, UnknownDimension, Window, open_ledger
from voight_middleware.ledger.base import MAX_COUNT
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.ledger.sqlite.schema import VERSION
from voight_middleware.tags import Tags
from voight_middleware.usage import Component, Usage

NOON = 1_793_534_400_000_000  # 2026-11-01 12:00 UTC


def make_call(cost: int | None = 1_000, at: int = NOON, **values: Any) -> Call:
    values.setdefault("call_id", new_call_id())
    status = "unpriced" if cost is None else "priced"
    usage = values.setdefault("usage", Usage(input=10, cache_read=5, output=7))
    values.setdefault("components", () if usage is None else (Component(usage=usage),))
    return Call(
        **{"provider": "openai", "endpoint": "chat", "model": "m", "cost_status": status, **values}, occurred_at=at, cost_femto=cost
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(tmp_path / "ledger.db")) as ledger:
        yield ledger


@contextmanager
def new_ledger() -> Iterator[SQLiteLedger]:
    """For hypothesis: a ledger for one example."""
    with tempfile.TemporaryDirectory() as folder, closing(SQLiteLedger(Path(folder) / "ledger.db")) as ledger:
        yield ledger


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
maybe = st.none() | texts
counts = st.none() | st.integers(0, MAX_COUNT)
tools = st.none() | st.dictionaries(texts, st.integers(0, 99), max_size=2)
tag_sets = st.builds(
    Tags,
    user_id=maybe,
    plan=maybe,
    tenant_id=maybe,
    route=maybe,
    release=maybe,
    session_id=maybe,
    extra=st.dictionaries(texts, texts, max_size=3),
)
usages = st.builds(Usage, tools=tools, **{name: counts for name in Usage.__struct_fields__ if name != "tools"}).filter(
    lambda usage: usage != Usage()
)
components = st.lists(st.builds(Component, model=maybe, usage=usages), max_size=3).map(tuple)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    cost = draw(st.none() | st.integers(0, 2**63 - 1))
    usage = draw(st.none() | usages)
    parts = (Component(usage=usage),) if usage is not None and draw(st.booleans()) else draw(components) if usage is not None else ()
    return Call(
        call_id=new_call_id(),
        occurred_at=draw(st.integers(0, 4 * 10**15)),
        provider=draw(texts),
        endpoint=draw(texts),
        requested_model=draw(maybe),
        model=draw(maybe),
        host=draw(maybe),
        streamed=draw(st.booleans()),
        outcome=draw(st.sampled_from(OUTCOMES)),
        error=draw(maybe),
        http_status=draw(st.none() | st.integers(100, 599)),
        attempts=draw(st.integers(1, 9)),
        duration=draw(counts),
        ttft=draw(counts),
        response_id=draw(maybe),
        service_tier=draw(maybe),
        batch=draw(st.booleans()),
        raw_usage=draw(st.none() | st.just('{"input_tokens": 1, "é": null}')),
        tool_calls=draw(tools),
        estimated_input=draw(counts),
        estimated_output=draw(counts),
        tags=draw(tag_sets),
        attribution=draw(st.sampled_from(ATTRIBUTIONS)),
        usage=usage,
        components=parts,
        cost_femto=cost,
        list_femto=draw(st.none() | st.integers(0, 2**63 - 1)),
        cost_status="unpriced" if cost is None else draw(st.sampled_from(["priced", "partial"])),
        cost_reasons=draw(st.lists(texts, max_size=2).map(tuple)),
        price=draw(maybe),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(calls(), min_size=1, max_size=5))
def test_a_call_comes_back_as_it_was(kept: list[Call]) -> None:
    """Every field of a call survives the ledger, and calls come the oldest first."""
    with new_ledger() as ledger:
        assert ledger.insert(kept) == len(kept)
        assert list(ledger.calls()) == sorted(kept, key=lambda call: (call.occurred_at, call.call_id))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.none() | st.integers(0, 2**63 - 1)), min_size=1, max_size=30))
def test_sums_are_exact(pairs: list[tuple[str | None, int | None]]) -> None:
    """Costs add up to the last femto-dollar, also where their sum leaves 64 bits, and the most expensive group is first."""
    with new_ledger() as ledger:
        ledger.insert([make_call(cost, tags=Tags(user_id=user)) for user, cost in pairs])
        rows = ledger.spend(["user_id"])
        for row in rows:
            mine = [cost for user, cost in pairs if user == row.dimensions["user_id"]]
            known = [cost for cost in mine if cost is not None]
            assert (row.calls, row.unpriced_calls) == (len(mine), len(mine) - len(known))
            assert row.cost_femto == (sum(known) if known else None)
        costs = [row.cost_femto for row in rows]
        assert costs == sorted(costs, key=lambda cost: -1 if cost is None else cost, reverse=True)
        assert len(rows) == len({user for user, _ in pairs})


def test_sum_beyond_64_bits(ledger: SQLiteLedger) -> None:
    """Three calls of the largest cost that a column holds cost three times that."""
    ledger.insert([make_call(2**63 - 1) for _ in range(3)])
    (total,) = ledger.spend()
    assert total.cost_femto == 3 * (2**63 - 1)


def test_tokens_are_added_up_by_kind(ledger: SQLiteLedger) -> None:
    """Input counts everything that went in, cached and written included; output counts audio too."""
    usage = Usage(
        input=1, cache_read=2, cache_write=4, cache_write_5m=8, cache_write_1h=16, audio_in=32, output=64, reasoning=5, audio_out=128
    )
    ledger.insert([make_call(usage=usage), make_call(usage=usage)])
    (total,) = ledger.spend()
    assert (total.input_tokens, total.cache_read_tokens, total.cache_write_tokens, total.output_tokens) == (126, 4, 56, 384)


def test_unreported_counts_are_unknown(ledger: SQLiteLedger) -> None:
    """A count that no call of a group reported is None, not 0."""
    ledger.insert([make_call(usage=None)])
    (total,) = ledger.spend()
    assert (total.input_tokens, total.cache_read_tokens, total.cache_write_tokens, total.output_tokens) == (None, None, None, None)


def test_an_empty_ledger_has_a_total_of_nothing(ledger: SQLiteLedger) -> None:
    """Without calls there is one row of zero calls without dimensions, and none with them."""
    (total,) = ledger.spend()
    assert (total.calls, total.cost_femto, total.unpriced_calls, total.errors) == (0, None, 0, 0)
    assert ledger.spend(["user_id"]) == []
    assert ledger.extent() is None


def test_what_a_total_hides_is_counted(ledger: SQLiteLedger) -> None:
    """Unpriced, partly priced, estimated and failed calls are counted beside the sums."""
    ledger.insert(
        [
            make_call(None, cost_reasons=("no price",)),
            make_call(1, cost_status="partial", cost_reasons=("tier",)),
            make_call(2, estimated_output=3),
            make_call(4, outcome="error", error="RateLimitError"),
            make_call(8, outcome="aborted"),
        ]
    )
    (total,) = ledger.spend()
    assert (total.calls, total.cost_femto) == (5, 15)
    assert (total.unpriced_calls, total.partial_calls, total.estimated_calls, total.errors) == (1, 1, 1, 1)


def test_unpriced_groups_come_last(ledger: SQLiteLedger) -> None:
    """Free is cheaper than anything, and unpriced is behind free, the group with more calls first."""
    prices = {"dear": [9], "free": [0], "few": [None], "many": [None, None]}
    ledger.insert([make_call(cost, model=model) for model, costs in prices.items() for cost in costs])
    assert [row.dimensions["model"] for row in ledger.spend(["model"])] == ["dear", "free", "many", "few"]
    assert [row.dimensions["model"] for row in ledger.spend(["model"], limit=2)] == ["dear", "free"]


def test_a_call_is_kept_once(ledger: SQLiteLedger) -> None:
    """The same call_id again is passed over, in the same batch, in another, and with another time."""
    call = make_call(5)
    again = msgspec.structs.replace(call, occurred_at=NOON + 1, cost_femto=7, error="X")
    assert ledger.insert([call, call, again]) == 1
    assert ledger.insert([again]) == 0
    assert list(ledger.calls()) == [call]


def test_insert_is_one_transaction(ledger: SQLiteLedger) -> None:
    """A record that cannot be kept leaves nothing of its batch behind, progress and known keys included."""
    good = make_call(tags=Tags(extra={"feature": "x"}), price="{}")
    with pytest.raises(ValueError, match="cannot be kept"):
        ledger.insert([good, make_call(cost_status="unpriced")], Progress("s", 9))
    assert ledger.spend()[0].calls == 0
    assert ledger.progress("s") == 0
    assert ledger.insert([good], Progress("s", 9)) == 1
    assert list(ledger.calls()) == [good]
    assert ledger.spend(["feature"])[0].dimensions == {"feature": "x"}


@pytest.mark.parametrize("usage", [Usage(input=10**30), Usage(output=MAX_COUNT + 1), Usage(audio_in=-7)])
def test_counts_beyond_reason_do_not_stop_a_batch(ledger: SQLiteLedger, usage: Usage) -> None:
    """A call with a count that no column holds is kept unpriced, with the reason and the raw usage; the others are kept whole."""
    other, wild = make_call(3), make_call(5, usage=usage, raw_usage='{"x":1}', cost_reasons=("tier",), price="{}")
    assert ledger.insert([other, wild]) == 2
    kept = {call.call_id: call for call in ledger.calls()}
    assert kept[other.call_id] == other
    assert kept[wild.call_id].usage is None
    assert kept[wild.call_id].cost_femto is None
    assert kept[wild.call_id].cost_reasons == ("tier", "usage out of range")
    assert kept[wild.call_id].raw_usage == '{"x":1}'


def test_a_list_cost_beyond_reason_does_not_stop_a_batch(ledger: SQLiteLedger) -> None:
    """Nor does our own figure for a call whose cost the provider has reported."""
    ledger.insert([make_call(3, list_femto=2**63), make_call(5, list_femto=7)])
    assert sorted((call.cost_femto or 0, call.list_femto) for call in ledger.calls()) == [(0, None), (5, 7)]


def test_the_largest_counts_add_up(ledger: SQLiteLedger) -> None:
    """A thousand calls of the largest count still have an exact sum."""
    ledger.insert([make_call(usage=Usage(output=MAX_COUNT)) for _ in range(1000)])
    assert ledger.spend()[0].output_tokens == 1000 * MAX_COUNT


def test_progress(ledger: SQLiteLedger) -> None:
    """Progress is kept with the records, replaced by the next, and forgotten on demand; an unknown segment begins at 0."""
    ledger.insert([make_call()], Progress("one", 100))
    ledger.insert([], Progress("one", 250))
    assert ledger.progress("one") == 250
    assert ledger.progress("two") == 0
    ledger.forget("one")
    ledger.forget("one")
    assert ledger.progress("one") == 0


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("attribution", ["none", "error"])
def test_a_settlement_fills_in_what_is_missing(ledger: SQLiteLedger, together: bool, attribution: str) -> None:
    """A settlement gives the owner to calls of its own batch and of earlier ones, value by value, and keeps what they have."""
    call = make_call(tags=Tags(plan="pro", extra={"feature": "a"}), attribution=attribution)
    settlement = Settlement(call_ids=(call.call_id, "unknown"), tags=Tags(user_id="u_1", plan="free", extra={"feature": "b", "team": "x"}))
    if together:
        assert ledger.insert([settlement, call]) == 1
    else:
        ledger.insert([call])
        assert ledger.insert([settlement]) == 0
    (kept,) = ledger.calls()
    assert kept.tags == Tags(user_id="u_1", plan="pro", extra={"feature": "a", "team": "x"})
    assert kept.attribution == "settled"
    assert ledger.spend(where={"team": "x"})[0].calls == 1


def test_a_settlement_adds_extra_keys_to_a_call_without_any(ledger: SQLiteLedger) -> None:
    """Extra keys of a settlement reach a call that had none, and one without extra keys leaves those of the call."""
    first, second = make_call(), make_call(tags=Tags(extra={"k": "v"}))
    ledger.insert([first, second])
    ledger.insert([Settlement(call_ids=(first.call_id,), tags=Tags(user_id="u", extra={"feature": "b"}))])
    ledger.insert([Settlement(call_ids=(second.call_id,), tags=Tags(user_id="u"))])
    extras = {call.call_id: call.tags.extra for call in ledger.calls()}
    assert extras == {first.call_id: {"feature": "b"}, second.call_id: {"k": "v"}}


@pytest.mark.parametrize("attribution", [name for name in ATTRIBUTIONS if name not in ("none", "error", "request")])
def test_a_settlement_never_replaces_an_owner(ledger: SQLiteLedger, attribution: str) -> None:
    """A call that got its owner in any way is not touched by a settlement, nor by a second one."""
    call = make_call(tags=Tags(user_id="u_1"), attribution=attribution)
    ledger.insert([call, Settlement(call_ids=(call.call_id,), tags=Tags(user_id="u_2", plan="pro"))])
    assert list(ledger.calls()) == [call]


def test_a_settlement_knows_better_than_a_request(ledger: SQLiteLedger) -> None:
    """A user that was only named in a request's body gives way to the one that the application has signed in, once."""
    call = make_call(tags=Tags(user_id="anonymous", route="GET /"), attribution="request")
    ledger.insert([call, Settlement(call_ids=(call.call_id,), tags=Tags(user_id="u_2", plan="pro"))])
    ledger.insert([Settlement(call_ids=(call.call_id,), tags=Tags(user_id="u_3"))])
    (kept,) = ledger.calls()
    assert (kept.tags, kept.attribution) == (Tags(user_id="u_2", plan="pro", route="GET /"), "settled")


def test_every_dimension(ledger: SQLiteLedger) -> None:
    """A call can be grouped by every dimension, and found by its value."""
    tags = Tags(user_id="u", plan="p", tenant_id="t", route="GET /", release="r", session_id="s")
    ledger.insert([make_call(tags=tags, requested_model="q", attribution="tag")])
    (row,) = ledger.spend(DIMENSIONS)
    assert row.dimensions == {
        "user_id": "u",
        "plan": "p",
        "tenant_id": "t",
        "route": "GET /",
        "release": "r",
        "session_id": "s",
        "provider": "openai",
        "model": "m",
        "requested_model": "q",
        "endpoint": "chat",
        "outcome": "ok",
        "attribution": "tag",
        "cost_status": "priced",
        "hour": "2026-11-01T12:00Z",
        "day": "2026-11-01",
        "month": "2026-11",
    }
    for name, value in row.dimensions.items():
        assert ledger.spend(where={name: value})[0].calls == 1
        assert ledger.spend(where={name: f"{value}?"})[0].calls == 0


def test_days_are_in_utc(ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call at a microsecond before midnight UTC belongs to the day that ends then, whatever the machine's time zone."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    midnight = NOON + 12 * 3600 * 1_000_000
    ledger.insert([make_call(at=midnight - 1), make_call(at=midnight)])
    assert sorted(str(row.dimensions["day"]) for row in ledger.spend(["day"])) == ["2026-11-01", "2026-11-02"]


def test_windows_are_half_open(ledger: SQLiteLedger) -> None:
    """A window holds its first microsecond and not its last."""
    ledger.insert([make_call(at=at) for at in (9, 10, 19, 20)])
    assert ledger.spend(window=Window(10, 20))[0].calls == 2
    assert [call.occurred_at for call in ledger.calls(window=Window(since=19))] == [19, 20]
    assert ledger.extent() == (9, 20)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("gpt-*", ["gpt-4", "gpt-4[mini]"]),
        ("*4", ["gpt-4"]),
        ("*", ["gpt-4", "gpt-4[mini]", "g?t", "GPT-4o", "a%_b"]),
        ("g?t", ["g?t"]),
        ("g?*", ["g?t"]),
        ("gpt-4[*", ["gpt-4[mini]"]),
        ("*[mini]", ["gpt-4[mini]"]),
        ("GPT*", ["GPT-4o"]),
        ("a%_b", ["a%_b"]),
        ("gpt", []),
        (None, [None]),
    ],
)
def test_filters(ledger: SQLiteLedger, pattern: str | None, matches: list[str | None]) -> None:
    """A filter is exact and minds case; a star stands for any text, nothing else is special, and None finds what has no value."""
    ledger.insert([make_call(model=model) for model in ("gpt-4", "gpt-4[mini]", "g?t", "GPT-4o", "a%_b", None)])
    assert {row.dimensions["model"] for row in ledger.spend(["model"], {"model": pattern})} == set(matches)


@pytest.mark.parametrize("value", ["'; DROP TABLE calls; --", '" OR 1=1', "u\x1bv", "zoë 🦔 \u202e", "%", "x" * 10_000])
def test_values_are_only_ever_values(ledger: SQLiteLedger, value: str) -> None:
    """No user id, however odd, changes a question or gets lost in it."""
    ledger.insert([make_call(tags=Tags(user_id=value, extra={"feature": value})), make_call(tags=Tags(user_id="other"))])
    assert ledger.spend(where={"user_id": value})[0].calls == 1
    assert ledger.spend(["feature"], {"user_id": value})[0].dimensions == {"feature": value}
    assert ledger.spend(where={"feature": value})[0].calls == 1


@pytest.mark.parametrize(
    "name",
    [
        "user_id; DROP TABLE calls",
        "cost_femto",
        "call_id",
        '$."feature"',
        'feature" || 1 || "',
        "feature') FROM calls --",
        "a.b",
        "",
        "*",
        "\udc80",
    ],
)
def test_unknown_dimensions(ledger: SQLiteLedger, name: str) -> None:
    """A name that is neither a dimension nor a known extra key is refused with both lists, and never becomes SQL or a JSON path."""
    ledger.insert([make_call(tags=Tags(extra={"feature": "x", 'odd"key': "y", "back\\slash": "z"}))])
    for ask in (lambda: ledger.spend([name]), lambda: ledger.spend(where={name: "x"}), lambda: list(ledger.calls({name: None}))):
        with pytest.raises(UnknownDimension, match=r"user_id, plan.*extra keys in this ledger: feature$"):
            ask()
    assert ledger.spend()[0].calls == 1


def test_extra_keys(ledger: SQLiteLedger) -> None:
    """Calls can be grouped by and filtered on the extra keys of their tags, dots and dashes included; those without are None."""
    ledger.insert([make_call(8, tags=Tags(extra={"a.b-c": "x"})), make_call(4, tags=Tags(extra={"a": "*"})), make_call(2)])
    assert [(row.dimensions, row.cost_femto) for row in ledger.spend(["a.b-c"])] == [({"a.b-c": "x"}, 8), ({"a.b-c": None}, 6)]
    assert ledger.spend(["plan", "a.b-c"], {"a.b-c": None})[0].cost_femto == 6
    assert [call.tags.extra for call in ledger.calls({"a": "*"})] == [{"a": "*"}]


def test_keys_that_another_process_brought_are_known(ledger: SQLiteLedger, tmp_path: Path) -> None:
    """A ledger that is open for reports learns of extra keys and prices that come in meanwhile."""
    with closing(open_ledger(str(tmp_path / "ledger.db"), create=False)) as reader:
        with pytest.raises(UnknownDimension, match="no call in this ledger has an extra key"):
            reader.spend(["feature"])
        ledger.insert([make_call(tags=Tags(extra={"feature": "x"}), price='{"p":1}')])
        assert reader.spend(["feature"])[0].calls == 1
        assert reader.insert([make_call(price='{"p":1}')]) == 1
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        assert db.execute("SELECT price FROM prices").fetchall() == [('{"p":1}',)]


def test_dimensions_asked_for_twice(ledger: SQLiteLedger) -> None:
    """A dimension that is named twice counts once."""
    ledger.insert([make_call()])
    assert ledger.spend(["plan", "plan"])[0].dimensions == {"plan": None}


def test_the_file_is_private_and_marked(tmp_path: Path) -> None:
    """A new ledger and its folder belong to this user only, and the file says what it is, in WAL and in which version."""
    path = tmp_path / "new" / "folder" / "ledger.db"
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        ledger.insert([make_call()])
        modes = {file.name: file.stat().st_mode & 0o777 for file in (path.parent, *path.parent.iterdir())}
    assert modes == {"folder": 0o700, "ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"VOIG", "big"),)
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("name", ["has space.db", "q?mode=memory.db", "hash#1.db", "percent%00.db", "ünï.db"])
def test_paths_are_taken_literally(tmp_path: Path, name: str) -> None:
    """What is special in a URL is not special in the path of a ledger."""
    with closing(open_ledger(str(tmp_path / name))) as ledger:
        ledger.insert([make_call()])
    assert (tmp_path / name).stat().st_size > 0


def test_reports_do_not_make_a_ledger(tmp_path: Path) -> None:
    """To open for reports what is not there is an error that helps, and leaves no file or folder; an empty file is no ledger either."""
    for path in (tmp_path / "none" / "ledger.db", tmp_path / "empty.db"):
        (tmp_path / "empty.db").touch()
        with pytest.raises(LedgerError, match=r"there is no ledger at .* yet.*voight doctor"):
            open_ledger(str(path), create=False)
    assert [file.name for file in tmp_path.iterdir()] == ["empty.db"]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    """A ledger below a file, in place of a folder, or with an impossible name is a LedgerError that names the path."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "ledger.db", tmp_path, tmp_path / "nul\x00.db", tmp_path / ("x" * 300)):
        with pytest.raises(LedgerError, match=r"cannot be opened|cannot be written"):
            SQLiteLedger(path)
    with pytest.raises(LedgerError, match="cannot be opened"):
        SQLiteLedger(tmp_path, create=False)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """A text file is refused as foreign, and stays as it was."""
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 500)
    for create in (True, False):
        with pytest.raises(ForeignLedger, match="no SQLite file"):
            SQLiteLedger(path, create=create)
    assert path.read_text() == "Dear diary, " * 500


@pytest.mark.parametrize("application_id", [0, 42])
def test_a_database_of_another_application(tmp_path: Path, application_id: int) -> None:
    """Another application's SQLite file is refused as foreign, and stays as it was."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id = {application_id}")
        db.execute("CREATE TABLE things (x)")
    before = path.read_bytes()
    for create in (True, False):
        with pytest.raises(ForeignLedger, match="another application"):
            SQLiteLedger(path, create=create)
    assert path.read_bytes() == before


def test_a_newer_ledger(tmp_path: Path) -> None:
    """A ledger of a newer schema is refused with what to do."""
    path = tmp_path / "ledger.db"
    SQLiteLedger(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(LedgerError, match=r"newer version.*pip install -U"):
        SQLiteLedger(path)


def test_a_damaged_ledger(tmp_path: Path) -> None:
    """A ledger whose pages are overwritten is a LedgerError that says so."""
    path = tmp_path / "ledger.db"
    with closing(SQLiteLedger(path)) as ledger:
        ledger.insert([make_call() for _ in range(2000)])
    data = bytearray(path.read_bytes())
    whole = 262_144  # the schema, which is read when the file is opened
    data[whole:] = b"\xff" * (len(data) - whole)
    path.write_bytes(data)
    with closing(SQLiteLedger(path)) as ledger, pytest.raises(LedgerError, match="damaged"):
        list(ledger.calls())


def test_a_closed_ledger(tmp_path: Path) -> None:
    """Closing twice is harmless, and a closed ledger answers with LedgerError."""
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.spend()


def test_a_locked_ledger(tmp_path: Path, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that another process holds for too long is a LedgerError; reading goes on meanwhile."""
    ledger.insert([make_call()])
    monkeypatch.setattr("voight_middleware.ledger.sqlite.store.BUSY_SECONDS", 0.05)
    with (
        closing(SQLiteLedger(tmp_path / "ledger.db")) as other,
        closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as db,
    ):
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"locked by another process"):
            other.insert([make_call()])
        assert other.spend()[0].calls == 1


def test_text_that_is_no_unicode(ledger: SQLiteLedger) -> None:
    """A lone surrogate is a ValueError, and the ledger goes on."""
    with pytest.raises(ValueError, match="surrogate"):
        ledger.insert([make_call(model="\ud800")])
    assert ledger.insert([make_call()]) == 1


@pytest.mark.parametrize("url", ["mysql://db/voight", "oracle://db"])
def test_unknown_engines(url: str) -> None:
    """Another engine is refused with a sentence on what there is."""
    with pytest.raises(LedgerError, match="postgresql://"):
        open_ledger(url)


@pytest.mark.parametrize("url", ["", ":memory:", "sqlite://x", "sqlite:///"])
def test_urls_without_a_file(url: str) -> None:
    """A URL that names no file is a LedgerError."""
    with pytest.raises(LedgerError, match="sqlite:///"):
        open_ledger(url)


OPEN_AND_INSERT = """
import sys, time
from voight_middleware.call import Call, new_call_id
from voight_middleware.ledger import open_ledger

folder, start = sys.argv[1], float(sys.argv[2])
for number in range(5):
    time.sleep(max(0, start + number / 4 - time.time()))
    ledger = open_ledger(f"{folder}/{number}.db")
    calls = [Call(call_id=new_call_id(), occurred_at=1, provider="openai", endpoint="chat") for _ in range(10)]
    assert ledger.insert(calls) == 10
    ledger.close()
"""


def test_processes_that_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    """Eight processes that make the same ledger at the same moment all get it, and none of their calls is lost."""
    command = [sys.executable, "-c", OPEN_AND_INSERT, str(tmp_path), str(time.time() + 2)]
    processes = [subprocess.Popen(command) for _ in range(8)]
    assert [process.wait(60) for process in processes] == [0] * 8
    for number in range(5):
        with closing(open_ledger(f"{tmp_path}/{number}.db", create=False)) as ledger:
            assert ledger.spend()[0].calls == 80


# -- jobs: what is submitted now and answered later ----------------------------------------------------------------------------------


def job_call(job: str, **values: Any) -> Call:
    return make_call(call_id=job_call_id(job), job=job, **values)


def unread(job: str, **values: Any) -> Call:
    return job_call(job, cost=None, usage=None, **values)


@pytest.mark.parametrize("told_first", [False, True])
def test_a_job_that_is_told_of_later_is_the_same_call(ledger: SQLiteLedger, told_first: bool) -> None:
    """Its usage comes from whoever reads it, once; an open call never takes anything away again."""
    begun = unread("openai/resp_1", tags=Tags(user_id="u_1"), attribution="tag")
    told = job_call("openai/resp_1", at=NOON + 5_000_000, raw_usage='{"input_tokens":10}', tags=Tags(user_id="worker"))
    for call in (told, begun, told) if told_first else (begun, told, begun):
        ledger.insert([call])
    (kept,) = ledger.calls()
    assert (kept.usage, kept.cost_femto, kept.raw_usage) == (told.usage, told.cost_femto, told.raw_usage)
    if not told_first:
        assert (kept.tags.user_id, kept.occurred_at) == ("u_1", NOON)


def test_the_first_usage_of_a_job_is_kept(ledger: SQLiteLedger) -> None:
    """A file that is read again, perhaps after a change of prices, changes nothing."""
    ledger.insert([job_call("openai/file-1/a", cost=7, raw_usage="{}")])
    ledger.insert([job_call("openai/file-1/a", cost=8, raw_usage="{}")])
    assert [call.cost_femto for call in ledger.calls()] == [7]


def test_a_plain_call_is_never_completed(ledger: SQLiteLedger) -> None:
    """Only a job can be told of later: a call of one id is otherwise the call that came first."""
    first = make_call(cost=None, usage=None, call_id="mine", error="E")
    ledger.insert([first])
    ledger.insert([make_call(call_id="mine", raw_usage="{}", error="E")])
    assert list(ledger.calls()) == [first]


def submission(job: str, user: str | None, *, part_of: str | None = None, attribution: str = "tag") -> Submission:
    return Submission(job=job, submitted_at=NOON, part_of=part_of, tags=Tags(user_id=user, extra={"k": "v"}), attribution=attribution)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_submission_that_comes_after_its_answers_becomes_their_owner(ledger: SQLiteLedger, reverse: bool) -> None:
    """A batch, the file that is a part of it, and the lines of that file, whose names do not mention the batch."""
    ledger.insert([job_call("openai/file-1/a"), job_call("openai/file-1/b"), job_call("openai/file-10/a"), make_call()])
    records = [submission("openai/batch_1", "u_1"), Submission(job="openai/file-1", submitted_at=NOON, part_of="openai/batch_1")]
    for record in reversed(records) if reverse else records:
        ledger.insert([record])
    owned = {call.job: (call.tags.user_id, call.attribution, dict(call.tags.extra)) for call in ledger.calls()}
    assert owned == {
        "openai/file-1/a": ("u_1", "tag", {"k": "v"}),
        "openai/file-1/b": ("u_1", "tag", {"k": "v"}),
        "openai/file-10/a": (None, "none", {}),
        None: (None, "none", {}),
    }


def test_a_submission_is_settled_like_a_call(ledger: SQLiteLedger) -> None:
    """A batch that was made before the user was known; its answers are here already."""
    ledger.insert([job_call("openai/batch_1/a"), submission("openai/batch_1", None, attribution="none")])
    ledger.insert([Settlement(call_ids=("openai/batch_1",), tags=Tags(user_id="u_2", plan="pro"))])
    (call,) = ledger.calls()
    assert (call.tags.user_id, call.tags.plan, call.attribution) == ("u_2", "pro", "settled")
    assert ledger.submissions(["openai/batch_1", "openai/other"]).keys() == {"openai/batch_1"}
    assert ledger.submissions(["openai/batch_1"])["openai/batch_1"].tags.user_id == "u_2"


def test_the_first_submission_of_a_job_is_kept(ledger: SQLiteLedger) -> None:
    """Replayed journals, and ids that are seen again."""
    ledger.insert([submission("openai/batch_1", "u_1")])
    ledger.insert([submission("openai/batch_1", "u_2")])
    assert ledger.submissions(["openai/batch_1"])["openai/batch_1"].tags.user_id == "u_1"


def test_a_ledger_of_the_first_version_is_upgraded(tmp_path: Path) -> None:
    """Its calls stay as they are, new ones can have everything that the new version knows, and two processes may do it at once."""
    old = Path(__file__).with_name("version_1.sql").read_text()
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(old)
    with closing(SQLiteLedger(path)) as ledger, closing(SQLiteLedger(path)) as second:
        assert ledger.schema_version == second.schema_version == VERSION
        (kept,) = ledger.calls()
        assert (kept.call_id, kept.tags.user_id, kept.usage, kept.cost_femto) == ("c1", "u_1", Usage(input=10, output=7), 1_000)
        usage = Usage(image_in=3, image_out=4, cache_read_audio=1, cache_read_image=2)
        new = job_call("openai/x", usage=usage, possibly_billed=1, list_femto=9)
        ledger.insert([new, submission("openai/x", "u_9")])
        assert {call.tags.user_id for call in second.calls()} == {"u_1", "u_9"}
        (total,) = ledger.spend()
        assert (total.input_tokens, total.output_tokens, total.cache_read_tokens) == (16, 11, 3)
        assert second.reprice([(kept, priced(kept, 7))]) == 1
        assert [price.cost_femto for price in ledger.versions("c1")] == [1_000]
    with closing(SQLiteLedger(path, create=False)) as again:
        assert again.schema_version == VERSION


# -- other prices ------------------------------------------------------------------------------------------------------------------


def priced(call: Call, cost: int | None, status: str | None = None, **values: Any) -> Call:
    """*call* with another price."""
    status = status or ("unpriced" if cost is None else "priced")
    return msgspec.structs.replace(call, cost_femto=cost, cost_status=status, **values)


def test_a_new_price_keeps_the_one_before(ledger: SQLiteLedger) -> None:
    """The call has the new price and its counts, and everything of the old one is a version with the time when it was replaced."""
    call = make_call(5, cost_status="partial", cost_reasons=("tier",), price='{"p":1}', list_femto=4, raw_usage="{}")
    usage = Usage(input=10, cache_read=4, image_in=1, tools={"web_search": 2}, output=7)
    parts = (Component(usage=Usage(input=10)), Component(model="other", usage=Usage(output=7)))
    after = priced(call, 9, price='{"p":2}', list_femto=None, cost_reasons=(), usage=usage, components=parts)
    ledger.insert([call, make_call(1)])
    begin = time.time_ns() // 1000
    assert ledger.reprice([(call, after)]) == 1
    assert ledger.call(call.call_id) == after
    (former,) = ledger.versions(call.call_id)
    assert (former.version, former.cost_femto, former.list_femto, former.cost_status) == (1, 5, 4, "partial")
    assert (former.cost_reasons, former.price) == (("tier",), '{"p":1}')
    assert begin <= former.replaced_at <= time.time_ns() // 1000
    assert ledger.spend()[0].cost_femto == 10


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.none() | st.integers(0, 2**63 - 1), min_size=1, max_size=5), min_size=1, max_size=8))
def test_the_original_figures_stay(histories: list[list[int | None]]) -> None:
    """However often calls are repriced: their newest price is what is added up, and as they were priced first they add up as before."""
    with new_ledger() as ledger:
        kept = [make_call(costs[0], tags=Tags(user_id=f"u_{index % 3}"), model=f"m{index}") for index, costs in enumerate(histories)]
        ledger.insert(kept)
        before, calls_before = ledger.spend(["user_id", "cost_status"]), list(ledger.calls())
        newest = {call.call_id: call for call in kept}
        expected = {call.call_id: [call.cost_femto] for call in kept}
        for round_ in range(1, 5):
            changes = [
                (newest[call.call_id], priced(newest[call.call_id], costs[round_]))
                for call, costs in zip(kept, histories, strict=True)
                if len(costs) > round_
            ]
            ledger.reprice(changes)
            for old, new in changes:
                newest[old.call_id] = new
                if new.cost_femto != old.cost_femto:
                    expected[old.call_id].append(new.cost_femto)
        assert ledger.spend(["user_id", "cost_status"], as_priced=True) == before
        assert list(ledger.calls(as_priced=True)) == calls_before
        assert {call.call_id: call for call in ledger.calls()} == newest
        for call_id, costs in expected.items():
            assert [price.cost_femto for price in ledger.versions(call_id)] == costs[:-1]
            assert [price.version for price in ledger.versions(call_id)] == list(range(1, len(costs)))


def test_the_same_price_again_is_no_version(ledger: SQLiteLedger) -> None:
    """Nothing is written where cost, status and reasons stay, nor when the same changes are made again."""
    call = make_call(5, price="{}")
    ledger.insert([call])
    assert ledger.reprice([(call, priced(call, 5, price='{"version": "next"}'))]) == 0
    change = (call, priced(call, 6))
    assert ledger.reprice([change, change]) == 1
    assert ledger.reprice([change]) == 0
    assert len(ledger.versions(call.call_id)) == 1


def test_a_change_of_reasons_is_a_version(ledger: SQLiteLedger) -> None:
    """A call whose price has become doubtful costs the same, and is another one all the same."""
    call = make_call(5)
    ledger.insert([call])
    assert ledger.reprice([(call, priced(call, 5, "partial", cost_reasons=("tier",)))]) == 1
    assert ledger.spend()[0].partial_calls == 1
    assert ledger.spend(as_priced=True)[0].partial_calls == 0
    assert ledger.spend(where={"cost_status": "priced"})[0].calls == 0
    assert ledger.spend(where={"cost_status": "priced"}, as_priced=True)[0].calls == 1


def test_a_call_that_has_changed_meanwhile_is_left_alone(ledger: SQLiteLedger) -> None:
    """A job that was told of between reading and repricing keeps what was told, and another process's price stays."""
    begun, other = unread("openai/resp_1", cost_reasons=("unread",)), make_call(5)
    ledger.insert([begun, other])
    told = job_call("openai/resp_1", cost=8, raw_usage='{"input_tokens":10}')
    ledger.insert([told])
    ledger.reprice([(other, priced(other, 6))])
    assert ledger.reprice([(begun, priced(begun, 3)), (other, priced(other, 7)), (make_call(1), make_call(2))]) == 0
    assert sorted(call.cost_femto or 0 for call in ledger.calls()) == [6, 8]


def test_prices_that_no_column_holds(ledger: SQLiteLedger) -> None:
    """A price beyond reason becomes unpriced, as it does when a call comes in."""
    call = make_call(5)
    ledger.insert([call])
    assert ledger.reprice([(call, priced(call, 2**63))]) == 1
    (kept,) = ledger.calls()
    assert (kept.cost_femto, kept.cost_reasons) == (None, ("usage out of range",))


def test_one_transaction_for_all_changes(ledger: SQLiteLedger) -> None:
    """Where one of them cannot be kept, none is."""
    first, second = make_call(1), make_call(2)
    ledger.insert([first, second])
    with pytest.raises(LedgerError, match="failed"):
        ledger.reprice([(first, priced(first, 3, price="{}")), (second, priced(second, None, "priced"))])
    assert [call.cost_femto for call in ledger.calls()] == [1, 2]
    assert ledger.versions(first.call_id) == []
    assert ledger.reprice([(first, priced(first, 3, price="{}"))]) == 1


def test_reading_in_pieces(ledger: SQLiteLedger) -> None:
    """Pages follow each other without a gap, also where calls happened at the same time, and within a window and a filter."""
    ledger.insert([make_call(at=at, call_id=f"{at}-{number}", model="mn"[number % 2]) for at in (1, 2, 2, 3, 9) for number in range(7)])
    for where, window in (({}, Window()), ({"model": "n"}, Window(2, 9))):
        whole = [call.call_id for call in ledger.calls(where, window)]
        for size in (1, 2, 5, 100):
            pages: list[str] = []
            after = None
            while page := list(ledger.calls(where, window, size, after=after)):
                after = page[-1].occurred_at, page[-1].call_id
                pages += [call.call_id for call in page]
            assert pages == whole


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("0123456789abcdef", "0123456789abcdef"),
        ("01234567", "0123456789abcdef"),
        ("0123456", None),
        ("", None),
        ("mine", "mine"),
        ("abcdefgh", "abcdefgh"),
        ("abcdefgh-", "abcdefgh-2"),
        ("01234567%", None),
        ("01234567*", None),
        ("zoë zoë zo", "zoë zoë zoë"),
    ],
)
def test_a_call_by_its_id(ledger: SQLiteLedger, asked: str, found: str | None) -> None:
    """The whole id, or its beginning from eight characters on where no other call begins so."""
    ledger.insert([make_call(call_id=name) for name in ("0123456789abcdef", "mine", "abcdefgh", "abcdefgh-2", "zoë zoë zoë")])
    call = ledger.call(asked)
    assert (call and call.call_id) == found


def test_a_beginning_that_several_calls_have(ledger: SQLiteLedger) -> None:
    """It is refused, with two of them."""
    ledger.insert([make_call(call_id=f"01234567-{number}") for number in range(3)])
    with pytest.raises(LedgerError, match="several calls begin with '01234567', such as 01234567-0 and 01234567-1"):
        ledger.call("01234567")


def test_two_hundred_thousand_calls_add_up(ledger: SQLiteLedger) -> None:
    """The total, and that of each user, is the sum of the calls to the last femto-dollar, before and after a repricing."""
    rng = random.Random(4)
    costs: list[tuple[int, int | None]] = []
    for start in range(0, 200_000, 10_000):
        batch = [(rng.randrange(50), None if rng.random() < 0.01 else rng.randrange(10 ** rng.randrange(1, 18))) for _ in range(10_000)]
        calls = [
            make_call(cost, at=NOON + start, call_id=f"{start + number}", tags=Tags(user_id=f"u_{user}"))
            for number, (user, cost) in enumerate(batch)
        ]
        ledger.insert(calls)
        costs += batch
    original = ledger.spend()
    assert original[0].cost_femto == sum(cost for _, cost in costs if cost is not None)
    assert original[0].unpriced_calls == sum(cost is None for _, cost in costs)
    by_user = {row.dimensions["user_id"]: row.cost_femto for row in ledger.spend(["user_id"])}
    assert by_user == {f"u_{user}": sum(cost for one, cost in costs if one == user and cost is not None) for user in range(50)}
    some = list(ledger.calls(where={"user_id": "u_7"}))
    assert ledger.reprice([(call, priced(call, rng.randrange(10**15))) for call in some]) == len(some)
    assert ledger.spend()[0].cost_femto == sum(call.cost_femto for call in ledger.calls() if call.cost_femto is not None)
    assert ledger.spend(as_priced=True) == original
