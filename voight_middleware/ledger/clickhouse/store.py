"""The ClickHouse ledger: calls of many hosts on one server or cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import tzinfo

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
from voight_middleware.ledger.clickhouse.schema import SELECT, last_wins, now, readable
from voight_middleware.ledger.clickhouse.server import connect, read_url
from voight_middleware.ledger.clickhouse.writer import Writer
from voight_middleware.ledger.query import Query, read_spend
from voight_middleware.ledger.rows import encode, from_row, the_one, within_range
from voight_middleware.records.call import Call, Record, Submission

_PIECE = 20_000
"""How many calls are read at once."""
_HOUR = 3_600_000_000

_decode_submission = msgspec.json.Decoder(Submission).decode


class ClickHouseLedger:
    """
    Calls in a ClickHouse database. Used from one thread at a time.

    There are no transactions, and what has become of them is this. A batch is done step by step, in an order in which every step can be
    repeated: new calls, answers to jobs, owners, and the progress last. A crash between two of them is made good when the batch is
    brought in again. Until then a reader can see calls without their late owner; he never sees one twice, nor half of one, as a call is
    one row, is looked for before it is added, and counts once where it is there twice all the same (two processes, or a try that was
    given up and came through later): every question reads with ``FINAL``, and the row that came first counts. A repricing writes the
    former price before the new one, an erasure changes one column after the other, and both are finished by the next run. An export
    reads a piece at a time, and not one moment.

    Writers of a replicated ledger must all name the same replica: one that lags behind would not know the calls that owners are for.
    Clusters have not been tested: the statements are those of a single server with ``ON CLUSTER`` and a replicated engine.

    Args:
        url: ``clickhouse://user:password@host:8123/database``, with any of the options ``secure=1``, ``verify=0``, ``ca_cert=path``,
            ``cluster=name`` and ``ttl_days=400``. The database is ``voight`` where none is named; a missing password is that of
            ``CLICKHOUSE_PASSWORD``.
        create: False for reports: a ledger that is not there is an error.
        client: A connection to be used, instead of one to the URL's host.

    Raises:
        ForeignLedger: The database has tables of something else.
        LedgerError: The server cannot be reached or refuses, the ledger was written by a newer version, or is missing and not to be
            created.
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
        """What ``voight doctor`` says of the ledger."""
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
        Keep calls and submissions and apply settlements, then note *progress*; answers how many calls were new, or told of for the first
        time.

        Submissions and settlements are applied after all calls of *records*. A call with a count or cost that no column holds is kept
        without it, unpriced.

        Raises:
            ValueError: A record cannot be kept at all, and nothing of *records* was.
            LedgerError: The server has failed: some of it may have been done, and the same again does the rest.
        """
        calls = [within_range(record) for record in records if isinstance(record, Call)]
        return self._writer.insert(calls, [record for record in records if not isinstance(record, Call)], progress)

    def submissions(self, jobs: Collection[str]) -> dict[str, Submission]:
        """Those of *jobs* that are known."""
        return self._writer.submissions(jobs)

    def progress(self, segment: str) -> int:
        """The offset in bytes up to which *segment* has been ingested; 0 for an unknown one."""
        rows = self._db.rows(f"SELECT offset FROM {self._db.name}.segments FINAL WHERE name = ?", [segment])
        return int(rows[0][0]) if rows else 0

    def clear_progress(self, segment: str) -> None:
        """Drop the progress of a segment whose file is gone."""
        if self.progress(segment):
            self._db.add("segments", ("name", "offset", "version"), [encode((segment, 0, last_wins(now())))])

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
        """
        Calls added up by dimensions, the most expensive first (unpriced groups last, then by calls).

        Raises:
            UnknownDimension: A name in *by* or *where* is neither in ``DIMENSIONS`` nor an extra key of any call.
        """
        by = tuple(dict.fromkeys(by))
        rows = self._db.rows(*self._query(zone).spend(by, where or {}, window, limit, original_prices=original_prices))
        return [read_spend(by, row, self._dialect) for row in rows]

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
        Every call, the oldest first; at most *limit*, from behind the one of this ``occurred_at`` and ``call_id`` on.

        They are read some hours at a time: a server that sorted them all would have to have them all in its memory.

        Raises:
            UnknownDimension: As for ``spend``.
        """
        if after is not None:
            window = Window(max(after[0], window.since or after[0]), window.until)
        condition, values = self._query(zone).condition(where or {}, window)
        source = self._dialect.calls_at_original_prices if original_prices else self._dialect.calls
        left = limit
        size = _PIECE if limit is None else min(_PIECE, limit)
        # Rows that others have replaced do no harm in a count that only says where to cut.
        counted = source if original_prices else source.removesuffix(" FINAL")
        for begin, end in self._spans(f"{counted} WHERE {condition}", values, size):
            while left is None or left > 0:
                size = _PIECE if left is None else min(_PIECE, left)
                sql, bindings = f"{condition} AND occurred_at >= ? AND occurred_at < ?", [*values, begin, end]
                if after is not None:
                    sql, bindings = f"{sql} AND (occurred_at, call_id) > (?, ?)", [*bindings, *after]
                sql = f"SELECT {SELECT} FROM {source} WHERE {sql} ORDER BY occurred_at, call_id LIMIT ?"
                rows = self._db.rows(sql, [*bindings, size])
                for row in rows:
                    yield from_row(readable(row))
                left = None if left is None else left - len(rows)
                if len(rows) < size:
                    break
                after = rows[-1][0], rows[-1][1]

    def call(self, call_id: str) -> Call | None:
        """
        The call of that id, or the only one whose id begins with it, if it has 8 characters or more; None where there is none.

        Raises:
            LedgerError: Several calls begin with it.
        """
        query = f"SELECT {SELECT} FROM {self._dialect.calls} WHERE"
        rows = self._db.rows(f"{query} call_id = ?", [call_id])
        if not rows and len(call_id) >= MIN_ID_LENGTH:
            range_ = [call_id, call_id + "\U0010ffff"]
            rows = self._db.rows(f"{query} call_id > ? AND call_id < ? ORDER BY call_id LIMIT 2", range_)
        return the_one([from_row(readable(row)) for row in rows], call_id)

    def reprice(self, changes: Sequence[tuple[Call, Call]]) -> int:
        """
        Give calls another price; each as it was read, and as it is priced now. Answers how many have got one.

        The price before is kept as a version of its own, first: where the server fails in between, the next run goes on from there. A
        call is not touched where cost, status and reasons stay the same, nor where it is not in the ledger as it was read.
        """
        return prices.reprice(self._db, changes)

    def price_history(self, call_id: str) -> list[PriceVersion]:
        """The prices that a call had before its newest one, the original first."""
        return self.price_histories([call_id]).get(call_id, [])

    def price_histories(self, call_ids: Collection[str]) -> dict[str, list[PriceVersion]]:
        """The prices that calls had before their newest one, the original first, by ``call_id``; a call without any is missing."""
        return prices.price_histories(self._db, call_ids)

    def jobs(self, after: str = "", limit: int = 1_000) -> list[Submission]:
        """Submitted jobs in the bytewise order of their names: at most *limit*, from behind the name *after* on."""
        sql = f"SELECT submission FROM {self._db.name}.jobs FINAL WHERE job > ? ORDER BY job LIMIT ?"
        return [_decode_submission(text) for (text,) in self._db.rows(sql, [after, limit])]

    def import_calls(self, calls: Sequence[Call], former: Mapping[str, Sequence[PriceVersion]] = {}, *, replace: bool = False) -> int:
        """
        Keep calls of another ledger as they are there, each with the prices that it had before; answers how many were written.

        Nothing is settled, completed or repriced by it. A call whose id is here already is left as it is, and its former prices with
        it; with *replace* it is replaced, together with them.

        Raises:
            ValueError: A call cannot be kept, and nothing of *calls* was.
        """
        return prices.import_calls(self._db, self._writer, calls, former, replace=replace)

    def time_range(self) -> tuple[int, int] | None:
        """When the oldest and the newest call happened, in microseconds since 1970 UTC; None for an empty ledger."""
        # Without FINAL the engine knows it without reading a row.
        count, oldest, newest = self._db.rows(f"SELECT COUNT(*), MIN(occurred_at), MAX(occurred_at) FROM {self._db.name}.calls")[0]
        return (oldest, newest) if count else None

    def personal_data(self, names: Collection[str]) -> PersonalData:
        """What is kept about the person who is known by any of *names*."""
        return erasure.personal_data(self._db, names)

    def erase(self, names: Collection[str], token: str) -> PersonalData:
        """
        Put *token* in the place of a person's ids, and take sessions and answer ids off the person's calls; answers what was found.
        Costs and counts stay as they are. Where the server fails half-way, another run goes on.
        """
        return erasure.erase(self._db, names, token)

    def purge(self, names: Collection[str]) -> list[str]:
        """
        Have the server write anew what still has one of *names* in it; answers the tables in which it remains.

        The server keeps files that it has replaced for some minutes (``old_parts_lifetime``), and its own logs for as long as it is
        told to: neither can be seen from here.
        """
        return erasure.purge(self._db, names)

    def expired(self, until: int) -> Expired:
        """What happened before *until*, in microseconds since 1970 UTC."""
        return retention.expired(self._db, until)

    def expire(self, until: int, limit: int) -> Expired:
        """
        Delete at most *limit* of the oldest calls from before *until*, and with the last of them the jobs; answers what it was.

        Whole months go at once; what is left of one costs the engine a pass over all of that month, for one call as for all of them.
        """
        return retention.expire(self._db, until, limit)

    def rebuild(self) -> Iterator[str]:
        """Nothing: answers are read from the calls themselves."""
        return iter(())

    def close(self) -> None:
        """Release the connection; harmless when repeated."""
        self._db.closed = True
        if self._own_client:
            self._client.close()

    def _spans(self, source: str, values: Sequence[object], size: int) -> Iterator[tuple[int, int]]:
        """Spans of whole hours with about *size* calls each, or the hour that has more."""
        sql = f"SELECT occurred_at - positiveModulo(occurred_at, {_HOUR}) AS hour, COUNT(*) FROM {source} GROUP BY hour ORDER BY hour"
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
                raise ForeignLedger(f"{self.server.name} is a database of another application, not a ledger: choose another one")
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
                f"the ledger {self.server.name} was written by a newer version (schema {version}, this one knows {schema.VERSION}): "
                "upgrade with pip install -U voight-middleware"
            )
        for old in range(version, schema.VERSION):
            for statement in schema.UPGRADES[old]:
                self._db.run(statement.format(database=self._db.name, cluster=self.server.on_cluster))
            self._db.add("ledger", ("schema", "version"), [encode((old + 1, now()))])
        self.schema_version = self._version()
        self._db.look_at()
        if create and self.server.ttl_days is not None:
            retention.keep_for(self._db, self.server.ttl_days)

    def _version(self) -> int:
        return int(self._db.rows(f"SELECT MAX(schema) FROM {self._db.name}.ledger")[0][0])

    def _missing(self) -> LedgerError:
        return LedgerError(
            f"there is no ledger at {self.server.name} yet: it appears with the first call that is kept (`voight doctor` says where calls "
            "go, `voight demo` shows the whole line)"
        )

    def _query(self, zone: tzinfo | None) -> Query:
        keys = [key for (key,) in self._db.rows(f"SELECT DISTINCT key FROM {self._db.name}.extra_keys")]
        return Query(self._dialect, keys, zone, self.time_range())
