"""The meter: what was finished gets to the ledger and to the listeners, and no fault of ours gets to the application."""

import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.config.settings import Settings
from voight_middleware.context.context import TagContext
from voight_middleware.diagnostics import counters
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.ingest import drain
from voight_middleware.pipeline.journal import segments
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.pipeline.meter import Meter, current_meter, swap_meter
from voight_middleware.records.call import Call
from voight_middleware.records.tags import NO_TAGS, Owner, Tags

NewCall = Callable[..., Call]
MakeMeter = Callable[..., Meter]
NOBODY = TagContext(None, NO_TAGS)
NOBODYS = Owner(NO_TAGS, "none")


@pytest.fixture
def make_meter(tmp_path: Path) -> Iterator[MakeMeter]:
    """Makes meters on one ledger and journal, which are closed behind the test."""
    made: list[Meter] = []

    def make(*listeners: Callable[[Call], None], ledger: Path = tmp_path / "ledger.db", **values: Any) -> Meter:
        settings = Settings.from_environment(ledger=ledger, journal=tmp_path / "journal", environ={}, **values)
        made.append(Meter(settings, listeners))
        return made[-1]

    yield make
    for meter in made:
        meter.close(0.2)


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[IngestLock]:
    """Another process that is the elected ingester of the folder, and does nothing."""
    other = IngestLock(tmp_path / "journal")
    assert other.acquire()
    yield other
    other.release()


def finish(meter: Meter, call: Call, owner: Owner = NOBODYS) -> Call:
    meter.finish(call, NOBODY, owner)
    return call


def kept(meter: Meter) -> list[str]:
    ledger = open_ledger(meter.settings.ledger)
    try:
        return sorted(call.call_id for call in ledger.calls())
    finally:
        ledger.close()


@pytest.mark.slow
def test_flush_is_true_once_everything_is_in_the_ledger(make_meter: MakeMeter, new_call: NewCall) -> None:
    """After `flush()` a report sees every call that was finished before it."""
    meter = make_meter()
    assert meter.flush(), "nothing to do is done"
    assert not Path(meter.settings.ledger.removeprefix("sqlite:///")).exists()
    for count in (1, 3, 700):
        before = len(kept(meter))
        calls = [finish(meter, new_call()) for _ in range(count)]
        assert meter.flush()
        assert {call.call_id for call in calls} <= set(kept(meter))
        assert len(kept(meter)) == before + count


def test_flush_is_false_while_another_process_is_elected_and_behind(
    make_meter: MakeMeter, new_call: NewCall, other_process: IngestLock
) -> None:
    """It does not claim what is not so; once the other one is gone this process takes over."""
    meter = make_meter()
    call = finish(meter, new_call())
    assert not meter.flush(0.1)
    other_process.release()
    assert meter.flush()
    assert kept(meter) == [call.call_id]


@pytest.mark.slow
def test_flush_is_true_when_the_other_process_has_brought_it_in(make_meter: MakeMeter, new_call: NewCall) -> None:
    """Where another process ingests, `flush()` waits for its progress."""
    first, second = make_meter(), make_meter()
    finish(first, new_call())
    assert first.flush()
    call = finish(second, new_call())
    flushed: list[bool] = []
    waiting = threading.Thread(target=lambda: flushed.append(second.flush(30)))
    waiting.start()
    waiting.join()
    assert flushed == [True]
    assert call.call_id in kept(first)


def test_listeners_hear_each_call_once_and_priced(make_meter: MakeMeter, new_call: NewCall) -> None:
    """A listener is handed each call of this process, with usage and cost, after `flush()` at the latest."""
    heard: list[Call] = []
    meter = make_meter(heard.append)
    calls = [finish(meter, new_call()) for _ in range(10)]
    assert meter.flush()
    assert meter.flush()
    assert sorted(call.call_id for call in heard) == sorted(call.call_id for call in calls)
    assert {call.cost_usd for call in heard} == {Decimal("0.0000013")}
    assert {call.cost_status for call in heard} == {"priced"}


def test_listeners_hear_where_another_process_is_elected(make_meter: MakeMeter, new_call: NewCall, other_process: IngestLock) -> None:
    """They hear priced calls, once, also when this process becomes the ingester afterwards."""
    heard: list[Call] = []
    meter = make_meter(heard.append)
    call = finish(meter, new_call())
    assert not meter.flush(0.1)
    assert [(one.call_id, one.cost_status) for one in heard] == [(call.call_id, "priced")]
    other_process.release()
    assert meter.flush()
    assert len(heard) == 1
    assert kept(meter) == [call.call_id]


def test_listeners_hear_what_another_process_has_brought_in(make_meter: MakeMeter, new_call: NewCall) -> None:
    """A `voight top` that drains the journal before this process's first round takes no call from its listeners."""
    heard: list[Call] = []
    meter = make_meter(heard.append)
    for _ in range(20):
        call = finish(meter, new_call())
        drain(meter.settings.ledger, meter.settings.journal)
        assert meter.flush()
        assert heard[-1].call_id == call.call_id
    assert len(heard) == 20


def test_a_raising_listener_is_isolated_and_counted(make_meter: MakeMeter, new_call: NewCall, caplog: pytest.LogCaptureFixture) -> None:
    """The other listeners, the ledger and the application are not affected; the log says so once."""

    class ListenerFault(Exception):
        pass

    def bad(call: Call) -> None:
        raise ListenerFault(call.call_id)

    heard: list[Call] = []
    meter = make_meter(bad, heard.append)
    calls = [finish(meter, new_call()) for _ in range(3)]
    assert meter.flush()
    assert counters["listener_errors"] == 3
    assert len(heard) == 3
    assert kept(meter) == sorted(call.call_id for call in calls)
    assert sum("ListenerFault" in record.getMessage() for record in caplog.records) == 1


def in_the_way(path: Path) -> None:
    path.mkdir()


def corrupt(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)


def no_database(path: Path) -> None:
    path.write_text("Dear diary,\n" * 500)


def foreign(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE accounts (id INTEGER)")
    db.commit()
    db.close()


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [in_the_way, corrupt, no_database, foreign])
def test_an_unusable_ledger_costs_no_call(
    make_meter: MakeMeter, new_call: NewCall, tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing raises, `flush()` is False, the file is left as it was, and the calls come in once it is out of the way."""
    path = tmp_path / f"{spoil.__name__}.db"
    spoil(path)
    content = path.read_bytes() if path.is_file() else None
    heard: list[Call] = []
    meter = make_meter(heard.append, ledger=path)
    calls = [finish(meter, new_call()) for _ in range(3)]
    assert not meter.flush(0.1)
    assert not meter.flush(0.1)
    assert counters["ledger_errors"] >= 2
    assert len(heard) == 3, "listeners do not depend on the ledger"
    assert len(segments(meter.settings.journal)) == 1
    told = [record for record in caplog.records if str(path) in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert (path.read_bytes() if path.is_file() else None) == content
    if content is None:
        path.rmdir()
    else:
        path.rename(tmp_path / "aside")
    assert meter.flush()
    assert kept(meter) == sorted(call.call_id for call in calls)
    assert len(heard) == 3


def test_a_ledger_that_is_moved_aside_is_begun_anew(make_meter: MakeMeter, new_call: NewCall, tmp_path: Path) -> None:
    """What an operator moves away or deletes under a running process is not written to any longer: no call goes into a lost file."""
    meter = make_meter()
    finish(meter, new_call())
    assert meter.flush()
    (tmp_path / "aside").mkdir()
    for path in tmp_path.glob("ledger.db*"):
        path.rename(tmp_path / "aside" / path.name)
    calls = [finish(meter, new_call()) for _ in range(3)]
    assert meter.flush()
    assert {call.call_id for call in calls} <= set(kept(meter))


def test_a_ledger_that_is_damaged_under_way_is_used_again_once_mended(make_meter: MakeMeter, new_call: NewCall, tmp_path: Path) -> None:
    """An error of an open ledger is not for ever: the next round opens it again."""
    meter = make_meter()
    first = finish(meter, new_call())
    assert meter.flush()
    meter.close()
    meter = make_meter()
    assert meter.flush()
    shutil.copy(tmp_path / "ledger.db", tmp_path / "good")
    (tmp_path / "ledger.db").write_bytes(b"\0" * 20_000)
    second = finish(meter, new_call())
    assert not meter.flush(0.1)
    shutil.copy(tmp_path / "good", tmp_path / "ledger.db")
    assert meter.flush()
    assert kept(meter) == sorted([first.call_id, second.call_id])


def test_an_unwritable_journal_keeps_calls_and_flush_says_so(make_meter: MakeMeter, new_call: NewCall, tmp_path: Path) -> None:
    """While the journal's folder cannot be made, calls wait in memory and `flush()` is False; then they come in."""
    (tmp_path / "journal").write_text("in the way")
    meter = make_meter()
    calls = [finish(meter, new_call()) for _ in range(3)]
    assert not meter.flush(0.1)
    (tmp_path / "journal").unlink()
    assert meter.flush()
    assert kept(meter) == sorted(call.call_id for call in calls)


def test_finish_raises_nothing_whatever_it_is_given(make_meter: MakeMeter, new_call: NewCall) -> None:
    """A frame, a call and an owner that break are counted as errors of our own."""

    class Broken:
        def known(self) -> Owner:
            raise RuntimeError("broken")

    meter = make_meter()
    meter.finish(new_call(), TagContext(Broken(), NO_TAGS), Owner(NO_TAGS, "none"))  # type: ignore[arg-type]
    meter.finish(new_call(model=object()), NOBODY, Owner(NO_TAGS, "none"))
    meter.attribute_late([1, object()], Owner(NO_TAGS, "none"))  # type: ignore[list-item]
    assert counters["internal_errors"] == 3
    call = finish(meter, new_call())
    assert meter.flush()
    assert call.call_id in kept(meter)


def test_the_release_is_stamped_where_a_call_has_none(make_meter: MakeMeter, new_call: NewCall) -> None:
    """The configured release is the default; a call's own wins."""
    meter = make_meter(release="2026.11.3")
    plain = finish(meter, new_call(), Owner(Tags(user_id="u"), "tag"))
    own = finish(meter, new_call(), Owner(Tags(user_id="u", release="canary"), "tag"))
    assert meter.flush()
    ledger = open_ledger(meter.settings.ledger)
    found = {call.call_id: (call.tags.user_id, call.tags.release, call.attribution) for call in ledger.calls()}
    ledger.close()
    assert found == {plain.call_id: ("u", "2026.11.3", "tag"), own.call_id: ("u", "canary", "tag")}


def test_the_owner_is_the_one_at_the_call_and_else_the_one_at_its_end(make_meter: MakeMeter, new_call: NewCall) -> None:
    """What was captured when the call began wins over what the frame says later, unless nobody was known then."""
    meter = make_meter()
    later = TagContext(None, Tags(user_id="later"))
    captured, unknown = new_call(), new_call()
    meter.finish(captured, later, Owner(Tags(user_id="then"), "getter"))
    meter.finish(unknown, later, Owner(NO_TAGS, "none"))
    assert (captured.tags.user_id, captured.attribution) == ("then", "getter")
    assert (unknown.tags.user_id, unknown.attribution) == ("later", "tag")


def test_two_meters_share_the_work_and_the_second_takes_over(make_meter: MakeMeter, new_call: NewCall) -> None:
    """One of two is elected; when it closes, the other one goes on, and every call is there once."""
    first, second = make_meter(), make_meter()
    calls = [finish(meter, new_call()) for _ in range(20) for meter in (first, second)]
    assert first.flush()
    assert second.flush()
    assert first.close()
    calls.append(finish(second, new_call()))
    assert second.flush()
    assert kept(second) == sorted(call.call_id for call in calls)
    assert second.close()
    assert segments(second.settings.journal) == []


def test_a_closed_meter_still_meters(make_meter: MakeMeter, new_call: NewCall) -> None:
    """A call that ends after `close()`, such as a late stream, is not lost."""
    meter = make_meter()
    finish(meter, new_call())
    assert meter.close()
    finish(meter, new_call())
    assert meter.flush()
    assert len(kept(meter)) == 2


@pytest.fixture
def own_meter() -> Iterator[None]:
    """Puts the process's own meter back behind a test that configures."""
    before = swap_meter(None)
    yield
    made = swap_meter(before)
    if made is not None:
        made.close()


def spend(**tags: Any) -> str:
    return voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}, tags=tags)


@pytest.mark.usefixtures("own_meter")
def test_configuring_again_loses_nothing(tmp_path: Path) -> None:
    """What the first meter had written is in its ledger, and the second takes over from there."""
    ids = []
    for name in ("one", "two", "one"):
        voight.configure(ledger=tmp_path / f"{name}.db")
        ids.append(spend())
    assert voight.flush()
    for name, expected in (("one", [ids[0], ids[2]]), ("two", [ids[1]])):
        ledger = open_ledger(f"sqlite:///{tmp_path / name}.db")
        assert sorted(call.call_id for call in ledger.calls()) == sorted(expected)
        ledger.close()


@pytest.mark.usefixtures("own_meter")
def test_disabled_meters_nothing(tmp_path: Path) -> None:
    """With `enabled=False` no file is made, and the application notices nothing."""
    voight.configure(ledger=tmp_path / "off" / "ledger.db", enabled=False)
    assert spend()
    assert voight.flush()
    assert not (tmp_path / "off").exists()


@pytest.mark.usefixtures("own_meter")
@pytest.mark.parametrize(
    ("name", "value"), [("VOIGHT_ENABLED", "perhaps"), ("VOIGHT_LEDGER", "~no-such-user/x"), ("VOIGHT_LEDGER", ":memory:")]
)
def test_a_bad_environment_is_logged_and_metering_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised into the application's request: the defaults are used, and the log says why."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert current_meter().settings.ledger == f"sqlite:///{tmp_path}/voight/ledger.db"
    assert any(value in record.getMessage() for record in caplog.records)


def test_tags_of_the_process_are_below_all_others(tmp_path: Path, new_call: Callable[..., Call]) -> None:
    """Every call has them; what a call says itself wins, and personal data in them is guarded."""
    tags = {"app": "shop", "plan": "internal", "region": "eu", "mail": "alice@example.com"}
    meter = Meter(Settings.from_environment(ledger=tmp_path / "l.db", tags=tags, release="r1", environ={}))
    own = Tags(user_id="u_1", plan="pro", extra={"region": "us", "feature": "x"})
    meter.finish(new_call(call_id="a"), TagContext(None, NO_TAGS), Owner(own, "tag"))
    meter.finish(new_call(call_id="b"), TagContext(None, NO_TAGS), Owner(NO_TAGS, "none"))
    assert meter.flush()
    meter.close()
    with closing(open_ledger(str(tmp_path / "l.db"))) as ledger:
        calls = {call.call_id: call.tags for call in ledger.calls()}
        assert {row.dimensions["app"]: row.calls for row in ledger.spend(["app"])} == {"shop": 2}
    assert (calls["a"].user_id, calls["a"].plan, calls["a"].release) == ("u_1", "pro", "r1")
    assert {key: calls["a"].extra[key] for key in ("app", "region", "feature")} == {"app": "shop", "region": "us", "feature": "x"}
    assert (calls["b"].user_id, calls["b"].plan, calls["b"].extra["region"]) == (None, "internal", "eu")
    assert calls["a"].extra["mail"].startswith("email:v0:")
