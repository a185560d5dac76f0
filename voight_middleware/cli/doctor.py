"""``voight doctor``: what is installed, configured and writable, and one line on what to do about the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from voight_middleware.cli import doctor_links
from voight_middleware.cli.doctor_journal import account, of_journal, owner_of
from voight_middleware.cli.doctor_settings import of_installed, of_settings, of_variables
from voight_middleware.cli.findings import Finding, writable
from voight_middleware.cli.render import percent
from voight_middleware.config.ledger_url import sqlite_path
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import Ledger, LedgerError, Window, open_ledger
from voight_middleware.pipeline.journal import segments
from voight_middleware.reports.unattributed_share import unattributed_share

_WEEK = 7 * 24 * 3600 * 1_000_000
ANSWER_SECONDS = 30.0
"""How long the ledger has to answer everything."""


class _Answers:
    """What a ledger has answered by now."""

    def __init__(self) -> None:
        self.ledger: list[Finding] = []
        self.week: list[Finding] = []
        self.offsets: dict[str, int] = {}
        self.failed: BaseException | None = None


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; raises nothing that a broken ledger or journal could cause, and waits for no ledger for ever."""
    findings = [*of_installed(), *of_settings(settings), *of_variables(), *_links(settings)]
    answers = _Answers()
    if _is_missing(settings):
        answers.ledger.append(Finding("ledger", "calls", "no ledger yet: it appears with the first call that is kept"))
    else:
        answers.ledger += _state(_ask(settings, answers), answers, settings)
    path = _ledger_file(settings)
    if path is not None and owner_of(path) is None:
        findings.append(writable("ledger", path, "calls stay in the journal"))
    return [*findings, *answers.ledger, *of_journal(settings, answers.offsets), *answers.week]


def _ask(settings: Settings, answers: _Answers) -> bool:
    """Ask the ledger all there is to ask; whether that came to an end in time."""

    def ask() -> None:
        try:
            ledger = open_ledger(settings.ledger, create=False)
            try:
                about = dict(ledger.info())
                answers.ledger += _ledger(settings, ledger, about)
                for name in _segments(settings):
                    answers.offsets[name] = ledger.progress(name)
                if _may_read(about):
                    answers.week += _week(ledger)
            finally:
                ledger.close()
        except BaseException as error:
            answers.failed = error

    # In a thread: nothing but its own timeouts ends a call to a server that does not answer, and there may be none.
    thread = threading.Thread(target=ask, name="voight-doctor", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return not thread.is_alive()


def _segments(settings: Settings) -> list[str]:
    try:
        return [segment.name for segment in segments(settings.journal)] if settings.journal.is_dir() else []
    except OSError:  # what is said of the journal says so
        return []


def _may_read(about: dict[str, str]) -> bool:
    """Whether this role may ask for calls: one that only brings them in need not."""
    return about.get("may read", "yes").partition(":")[0] != "no"


def _state(in_time: bool, answers: _Answers, settings: Settings) -> Iterator[Finding]:
    """What keeps the ledger from answering."""
    error, ingest = answers.failed, settings.ingest
    if isinstance(error, LedgerError):
        advice = "calls stay in the journal until this is put right" if ingest else "ask again where voight ingest runs"
        foreign = None if (file := _ledger_file(settings)) is None else owner_of(file)
        if foreign is not None:
            advice = f"{file} belongs to {foreign}, and this is {account()}: sudo -u {foreign} voight doctor"
        yield Finding("ledger", "state", str(error), advice, fatal=ingest and foreign is None)
    elif isinstance(error, OSError):
        yield Finding("ledger", "state", str(error), "make it readable for this account, or ask again as another", fatal=ingest)
    elif error is not None:
        raise error
    elif not in_time:
        value = f"no whole answer within {ANSWER_SECONDS:.0f} seconds"
        yield Finding("ledger", "state", value, "look at the server, and at the network between", fatal=not answers.ledger)


def _ledger(settings: Settings, ledger: Ledger, about: dict[str, str]) -> Iterator[Finding]:
    section = "ledger"
    for name, value in about.items():
        no, _, advice = value.partition(": ")
        if name == "may write" and no == "no":
            # Who only asks for reports has no journal here.
            needed = settings.ingest and settings.journal.is_dir()
            yield Finding(section, name, "no", advice or "grant it to this role" if needed else None, fatal=needed)
        else:
            yield Finding(section, name, value)
    if not _may_read(about):
        return
    (total,) = ledger.spend()
    yield Finding(section, "calls", f"{total.calls:,}")
    extent = ledger.time_range()
    if extent is not None:
        yield Finding(section, "oldest, newest", f"{_time(extent[0])}, {_time(extent[1])}")


def _links(settings: Settings) -> Iterator[Finding]:
    for section, lines in (("events", doctor_links.of_events(settings)), ("other services", doctor_links.of_services(settings))):
        yield from (Finding(section, *line) for line in lines)


def _week(ledger: Ledger) -> Iterator[Finding]:
    section = "the last 7 days"
    report = unattributed_share(ledger, window=Window(since=time.time_ns() // 1000 - _WEEK))
    total, none = report.total, report.unowned
    yield Finding(section, "calls", f"{total.calls:,}")
    if not total.calls:
        return
    advice = "voight spend --by provider,model --where cost_status=unpriced" if total.unpriced_calls else None
    yield Finding(section, "without a price", f"{total.unpriced_calls:,} calls", advice)
    share = f", {percent(report.share_of_spend)} of the cost" if report.share_of_spend is not None else ""
    advice = "voight spend --by route,attribution --where user=-" if none.calls else None
    yield Finding(section, "without an owner", f"{none.calls:,} calls ({percent(report.share_of_calls)}{share})", advice)


def _ledger_file(settings: Settings) -> Path | None:
    return Path(sqlite_path(settings.ledger)) if settings.ledger.startswith("sqlite:///") else None


def _is_missing(settings: Settings) -> bool:
    path = _ledger_file(settings)
    try:
        return path is not None and not path.exists()
    except OSError:
        return False  # opening it says why it cannot be seen


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
