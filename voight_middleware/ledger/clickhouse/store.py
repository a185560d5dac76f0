"""The ClickHouse ledger: calls of many hosts on one server or cluster."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import tzinfo
from typing import Any

import msgspec
from clickhouse_connect.driver.client import Client

from voight_middleware.config.ledger_url import shown_url
from voight_middleware.ledger.base import (
    MIN_ID_LENGTH,
    Expired,
    ForeignLedger,
    LedgerError,
    PersonalData,
    PriceVersion,
    Progress,
    Spend,
    Where,
    Window,
)
from voight_middleware.ledger.clickhouse import erasure, prices, retention, schema
from voight_middleware.ledger.clickhouse.database import Database
from voight_middleware.ledger.clickhouse.dialect import ClickHouseDialect
from voight_middleware.ledger.clickhouse.query import ClickHouseQuery
from voight_middleware.ledger.clickhouse.schema import SELECT, last_wins, now, readable
from voight_middleware.ledger.clickhouse.server import connect, read_url
from voight_middleware.ledger.clickhouse.writer import Writer
from voight_middleware.ledger.groups import SqlGroups
from voight_middleware.ledger.query import Sql, read_spend
from voight_middleware.ledger.rows import encode, from_row, only_match, within_range
from voight_middleware.records.call import Call, Record, Submission

_PIECE = 20_000
"""How many calls to read at once."""
_HOUR = 3_600_000_000
_ATTEMPTS = 3
"""How often to read sums of closed days, before reading the calls instead."""

_decode_submission = msgspec.json.Decoder(Submission).decode


class ClickHouseLedger:
    """
    Calls in a ClickHouse database. Use it from one thread at a time.

    There are no transactions. A batch is written in repeatable steps: new calls, results of jobs,
    owners, and last the progress. After a crash, ingesting the batch again completes it. Until
    then, a reader may see calls without their late owner.

    A reader never sees a call twice or in part. A call is one row, and is looked up before it is
    inserted. If two processes insert it at once, or an attempt succeeds after a timeout, the first
    row counts: every query reads with ``FINAL``.

    Reports read the sums of days that no longer change (``closed_days.py``), and the calls of all
    others.

    A repricing writes the previous price before the new one. An erasure changes one column after
    the other. The next run completes both. An export reads in pieces, not at one moment.

    All writers of a replicated ledger must use the same replica: a lagging one would not have the
    calls to attribute. Clusters are untested: the statements are those of a single server with ``ON
    CLUSTER`` and a replicated engine.

    Args:
        url: ``clickhouse://user:password@host:8123/database``, with any of the options
            ``secure=1``, ``verify=0``, ``ca_cert=path``, ``cluster=name`` and ``ttl_days=400``. The
            default database is ``voight``. A missing password comes from ``CLICKHOUSE_PASSWORD``.
        create: False for reports: a missing ledger is an error.
        client: A connection to use instead of one to the URL's host.

    Raises:
        ForeignLedger: The database has tables of another application.
        LedgerError: The server cannot be reached or refuses. Or the ledger is from a newer version,
            or missing and *create* is False.
    """

    def __init__(self, url: str, *, create: bool = True, client: Client | None = None) -> None:
        self.server = read_url(url)
        self.url = shown_url(url)
        self._client = connect(self.server) if client is None else client
        self._own_client = client is None
        self._db = Database(self._client, self.server)
        self._dialect = ClickHouseDialect(self._db.name)
        self._writer = Writer(self._db)
        self.schema_version = 0
        try:
            self._prepare(create)
        except BaseException:
            self.close()
            raise

    def info(self) -> list[tuple[str, str]]:
        version, user = self._db.rows("SELECT version(), currentUser()")[0]
        info = [
            ("engine", f"ClickHouse {version}"),
            ("database", self.server.name),
            ("schema", f"version {self.schema_version}"),
            ("user", f"{user}{', who may only read' if self._db.readonly else ''}"),
        ]
        if self.server.cluster:
            info.append(("cluster", self.server.cluster))
        if ttl := retention.ttl(self._db):
            info.append(("retention", f"calls are deleted after {ttl} days"))
        return info

    def insert(self, records: Sequence[Record], progress: Progress | None = None) -> int:
        """
        Insert step by step, as the class describes.

        Raises:
            ValueError: A record cannot be stored at all. None of *records* was.
            LedgerError: The server has failed. Some steps may be done; the same call does the rest.
        """
        calls = [within_range(record) for record in records if isinstance(record, Call)]
        new = self._writer.insert(
            calls, [record for record in records if not isinstance(record, Call)], progress
        )
        self._db.days.close_next()
        return new

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        return self._writer.submissions(jobs)

    def progress(self, segment: str) -> int:
        rows = self._db.rows(
            f"SELECT offset FROM {self._db.name}.segments FINAL WHERE name = ?", [segment]
        )
        return int(rows[0][0]) if rows else 0

    def clear_progress(self, segment: str) -> None:
        if self.progress(segment):
            self._db.add(
                "segments", ("name", "offset", "version"), [encode((segment, 0, last_wins(now())))]
            )

    def spend(
        self,
        by: Sequence[str] = (),
        where: Where | None = None,
        window: Window = Window(),
        limit: int | None = None,
        *,
        original_prices: bool = False,
        zone: tzinfo | None = None,
    ) -> list[Spend]:
        by = tuple(dict.fromkeys(by))
        rows = self._summed(
            zone,
            lambda query: query.spend(
                by, where or {}, window, limit, original_prices=original_prices
            ),
        )
        return [read_spend(by, row, self._dialect) for row in rows]

    def groups(
        self,
        by: Sequence[str] = (),
        where: Where | None = None,
        window: Window = Window(),
        *,
        original_prices: bool = False,
        zone: tzinfo | None = None,
        known: tuple[int, int] | None = None,
    ) -> SqlGroups:
        return SqlGroups(
            lambda ask: self._summed(zone, ask, known),
            self.snapshot,
            None,
            self._dialect,
            by=tuple(dict.fromkeys(by)),
            where=where or {},
            window=window,
            original_prices=original_prices,
        )

    def snapshot(self) -> AbstractContextManager[None]:
        return nullcontext()

    def calls(
        self,
        where: Where | None = None,
        window: Window = Window(),
        limit: int | None = None,
        *,
        after: tuple[int, str] | None = None,
        original_prices: bool = False,
        zone: tzinfo | None = None,
    ) -> Iterator[Call]:
        """
        Read some hours at a time: to sort all calls, the server would need them all in memory.
        """
        if after is not None:
            window = Window(max(after[0], window.since or after[0]), window.until)
        condition, values = self._query(zone).condition(where or {}, window)
        source = self._dialect.calls_at_original_prices if original_prices else self._dialect.calls
        left = limit
        size = _PIECE if limit is None else min(_PIECE, limit)
        # Replaced rows do no harm in a count that only decides where to cut.
        counted = source if original_prices else source.removesuffix(" FINAL")
        for begin, end in self._spans(f"{counted} WHERE {condition}", values, size):
            while left is None or left > 0:
                size = _PIECE if left is None else min(_PIECE, left)
                sql = f"{condition} AND occurred_at >= ? AND occurred_at < ?"
                bindings = [*values, begin, end]
                if after is not None:
                    sql = f"{sql} AND (occurred_at, call_id) > (?, ?)"
                    bindings = [*bindings, *after]
                sql = (
                    f"SELECT {SELECT} FROM {source} WHERE {sql} ORDER BY occurred_at, call_id "
                    "LIMIT ?"
                )
                rows = self._db.rows(sql, [*bindings, size])
                for row in rows:
                    yield from_row(readable(row))
                left = None if left is None else left - len(rows)
                if len(rows) < size:
                    break
                after = rows[-1][0], rows[-1][1]

    def call(self, call_id: str) -> Call | None:
        query = f"SELECT {SELECT} FROM {self._dialect.calls} WHERE"
        rows = self._db.rows(f"{query} call_id = ?", [call_id])
        if not rows and len(call_id) >= MIN_ID_LENGTH:
            range_ = [call_id, call_id + "\U0010ffff"]
            rows = self._db.rows(
                f"{query} call_id > ? AND call_id < ? ORDER BY call_id LIMIT 2", range_
            )
        return only_match([from_row(readable(row)) for row in rows], call_id)

    def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
        """
        Store the previous prices first. If the server fails in between, the next run continues.
        """
        return prices.reprice(self._db, changes)

    def price_history(self, call_id: str) -> list[PriceVersion]:
        return self.price_histories([call_id]).get(call_id, [])

    def price_histories(self, call_ids: Collection[str]) -> dict[str, list[PriceVersion]]:
        return prices.price_histories(self._db, call_ids)

    def jobs(self, after: str = "", limit: int = 1_000) -> list[Submission]:
        sql = (
            f"SELECT submission FROM {self._db.name}.jobs FINAL WHERE job > ? ORDER BY job LIMIT ?"
        )
        return [_decode_submission(text) for (text,) in self._db.rows(sql, [after, limit])]

    def import_calls(
        self,
        calls: Sequence[Call],
        former: Mapping[str, Sequence[PriceVersion]] = {},
        *,
        replace: bool = False,
    ) -> int:
        return prices.import_calls(self._db, self._writer, calls, former, replace=replace)

    def time_range(
        self, where: Where | None = None, window: Window = Window()
    ) -> tuple[int, int] | None:
        if where or window != Window():
            sql = self._query(None).time_range(where or {}, window)
            ((count, oldest, newest),) = self._db.rows(*sql)
            return (oldest, newest) if count else None
        # Without FINAL, the engine reads no rows for this.
        count, oldest, newest = self._db.rows(
            f"SELECT COUNT(*), MIN(occurred_at), MAX(occurred_at) FROM {self._db.name}.calls"
        )[0]
        return (oldest, newest) if count else None

    def personal_data(self, names: Collection[str]) -> PersonalData:
        return erasure.personal_data(self._db, names)

    def erase(self, names: Collection[str], token: str) -> PersonalData:
        """Change one column after the other. If the server fails halfway, another run continues."""
        return erasure.erase(self._db, names, token)

    def purge(self, names: Collection[str]) -> list[str]:
        """
        Have the server rewrite the tables that still contain one of *names*. Return those that
        still do.

        The server keeps replaced files for some minutes (``old_parts_lifetime``), and its own logs
        as configured. Neither is visible from here.
        """
        return erasure.purge(self._db, names)

    def expired(self, until: int) -> Expired:
        return retention.expired(self._db, until)

    def expire(self, until: int, limit: int) -> Expired:
        """
        Delete whole months at once. The rest of a month costs the engine a pass over all its calls,
        however few go.
        """
        return retention.expire(self._db, until, limit)

    def rebuild(self) -> Iterator[str]:
        """
        Sum up the days again that have not changed for an hour. The sums of other days are made an
        hour after their last change, by an ingesting process.
        """
        return self._db.days.rebuild()

    def close(self) -> None:
        self._db.closed = True
        if self._own_client:
            self._client.close()

    def _spans(self, source: str, values: Sequence[object], size: int) -> Iterator[tuple[int, int]]:
        """Yield spans of whole hours with about *size* calls each. A single hour may have more."""
        sql = (
            f"SELECT occurred_at - positiveModulo(occurred_at, {_HOUR}) AS hour, COUNT(*) FROM "
            f"{source} GROUP BY hour ORDER BY hour"
        )
        begin, count = None, 0
        end = 0
        for hour, calls in self._db.rows(sql, values):
            if begin is not None and count + calls > size:
                yield begin, hour
                begin, count = None, 0
            begin, count, end = hour if begin is None else begin, count + calls, hour + _HOUR
        if begin is not None:
            yield begin, end

    def _prepare(self, create: bool) -> None:
        self._db.readonly = bool(int(self._db.rows("SELECT getSetting('readonly')")[0][0]))
        tables = self._db.tables()
        if "ledger" not in tables:
            if tables & schema.TABLES.keys():
                raise ForeignLedger(
                    f"{self.server.name} is a database of another application, not a ledger: "
                    "choose another one"
                )
            if not create:
                raise self._missing()
            self._db.create()
        version = self._version()
        if version == 0:
            if not create:
                raise self._missing()
            self._db.create()
            self._db.add("ledger", ("schema", "version"), [encode((schema.VERSION, now()))])
            version = self._version()
        if version > schema.VERSION:
            raise LedgerError(
                f"the ledger {self.server.name} was written by a newer version (schema {version}, "
                f"this one knows {schema.VERSION}): "
                "upgrade with pip install -U voight-middleware"
            )
        if version < schema.VERSION:
            if not create:  # a report may lack the right to, and needs no sums
                self.schema_version = version
                self._db.look_at()
                return
            self._db.create()
        for old in range(version, schema.VERSION):
            for statement in schema.UPGRADES.get(old, ()):
                self._db.run(
                    statement.format(database=self._db.name, cluster=self.server.on_cluster)
                )
            self._db.add("ledger", ("schema", "version"), [encode((old + 1, now()))])
        self.schema_version = self._version()
        self._db.look_at()
        if create and self.server.ttl_days is not None:
            retention.keep_for(self._db, self.server.ttl_days)

    def _version(self) -> int:
        return int(self._db.rows(f"SELECT MAX(schema) FROM {self._db.name}.ledger")[0][0])

    def _missing(self) -> LedgerError:
        return LedgerError(
            f"there is no ledger at {self.server.name} yet: the first stored call creates it "
            "(`voight doctor` shows where calls go, "
            "`voight demo` shows an example)"
        )

    def _query(
        self,
        zone: tzinfo | None,
        closed: Mapping[str, int] = {},
        known: tuple[int, int] | None = None,
    ) -> ClickHouseQuery:
        keys = [
            key for (key,) in self._db.rows(f"SELECT DISTINCT key FROM {self._db.name}.extra_keys")
        ]
        return ClickHouseQuery(self._dialect, keys, zone, self.time_range(), known, closed)

    def _summed(
        self,
        zone: tzinfo | None,
        ask: Callable[[ClickHouseQuery], Sql],
        known: tuple[int, int] | None = None,
    ) -> Sequence[Sequence[Any]]:
        """
        Return the rows of a query that may read the sums of closed days.

        If one of these days is open afterwards, its sums may have been deleted in the meantime.
        """
        for _ in range(_ATTEMPTS):
            closed = self._closed()
            rows = self._db.rows(*ask(self._query(zone, closed, known)))
            if not closed or closed.items() <= self._closed().items():
                return rows
        return self._db.rows(*ask(self._query(zone, known=known)))

    def _closed(self) -> Mapping[str, int]:
        if self.schema_version < schema.SUMMED:
            return {}
        return self._db.days.closed()
