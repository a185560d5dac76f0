"""Data rights: a person is nowhere in the files any more, totals stay to the femto-dollar, and every step can be broken off."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import voight_middleware as voight
from voight_middleware.cli import main
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import Ledger, LedgerError, open_ledger
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.maintenance.erasure import erase
from voight_middleware.maintenance.retention import retain
from voight_middleware.pipeline.ingest import drain
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.records.call import Call, Submission
from voight_middleware.records.tags import Tags

from ..support.factories import DAY
from ..support.patching import Patch
from ..support.servers.ledgers import ENGINES, empty_ledger

ALICE = "alice-9d3f"
NOON = 1_790_000_000_000_000


in_a_file = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
"""What is about SQLite's file, or about the command and not the ledger."""


@pytest.fixture(params=ENGINES)
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger of each engine."""
    return empty_ledger(request, request.param, tmp_path)


@pytest.fixture
def place(ledger_url: str, tmp_path: Path) -> Settings:
    return Settings.from_environment(ledger=ledger_url, journal=tmp_path / "ledger.db.journal", environ={})


@pytest.fixture
def ledger(place: Settings, new_call: Callable[..., Call]) -> Iterator[Ledger]:
    """Three hundred calls of Alice among those of others, who name her too, and a batch of hers."""
    with closing(open_ledger(place.ledger)) as ledger:
        calls = []
        for number in range(900):
            user = (ALICE, "bob", None)[number % 3]
            extra = {"asked_by": ALICE} if number % 300 == 1 else {"thread": f"{user}/7", "feature": "chat"}
            tags = Tags(user_id=user, plan="pro", tenant_id=ALICE if number % 100 == 2 else "t", session_id=f"s-{user}", extra=extra)
            call = new_call(occurred_at=NOON + number * DAY // 30, tags=tags, attribution="tag", response_id=f"r{number}")
            calls.append(msgspec.structs.replace(call, cost_femto=number * 7 + 1, cost_status="priced"))
        ledger.insert(calls)
        ledger.insert([Submission(job="openai/batch_1", submitted_at=NOON, tags=Tags(user_id=ALICE), attribution="tag")])
        yield ledger


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.slow
@in_a_file
def test_a_person_is_nowhere_any_more(ledger: SQLiteLedger, place: Settings, tmp_path: Path) -> None:
    """The bytes of ledger, write-ahead log and free pages are searched; what everything cost stays."""
    before, plans = ledger.spend(), ledger.spend(["plan", "month"])
    found = ledger.personal_data([ALICE])
    assert (found.calls, found.elsewhere, found.submissions) == (300, 9, 1)
    assert ALICE.encode() in bytes_of(tmp_path)

    done = erase(ledger, place, [ALICE])

    assert (done.found, done.remains, done.waiting) == (found, (), ())
    assert ALICE.encode() not in bytes_of(tmp_path)
    assert (ledger.spend(), ledger.spend(["plan", "month"])) == (before, plans)
    users = {row.dimensions["user_id"]: (row.calls, row.cost_femto) for row in ledger.spend(["user_id"])}
    assert users[done.token] == (found.calls, found.cost_femto)
    assert users.keys() == {done.token, "bob", None}
    assert users == {row.dimensions["user_id"]: (row.calls, row.cost_femto) for row in ledger.spend(["user_id"], where={"plan": "p*"})}
    kept = list(ledger.calls({"user_id": done.token}))
    assert {(call.tags.session_id, call.response_id, call.tags.extra["feature"]) for call in kept} == {(None, None, "chat")}
    assert {call.tags.session_id for call in ledger.calls({"user_id": "bob"})} == {"s-bob"}


@pytest.mark.slow
def test_a_second_run_changes_nothing(ledger: Ledger, place: Settings) -> None:
    """Whoever is erased already is not found, and no other token is made."""
    erase(ledger, place, [ALICE])
    before = list(ledger.calls())
    again = erase(ledger, place, [ALICE])
    assert (bool(again.found), again.token, again.remains) == (False, None, ())
    assert list(ledger.calls()) == before


@pytest.mark.slow
def test_a_dry_run_only_looks(ledger: Ledger, place: Settings) -> None:
    """What would be erased is counted, and stays."""
    before = list(ledger.calls())
    looked = erase(ledger, place, [ALICE], dry_run=True)
    assert (looked.found.calls, looked.token) == (300, None)
    assert list(ledger.calls()) == before


def test_others_with_a_similar_id_are_not_touched(ledger: Ledger, place: Settings) -> None:
    """An id is compared whole; a short one is not looked for inside other text."""
    before = ledger.spend(["user_id"])
    assert not erase(ledger, place, ["alice"]).found
    assert not erase(ledger, place, ["7"]).found
    assert ledger.spend(["user_id"]) == before


@in_a_file
@pytest.mark.parametrize("alice", [ALICE, r'd"alice\9d3f'])
def test_what_is_still_in_journals(alice: str, place: Settings, new_call: Callable[..., Call], tmp_path: Path) -> None:
    """Records of a dead process are brought in first; those of a living one are overwritten where they have been ingested."""
    dead, living = Journal(place.journal), Journal(place.journal)
    for journal in (dead, living):
        for user in (alice, "bob"):
            journal.append(new_call(tags=Tags(user_id=user), attribution="tag"))
    dead.rotate()
    drain(place.ledger, place.journal)
    (place.journal / "rejected.jsonl").write_text(f'{{"torn": "{alice}')
    (place.journal / "rejected.log").write_text(f"2026-11-21T17:00:00Z segment:0 refused: Failing row contains ({alice})")
    with closing(SQLiteLedger(Path(place.ledger.removeprefix("sqlite:///")))) as ledger:
        done = erase(ledger, place, [alice], wait=0)
        assert (done.found.calls, done.waiting) == (2, ())
        assert b"9d3f" not in bytes_of(tmp_path)
        living.append(new_call(tags=Tags(user_id="carol"), attribution="tag"))
        living.rotate()
        drain(place.ledger, place.journal)
        assert {(row.dimensions["user_id"], row.calls) for row in ledger.spend(["user_id"])} == {(done.token, 2), ("bob", 2), ("carol", 1)}


def test_a_living_application(voight_calls: Any) -> None:
    """What this very process has just written is waited for."""
    for user in (ALICE, "bob"):
        voight.record(provider="openai", model="gpt-4o-mini", usage={"prompt_tokens": 9, "completion_tokens": 1}, tags={"user_id": user})
    settings = current_meter().settings
    voight.flush()
    with closing(SQLiteLedger(Path(settings.ledger.removeprefix("sqlite:///")))) as ledger:
        done = erase(ledger, settings, [ALICE])
    assert (done.found.calls, done.remains, done.waiting) == (1, (), ())
    assert {call.tags.user_id for call in voight_calls} == {done.token, "bob"}


KILLED = """
import sys
from pathlib import Path
from voight_middleware.ledger.sqlite import SQLiteLedger
from voight_middleware.maintenance.erasure import erase
from voight_middleware.config.settings import Settings

class Ledger(SQLiteLedger):
    def purge(self, names):
        print("erased", flush=True)
        sys.stdin.read()

place = Settings.from_environment(ledger=sys.argv[1], environ={})
erase(Ledger(Path(sys.argv[1])), place, [sys.argv[2]])
"""


@in_a_file
def test_killed_in_the_middle(ledger: SQLiteLedger, place: Settings, scripts: Any, tmp_path: Path) -> None:
    """After the rows are changed and before the file is rewritten: another run goes on from there."""
    total = ledger.spend()
    process = scripts.start(KILLED, str(ledger.path), ALICE)
    assert process.stdout.readline() == "erased\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert ALICE.encode() in bytes_of(tmp_path)
    again = erase(ledger, place, [ALICE])
    assert (bool(again.found), again.remains) == (False, ())
    for script in tmp_path.glob("script_*.py"):
        script.unlink()
    assert ALICE.encode() not in bytes_of(tmp_path)
    assert ledger.spend() == total


@pytest.mark.slow
@in_a_file
def test_a_reader_keeps_the_file(ledger: SQLiteLedger, place: Settings, patch: Patch) -> None:
    """While another process reads, the file cannot be rewritten: that is said, and a later run does it."""
    patch("BUSY_SECONDS", 0.2)
    with closing(SQLiteLedger(ledger.path)) as other, closing(SQLiteLedger(ledger.path)) as impatient:
        reading = other.calls()
        next(reading)
        with pytest.raises(LedgerError, match="reading"):
            erase(impatient, place, [ALICE])
        reading.close()
    assert erase(ledger, place, [ALICE]).remains == ()


@pytest.mark.slow
def test_retention(ledger: Ledger) -> None:
    """What is older is deleted with its former prices and jobs, what is younger stays, and a second run finds nothing."""
    calls = list(ledger.calls())
    ledger.reprice([(call, msgspec.structs.replace(call, cost_femto=5, cost_status="priced")) for call in calls[:200]])
    until = NOON + 4 * DAY
    old = [call for call in calls if call.occurred_at < until]
    looked = retain(ledger, until, dry_run=True)
    assert (looked.calls, looked.former_prices, looked.submissions) == (len(old), 120, 1)
    batches: list[int] = []
    assert retain(ledger, until, done=batches.append) == looked
    assert sum(batches) == len(old) == 120
    assert [call.call_id for call in ledger.calls()] == [call.call_id for call in calls[120:]]
    assert not any(vars_of(retain(ledger, until)))
    assert ledger.spend(["user_id"])[0].calls == 260
    assert ledger.spend(["day"]) == ledger.spend(["day"], {"outcome": "ok"})


def vars_of(expired: Any) -> tuple[int, int, int]:
    return expired.calls, expired.former_prices, expired.submissions


def test_retention_in_batches(ledger: Ledger, patch: Patch) -> None:
    """Broken off between two batches, the oldest are gone and the rest is whole."""
    patch("BATCH", 100, within="retention")

    def broken(calls: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retain(ledger, NOON + 20 * DAY, done=broken)
    assert ledger.spend()[0].calls == 800
    batches: list[int] = []
    assert retain(ledger, NOON + 20 * DAY, done=batches.append).calls == 500
    assert batches == [100] * 5 + [0]


# -- as commands -------------------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
@in_a_file
def test_erase_asks_for_yes(ledger: SQLiteLedger, place: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --yes nothing is changed, and what would be is shown; with it, it is done once."""
    code, out, _ = run(capsys, "erase", ALICE, "--ledger", str(ledger.path))
    assert (code, ledger.personal_data([ALICE]).calls) == (1, 300)
    assert "300 calls" in out
    assert "--yes" in out
    assert ALICE not in out
    code, out, _ = run(capsys, "erase", ALICE, "--dry-run", "--ledger", str(ledger.path))
    assert (code, ledger.personal_data([ALICE]).calls) == (0, 300)
    code, out, _ = run(capsys, "erase", ALICE, "--yes", "--ledger", str(ledger.path), "--format", "json")
    answer = json.loads(out)
    assert (code, answer["calls"], answer["remains"]) == (0, 300, [])
    assert answer["token"].startswith("erased:")
    code, out, _ = run(capsys, "erase", ALICE, "--yes", "--ledger", str(ledger.path))
    assert code == 0
    assert "no data" in out


@pytest.mark.slow
@in_a_file
def test_retention_as_a_command(ledger: SQLiteLedger, capsys: pytest.CaptureFixture[str]) -> None:
    """--keep takes days; --dry-run only counts; without --yes nothing is deleted."""
    for arguments, code, left in ((("--dry-run",), 0, 900), ((), 1, 900), (("--yes",), 0, 0), (("--yes",), 0, 0)):
        found, out, _ = run(capsys, "retention", "--keep", "1d", *arguments, "--ledger", str(ledger.path))
        assert (found, ledger.spend()[0].calls) == (code, left), out


@pytest.mark.slow
@in_a_file
def test_other_spans(ledger: SQLiteLedger, capsys: pytest.CaptureFixture[str]) -> None:
    """A span that cannot be read, or that would delete everything, is an error, and nothing is deleted."""
    for keep in ("0d", "-1d", "400", "4y", "d", "99999999d", "1e3d"):
        code, _, errors = run(capsys, "retention", f"--keep={keep}", "--yes", "--ledger", str(ledger.path))
        assert (code, ledger.spend()[0].calls) == (1, 900), keep
        assert "--keep" in errors


@pytest.mark.slow
@in_a_file
def test_nobody_is_erased_by_a_pattern(ledger: SQLiteLedger, capsys: pytest.CaptureFixture[str]) -> None:
    """One person at a time, by a whole id."""
    before = ledger.spend(["user_id"])
    for user in ("", " ", "*", "a*"):
        code, _, _ = run(capsys, "erase", user, "--yes", "--ledger", str(ledger.path))
        assert code in (0, 1)
        assert ledger.spend(["user_id"]) == before, user
