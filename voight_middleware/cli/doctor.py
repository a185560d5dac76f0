"""``voight doctor``: check the installation, the settings, the ledger and the journal."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from voight_middleware.cli import doctor_links, findings
from voight_middleware.cli.arguments import add_format, add_ledger
from voight_middleware.cli.context import Context
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
"""The time that the ledger has for all queries."""

EXAMPLES = """\
Exits with 1 if calls are lost or not stored.

examples:
  voight doctor
  voight doctor --format json
"""


class _Results:
    """The results of the ledger so far."""

    def __init__(self) -> None:
        self.ledger: list[Finding] = []
        self.week: list[Finding] = []
        self.offsets: dict[str, int] = {}
        self.failed: BaseException | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    add_format(parser, "table", "json")


def run(context: Context) -> int:
    """Print the findings; return 1 if calls are lost or not stored."""
    report = examine(context.settings)
    print(findings.as_json(report) if context.args.format == "json" else findings.as_text(report))
    return 1 if any(finding.fatal for finding in report) else 0


def examine(settings: Settings) -> list[Finding]:
    """
    Return all findings.

    A broken ledger or journal is a finding, not an exception. The ledger has ``ANSWER_SECONDS``.
    """
    report = [*of_installed(), *of_settings(settings), *of_variables(), *_links(settings)]
    results = _Results()
    if _is_missing(settings):
        results.ledger.append(
            Finding("ledger", "calls", "no ledger yet: the first call creates it")
        )
    else:
        results.ledger += _state(_query(settings, results), results, settings)
    path = _ledger_file(settings)
    if path is not None and owner_of(path) is None:
        report.append(writable("ledger", path, "calls stay in the journal"))
    return [*report, *results.ledger, *of_journal(settings, results.offsets), *results.week]


def _query(settings: Settings, results: _Results) -> bool:
    """Query the ledger; return whether that finished in time."""

    def query() -> None:
        try:
            ledger = open_ledger(settings.ledger, create=False)
            try:
                about = dict(ledger.info())
                results.ledger += _ledger(settings, ledger, about)
                for name in _segments(settings):
                    results.offsets[name] = ledger.progress(name)
                if _may_read(about):
                    results.week += _week(ledger)
            finally:
                ledger.close()
        except BaseException as error:
            results.failed = error

    # In a thread: a call to a server that hangs may have no timeout.
    thread = threading.Thread(target=query, name="voight-doctor", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return not thread.is_alive()


def _segments(settings: Settings) -> list[str]:
    try:
        return (
            [segment.name for segment in segments(settings.journal)]
            if settings.journal.is_dir()
            else []
        )
    except OSError:  # the findings of the journal report it
        return []


def _may_read(about: dict[str, str]) -> bool:
    """Return whether this role can read calls; a role that only inserts them cannot."""
    return about.get("may read", "yes").partition(":")[0] != "no"


def _state(in_time: bool, results: _Results, settings: Settings) -> Iterator[Finding]:
    """Report the problem of the ledger, if any."""
    error, ingest = results.failed, settings.ingest
    if isinstance(error, LedgerError):
        advice = (
            "calls stay in the journal until this is fixed"
            if ingest
            else "run this on the host of voight ingest"
        )
        foreign = None if (file := _ledger_file(settings)) is None else owner_of(file)
        if foreign is not None:
            advice = (
                f"{file} belongs to {foreign}, and this is {account()}: sudo -u {foreign} voight "
                "doctor"
            )
        yield Finding("ledger", "state", str(error), advice, fatal=ingest and foreign is None)
    elif isinstance(error, OSError):
        yield Finding(
            "ledger",
            "state",
            str(error),
            "make it readable for this account, or use another account",
            fatal=ingest,
        )
    elif error is not None:
        raise error
    elif not in_time:
        value = f"no complete response within {ANSWER_SECONDS:.0f} seconds"
        yield Finding(
            "ledger", "state", value, "check the server and the network", fatal=not results.ledger
        )


def _ledger(settings: Settings, ledger: Ledger, about: dict[str, str]) -> Iterator[Finding]:
    section = "ledger"
    for name, value in about.items():
        no, _, advice = value.partition(": ")
        if name == "may write" and no == "no":
            # A host that only runs reports has no journal.
            needed = settings.ingest and settings.journal.is_dir()
            yield Finding(
                section,
                name,
                "no",
                advice or "grant it to this role" if needed else None,
                fatal=needed,
            )
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
    for section, lines in (
        ("events", doctor_links.of_events(settings)),
        ("other services", doctor_links.of_services(settings)),
    ):
        yield from (Finding(section, *line) for line in lines)


def _week(ledger: Ledger) -> Iterator[Finding]:
    section = "the last 7 days"
    report = unattributed_share(ledger, window=Window(since=time.time_ns() // 1000 - _WEEK))
    total, none = report.total, report.unowned
    yield Finding(section, "calls", f"{total.calls:,}")
    if not total.calls:
        return
    advice = (
        "voight spend --by provider,model --where cost_status=unpriced"
        if total.unpriced_calls
        else None
    )
    yield Finding(section, "without a price", f"{total.unpriced_calls:,} calls", advice)
    share = (
        f", {percent(report.share_of_spend)} of the cost"
        if report.share_of_spend is not None
        else ""
    )
    advice = "voight spend --by route,attribution --where user=-" if none.calls else None
    yield Finding(
        section,
        "without an owner",
        f"{none.calls:,} calls ({percent(report.share_of_calls)}{share})",
        advice,
    )


def _ledger_file(settings: Settings) -> Path | None:
    return Path(sqlite_path(settings.ledger)) if settings.ledger.startswith("sqlite:///") else None


def _is_missing(settings: Settings) -> bool:
    path = _ledger_file(settings)
    try:
        return path is not None and not path.exists()
    except OSError:
        return False  # opening it reports the reason


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
