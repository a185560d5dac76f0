"""``voight doctor``: what is installed, configured and writable, and one line on what to do about the rest."""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from voight_middleware import __version__
from voight_middleware.cli import doctor_links
from voight_middleware.cli.render import percent, printable
from voight_middleware.journal import LOST, REJECTED, Election, Segment, closed_bytes, folder_bytes, lost, reasons, segments
from voight_middleware.ledger import Ledger, LedgerError, Window, open_ledger
from voight_middleware.private_files import temporary_name
from voight_middleware.pseudonyms import finding_keys
from voight_middleware.reports.unowned import unowned
from voight_middleware.settings import Settings, SettingsError, default_journal, pseudonym_key_file, shown_url, sqlite_path, state_folder

_SDKS = {"openai": (1, 109), "anthropic": (0, 49)}
"""The oldest versions whose two patched methods are those of today (research: providers, section 1)."""
_OTHERS = ("httpx2", "httpx", "starlette", "fastapi", "genai-prices", "rich")
_WEEK = 7 * 24 * 3600 * 1_000_000
_MOST_SEGMENTS = 5
_MOST_REASONS = 3
ANSWER_SECONDS = 30.0
"""How long the ledger has to answer everything."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    value: str
    advice: str | None = None
    """What to do; None where all is well."""
    fatal: bool = False
    """Whether calls are lost or not stored."""


class _Answers:
    """What a ledger has answered by now."""

    def __init__(self) -> None:
        self.ledger: list[Finding] = []
        self.week: list[Finding] = []
        self.offsets: dict[str, int] = {}
        self.failed: BaseException | None = None


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; raises nothing that a broken ledger or journal could cause, and waits for no ledger for ever."""
    findings = [*_installed(), *_settings(settings), *_links(settings)]
    answers = _Answers()
    if _is_missing(settings):
        answers.ledger.append(Finding("ledger", "calls", "no ledger yet: it appears with the first call that is kept"))
    else:
        answers.ledger += _state(_ask(settings, answers), answers, settings.ingest)
    path = _ledger_file(settings)
    if path is not None:
        findings.append(_writable("ledger", path, "calls stay in the journal"))
    return [*findings, *answers.ledger, *_journal(settings, answers.offsets), *answers.week]


def _ask(settings: Settings, answers: _Answers) -> bool:
    """Ask the ledger all there is to ask; whether that came to an end in time."""

    def ask() -> None:
        try:
            ledger = open_ledger(settings.ledger, create=False)
            try:
                about = dict(ledger.about())
                answers.ledger += _ledger(settings, ledger, about)
                for segment in segments(settings.journal) if settings.journal.is_dir() else ():
                    answers.offsets[segment.name] = ledger.progress(segment.name)
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


def _may_read(about: dict[str, str]) -> bool:
    """Whether this role may ask for calls: one that only brings them in need not."""
    return about.get("may read", "yes").partition(":")[0] != "no"


def _state(in_time: bool, answers: _Answers, ingest: bool) -> Iterator[Finding]:
    """What keeps the ledger from answering."""
    error = answers.failed
    if isinstance(error, LedgerError):
        advice = "calls stay in the journal until this is put right" if ingest else "ask again where voight ingest runs"
        yield Finding("ledger", "state", str(error), advice, fatal=ingest)
    elif error is not None:
        raise error
    elif not in_time:
        value = f"no whole answer within {ANSWER_SECONDS:.0f} seconds"
        yield Finding("ledger", "state", value, "look at the server, and at the network between", fatal=not answers.ledger)


def as_json(findings: list[Finding]) -> str:
    """The findings as one JSON object, in ASCII."""
    ok = not any(finding.fatal for finding in findings)
    return json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=2)


def as_text(findings: list[Finding]) -> str:
    """The findings for a terminal, by section."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    section = None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section] if lines else [section]
        mark = "✗" if finding.fatal else "!" if finding.advice else "✓"
        lines.append(f"  {mark} {finding.name.ljust(width)}  {printable(finding.value)}")
        if finding.advice:
            lines.append(f"    {' ' * width}  → {printable(finding.advice)}")
    fatal = sum(finding.fatal for finding in findings)
    advice = sum(finding.advice is not None for finding in findings) - fatal
    verdict = "calls are lost or not stored" if fatal else "calls are kept"
    lines += ["", f"{verdict}; {fatal} to put right, {advice} to look at" if fatal or advice else "all is well"]
    return "\n".join(lines)


def _installed() -> Iterator[Finding]:
    section = "installed"
    yield Finding(section, "voight-middleware", f"{__version__} (Python {platform.python_version()}, SQLite {sqlite3.sqlite_version})")
    found = {name: _version(name) for name in (*_SDKS, *_OTHERS)}
    for sdk, oldest in _SDKS.items():
        if found[sdk] is None:
            advice = "no SDK is here: calls come in through voight.record() only" if not any(found[name] for name in _SDKS) else None
            yield Finding(section, sdk, "not installed", advice)
        elif _numbers(found[sdk]) < oldest:
            advice = f"its calls are not metered: pip install '{sdk}>={'.'.join(map(str, oldest))}'"
            yield Finding(section, sdk, f"{found[sdk]}, not covered", advice, fatal=True)
        else:
            yield Finding(section, sdk, f"{found[sdk]}, covered by wrap() and instrument()")
    for name in ("httpx2", "httpx"):
        if found[name] is not None:
            yield Finding(section, name, f"{found[name]}, covered below the SDKs; calls made with it directly: voight.wrap(client)")
    for name in ("starlette", "fastapi"):
        yield Finding(section, name, "not installed" if found[name] is None else f"{found[name]}, covered by CostTagMiddleware")
    prices = found["genai-prices"]
    yield Finding(
        section,
        "genai-prices",
        prices or "not installed",
        None if prices else "calls are kept without a price: pip install genai-prices",
    )
    rich = found["rich"]
    yield Finding(section, "rich", rich or "not installed", None if rich else "no tables: pip install 'voight-middleware[cli]'")


def _settings(settings: Settings) -> Iterator[Finding]:
    section = "settings"
    source, advice = settings.sources.get("ledger", "default"), None
    if source == "default" and state_folder().name == temporary_name():
        advice = "there is no home, and this folder may not outlive the machine: set VOIGHT_LEDGER, or XDG_STATE_HOME"
    yield Finding(section, "ledger", f"{shown_url(settings.ledger)} ({source})", advice)
    yield _place(settings)
    yield from _delivery(settings)
    yield Finding(section, "release", f"{settings.release or 'none'} ({settings.sources.get('release', 'default')})")
    yield _prices(settings)
    yield from _privacy(settings)
    source = settings.sources.get("enabled", "default")
    if settings.enabled:
        yield Finding(section, "enabled", f"yes ({source})")
    else:
        yield Finding(section, "enabled", f"no ({source})", f"no call is metered or kept: unset {source}, or set it to true", fatal=True)


def _links(settings: Settings) -> Iterator[Finding]:
    for section, lines in (("events", doctor_links.of_events(settings)), ("other services", doctor_links.of_services(settings))):
        yield from (Finding(section, *line) for line in lines)


def _place(settings: Settings) -> Finding:
    source = settings.sources.get("journal", "default")
    advice = None
    if source == "default" and settings.journal != default_journal(settings.ledger):
        advice = (
            f"{default_journal(settings.ledger).parent} cannot be made, and this folder may not outlive the machine: set VOIGHT_JOURNAL"
        )
    return Finding("settings", "journal", f"{settings.journal} ({source})", advice)


def _delivery(settings: Settings) -> Iterator[Finding]:
    values = (
        ("ingest", "yes" if settings.ingest else "no: a voight ingest on the same folder does it"),
        ("delivery", settings.delivery),
        ("exit_timeout", f"{settings.exit_timeout:g} seconds"),
    )
    for name, value in values:
        yield Finding("settings", name.replace("_", " "), f"{value} ({settings.sources.get(name, 'default')})")


def _privacy(settings: Settings) -> Iterator[Finding]:
    section, policies = "settings", {"*": "pseudonym"} | dict(settings.pii)
    text = ", ".join(f"{key}={policies[key]}" for key in sorted(policies, key=lambda key: (key == "*", key)))
    yield Finding(section, "pii", f"{text.removeprefix('*=')} ({settings.sources.get('pii', 'default')})")
    if "pseudonym" not in policies.values():
        return
    name, source, file = "pseudonym key", settings.sources.get("pseudonym_key", "default"), pseudonym_key_file(settings.ledger)
    try:
        keys = finding_keys(settings)
    except SettingsError as error:
        lost = "" if settings.pseudonym_keys else "; personal data becomes redacted:<kind>, all such users together"
        yield Finding(section, name, str(error), f"make it readable for this account, or set VOIGHT_PSEUDONYM_KEY{lost}")
        return
    if settings.pseudonym_keys:
        older = f"; found by too: {', '.join(key.version for key in keys[1:])}" if keys[1:] else ""
        yield Finding(section, name, f"{keys[0].version}{older} ({source})")
    elif file is None:
        advice = "set VOIGHT_PSEUDONYM_KEY on every host to the same secret: openssl rand -hex 32"
        yield Finding(section, name, f"none: personal data becomes redacted:<kind>, all such users together ({source})", advice)
    elif keys:
        others = file.stat().st_mode & 0o077
        yield Finding(section, name, f"{', '.join(key.version for key in keys)}, in {file}", f"chmod 600 {file}" if others else None)
    else:
        yield Finding(section, name, f"none yet: {file} is made when personal data first occurs")


def _prices(settings: Settings) -> Finding:
    from voight_middleware.pricing import OverridesError, read_overrides

    section, name, source = "settings", "prices", settings.sources.get("prices", "default")
    if settings.prices is None:
        return Finding(section, name, f"none of your own ({source})")
    try:
        count = len(read_overrides(settings.prices).rules)
    except OverridesError as error:
        value = f"{settings.prices} cannot be used, {len(error.problems)} wrong ({source})"
        return Finding(section, name, value, "calls wait in the journal until this is put right: voight prices check", fatal=True)
    return Finding(section, name, f"{settings.prices}, {count:,} of your own ({source})")


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
    extent = ledger.extent()
    if extent is not None:
        yield Finding(section, "oldest, newest", f"{_time(extent[0])}, {_time(extent[1])}")


def _journal(settings: Settings, offsets: dict[str, int]) -> Iterator[Finding]:
    section = "journal"
    folder = settings.journal
    consequence = "new calls are kept in memory only, and lost when the process ends"
    yield _writable(section, folder, consequence, "; on a read-only file system, mount a tmpfs and set VOIGHT_JOURNAL to it")
    if not folder.is_dir():
        yield Finding(section, "rejected lines", "0")
        return
    election = Election(folder)
    waiting = list(_waiting(folder, offsets))
    yield _ingester(settings, election, bool(waiting))
    yield Finding(section, "last delivery", election.last_delivery() or "none yet")
    yield _room(settings)
    for segment, size, dead in waiting[:_MOST_SEGMENTS]:
        owner = "of a process that is gone: the next report or app brings it in" if dead else "of a living process"
        yield Finding(section, segment.name, f"{size:,} bytes waiting, {owner}")
    if more := waiting[_MOST_SEGMENTS:]:
        yield Finding(section, f"{len(more):,} others", f"{sum(size for _, size, _ in more):,} bytes waiting")
    yield from _rejected(folder)
    yield from _lost(folder)


def _ingester(settings: Settings, election: Election, waiting: bool) -> Finding:
    if election.taken():
        return Finding("journal", "ingester", "a living process")
    advice = None
    if not settings.ingest and waiting:
        advice = "applications leave it to voight ingest, and none runs on this folder: start one"
    return Finding("journal", "ingester", "none at the moment", advice)


def _room(settings: Settings) -> Finding:
    folder, limit = settings.journal, settings.journal_limit
    value = f"{folder_bytes(folder):,} bytes of {limit:,} ({settings.sources.get('journal_limit', 'default')})"
    if closed_bytes(folder) > limit:
        advice = "calls wait in memory, and then the oldest are lost: let the ledger be reached, or raise VOIGHT_JOURNAL_LIMIT"
        return Finding("journal", "room", f"none: {value}", advice, fatal=True)
    return Finding("journal", "room", value)


def _rejected(folder: Path) -> Iterator[Finding]:
    name, rejected = "rejected lines", folder / REJECTED
    try:
        count = rejected.read_bytes().count(b"\n") if rejected.is_file() else 0  # a pipe would be waited for
        why = Counter(reason for _, _, reason in reasons(folder))
    except OSError as error:
        yield Finding("journal", name, str(error), f"make {rejected} readable")
        return
    advice = f"look at {rejected}: torn lines of killed processes are harmless, please report any other"
    yield Finding("journal", name, f"{count:,}", advice if count else None)
    for reason, times in why.most_common(_MOST_REASONS):
        yield Finding("journal", f"  {times:,} of them", reason)


def _lost(folder: Path) -> Iterator[Finding]:
    times = [line.split(" ") for line in lost(folder)]
    count = sum(int(parts[1]) for parts in times if len(parts) > 1 and parts[1].isdigit())
    if count:
        advice = f"no total has these calls; {folder / LOST} says when. Delete it once you know"
        yield Finding("journal", "lost records", f"{count:,}, the last {times[-1][0]}", advice)


def _waiting(folder: Path, offsets: dict[str, int]) -> Iterator[tuple[Segment, int, bool]]:
    for segment in segments(folder):
        waiting = segment.size() - offsets.get(segment.name, 0)
        with segment.adopt() as dead:
            if waiting > 0:
                yield segment, waiting, dead


def _week(ledger: Ledger) -> Iterator[Finding]:
    section = "the last 7 days"
    report = unowned(ledger, window=Window(since=time.time_ns() // 1000 - _WEEK))
    total, none = report.total, report.unowned
    yield Finding(section, "calls", f"{total.calls:,}")
    if not total.calls:
        return
    advice = "voight spend --by provider,model --where cost_status=unpriced" if total.unpriced_calls else None
    yield Finding(section, "without a price", f"{total.unpriced_calls:,} calls", advice)
    share = f", {percent(report.share_of_spend)} of the cost" if report.share_of_spend is not None else ""
    advice = "voight spend --by route,attribution --where user=-" if none.calls else None
    yield Finding(section, "without an owner", f"{none.calls:,} calls ({percent(report.share_of_calls)}{share})", advice)


def _writable(section: str, path: Path, consequence: str, otherwise: str = "") -> Finding:
    """Whether *path*, or the folder that it would be made in, can be written."""
    place = path
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
    except OSError:  # a folder on the way that may not even be looked into
        place = place.parent
    right = os.W_OK | (os.X_OK if place.is_dir() else 0)
    if os.access(place, right) and (place == path or place.is_dir()):
        return Finding(section, "writable", f"{path}{'' if place == path else ' (made when it is needed)'}")
    return Finding(
        section, "writable", f"no: {path}", f"{consequence}: make {place} writable, or choose another place{otherwise}", fatal=True
    )


def _ledger_file(settings: Settings) -> Path | None:
    return Path(sqlite_path(settings.ledger)) if settings.ledger.startswith("sqlite:///") else None


def _is_missing(settings: Settings) -> bool:
    path = _ledger_file(settings)
    try:
        return path is not None and not path.exists()
    except OSError:
        return False  # opening it says why it cannot be seen


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", text or "")[:2])


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
