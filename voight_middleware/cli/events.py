"""``voight events``: what waits to be sent to Voight, and sending it from a process that makes no calls."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from voight_middleware.cli.render import UserError, printable
from voight_middleware.cli.reports import positive
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.config.settings import Settings
from voight_middleware.events.outbox import FOLDER, REFUSED, Status, open_outbox, status
from voight_middleware.pipeline.journal import segments
from voight_middleware.pipeline.lock import IngestLock

EXAMPLES = {
    "events": """\
Calls wait as ids in a folder beside the journal; whoever ingests with VOIGHT_KEY sends them, evenly, VOIGHT_EVENTS_PER_MINUTE of them.
Programs that end soon leave most of theirs: send goes on with those, and brings the journal into the ledger meanwhile.

Nothing is lost where the key is refused (401), the agent deleted (410) or the quota spent (402): put it right, and run send, or start the
process that sends anew. Whoever comes next goes on where it was, with the key that it is given; a spent quota is also tried each hour.
Exits with 1 where nothing can be sent; with send, where events still wait at its end.

examples:
  voight events                                   what waits, and why
  voight events --format json
  voight events send                              all that waits
  voight events send --for 50                     in a cron job of each minute
"""
}


class Line(NamedTuple):
    """One line about events."""

    name: str
    value: str
    advice: str | None = None
    """What to do; None where all is well."""


def add(command: Callable[..., argparse.ArgumentParser], run: Callable[[Any], int], *parents: argparse.ArgumentParser) -> None:
    """Add the command."""
    one = command("events", "what waits to be sent to Voight as events, and sending it", run, *parents)
    one.add_argument("action", metavar="send", nargs="?", choices=("send",), help="send what waits, and end (default: only look)")
    one.add_argument("--for", dest="seconds", metavar="SECONDS", type=positive, help="with send: end after this time, whatever waits")


def run(settings: Settings, args: Any) -> int:
    """
    Show what waits, or send it; answers the exit code.

    Raises:
        UserError: There is no key to send with, or the outbox cannot be read or written.
        LedgerError: The ledger cannot be opened or read.
    """
    if args.seconds is not None and args.action is None:
        raise UserError("--for is for sending: voight events send --for SECONDS")
    try:
        if args.action == "send":
            return _send(settings, args)
        _show(settings, status(settings.journal), args.format)
    except OSError as error:
        raise UserError(f"{settings.journal / FOLDER} cannot be used ({error}): check its owner and permissions") from error
    return 0


def prepare(settings: Settings) -> None:
    """
    Have what dead processes left in the journal queued when it is brought in, as there is a key to send it with.

    Raises:
        OSError: The journal cannot be read.
    """
    if segments(settings.journal):
        open_outbox(settings.journal, create=True)


def _send(settings: Settings, args: Any) -> int:
    from voight_middleware.pipeline.send_waiting import send_waiting

    if settings.events is None:
        raise UserError("nothing can be sent without a key: set VOIGHT_KEY")
    prepare(settings)
    before = status(settings.journal)
    if before is None:
        _tell(f"nothing waits: no call was queued in {settings.journal}; whoever ingests with VOIGHT_KEY queues them")
        left = None
    elif IngestLock(settings.journal).is_locked():
        _tell(
            f"a living process ingests {settings.journal}, and sends if it has VOIGHT_KEY: it is left to that one; {before.waiting:,} wait"
        )
        left = before
    else:
        if before.waiting:
            _tell(f"{_waiting(settings, before.waiting)}")
        left = send_waiting(settings, args.seconds)
        if left is not None:
            refused = f", {count:,} refused" if (count := left.state.refused - before.state.refused) else ""
            problem = f": {left.state.problem}" if left.waiting and left.state.problem else ""
            _tell(f"{left.state.sent - before.state.sent:,} sent{refused}; {left.waiting:,} wait{problem}")
    if args.format == "json":
        _show(settings, left, "json")
    return 1 if left is not None and left.waiting else 0


def _tell(text: str) -> None:
    print(f"voight: {printable(text)}", file=sys.stderr, flush=True)


def _show(settings: Settings, found: Status | None, form: str) -> None:
    if form == "json":
        print(as_json(settings, found))
        return
    shown = [*target(settings), *state(settings, found)]
    width = max(len(line.name) for line in shown)
    for line in shown:
        print(f"{line.name.ljust(width)}  {printable(line.value)}")
        if line.advice:
            print(f"{' ' * width}  → {printable(line.advice)}")


def as_json(settings: Settings, found: Status | None) -> str:
    """The state as one JSON object, in ASCII. Counts are null where there is no outbox, and the time that sending takes without a key."""
    events, now = settings.events, None if found is None else found.state
    return json.dumps(
        {
            "key": events is not None,
            "agent": events.agent if events is not None else None,
            "url": shown_url(events.url) if events is not None else None,
            "events_per_minute": events.per_minute if events is not None else None,
            "ingester": IngestLock(settings.journal).is_locked(),
            "outbox": str(settings.journal / FOLDER) if found is not None else None,
            "waiting": found.waiting if found is not None else None,
            "seconds_to_send": _seconds(settings, found.waiting) if found is not None else None,
            "sent": now.sent if now is not None else None,
            "refused": now.refused if now is not None else None,
            "dropped": now.dropped if now is not None else None,
            "gone": now.gone if now is not None else None,
            "newest_accepted_at": _time(now.sent_at).isoformat().replace("+00:00", "Z") if now is not None and now.sent_at else None,
            "problem": now.problem if now is not None else None,
            "stopped": now.stopped if now is not None else None,
        },
        indent=2,
    )


def target(settings: Settings) -> Iterator[Line]:
    """Whether this environment sends, as whom and where; never the key."""
    events, sources = settings.events, settings.sources
    if events is None:
        yield Line("events", "off here: VOIGHT_KEY is not set")
        return
    yield Line("events", f"on ({sources.get('voight_api_key', 'default')})", _nobody(settings))
    yield Line("agent", f"{events.agent} ({sources.get('voight_agent', 'default')})")
    yield Line("server", f"{shown_url(events.url)} ({sources.get('events_url', 'default')})")
    yield Line("rate", f"{events.per_minute:,} a minute ({sources.get('events_per_minute', 'default')})")


def _nobody(settings: Settings) -> str | None:
    """What is wrong where there is a key, and this process leaves the sending to another."""
    if settings.ingest:
        return None
    if not IngestLock(settings.journal).is_locked():
        return "with ingest off this process sends none, and nobody ingests this journal: start voight ingest there, with VOIGHT_KEY"
    if not (settings.journal / FOLDER).is_dir():
        return "with ingest off this process sends none, and the one that ingests queues none: start that one with VOIGHT_KEY"
    return None


def state(settings: Settings, found: Status | None) -> Iterator[Line]:
    """What waits, and what has become of the others."""
    if found is None:
        yield Line("waiting", "no call was queued here: whoever ingests with VOIGHT_KEY queues them")
        return
    now, folder = found.state, settings.journal / FOLDER
    yield Line("waiting", _waiting(settings, found.waiting))
    yield Line("sent", f"{now.sent:,}" + (f", the newest at {_time(now.sent_at):%Y-%m-%d %H:%M:%S} UTC" if now.sent_at else ""))
    if now.refused:
        yield Line("refused", f"{now.refused:,}", f"{folder / REFUSED} says why; they are not sent again")
    if now.dropped:
        yield Line("dropped", f"{now.dropped:,}", "too many waited, or the disk was full: the ledger has them, Voight has not")
    if now.gone:
        yield Line("gone", f"{now.gone:,}: deleted, or known before under their ids")
    if now.problem is not None:
        advice = "it is tried again by itself"
        if now.stopped:
            advice = "put it right, and run voight events send, or start the process that sends anew: nothing is lost"
        yield Line("problem", now.problem, advice)


def _waiting(settings: Settings, count: int) -> str:
    seconds = _seconds(settings, count)
    if settings.events is None or seconds is None or not count:
        return f"{count:,}"
    return f"{count:,}: sending them takes {_duration(seconds)} at {settings.events.per_minute:,} a minute"


def _seconds(settings: Settings, count: int) -> float | None:
    """How long sending *count* events takes."""
    from voight_middleware.events.sender import SPACING

    return None if settings.events is None else round(count * SPACING * 60 / settings.events.per_minute, 1)


def _duration(seconds: float) -> str:
    for unit, length, least in (("days", 86_400, 2), ("hours", 3_600, 2), ("minutes", 60, 2)):
        if seconds >= length * least:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC)
