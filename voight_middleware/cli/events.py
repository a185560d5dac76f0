"""``voight events``: show and send the pending events."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from voight_middleware.cli.arguments import add_format, add_ledger, positive
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import utc
from voight_middleware.cli.render import UserError, printable
from voight_middleware.cli.report_ledger import queue_events
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.config.settings import Settings
from voight_middleware.events.outbox import FOLDER, REFUSED, Status, status
from voight_middleware.pipeline.lock import IngestLock

EXAMPLES = """\
Events are queued as call ids in a folder beside the journal. A process that
ingests with VOIGHT_KEY sends them evenly, VOIGHT_EVENTS_PER_MINUTE a minute.
Short programs leave most of theirs: send sends those, and ingests the journal.

Nothing is lost if the key is refused (401), the agent is deleted (410) or the
quota is spent (402): fix that, and run send, or restart the process that sends.
It continues with the oldest event, with its own key. A spent quota is also
retried every hour. Exits with 1 if nothing can be sent, or if send leaves
events.

examples:
  voight events                                   the pending events, and the problem
  voight events --format json
  voight events send                              send all of them
  voight events send --for 50                     in a cron job of each minute
"""


class Line(NamedTuple):
    """A line about events."""

    name: str
    value: str
    advice: str | None = None
    """Advice for the user, or None if nothing is wrong."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    add_format(parser, "table", "json")
    parser.add_argument(
        "action",
        metavar="send",
        nargs="?",
        choices=("send",),
        help="send the pending events (default: show them)",
    )
    parser.add_argument(
        "--for",
        dest="seconds",
        metavar="SECONDS",
        type=positive,
        help="with send: stop after this time",
    )


def run(context: Context) -> int:
    """
    Show or send the pending events, and return the exit code.

    Raises:
        UserError: There is no key to send with, or the outbox cannot be read or written.
        LedgerError: The ledger cannot be opened or read.
    """
    args, settings = context.args, context.settings
    if args.seconds is not None and args.action is None:
        raise UserError("--for is for sending: voight events send --for SECONDS")
    try:
        if args.action == "send":
            return _send(settings, args.format, args.seconds)
        _show(settings, status(settings.journal), args.format)
    except OSError as error:
        raise UserError(
            f"{settings.journal / FOLDER} cannot be used ({error}): check its owner and permissions"
        ) from error
    return 0


def _send(settings: Settings, form: str, seconds: float | None) -> int:
    from voight_middleware.pipeline.send_waiting import send_waiting

    if settings.events is None:
        raise UserError("nothing can be sent without a key: set VOIGHT_KEY")
    queue_events(settings)
    before = status(settings.journal)
    if before is None:
        _report(
            f"nothing is pending: no call was queued in {settings.journal}; a process that "
            "ingests with VOIGHT_KEY queues calls"
        )
        left = None
    elif IngestLock(settings.journal).is_locked():
        _report(
            f"a live process ingests {settings.journal}, and sends if it has VOIGHT_KEY; "
            f"{before.waiting:,} pending"
        )
        left = before
    else:
        if before.waiting:
            _report(_waiting(settings, before.waiting))
        left = send_waiting(settings, seconds)
        if left is not None:
            refused = (
                f", {count:,} refused"
                if (count := left.state.refused - before.state.refused)
                else ""
            )
            problem = f": {left.state.problem}" if left.waiting and left.state.problem else ""
            _report(
                f"{left.state.sent - before.state.sent:,} sent{refused}; {left.waiting:,} "
                f"pending{problem}"
            )
    if form == "json":
        _show(settings, left, "json")
    return 1 if left is not None and left.waiting else 0


def _report(text: str) -> None:
    print(f"voight: {printable(text)}", file=sys.stderr, flush=True)


def _show(settings: Settings, outbox: Status | None, form: str) -> None:
    if form == "json":
        print(as_json(settings, outbox))
        return
    shown = [*target(settings), *state(settings, outbox)]
    width = max(len(line.name) for line in shown)
    for line in shown:
        print(f"{line.name.ljust(width)}  {printable(line.value)}")
        if line.advice:
            print(f"{' ' * width}  → {printable(line.advice)}")


def as_json(settings: Settings, outbox: Status | None) -> str:
    """
    Return the state as a JSON object in ASCII.

    Counts are null without an outbox; ``seconds_to_send`` is null without a key too.
    """
    events, now = settings.events, None if outbox is None else outbox.state
    return json.dumps(
        {
            "key": events is not None,
            "agent": events.agent if events is not None else None,
            "url": shown_url(events.url) if events is not None else None,
            "events_per_minute": events.per_minute if events is not None else None,
            "ingester": IngestLock(settings.journal).is_locked(),
            "outbox": str(settings.journal / FOLDER) if outbox is not None else None,
            "waiting": outbox.waiting if outbox is not None else None,
            "seconds_to_send": _seconds(settings, outbox.waiting) if outbox is not None else None,
            "sent": now.sent if now is not None else None,
            "refused": now.refused if now is not None else None,
            "dropped": now.dropped if now is not None else None,
            "gone": now.gone if now is not None else None,
            "newest_accepted_at": utc(now.sent_at) if now is not None and now.sent_at else None,
            "problem": now.problem if now is not None else None,
            "stopped": now.stopped if now is not None else None,
        },
        indent=2,
    )


def target(settings: Settings) -> Iterator[Line]:
    """Return the agent, server and rate of sending, never the key."""
    events, sources = settings.events, settings.sources
    if events is None:
        yield Line("events", "off here: VOIGHT_KEY is not set")
        return
    yield Line("events", f"on ({sources.get('voight_api_key', 'default')})", _no_sender(settings))
    yield Line("agent", f"{events.agent} ({sources.get('voight_agent', 'default')})")
    yield Line("server", f"{shown_url(events.url)} ({sources.get('events_url', 'default')})")
    yield Line(
        "rate", f"{events.per_minute:,} a minute ({sources.get('events_per_minute', 'default')})"
    )


def _no_sender(settings: Settings) -> str | None:
    """Return the problem if this process has a key, but no process sends."""
    if settings.ingest:
        return None
    if not IngestLock(settings.journal).is_locked():
        return (
            "ingest is off here, and no process ingests this journal: start voight ingest there, "
            "with VOIGHT_KEY"
        )
    if not (settings.journal / FOLDER).is_dir():
        return (
            "ingest is off here, and the process that ingests queues no events: start that one "
            "with VOIGHT_KEY"
        )
    return None


def state(settings: Settings, outbox: Status | None) -> Iterator[Line]:
    """Return the numbers of pending, sent and refused events, and the problem."""
    if outbox is None:
        yield Line(
            "waiting",
            "no call was queued here: a process that ingests with VOIGHT_KEY queues calls",
        )
        return
    now, folder = outbox.state, settings.journal / FOLDER
    yield Line("waiting", _waiting(settings, outbox.waiting))
    yield Line(
        "sent",
        f"{now.sent:,}"
        + (f", the newest at {_time(now.sent_at):%Y-%m-%d %H:%M:%S} UTC" if now.sent_at else ""),
    )
    if now.refused:
        yield Line(
            "refused", f"{now.refused:,}", f"{folder / REFUSED} says why; they are not sent again"
        )
    if now.dropped:
        yield Line(
            "dropped",
            f"{now.dropped:,}",
            "too many were pending, or the disk was full: they are in the ledger, but not in "
            "Voight",
        )
    if now.gone:
        yield Line("gone", f"{now.gone:,}: deleted, or known before under their ids")
    if now.problem is not None:
        advice = "it is retried automatically"
        if now.stopped:
            advice = (
                "fix it, and run voight events send, or restart the process that sends: nothing "
                "is lost"
            )
        yield Line("problem", now.problem, advice)


def _waiting(settings: Settings, count: int) -> str:
    seconds = _seconds(settings, count)
    if settings.events is None or seconds is None or not count:
        return f"{count:,}"
    return (
        f"{count:,}: sending them takes {_duration(seconds)} at {settings.events.per_minute:,} a "
        "minute"
    )


def _seconds(settings: Settings, count: int) -> float | None:
    """Return the time that sending *count* events takes."""
    from voight_middleware.events.sender import SPACING

    return (
        None
        if settings.events is None
        else round(count * SPACING * 60 / settings.events.per_minute, 1)
    )


def _duration(seconds: float) -> str:
    for unit, length, least in (("days", 86_400, 2), ("hours", 3_600, 2), ("minutes", 60, 2)):
        if seconds >= length * least:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds))} seconds"


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC)
