"""
Insert calls into a SQLite ledger: a batch at a time, with its rollups, in few statements.

sqlite3 releases the GIL for each statement, and in a busy application waits milliseconds to get it
back. So the rows of a batch are bound hundreds at a time into a temporary table. Then one statement
does the rest in a trigger: it inserts them, and adds their sums to the rollups.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import Any, TypeAlias

from voight_middleware.ledger.rollups import ROLLUPS
from voight_middleware.ledger.rows import Row
from voight_middleware.ledger.sqlite import triggers
from voight_middleware.ledger.sqlite.packed import (
    COLUMNS,
    KINDS,
    NUMBERS,
    PLACES,
    SHAPES,
    Dictionary,
    call_key,
    kind_of,
    place_of,
    placeholder,
    plain_values,
    unpacked,
    usage_values,
)
from voight_middleware.providers.usage_formats.shapes import split
from voight_middleware.records.call import Call

_ONE_ROW = f"({', '.join(map(placeholder, COLUMNS))})"
# Binding a None takes three times as long as a value (sqlite3 looks for an adapter), hence the
# NULLIFs of the placeholders.
_BIND = {
    rows: f"INSERT INTO temp.new_calls VALUES {', '.join([_ONE_ROW] * rows)}"
    for rows in (500, 100, 10, 1)
}
"""Statements by the number of calls they bind."""
_DROP_KNOWN = (
    "DELETE FROM temp.new_calls WHERE call_key IN (SELECT known.call_key FROM temp.new_calls AS "
    "new CROSS JOIN packed_calls AS known ON known.call_key = new.call_key)"
)
_KNOWN = "calls are known"
_UNPACKED = f"({unpacked('new_calls')})"
# OR IGNORE would also skip a call that breaks a CHECK. Calls of a batch often have the same model,
# plan and hour, but seldom the same user: to group them by user first would take longer than to add
# them one by one.
_NEW = "SELECT * FROM new_calls WHERE 1"
_STORE = (
    f"INSERT INTO packed_calls ({', '.join(COLUMNS)}) {_NEW} ON CONFLICT DO NOTHING",
    f"SELECT RAISE(ABORT, '{_KNOWN}') WHERE changes() <> (SELECT COUNT(*) FROM new_calls)",
    f"INSERT INTO new_sums {triggers.measured(_UNPACKED)} WHERE NEW.are_new",
    f"INSERT INTO new_groups {triggers.grouped('new_sums')}",
    *(
        triggers.add(rollup, "new_sums" if "user_id" in rollup.names else "new_groups")
        for rollup in ROLLUPS
    ),
    *(f"DELETE FROM {table}" for table in ("new_calls", "new_sums", "new_groups", "batches")),
)
_TEMPORARY = (
    f"CREATE TEMP TABLE IF NOT EXISTS new_calls ({', '.join(COLUMNS)})",
    f"CREATE TEMP TABLE IF NOT EXISTS new_sums ({', '.join(triggers.MEASURED)})",
    f"CREATE TEMP TABLE IF NOT EXISTS new_groups ({', '.join(triggers.MEASURED)})",
    "CREATE TEMP TABLE IF NOT EXISTS batches (are_new)",
    (
        "CREATE TEMP TRIGGER IF NOT EXISTS batch_is_bound AFTER INSERT ON batches BEGIN "
        f"{' '.join(f'{statement};' for statement in _STORE)} END"
    ),
)
"""The tables that a batch passes through, and what one statement does with it."""
_AT_ONCE = 500
"""How many calls are made rows at once."""
_MOST = 20_000
"""How many rows of a dictionary are remembered."""


Unpacked: TypeAlias = tuple[Row, Row, int, str, Sequence[Any], str]
"""
A call before it is packed: its values in ``kinds`` and in ``places``, time and id, the plain
columns, and the text of its usage.
"""


class KnownCalls(Exception):
    """Some calls of a batch are in the ledger already. Nothing was inserted."""


class Intake:
    """
    Inserts calls through one connection. Call every method inside a transaction.

    Args:
        db: The connection.
        price_id: Returns the row of a price.
    """

    def __init__(
        self, db: sqlite3.Connection, price_id: Callable[[str], int] | None = None
    ) -> None:
        self._db = db
        self._kinds = _Known(db, KINDS, price_id)
        self._places = _Known(db, PLACES)
        self._shapes = _Known(db, SHAPES)
        self._version: int | None = None
        self._prepared = self._ready = False

    def forget(self) -> None:
        """Forget what the dictionaries contain: a transaction was rolled back, or rows changed."""
        for known in (self._kinds, self._places, self._shapes):
            known.ids.clear()
        self._ready = False

    def prepare(self) -> None:
        """
        Keep temporary tables and journals of statements in memory: a batch is small, and there may
        be no folder that can be written. Call it outside of a transaction.
        """
        if not self._prepared:
            self._db.execute("PRAGMA temp_store = MEMORY")
            self._prepared = True

    def begin(self) -> None:
        """Begin a transaction: another process may have erased a row of a dictionary."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version = version
            self.forget()

    def insert(self, calls: Sequence[Call], *, careful: bool = False) -> int:
        """
        Insert calls that are not there yet, and add them to the rollups. Return how many were new.

        Args:
            calls: The calls.
            careful: Whether some of the calls may be there already. That takes longer.

        Raises:
            KnownCalls: Some are there, and *careful* is False. Roll the transaction back.
        """
        if careful:
            first = {call.call_id: call for call in reversed(calls)}
            calls = list(reversed(first.values()))
        if not calls:
            return 0
        self._begin()
        # some at a time: a collection of garbage looks at every tuple that is there
        for start in range(0, len(calls), _AT_ONCE):
            self._bind(self._rows(calls[start : start + _AT_ONCE]))
        new = len(calls)
        if careful:
            new -= self._db.execute(_DROP_KNOWN).rowcount
        self._store(are_new=True)
        return new

    def copy(self, rows: Sequence[Unpacked]) -> None:
        """Insert calls of an older ledger, whose rollups have them already."""
        self._begin()
        shapes = [_shape(usage) for *_, usage in rows]
        kind_ids = self._kinds.learn([row[0] for row in rows])
        place_ids = self._places.learn([row[1] for row in rows])
        shape_ids = self._shapes.learn([(shape,) for shape, _ in shapes if shape is not None])
        packed = [
            (
                occurred_at,
                call_key(call_id),
                kind_ids[kind],
                place_ids[place],
                *plain,
                *usage_values(usage, shape_ids.get((shape,)), numbers),
            )
            for (kind, place, occurred_at, call_id, plain, usage), (shape, numbers) in zip(
                rows, shapes, strict=True
            )
        ]
        self._bind(packed)
        self._store(are_new=False)

    def _rows(self, calls: Sequence[Call]) -> list[Row]:
        kinds = [kind_of(call) for call in calls]
        places = [place_of(call) for call in calls]
        shapes = [_shape(call.raw_usage) for call in calls]
        kind_ids = self._kinds.learn(kinds)
        place_ids = self._places.learn(places)
        shape_ids = self._shapes.learn([(shape,) for shape, _ in shapes if shape is not None])
        return [
            (
                call.occurred_at,
                call_key(call.call_id),
                kind_ids[kind],
                place_ids[place],
                *plain_values(call),
                *usage_values(call.raw_usage, shape_ids.get((shape,)), numbers),
            )
            for call, kind, place, (shape, numbers) in zip(
                calls, kinds, places, shapes, strict=True
            )
        ]

    def _begin(self) -> None:
        if not self._ready:
            for statement in _TEMPORARY:
                self._db.execute(statement)
            self._ready = True

    def _bind(self, rows: Sequence[Row]) -> None:
        position = 0
        for count, statement in _BIND.items():
            while len(rows) - position >= count:
                some = rows[position : position + count]
                self._db.execute(statement, tuple(chain.from_iterable(some)))
                position += count

    def _store(self, *, are_new: bool) -> None:
        try:
            self._db.execute("INSERT INTO temp.batches VALUES (?)", (int(are_new),))
        except sqlite3.IntegrityError as error:
            if str(error) == _KNOWN:
                raise KnownCalls from error
            raise


class _Known:
    """The rows of a dictionary that this process has seen."""

    def __init__(
        self,
        db: sqlite3.Connection,
        dictionary: Dictionary,
        price_id: Callable[[str], int] | None = None,
    ) -> None:
        self._db = db
        self._dictionary = dictionary
        self._price_id = price_id
        self.ids: dict[Row, Any] = {}
        """
        Ids by values. An empty text means no value, and a price may be its text. The id is None if
        the dictionary is full, or the only value is None.
        """

    def learn(self, rows: Collection[Row]) -> dict[Row, Any]:
        """Return ``ids``, with the ids of *rows*. Rows that are not there are added."""
        missing = list(set(rows).difference(self.ids))
        if missing and len(self.ids) > _MOST:
            self.ids.clear()
            missing = list(set(rows))
        position = 0
        for count in (100, 10, 1):
            while len(missing) - position >= count:
                self._learn(missing[position : position + count])
                position += count
        return self.ids

    def _learn(self, rows: Sequence[Row]) -> None:
        dictionary = self._dictionary
        one = f"({', '.join('?' * len(dictionary.columns))})"
        source = (
            f"WITH source ({', '.join(dictionary.columns)}) AS (VALUES "
            f"{', '.join([one] * len(rows))})"
        )
        values = tuple(chain.from_iterable(map(self._stored, rows)))
        self._db.execute(f"{source} {dictionary.add('source')}", values)
        (ids,) = self._db.execute(
            f"{source} SELECT json_group_array((SELECT MIN({dictionary.id}) FROM "
            f"{dictionary.table} WHERE {dictionary.same('source')})) FROM source",
            values,
        ).fetchone()
        self.ids.update(zip(rows, json.loads(ids), strict=True))

    def _stored(self, row: Row) -> Iterator[Any]:
        for value, (name, kind) in zip(row, self._dictionary.columns.items(), strict=True):
            if name == "price_id" and isinstance(value, str) and self._price_id is not None:
                yield self._price_id(value)
            elif isinstance(value, bool):
                yield int(value)
            else:
                yield None if value == "" and "NOT NULL" not in kind else value


_NO_SHAPE: tuple[None, tuple[int, ...]] = None, ()


def _shape(text: str | None) -> tuple[str | None, tuple[int, ...]]:
    parts = split(text) if text else None
    return parts if parts is not None and len(parts[1]) <= NUMBERS else _NO_SHAPE
