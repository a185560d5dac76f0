"""``voight ingest``: a process that does nothing but bring a journal into its ledger, beside applications that leave it to it."""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from voight_middleware.cli.render import UserError, printable
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.config.settings import Settings
from voight_middleware.events.outbox import Status, status
from voight_middleware.pipeline.journal import segments
from voight_middleware.pipeline.supervisor import IngestSupervisor
from voight_middleware.pipeline.worker import BUSY_INTERVAL, INTERVAL

ROUND_SECONDS = 5.0
"""How long a round may last where there is much: so long, a signal waits at most."""
SEND_SECONDS = 50.0
"""How long ``--once`` sends events: less than the minute that cron leaves between two runs."""
ANSWER_SECONDS = 5.0
"""And how long it waits for the answer to the last of them."""

EXAMPLES = {
    "ingest": """\
For containers: applications write into a shared folder with VOIGHT_INGEST=no and need no way to the ledger; this brings it there, and keeps
trying while the server is down. With VOIGHT_KEY calls are sent to Voight, too; --once sends for 50 seconds at most, and the next run, or
voight events send, goes on. After SIGTERM it waits for the applications' last calls, VOIGHT_EXIT_TIMEOUT seconds at most.
Exits with 1 where something stays in the journal.

examples:
  voight ingest --journal /var/lib/voight --ledger postgresql://voight@db/costs
  voight ingest --once                            bring in what is there, and end
"""
}


def add(command: Callable[..., argparse.ArgumentParser], *parents: argparse.ArgumentParser) -> None:
    """Add the command."""
    one = command("ingest", "bring the journal into the ledger until stopped", lambda args: run(settings(args), once=args.once), *parents)
    one.add_argument("--journal", metavar="DIR", type=Path, help="the folder of the journal (default: VOIGHT_JOURNAL, then the ledger's)")
    one.add_argument("--once", action="store_true", help="end when what is there is in the ledger")


def settings(args: Any) -> Settings:
    """What the command line says, then the environment. A journal that is named there is meant, whatever ledger it is to go to."""
    return Settings.from_environment(ledger=args.ledger, journal=args.journal, prices=args.prices)


def run(settings: Settings, *, once: bool = False) -> int:
    """
    Ingest until a signal comes or, with *once*, until there is nothing left; answers the exit code.

    Raises:
        UserError: It can never work so: the folder cannot be written, the prices not be read, or the driver is not installed.
    """
    from voight_middleware.pricing import OverridesError, open_book

    try:
        open_book(settings.prices)
    except OverridesError as error:
        raise UserError(f"your prices cannot be used: {error}") from error
    sidecar = _Sidecar(settings)
    try:
        return sidecar.run_once() if once else sidecar.run()
    finally:
        sidecar.delivery.close()


def say(text: str) -> None:
    """One line, at once."""
    print(f"voight: {printable(text)}", flush=True)


class _Sidecar:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.delivery = IngestSupervisor(
            settings.ledger, settings.journal, settings.prices, gentle=False, report=say, events=settings.events
        )
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # no Event: a handler that runs inside its lock would wait for ever
        self._unreadable: str | None = None

    def run_once(self) -> int:
        if not self._elected():
            say(f"another process ingests {self.settings.journal}: it is left to that one")
            return 1 if segments(self.settings.journal) else 0
        before = self._outbox()
        while not (done := self._round(now=True)) and self.delivery.behind:
            pass
        if self.settings.events is not None:
            self._send(0 if before is None else before.state.sent)
        return self._end(done)

    def _outbox(self) -> Status | None:
        try:
            return status(self.settings.journal)
        except OSError:  # the delivery says so
            return None

    def _send(self, sent: int) -> None:
        """Wait until what waits has been sent; *sent* is how many had been before."""
        self.delivery.send_rest(time.monotonic() + SEND_SECONDS)
        self.delivery.stop_sending(ANSWER_SECONDS)
        after = self._outbox()
        if after is not None:
            rest = f"; {after.waiting:,} wait for the next run, or for voight events send" if after.waiting else ""
            why = f": {after.state.problem}" if after.waiting and after.state.problem else ""
            say(f"{after.state.sent - sent:,} events sent{rest}{why}")

    def run(self) -> int:
        with self._catching_signals():
            elected = self._elected()
            place = f"{self.settings.journal} into {shown_url(self.settings.ledger)}"
            say(f"ingesting {place}" if elected else f"waiting: another process ingests {self.settings.journal}")
            while True:
                self._round()
                if not elected and self.delivery.lock.held:
                    elected = True
                    say(f"ingesting {place}: the other process has ended")
                if self._is_stopped(BUSY_INTERVAL if self.delivery.behind else INTERVAL):
                    break
            if not elected:
                say("stopped; it was another process's turn all the time")
                return 0
            return self._end(self._drain())

    def _drain(self) -> bool:
        """Go on until nobody writes any longer, as applications may end at the same time; a second signal ends it at once."""
        seconds = self.settings.exit_timeout
        say(f"stopping: {seconds:g} seconds for the last calls of processes that end now")
        deadline = time.monotonic() + seconds
        while True:
            done = self._round(now=True)
            if (done and not segments(self.settings.journal)) or time.monotonic() >= deadline or self._is_stopped(0.1):
                return done

    def _elected(self) -> bool:
        folder = self.settings.journal
        try:
            return self.delivery.lock.acquire()
        except OSError as error:
            raise UserError(f"the journal folder {folder} cannot be written ({error}): make it writable, or choose another") from error

    def _round(self, *, now: bool = False) -> bool:
        from voight_middleware.pipeline.ingest import UnreadableJournal

        try:
            done = self.delivery.run(ROUND_SECONDS, now=now)
        except UnreadableJournal as error:
            if str(error) != self._unreadable:
                self._unreadable = str(error)
                say(self._unreadable)
            return False
        if self.delivery.error is not None and isinstance(self.delivery.error.__cause__, ImportError):  # trying again installs nothing
            raise UserError(str(self.delivery.error))
        return done

    def _end(self, done: bool) -> int:
        count = f"{self.delivery.records:,} records brought in"
        if done:
            say(f"{count}; nothing is left")
            return 0
        left = self.delivery.pending_records()
        say(f"{count}; {'the rest stays' if left is None else f'up to {left:,} stay'} in {self.settings.journal}")
        return 1

    def _is_stopped(self, seconds: float) -> bool:
        """Wait for a signal."""
        try:
            self._signals.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    @contextlib.contextmanager
    def _catching_signals(self) -> Generator[None]:
        before = {number: signal.signal(number, lambda number, _: self._signals.put(number)) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
