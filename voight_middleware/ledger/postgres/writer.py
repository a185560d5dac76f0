"""
Write a batch inside its transaction: copy calls, store prices and extra keys, attribute calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TypeVar

import msgspec

from voight_middleware.ledger.base import PriceVersion, Progress
from voight_middleware.ledger.postgres.connection import Connection, row, run, run_many
from voight_middleware.ledger.postgres.schema import FORMER, INSERT, LOCK, REPRICE, STAGING
from voight_middleware.ledger.postgres.values import (
    STORED,
    calls_json,
    change,
    copied,
    former_values,
    owner,
    prices_of,
    storable,
    to_stored,
)
from voight_middleware.records.call import REATTRIBUTABLE, Call, LateAttribution, Submission

_Item = TypeVar("_Item")
_encode = msgspec.json.Encoder().encode
_decode_submission = msgspec.json.Decoder(Submission).decode


class Writer:
    """
    Writes through one connection. Call every method inside a transaction. Each takes the writers'
    lock.
    """

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._prices: set[int] = set()
        self._extra_keys: set[str] = set()

    def rolled_back(self) -> None:
        """Forget the prices and extra keys learned in the transaction."""
        self._prices.clear()
        self._extra_keys.clear()

    def insert(
        self,
        calls: Sequence[Call],
        others: Sequence[LateAttribution | Submission],
        progress: Progress | None,
    ) -> int:
        """See ``Ledger.insert``."""
        plain = [call for call in calls if call.job is None]
        if plain:
            self._copy(plain)
        run(self._db, LOCK)
        self._learn(
            (key for record in (*calls, *others) for key in record.tags.extra), prices_of(calls)
        )
        new = run(self._db, INSERT).rowcount if plain else 0
        for batch in _rounds(
            [call for call in calls if call.job is not None], lambda call: call.call_id
        ):
            new += row(self._db, "SELECT voight.tell(?::jsonb)", calls_json(map(to_stored, batch)))[
                0
            ]
        for _, alike in groupby(others, type):
            records = list(alike)
            self._attribute_late(
                [
                    late
                    for late in records
                    if isinstance(late, LateAttribution) and late.tags.user_id is not None
                ]
            )
            self._submit(
                [submission for submission in records if isinstance(submission, Submission)]
            )
        if progress is not None:
            run(
                self._db,
                "INSERT INTO voight.segments VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET "
                "ingested = excluded.ingested",
                [progress.segment, progress.offset],
            )
        return new

    def import_calls(
        self, calls: Sequence[Call], former: Mapping[str, Sequence[PriceVersion]], replace: bool
    ) -> int:
        """See ``Ledger.import_calls``."""
        written = 0
        for batch in _rounds(calls, lambda call: call.call_id):
            self._copy(batch)
            run(self._db, LOCK)
            self._learn(
                (key for call in batch for key in call.tags.extra), prices_of(batch, former)
            )
            if replace:
                ids = [call.call_id for call in batch]
                run(self._db, "DELETE FROM voight.former_costs WHERE call_id = ANY(?)", [ids])
                run(self._db, "DELETE FROM voight.calls WHERE call_id = ANY(?)", [ids])
            new = [
                call_id for (call_id,) in run(self._db, f"{INSERT} RETURNING call_id").fetchall()
            ]
            run(self._db, "TRUNCATE pg_temp.voight_calls")
            rows = [
                former_values(call_id, price)
                for call_id in new
                for price in former.get(call_id, ())
            ]
            run_many(
                self._db,
                f"INSERT INTO voight.former_costs ({', '.join(FORMER)}) VALUES "
                f"({', '.join('?' * len(FORMER))})",
                rows,
            )
            written += len(new)
        return written

    def reprice(self, changes: Sequence[tuple[Call, Call]], now: int) -> int:
        """See ``Ledger.reprice``. *changes* has changed calls only."""
        run(self._db, LOCK)
        self._learn((), prices_of(after for _, after in changes))
        return sum(
            run(
                self._db, REPRICE, [_encode([change(*pair) for pair in batch]).decode(), now]
            ).rowcount
            for batch in _rounds(changes, lambda pair: pair[0].call_id)
        )

    def _copy(self, calls: Sequence[Call]) -> None:
        """
        Copy calls to the session's staging table. A pooler may have changed the session since the
        last time.
        """
        if row(self._db, "SELECT to_regclass('pg_temp.voight_calls') IS NULL")[0]:
            run(self._db, STAGING)
        with self._db.cursor().copy(
            f"COPY pg_temp.voight_calls ({', '.join(STORED)}) FROM STDIN".encode()
        ) as copy:
            copy.write(copied(map(to_stored, calls)))

    def _attribute_late(self, attributions: Sequence[LateAttribution]) -> None:
        owned = [
            (call_id, late) for late in attributions for call_id in dict.fromkeys(late.call_ids)
        ]
        for batch in _rounds(owned, itemgetter(0)):
            rows = [
                {"call_id": storable(call_id), **owner(late.tags, late.attribution)}
                for call_id, late in batch
            ]
            run(self._db, "SELECT voight.settle(?::jsonb)", [_encode(rows).decode()])
        jobs = [(name, late) for name, late in owned if "/" in name]
        known = submissions(self._db, [name for name, _ in jobs])
        for name, late in jobs:
            submission = known.get(name)
            if submission is not None and submission.attribution in REATTRIBUTABLE:
                tags = submission.tags.merge(late.tags)
                known[name] = msgspec.structs.replace(
                    submission, tags=tags, attribution=late.attribution
                )
                self._store(known[name])

    def _submit(self, submitted: Sequence[Submission]) -> None:
        known = submissions(self._db, [submission.job for submission in submitted])
        for submission in submitted:
            if known.setdefault(submission.job, submission) is submission:
                self._store(submission)

    def _store(self, submission: Submission) -> None:
        """Store a submission and make it the owner of its job's existing calls."""
        owned = submission
        if submission.tags.user_id is None and submission.part_of is not None:
            owned = submissions(self._db, [submission.part_of]).get(submission.part_of, submission)
        values = (
            None
            if owned.tags.user_id is None
            else _encode(owner(owned.tags, owned.attribution)).decode()
        )
        run(
            self._db,
            "SELECT voight.submit(?, ?, ?, ?, ?::jsonb)",
            [
                submission.job,
                submission.part_of,
                submission.submitted_at,
                _encode(submission).decode(),
                values,
            ],
        )

    def _learn(self, keys: Iterable[str], prices: Mapping[int, str]) -> None:
        """Store extra keys and prices that this connection has not written yet."""
        if new_keys := {*map(storable, keys)} - self._extra_keys:
            run_many(
                self._db,
                "INSERT INTO voight.extra_keys VALUES (?) ON CONFLICT DO NOTHING",
                [(key,) for key in new_keys],
            )
            self._extra_keys |= new_keys
        if new_prices := prices.keys() - self._prices:
            rows = [(number, prices[number]) for number in new_prices]
            run_many(
                self._db, "INSERT INTO voight.prices VALUES (?, ?) ON CONFLICT DO NOTHING", rows
            )
            self._prices |= new_prices


def submissions(db: Connection, jobs: Collection[str]) -> dict[str, Submission]:
    """Return the submissions of those *jobs* that are known."""
    if not jobs:
        return {}
    rows = run(
        db, "SELECT job, submission FROM voight.submitted(?::text[])", [list(jobs)]
    ).fetchall()
    return {job: _decode_submission(text) for job, text in rows}


def _rounds(items: Sequence[_Item], key: Callable[[_Item], str]) -> Iterator[list[_Item]]:
    """
    Yield *items* in order, in batches without duplicate keys. A statement changes a row only once.
    """
    while items:
        batch, rest = dict[str, _Item](), list[_Item]()
        for item in items:
            if batch.setdefault(key(item), item) is not item:
                rest.append(item)
        yield list(batch.values())
        items = rest
