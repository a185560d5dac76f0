"""
The ingester: it reads journals, normalizes usage, prices calls and inserts them into the ledger.
Only then does it delete segments.

One process per journal folder ingests: the one that holds the ingest lock. The ledger stores the
progress, in the transaction that inserts the records. Records are idempotent by ``call_id``. So a
crash at any point repeats work, but neither loses nor duplicates a call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from voight_middleware.config.kept_prices import stamp_of
from voight_middleware.diagnostics import warn_once
from voight_middleware.events.outbox import Entry, Outbox, open_outbox
from voight_middleware.ledger import Ledger, LedgerError, Progress, open_ledger
from voight_middleware.ledger.find_call import find_call
from voight_middleware.pipeline.journal import REJECTED, Segment, decode, reasons, reject, segments
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.pricing import OverridesError, PriceBook
from voight_middleware.pricing.price_books import PriceBooks
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call, Record, Submission, is_new_call_id

logger = logging.getLogger(__name__)

BATCH = 2_000
"""
How many records one transaction of the ledger brings. After each statement, a busy application
keeps the interpreter's lock for milliseconds; a batch has the same number of statements, whatever
its size.
"""
_SLICE = 200
_READ_BYTES = 1024 * 1024


class UnreadableJournal(LedgerError):
    """A segment cannot be read or deleted. All other segments are in the ledger."""


class UnpricedJournal(UnreadableJournal):
    """
    A segment waits, because the prices that its application configured cannot be used. All other
    segments are in the ledger.
    """


@dataclass(slots=True)
class Ingester:
    """
    Brings journals into a ledger. Used from one thread.

    The caller must hold the ingest lock for as long as it uses this object. The object remembers
    its progress, and doesn't ask the ledger for it again.
    """

    ledger: Ledger
    folder: Path
    delivered: Callable[[list[Call]], None] | None = None
    """Called with the priced calls of each batch, once they are in the ledger."""
    gentle: bool = True
    """Whether to let other threads run after every few records. Use it inside an application."""
    rejected: int = 0
    prices: Path | None = None
    """The TOML file of the user's own prices."""
    outbox: Outbox | None = None
    """The queue of the calls to send to Voight."""
    records: int = 0
    """How many records have been ingested or rejected."""
    behind: bool = False
    """Whether the last run ran out of time before it ingested everything."""
    _price_books: PriceBooks | None = None
    _offsets: dict[str, int] = field(default_factory=dict)
    """How many bytes of each segment are in the ledger."""
    _known_rejects: set[str] | None = None
    """
    Sources of the lines that any ingester has rejected. If a batch fails, the next run reads it
    again, with its rejected lines.
    """

    def _book(self, segment: Segment) -> PriceBook:
        if self._price_books is None:
            self._price_books = PriceBooks(self.folder, self.prices)
        return self._price_books.book(stamp_of(segment.name))

    def use(self, ledger: Ledger) -> None:
        """
        Continue with another connection. It may be to another ledger, so the progress is read
        again.
        """
        self.ledger = ledger
        self._offsets.clear()

    def run(self, until: float | None = None) -> int:
        """
        Ingest all segments. Return how many records were read.

        Args:
            until: When to stop between two batches, by ``time.monotonic()``. ``behind`` is True if
                records are left then.

        Raises:
            UnreadableJournal: A segment cannot be read, priced or deleted. All other segments are
                ingested.
            LedgerError: The ledger refused. Nothing is lost: the journals stay.
        """
        count = 0
        unreadable: OSError | None = None
        unpriced: OverridesError | None = None
        self.behind = False
        for segment in segments(self.folder):
            if until is not None and time.monotonic() >= until:
                self.behind = True
                break
            try:
                count += self._segment(segment, until)
            except OSError as error:
                unreadable = error
            except OverridesError as error:
                # without these prices, its calls would get a wrong cost
                unpriced = error
        if unpriced is not None:
            raise UnpricedJournal(
                f"calls wait in the journal {self.folder} because their prices cannot be used: "
                f"{unpriced}"
            ) from unpriced
        if unreadable is not None:
            advice = "check its owner and permissions"
            raise UnreadableJournal(
                f"a journal in {self.folder} cannot be read or deleted ({unreadable}): {advice}"
            )
        return count

    def pending_records(self) -> int:
        """
        Return how many journal records are not in the ledger, as far as this ingester knows. It may
        be fewer.
        """
        count = 0
        for segment in segments(self.folder):
            offset = self._offsets.get(segment.name, 0)
            while segment.size() > offset and (data := segment.read(offset)):
                offset += len(data)
                count += data.count(b"\n")
        return count

    def _segment(self, segment: Segment, until: float | None) -> int:
        offset = self._offsets.get(segment.name)
        count = 0
        # The lock first, then the size: a writer that is gone cannot add anything in between.
        with segment.adopt() as dead:
            # Only the bytes that exist now: following a busy writer line by line would disturb it
            # constantly.
            end = segment.size()
            if offset is None:
                offset = self._offsets[segment.name] = self.ledger.progress(segment.name)
            while offset < end and (data := segment.read(offset, _READ_BYTES)):
                book = self._book(segment)
                for lines in _batches(data.splitlines(keepends=True)):
                    if until is not None and time.monotonic() >= until:
                        self.behind = True
                        return count
                    offset += sum(map(len, lines))
                    self._insert(lines, Progress(segment.name, offset), book)
                    self._offsets[segment.name] = offset
                    count += len(lines)
            if dead:
                if torn := segment.tail(offset):
                    self._reject(
                        torn,
                        f"{segment.name}:{offset}",
                        "torn: the process was killed while it wrote this",
                    )
                segment.delete()
        if dead:
            self.ledger.clear_progress(segment.name)
            self._offsets.pop(segment.name, None)
        return count

    def _insert(self, lines: list[bytes], progress: Progress, book: PriceBook) -> None:
        records: list[Record] = []
        sources: list[tuple[bytes, str]] = []
        position = progress.offset - sum(map(len, lines))
        for line in lines:
            start, position = position, position + len(line)
            if line == b"\n":
                continue
            source = f"{progress.segment}:{start}"
            try:
                record = decode(line, source)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self._reject(line, source, f"no record: {error}")
                continue
            records.append(record)
            sources.append((line, source))
        self._find_owners(records)
        for index, record in enumerate(records):
            if isinstance(record, Call):
                price_call(record, book)
            if self.gentle and index % _SLICE == _SLICE - 1:
                time.sleep(0)
        if self.outbox is not None:
            self._queue(
                self.outbox,
                records,
                [int(source.rpartition(":")[2]) for _, source in sources],
                progress,
            )
        try:
            self.ledger.insert(records, progress)
        except (ValueError, OverflowError) as error:
            # one record that no engine can store must not stop the others
            # Calls first: a ledger applies the other records of a batch after all of its calls, and
            # so must halves of it.
            order = sorted(
                range(len(records)), key=lambda index: not isinstance(records[index], Call)
            )
            self._insert_halves(
                [records[index] for index in order], [sources[index] for index in order], error
            )
            # last: after a crash, the batch is read again, without duplicates
            self.ledger.insert([], progress)
        self.records += len(records)
        if self.delivered is not None:
            self.delivered([record for record in records if isinstance(record, Call)])

    def _insert_halves(
        self, records: list[Record], sources: list[tuple[bytes, str]], error: Exception
    ) -> None:
        """
        Insert a refused batch by halves, down to the single records that are refused. Reject those.
        """
        if not records:
            raise error
        if len(records) == 1:
            self._reject(*sources[0], f"refused by the ledger: {type(error).__name__}: {error}")
            return
        middle = len(records) // 2
        for half in (slice(middle), slice(middle, None)):
            try:
                self.ledger.insert(records[half])
            except (ValueError, OverflowError) as refused:
                self._insert_halves(records[half], sources[half], refused)

    def _queue(
        self, outbox: Outbox, records: list[Record], starts: list[int], progress: Progress
    ) -> None:
        """
        Queue new calls before the ledger gets them. The outbox holds a call until it is in the
        ledger; a call that the outbox lacks would never be sent.
        """
        entries: dict[str, Entry] = {}
        for record, start in zip(records, starts, strict=True):
            if (
                isinstance(record, Call)
                and record.call_id not in entries
                and self._is_news(record, progress.segment)
            ):
                entries[record.call_id] = Entry(
                    record.call_id, record.occurred_at, start, record.job is not None
                )
        try:
            outbox.append(progress.segment, progress.offset, list(entries.values()))
        except OSError as error:  # the ledger does not wait for it
            warn_once(
                f"calls are not sent to Voight: {outbox.folder} cannot be written "
                f"({error.strerror or error})"
            )

    def _is_news(self, call: Call, segment: str) -> bool:
        """Return whether a call, or its usage, is new. An application's own id may come again."""
        if call.job is None and is_new_call_id(call.call_id):
            return True
        if call.job is not None and call.raw_usage is None and call.outcome == "ok":
            return False  # submitted: its result is a call with the same id
        try:
            if call.job is None:
                return find_call(self.ledger, call.call_id, call.occurred_at) is None
            known = self.ledger.call(call.call_id)
            return known is None or known.usage is None
        except LedgerError:
            # raises if the ledger is down; else a role that may not read calls must not stop them
            self.ledger.progress(segment)
            return True

    # Complex: a line of a batch may have its owner from several places, tried in order.
    def _find_owners(self, records: list[Record]) -> None:
        """Give the results of jobs the owner and the time of their submission."""
        calls = [
            record for record in records if isinstance(record, Call) and record.job is not None
        ]
        if not calls:
            return
        known = {record.job: record for record in records if isinstance(record, Submission)}
        names = {name for call in calls for name in _with_whole(call.job)} - known.keys()
        known = {**known, **self.ledger.submissions(names)}
        wholes = {
            submission.part_of for submission in known.values() if submission.part_of is not None
        } - known.keys()
        known = {**known, **self.ledger.submissions(wholes)}
        named = {
            name for call in calls if (name := _in_requests(call.job, known)) is not None
        } - known.keys()
        known = {**known, **self.ledger.submissions(named)}
        for call in calls:
            batch = _batch_of(call.job, known)
            for name in (*_with_whole(call.job), _in_requests(call.job, known)):
                submission = known.get(name) if name is not None else None
                if (
                    submission is not None
                    and submission.tags.user_id is None
                    and submission.part_of in known
                ):
                    submission = known[submission.part_of]
                if submission is not None and submission.tags.user_id is not None:
                    call.tags, call.attribution = submission.tags, submission.attribution
                    call.occurred_at = (batch or submission).submitted_at
                    break

    def _reject(self, line: bytes, source: str, reason: str) -> None:
        if self._known_rejects is None:
            self._known_rejects = {known for _, known, _ in reasons(self.folder)}
        if source in self._known_rejects:
            return
        # first: on a full disk this fails, and the segment is read again
        reject(self.folder, line, source, reason)
        self._known_rejects.add(source)
        self.rejected += 1
        logger.warning(
            "a journal line was set aside in %s (%s)",
            self.folder / REJECTED,
            reason.partition(":")[0],
        )


def _with_whole(job: str | None) -> list[str]:
    """Return the name of a job and, for a part such as ``openai/batch_1/part``, of the whole."""
    if job is None:
        return []
    whole = job.rpartition("/")[0]
    return [job, whole] if "/" in whole else [job]


def _batch_of(job: str | None, known: Mapping[str, Submission]) -> Submission | None:
    """Return the submission of the batch that a job is a part of."""
    whole = known.get((job or "").rpartition("/")[0])
    return (
        known.get(whole.part_of, whole)
        if whole is not None and whole.part_of is not None
        else whole
    )


def _in_requests(job: str | None, known: Mapping[str, Submission]) -> str | None:
    """
    Return the name of a batch's part in the batch's input file, whose lines may name their users.
    None if that file is unknown.
    """
    batch = _batch_of(job, known)
    return (
        None
        if batch is None or batch.part_of is None
        else f"{batch.part_of}/{(job or '').rpartition('/')[2]}"
    )


def _batches(lines: list[bytes]) -> Iterable[list[bytes]]:
    for start in range(0, len(lines), BATCH):
        yield lines[start : start + BATCH]


def drain(ledger_url: str, journal: Path, prices: Path | None = None) -> int:
    """
    Ingest orphaned segments in *journal*. Return how many records were read.

    Does nothing without a journal, or if a running process is the ingester. Its ledger is at most
    a second behind.

    Raises:
        LedgerError: The ledger cannot be opened or written, or the price file cannot be used.
    """
    if not journal.is_dir() or not segments(journal):
        return 0
    lock = IngestLock(journal)
    if not lock.acquire():
        return 0
    try:
        ledger = open_ledger(ledger_url)
        try:
            ingester = Ingester(
                ledger, journal, gentle=False, prices=prices, outbox=open_outbox(journal)
            )
            try:
                return ingester.run()
            finally:
                if ingester.records:
                    lock.record_delivery()
        finally:
            ledger.close()
    finally:
        lock.release()
