"""
Closed days: the sums of days whose calls no longer change, for an engine without transactions.

Before a process writes to a day's calls, it marks the day as changing. An hour after the last mark,
an ingesting process sums up the day and closes it. A later mark opens the day again. Reports read
the sums of closed days, and the calls of all others, so they never depend on when a day is closed.

The sums of a closing have a number of their own, and count only after the closing is stored. So a
closing that was interrupted, or that two processes do at once, changes nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from voight_middleware.ledger.base import LedgerError
from voight_middleware.ledger.clickhouse.dialect import ClickHouseDialect, literal
from voight_middleware.ledger.clickhouse.schema import SUMMED, SUMS
from voight_middleware.ledger.rollups import Rollup
from voight_middleware.ledger.rows import encode

if TYPE_CHECKING:
    from voight_middleware.ledger.clickhouse.database import Database

QUIET = 3600
"""
How many seconds after its last mark a day may be closed. A statement must end within this time
after the mark before it.
"""
_FRESH = 600
"""How many seconds a mark holds for further writes of the same process."""
_PAUSE = 60
"""How many seconds there are between two closings of a process, and how many after a failure."""
_AFTER_FAILURE = 3600
_PIECE = 1_000_000
"""How many calls to sum up in one statement. The process ingests nothing meanwhile."""
_OLD_WRITERS = 86_400
"""
For how many seconds after an upgrade no day is closed: running processes of the version before
don't mark days.
"""
_NOW = "toUInt64(toUnixTimestamp64Micro(now64(6)))"
_SHIFT, _STEP = 4096, 64
"""
A number is the server's time, six bits for the day, and six by chance. Those of a mark are all set.
"""
SPAN = _SHIFT // _STEP
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400_000_000
_LAST = 80_000
"""Days since 1970. Later ones are beyond the engine's dates, and stay open."""


def day_of(at: int) -> str | None:
    """Return the day of a moment in microseconds (``2026-11-01``). None if it cannot be closed."""
    number = at // _DAY
    return _name(number) if 0 <= number < _LAST else None


def bounds(day: str) -> tuple[int, int]:
    """Return the first microsecond of *day*, and the first one after it."""
    begin = datetime.fromisoformat(day).replace(tzinfo=UTC)
    at = (begin - _EPOCH) // timedelta(microseconds=1)
    return at, at + _DAY


class ClosedDays:
    """The closed days of *db*."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._marks: dict[str, tuple[float, float]] = {}
        self._next = time.monotonic() + _PAUSE
        self._steps: Iterator[None] | None = None
        """The closing that ``close_next`` is at."""

    def changing(self, times: Iterable[int]) -> None:
        """Mark the days of calls that are about to change or to be added, deleted ones included."""
        self.mark({day for at in times if (day := day_of(at)) is not None})

    def mark(self, days: Collection[str], *, again: bool = False) -> None:
        """Mark days as changing. With *again*, also those with a fresh mark of this process."""
        # The wall clock counts a sleep of the machine. The other clock is never set back.
        now = time.monotonic(), time.time()
        stale = sorted(day for day in days if again or not self._is_fresh(day, *now))
        if not stale:
            return
        self._db.run(
            f"INSERT INTO {self._db.name}.closed_days (day, closed, version) SELECT "
            f"arrayJoin({literal(stale)}), 0, {_NOW} * {_SHIFT} + {_SHIFT - 1}",
            insert_deduplicate=0,
        )
        self._marks = {day: at for day, at in self._marks.items() if self._is_fresh(day, *now)}
        self._marks |= dict.fromkeys(stale, now)

    def _is_fresh(self, day: str, steady: float, wall: float) -> bool:
        at = self._marks.get(day)
        return at is not None and steady - at[0] < _FRESH and abs(wall - at[1]) < _FRESH

    def closed(self) -> dict[str, int]:
        """Return the closed days, each with the number of its closing."""
        rows = self._db.rows(
            f"SELECT day, maxIf(version, closed) AS closing FROM {self._db.name}.closed_days GROUP "
            "BY day HAVING closing > maxIf(version, NOT closed) ORDER BY day"
        )
        first = self._first_kept() if rows else ""
        return {str(day): int(closing) for day, closing in rows if day >= first}

    def _first_kept(self) -> str:
        """Return the first day of which the server itself deletes no calls."""
        if not (days := self._db.ttl("calls")):
            return ""
        # A day more, as the server's clock may be ahead of ours.
        return day_of(max(0, int(time.time()) * 1_000_000 - (days - 2) * _DAY)) or ""

    def close_next(self) -> None:
        """
        Do the next step of closing a day, if one can be closed. At most a tenth of the time of an
        ingesting process goes into this.
        """
        begin = time.monotonic()
        if begin < self._next:
            return
        steps, self._steps = self._steps, None
        self._next = begin + _AFTER_FAILURE
        with suppress(LedgerError):  # reports read the calls of an open day
            if steps is None and (days := self.closable()):
                # By chance, as other processes close days too.
                steps = self.steps([random.choice(days)])
            pause = _PAUSE
            if steps is not None and next(steps, "closed") is None:
                self._steps, pause = steps, 1
            now = time.monotonic()
            self._next = now + max(pause, 9 * (now - begin))

    def closable(self, *, again: bool = False) -> list[str]:
        """Return the days that can be closed, with *again* those that are closed too."""
        db = self._db
        begun, oldest, since, now = db.rows(
            f"SELECT (SELECT COUNT(*) FROM system.mutations WHERE database = ? AND table = 'calls' "
            f"AND NOT is_done), MIN(schema), maxIf(version, schema = {SUMMED}), {_NOW} FROM "
            f"{db.name}.ledger",
            [db.server.database],
        )[0]
        if begun or (oldest < SUMMED and now - since < _OLD_WRITERS * 1_000_000):
            return []
        quiet = (now - int(QUIET * 1_000_000)) * _SHIFT
        states = {
            day: (changing, closing)
            for day, changing, closing in db.rows(
                f"SELECT day, maxIf(version, NOT closed), maxIf(version, closed) FROM "
                f"{db.name}.closed_days GROUP BY day"
            )
        }
        first = self._first_kept()
        return [
            day
            for day in self._days_of_calls()
            if day >= first
            and (state := states.get(day, (0, 0)))[0] <= quiet
            and (again or state[1] <= state[0])
        ]

    def close(self, days: Sequence[str]) -> None:
        """Close days that ``closable`` has returned, in all steps."""
        for _ in self.steps(days):
            pass

    def steps(self, days: Sequence[str]) -> Iterator[None]:
        """
        Close days that ``closable`` has returned, in steps of a few seconds. The last day is at
        most ``SPAN`` days after the first one.
        """
        db, dialect = self._db, ClickHouseDialect(self._db.name)
        begin, end = bounds(min(days))[0], bounds(max(days))[1]
        if end - begin > SPAN * _DAY:
            raise ValueError(f"{min(days)} and {max(days)} are too far apart to close them at once")
        ((at,),) = db.rows(f"SELECT {_NOW} * {_SHIFT}")
        # No other closing of any day has these numbers, so they alone tell which sums count.
        first = at + random.randrange(_STEP - 1)
        closings = {name: first + _STEP * ((bounds(name)[0] - begin) // _DAY) for name in days}
        day = dialect.moment("day", "occurred_at")
        key = {"day": day, "version": f"{first} + {_STEP} * intDiv(occurred_at - {begin}, {_DAY})"}
        among = f"{day} IN ({_list(days)})"
        counted = f"SELECT COUNT(*) FROM {dialect.calls} WHERE"
        of_days = f"occurred_at >= {begin} AND occurred_at < {end} AND {among}"
        ((calls,),) = db.rows(f"{counted} {of_days}")
        cuts = range(begin, end, -(-(end - begin) // (1 + calls // _PIECE)))
        for rollup in SUMS:
            names = {**key, **_key(rollup)}
            for cut in cuts:
                db.run(
                    f"INSERT INTO {db.name}.{rollup.table} "
                    f"({', '.join((*names, *dialect.sums))}) SELECT {', '.join(names.values())}, "
                    f"{', '.join(f'ifNull({sql}, 0)' for sql in dialect.sums.values())} FROM "
                    f"{dialect.calls} WHERE occurred_at >= {cut} AND occurred_at < "
                    f"{min(end, cut + cuts.step)} AND {among} GROUP BY {', '.join(names.values())}",
                    insert_deduplicate=0,
                )
                yield
        # An insert that the driver sends again would count twice.
        numbers = ", ".join(map(str, closings.values()))
        looks = [f"{counted} {of_days}"] + [
            f"SELECT SUM(calls) FROM {db.name}.{rollup.table} WHERE version IN ({numbers})"
            for rollup in SUMS
        ]
        if len({*db.rows(f"SELECT {', '.join(f'({look})' for look in looks)}")[0]}) == 1:
            rows = [encode((name, 1, closing)) for name, closing in closings.items()]
            db.add("closed_days", ("day", "closed", "version"), rows)
            # A report that still reads older sums finds them replaced, and asks again.
            self.forget(f"day IN ({_list(days)}) AND version < {first}")

    def forget(self, condition: str) -> None:
        """Delete sums of days that are open, or have been closed again."""
        looks = (
            f"(SELECT {literal(rollup.table)} FROM {self._db.name}.{rollup.table} WHERE "
            f"{condition} LIMIT 1)"
            for rollup in SUMS
        )
        for (table,) in self._db.rows(" UNION ALL ".join(looks)):
            self._db.alter(table, f"DELETE WHERE {condition}")

    def naming(self, names: Collection[str], places: Collection[str]) -> list[str]:
        """Return the days whose sums contain one of *names* in one of *places*."""
        among = ", ".join(map(literal, names))
        found: set[str] = set()
        for rollup in SUMS:
            terms = [f"{place} IN ({among})" for place in places if place in rollup.names]
            if terms:
                found |= {
                    day
                    for (day,) in self._db.private(
                        f"SELECT DISTINCT day FROM {self._db.name}.{rollup.table} WHERE "
                        f"{' OR '.join(terms)}"
                    )
                }
        return sorted(found)

    def mark_all(self) -> None:
        """Mark every day, after something may have changed any of them."""
        known = self._db.rows(f"SELECT DISTINCT day FROM {self._db.name}.closed_days")
        self.mark({*self._days_of_calls(), *(day for (day,) in known)}, again=True)

    def rebuild(self) -> Iterator[str]:
        """Close again all days that don't change now. Yield each month when it is done."""
        done = ""
        for day in self.closable(again=True):
            if done and day[:7] != done:
                yield done
            self.close([day])
            done = day[:7]
        if done:
            yield done

    def _days_of_calls(self) -> list[str]:
        """Return the days between the first and the last call of each month."""
        rows = self._db.rows(
            f"SELECT MIN(occurred_at), MAX(occurred_at) FROM {self._db.name}.calls GROUP BY "
            "_partition_id"
        )
        return sorted(
            {
                _name(number)
                for first, last in rows
                for number in range(max(0, first // _DAY), min(_LAST - 1, last // _DAY) + 1)
            }
        )


def runs(closed: Mapping[str, int], most: int) -> list[tuple[int, int]]:
    """
    Return the longest runs of closed days, at most *most*, in order: each the first microsecond
    and the first one after it.
    """
    found: list[tuple[int, int]] = []
    for day in sorted(closed):
        begin, end = bounds(day)
        if found and found[-1][1] == begin:
            begin, _ = found.pop()
        found.append((begin, end))
    return sorted(sorted(found, key=lambda run: run[0] - run[1])[:most])


def _key(rollup: Rollup) -> dict[str, str]:
    """Return SQL for the key of a row of sums, by column. The day is the same for all."""
    key = {name: f"ifNull({name}, '')" for name in rollup.names}
    if rollup.bucket == "hour":
        key["hour"] = "intDiv(occurred_at, 3600000000)"
    if rollup.owned:
        key["owned"] = "user_id IS NOT NULL"
    return key


def _name(number: int) -> str:
    return (_EPOCH + timedelta(days=number)).strftime("%Y-%m-%d")


def _list(days: Collection[str]) -> str:
    return ", ".join(map(literal, days))
