"""``voight ingest``: ingest the journal of applications with VOIGHT_INGEST=no."""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
import time
from collections.abc import Generator
from pathlib import Path

from voight_middleware.cli.arguments import add_ledger, add_prices
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import UserError, printable
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.config.settings import Settings
from voight_middleware.events.outbox import Status, status
from voight_middleware.pipeline.journal import segments
from voight_middleware.pipeline.supervisor import IngestSupervisor
from voight_middleware.pipeline.worker import BUSY_INTERVAL, INTERVAL

ROUND_SECONDS = 5.0
"""The longest round, and so the longest wait for the reaction to a signal."""
SEND_SECONDS = 50.0
"""How long ``--once`` sends events: less than the minute between two runs of cron."""
ANSWER_SECONDS = 5.0
"""How long it waits for the response to the last event."""

EXAMPLES = """\
For containers: applications with VOIGHT_INGEST=no write into a shared folder,
and need no access to the ledger. This ingests the folder, and keeps trying
while the server is down. With VOIGHT_KEY it also sends calls to Voight. --once
sends for up to 50 seconds; the next run, or voight events send, continues.
After SIGTERM it waits for the applications' last calls, for up to
VOIGHT_EXIT_TIMEOUT seconds. Exits with 1 if calls stay in the journal.

examples:
  voight ingest --journal /var/lib/voight --ledger postgresql://voight@db/costs
  voight ingest --once                            ingest the pending calls, and exit
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    add_prices(parser)
    parser.add_argument(
        "--journal",
        metavar="DIR",
        type=Path,
        help="the folder of the journal (default: VOIGHT_JOURNAL, then the ledger's)",
    )
    parser.add_argument("--once", action="store_true", help="ingest the pending calls, and exit")


def run(context: Context) -> int:
    """
    Ingest until a signal arrives or, with ``--once``, until nothing is left; return the exit code.

    Raises:
        UserError: It can never work: the folder is not writable, the prices are not readable, or
            the driver is not installed.
    """
    args = context.args
    context.open_prices()  # report mistakes at the start, not with each call
    # VOIGHT_JOURNAL holds for any --ledger here.
    settings = Settings.from_environment(
        ledger=args.ledger, journal=args.journal, prices=args.prices
    )
    sidecar = _Sidecar(settings)
    try:
        return sidecar.run_once() if args.once else sidecar.run()
    finally:
        sidecar.supervisor.close()


def say(text: str) -> None:
    """Print one line, unbuffered."""
    print(f"voight: {printable(text)}", flush=True)


class _Sidecar:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.supervisor = IngestSupervisor(
            settings.ledger,
            settings.journal,
            settings.prices,
            gentle=False,
            report=say,
            events=settings.events,
        )
        # Not an Event: a handler inside its lock would deadlock.
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._unreadable: str | None = None

    def run_once(self) -> int:
        if not self._acquire_lock():
            say(f"another process ingests {self.settings.journal}: nothing to do here")
            return 1 if segments(self.settings.journal) else 0
        before = self._outbox()
        while not (done := self._round(now=True)) and self.supervisor.behind:
            pass
        if self.settings.events is not None:
            self._send(0 if before is None else before.state.sent)
        return self._end(done)

    def _outbox(self) -> Status | None:
        try:
            return status(self.settings.journal)
        except OSError:  # the supervisor reports it
            return None

    def _send(self, sent: int) -> None:
        """Send the pending events; *sent* were sent before this run."""
        self.supervisor.send_rest(time.monotonic() + SEND_SECONDS)
        self.supervisor.stop_sending(ANSWER_SECONDS)
        after = self._outbox()
        if after is not None:
            rest = (
                f"; {after.waiting:,} wait for the next run, or for voight events send"
                if after.waiting
                else ""
            )
            why = f": {after.state.problem}" if after.waiting and after.state.problem else ""
            say(f"{after.state.sent - sent:,} events sent{rest}{why}")

    def run(self) -> int:
        with self._catching_signals():
            acquired = self._acquire_lock()
            place = f"{self.settings.journal} into {shown_url(self.settings.ledger)}"
            say(
                f"ingesting {place}"
                if acquired
                else f"waiting: another process ingests {self.settings.journal}"
            )
            while True:
                self._round()
                if not acquired and self.supervisor.lock.held:
                    acquired = True
                    say(f"ingesting {place}: the other process has exited")
                if self._is_stopped(BUSY_INTERVAL if self.supervisor.behind else INTERVAL):
                    break
            if not acquired:
                say("stopped; another process ingested all the time")
                return 0
            return self._end(self._drain())

    def _drain(self) -> bool:
        """Continue until no application writes; a second signal stops it at once."""
        seconds = self.settings.exit_timeout
        say(f"stopping: {seconds:g} seconds for the last calls of the applications")
        deadline = time.monotonic() + seconds
        while True:
            done = self._round(now=True)
            if (
                (done and not segments(self.settings.journal))
                or time.monotonic() >= deadline
                or self._is_stopped(0.1)
            ):
                return done

    def _acquire_lock(self) -> bool:
        folder = self.settings.journal
        try:
            return self.supervisor.lock.acquire()
        except OSError as error:
            raise UserError(
                f"the journal folder {folder} cannot be written ({error}): make it writable, or "
                "choose another"
            ) from error

    def _round(self, *, now: bool = False) -> bool:
        from voight_middleware.pipeline.ingest import UnreadableJournal

        try:
            done = self.supervisor.run(ROUND_SECONDS, now=now)
        except UnreadableJournal as error:
            if str(error) != self._unreadable:
                self._unreadable = str(error)
                say(self._unreadable)
            return False
        # Without the driver a retry cannot help.
        if self.supervisor.error is not None and isinstance(
            self.supervisor.error.__cause__, ImportError
        ):
            raise UserError(str(self.supervisor.error))
        return done

    def _end(self, done: bool) -> int:
        count = f"{self.supervisor.records:,} records ingested"
        if done:
            say(f"{count}; nothing is left")
            return 0
        left = self.supervisor.pending_records()
        say(
            f"{count}; {'the rest stays' if left is None else f'up to {left:,} stay'} in "
            f"{self.settings.journal}"
        )
        return 1

    def _is_stopped(self, seconds: float) -> bool:
        """Wait for a signal, for up to *seconds*."""
        try:
            self._signals.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    @contextlib.contextmanager
    def _catching_signals(self) -> Generator[None]:
        before = {
            number: signal.signal(number, lambda number, _: self._signals.put(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
