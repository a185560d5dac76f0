"""
How large a ledger gets, and how long each report takes, cold and warm, beside the same questions to
DuckDB over a Parquet export.

With ``--ledger postgresql://…`` or ``clickhouse://…``, of an empty ledger on that server, which is
filled with the same calls. A server's caches are its own: "cold" is the first answer to a new
process then.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import mmap
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
from msgspec.structs import replace

from voight_middleware.exporters.files import parquet
from voight_middleware.ledger import Ledger, Spend, Where, Window, open_ledger
from voight_middleware.reports.margin import margin
from voight_middleware.reports.plans import plans
from voight_middleware.reports.release import release
from voight_middleware.reports.spend import spend
from voight_middleware.reports.timespan import parse_window
from voight_middleware.reports.top import top
from voight_middleware.reports.unattributed_share import unattributed_share

sys.path.append(str(Path(__file__).parents[1]))
from tests.support.made_up_ledger import LONG_RELEASE, fill, fill_file, made_up_calls

WARM = 5
NOVEMBER = parse_window("2026-11", "2026-11")
NOW = datetime(2026, 11, 23, tzinfo=UTC)
WEEK = parse_window("2026-11-12T14:35:10", "2026-11-19T14:35:10")
BERLIN = ZoneInfo("Europe/Berlin")

Rows = dict[tuple[str | None, ...], tuple[int, int | None]]
"""What an answer is compared by: for each group, how many calls, and femto-dollars."""


@dataclass(frozen=True, slots=True)
class Question:
    """The same question to a ledger and to DuckDB."""

    name: str
    ask: Callable[[Ledger, Mapping[str, str]], Rows]
    sql: str
    aim_ms: int = 1_000
    show: Callable[[Ledger, Mapping[str, str]], Any] | None = None
    """
    What is measured in place of ``ask``: the report with the rows that a terminal shows. All of its
    rows are then compared, and not measured.
    """


def rows(groups: Iterable[Spend]) -> Rows:
    """Groups of calls, in the shape of both answers."""
    return {tuple(group.dimensions.values()): (group.calls, group.cost_femto) for group in groups}


def asked(
    *by: str, where: Where | None = None, **options: Any
) -> Callable[[Ledger, Mapping[str, str]], Rows]:
    """
    A question that ``spend`` answers; ``$user`` in *where* is the user of the ledger's description.
    """

    def ask(ledger: Ledger, known: Mapping[str, str]) -> Rows:
        meant = {
            name: known[value[1:]] if value and value.startswith("$") else value
            for name, value in (where or {}).items()
        }
        return rows(spend(ledger, by, meant, **options).rows)

    return ask


def sql(*by: str, where: str = "true", window: Window = Window()) -> str:
    """A question to DuckDB; its rows are the groups, the number of calls, and the cost."""
    times = "".join(
        f" AND occurred_at {sign} make_timestamptz({bound}::BIGINT)"
        for sign, bound in ((">=", window.since), ("<", window.until))
        if bound is not None
    )
    grouped = f" GROUP BY {', '.join(by)}" if by else ""
    return (
        f"SELECT {''.join(f'{name}, ' for name in by)}count(*), sum(cost_usd) FROM calls WHERE "
        f"{where}{times}{grouped}"
    )


def top_of_the_month(ledger: Ledger, _: Mapping[str, str]) -> Rows:
    """``voight top --since month``: the users of this month, and of the time before beside them."""
    report = top(ledger, ("user_id",), {}, NOVEMBER, None, now=NOW)
    return rows(row.spend for row in report.rows)


def first_of_the_month(ledger: Ledger, _: Mapping[str, str]) -> list[Any]:
    """The ten that it prints, with their trend."""
    report = top(ledger, ("user_id",), {}, NOVEMBER, 10, now=NOW)
    return [(row.spend, row.before, row.trend) for row in (*report.rows, *report.gone)]


def top_of_the_week(ledger: Ledger, _: Mapping[str, str]) -> list[Any]:
    """``voight top --since 7d`` in the middle of a day: four windows that cut days."""
    report = top(ledger, ("user_id",), {}, WEEK, 10, now=NOW)
    return [(row.spend, row.before, row.trend) for row in (*report.rows, *report.gone)]


def plans_of_the_month(ledger: Ledger, _: Mapping[str, str]) -> Rows:
    """``voight plans --since month``: plans, and how much of each its first users take."""
    return rows(
        replace(row.spend, dimensions={"plan": row.plan})
        for row in plans(ledger, {}, NOVEMBER, now=NOW).rows
    )


def revenue(known: Mapping[str, str]) -> dict[str, int]:
    """A dollar of every second user."""
    return {f"u_{number:05d}": 10**15 for number in range(0, int(known["users"]), 2)}


def worst_margins(ledger: Ledger, known: Mapping[str, str]) -> list[Any]:
    """``voight margin --limit 20``."""
    report = margin(ledger, revenue(known), "user_id", {}, NOVEMBER, 20)
    return [(row.spend, row.margin_femto) for row in report.rows]


def margin_of_the_month(ledger: Ledger, known: Mapping[str, str]) -> Rows:
    """``voight margin --since month``, with a revenue for every second user."""
    report = margin(ledger, revenue(known), window=NOVEMBER)
    found = [(row.id, row.spend) for row in report.rows if row.spend.calls]
    return {
        (name,): (spend.calls, spend.cost_femto) for name, spend in [*found, (None, report.unowned)]
    }


def both_releases(ledger: Ledger, _: Mapping[str, str]) -> Rows:
    """``voight release``: ten users, and all, before and after, with causes and tests."""
    report = release(ledger, LONG_RELEASE)
    return {
        (side.release,): (side.spend.calls, side.spend.cost_femto)
        for side in (report.before, report.after)
    }


def no_owner(ledger: Ledger, _: Mapping[str, str]) -> Rows:
    """What has no user, this month."""
    return rows([unattributed_share(ledger, {}, NOVEMBER).unowned])


def one_user(ledger: Ledger, known: Mapping[str, str]) -> Rows:
    """A user by day, by model and by route."""
    answers = [
        spend(ledger, [name], {"user_id": known["user"]}).rows for name in ("day", "model", "route")
    ]
    return rows(answers[0])


RELEASES = f"""
WITH starts AS (SELECT release, min(occurred_at) AS start FROM calls GROUP BY release),
times AS (SELECT release, coalesce(lead(start) OVER (ORDER BY start), 'infinity') AS until FROM starts)
SELECT calls.release, count(*), sum(cost_usd) FROM calls JOIN times ON calls.release = times.release AND occurred_at < until
WHERE calls.release IN ('2026.11.1', '{LONG_RELEASE}') GROUP BY calls.release"""
"""
What two releases cost in all, each up to the next; of the users, causes and tests there is nothing
in it.
"""
DAY = "strftime(occurred_at AT TIME ZONE 'UTC', '%Y-%m-%d')"
QUESTIONS = (
    Question("top users of the month", top_of_the_month, sql("user_id", window=NOVEMBER), 150, first_of_the_month),
    Question("all users of the month", top_of_the_month, sql("user_id", window=NOVEMBER)),
    Question("top users of a week", asked("user_id", window=WEEK), sql("user_id", window=WEEK), 300, top_of_the_week),
    Question("margin of the month", margin_of_the_month, sql("user_id", window=NOVEMBER), 150, worst_margins),
    Question("all margins of the month", margin_of_the_month, sql("user_id", window=NOVEMBER)),
    Question("plans of the month", plans_of_the_month, sql("plan", window=NOVEMBER), 150),
    Question("users by plan, this month", asked("plan", "user_id", window=NOVEMBER), sql("plan", "user_id", window=NOVEMBER), 150),
    Question("everything", asked(), sql()),
    Question("plan and model, this month", asked("plan", "model", window=NOVEMBER), sql("plan", "model", window=NOVEMBER)),
    Question("day and plan", asked("day", "plan"), sql(DAY, "plan")),
    Question(
        "day and plan in Berlin",
        asked("day", "plan", zone=BERLIN),
        sql("strftime(occurred_at AT TIME ZONE 'Europe/Berlin', '%Y-%m-%d')", "plan"),
    ),
    Question("a release by user", asked("user_id", where={"release": LONG_RELEASE}), sql("user_id", where=f"release = '{LONG_RELEASE}'")),
    Question("a release: causes and noise", both_releases, RELEASES),
    Question("a release by model", asked("model", where={"release": LONG_RELEASE}), sql("model", where=f"release = '{LONG_RELEASE}'")),
    Question("a feature by plan", asked("plan", where={"feature": "summary"}), sql("plan", where="tags['feature'] = 'summary'")),
    Question("routes without an owner", asked("route", where={"user_id": None}), sql("route", where="user_id IS NULL")),
    Question("without an owner, this month", no_owner, sql(where="user_id IS NULL", window=NOVEMBER)),
    Question("statuses of two hours and a bit", asked("cost_status", window=parse_window("2026-11-10T10:07:00", "2026-11-10T12:30:00")),
             sql("cost_status", window=parse_window("2026-11-10T10:07:00", "2026-11-10T12:30:00"))),
    Question("a user: days, models, routes", one_user, sql(DAY, where="user_id = '$user'"), 10),
    Question("the heaviest user by day", asked("day", where={"user_id": "$heaviest"}), sql(DAY, where="user_id = '$heaviest'"), 10),
)  # fmt: skip


# -- the data --------------------------------------------------------------------------------------


@contextmanager
def timed(what: str, known: dict[str, Any]) -> Iterator[None]:
    """Say and note how long the block took."""
    print(f"{what} …", end=" ", flush=True)
    begin, computed = time.perf_counter(), time.process_time()
    yield
    known[what] = round(time.perf_counter() - begin, 1)
    print(
        f"{known[what]:,} s, of which this process computed {time.process_time() - computed:,.1f} "
        "s",
        flush=True,
    )


def place_of(folder: Path, url: str | None) -> str:
    """The URL or path of the ledger."""
    return url or str(folder / "ledger.db")


def prepare(folder: Path, count: int, seed: int, url: str | None) -> dict[str, Any]:
    """The ledger and its export, made where they are missing; answers what is known of them."""
    folder.mkdir(parents=True, exist_ok=True)
    about, file = folder / "about.json", folder / "ledger.db"
    if about.exists():
        known: dict[str, Any] = json.loads(about.read_text())
        if (known["calls"], known["seed"]) == (count, seed):
            return known if url is None else on_server(known, url)
        raise SystemExit(
            f"{folder} holds another ledger ({known['calls']:,} calls, seed {known['seed']}): "
            "choose another --folder"
        )
    for path in folder.glob("ledger.db*"):
        path.unlink()
    known = {"calls": count, "seed": seed}
    with timed("fill", known):
        assert fill_file(file, made_up_calls(count, seed)) == count
    with closing(open_ledger(str(file))) as ledger:
        users = [
            user
            for row in ledger.spend(["user_id"])
            if (user := row.dimensions["user_id"]) and "*" not in user
        ]
        known["heaviest"], known["user"] = users[0], users[len(users) // 4]
        known["users"] = len(users)
        with timed("export to Parquet", known), (folder / "calls.parquet").open("wb") as exported:
            parquet.write(ledger.calls(), exported)
    about.write_text(json.dumps(known, indent=2))
    return known if url is None else on_server(known, url)


def on_server(known: dict[str, Any], url: str) -> dict[str, Any]:
    """Fill the ledger on a server, where it is not."""
    with closing(open_ledger(url)) as ledger:
        there = ledger.spend()[0].calls
        if there not in (0, known["calls"]):
            raise SystemExit(
                f"the ledger on the server holds {there:,} calls: empty it, or choose another"
            )
        if there == 0:
            with timed("fill the server", known):
                assert fill(ledger, made_up_calls(known["calls"], known["seed"])) == known["calls"]
            known["fill"] = known["fill the server"]
            tidy(url)
    return known


def tidy(url: str) -> None:
    """What happens by itself within hours: statistics, merges, and sums of closed days."""
    if url.startswith("clickhouse"):
        with closing(clickhouse(url)) as client:
            client.command("OPTIMIZE TABLE calls FINAL", settings={"receive_timeout": 3600})
        from voight_middleware.ledger.clickhouse import closed_days

        closed_days.QUIET = 0
        with closing(open_ledger(url)) as ledger:
            for _ in ledger.rebuild():
                pass
    else:
        import psycopg

        with psycopg.connect(url, autocommit=True) as db:
            db.execute("VACUUM (ANALYZE)")


def clickhouse(url: str) -> Any:
    """A client of the database that the ledger is in."""
    import clickhouse_connect

    return clickhouse_connect.get_client(
        dsn=url.replace("clickhouse://", "clickhouse+http://", 1), send_receive_timeout=3600
    )


def sizes_on_server(url: str) -> list[tuple[str, int]]:
    """Bytes of the ledger's tables and indexes, as the server tells."""
    if url.startswith("clickhouse"):
        with closing(clickhouse(url)) as client:
            found = client.query(
                "SELECT table, sum(bytes_on_disk) FROM system.parts WHERE active AND database = "
                "currentDatabase() GROUP BY table"
            ).result_rows
    else:
        import psycopg

        with psycopg.connect(url) as db:
            found = db.execute(
                "SELECT relname::text, pg_relation_size(c.oid) FROM pg_class c JOIN pg_namespace "
                "n ON n.oid = relnamespace "
                "WHERE nspname = 'voight' AND relkind IN ('r', 'i')"
            ).fetchall()
    tables = sorted(((str(name), int(size)) for name, size in found), key=lambda pair: -pair[1])
    return [
        ("ledger", sum(size for _, size in tables)),
        *((f"  {name}", size) for name, size in tables[:8]),
    ]


def sizes(folder: Path) -> list[tuple[str, int]]:
    """
    Bytes of the ledger, of its tables and indexes where this SQLite can tell, and of the export.
    """
    found = [("ledger", sum(path.stat().st_size for path in folder.glob("ledger.db*")))]
    with closing(
        sqlite3.connect(f"{(folder / 'ledger.db').absolute().as_uri()}?mode=ro", uri=True)
    ) as db:
        try:
            # Pages and not `pgsize`: of a table beyond 4 GB SQLite 3.40 cuts that to 32 bits.
            (page,) = db.execute("PRAGMA page_size").fetchone()
            tables = db.execute(
                "SELECT name, pageno * ? FROM dbstat WHERE aggregate = TRUE ORDER BY 2 DESC",
                (page,),
            ).fetchall()
        except sqlite3.OperationalError:  # not compiled in
            tables = []
    found += [(f"  {name}", size) for name, size in tables[:8]]
    return [*found, ("Parquet", (folder / "calls.parquet").stat().st_size)]


# -- one question, in a process of its own ---------------------------------------------------------


def evict(paths: Iterable[Path]) -> float:
    """Drop files from the page cache; answers which part of them is still in it."""
    resident = pages = 0
    libc = ctypes.CDLL(None)
    for path in paths:
        if not path.stat().st_size:
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
                count = -(-len(mapped) // mmap.PAGESIZE)
                seen = (ctypes.c_ubyte * count)()
                first = ctypes.c_char.from_buffer(mapped)
                failed = libc.mincore(
                    ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), seen
                )
                del first
                resident += count if failed else sum(one & 1 for one in seen)
                pages += count
    return resident / pages if pages else 0.0


def measure(
    question: Question, folder: Path, engine: str, known: Mapping[str, Any], url: str | None
) -> dict[str, Any]:
    """
    The first answer after dropping the files from the page cache, opening included, and the median
    of further ones.
    """
    paths = [folder / "calls.parquet"]
    if engine == "ledger":
        paths = [] if url else sorted(folder.glob("ledger.db*"))
    resident = evict(paths)
    begin = time.perf_counter()
    with _opened(engine, folder, url) as source:
        shown = _shown(question, engine, source, known)
        cold = time.perf_counter() - begin
        warm, computed = [], []
        for _ in range(WARM):
            begin, begun = time.perf_counter(), time.process_time()
            again = _shown(question, engine, source, known)
            warm.append(time.perf_counter() - begin)
            computed.append(time.process_time() - begun)
            assert again == shown
        answer = _answer(question, engine, source, known)
    digest = hashlib.sha256(repr(sorted(answer.items(), key=repr)).encode()).hexdigest()
    return {
        "cold": cold * 1000,
        "warm": statistics.median(warm) * 1000,
        "cpu": statistics.median(computed) * 1000,
        "resident": resident,
        "digest": digest,
        "rows": len(answer),
    }


def _opened(engine: str, folder: Path, url: str | None) -> Any:
    if engine == "ledger":
        return closing(open_ledger(place_of(folder, url), create=False))
    db = duckdb.connect()
    db.execute(f"CREATE VIEW calls AS SELECT * FROM read_parquet('{folder / 'calls.parquet'}')")
    return closing(db)


def _shown(question: Question, engine: str, source: Any, known: Mapping[str, Any]) -> Any:
    if engine == "ledger" and question.show is not None:
        return question.show(source, known)
    return _answer(question, engine, source, known)


def _answer(question: Question, engine: str, source: Any, known: Mapping[str, Any]) -> Rows:
    if engine == "ledger":
        return question.ask(source, known)
    asked = question.sql
    for name in ("user", "heaviest"):
        asked = asked.replace(f"${name}", str(known[name]).replace("'", "''"))
    return {
        row[:-2]: (row[-2], None if row[-1] is None else int(row[-1].scaleb(15)))
        for row in source.execute(asked).fetchall()
    }


def in_a_process(question: Question, folder: Path, engine: str, url: str | None) -> dict[str, Any]:
    """``measure`` in a fresh process, which has nothing in its own caches."""
    command = [
        sys.executable,
        __file__,
        "--folder",
        str(folder),
        "--measure",
        question.name,
        "--engine",
        engine,
    ]
    command += ["--ledger", url] if url else []
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def main() -> int:
    """Answers 0 where both engines agree on every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the ledger is kept, and taken from when it is there (default: nowhere)",
    )
    parser.add_argument(
        "--ledger", metavar="URL", help="a ledger on a server, instead of an SQLite file"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        (question,) = [one for one in QUESTIONS if one.name == args.measure]
        known = json.loads((args.folder / "about.json").read_text())
        print(json.dumps(measure(question, args.folder, args.engine, known, args.ledger)))
        return 0
    with nullcontext(str(args.folder)) if args.folder else tempfile.TemporaryDirectory() as place:
        return compare(Path(place).absolute(), args.calls, args.seed, args.ledger)


def compare(folder: Path, count: int, seed: int, url: str | None) -> int:
    """Print sizes and latencies; answers 1 where an answer differs."""
    known = prepare(folder, count, seed, url)
    print(
        f"\n{count:,} calls of {known['users']:,} users, seed {seed}; filled in {known['fill']:,} "
        "s\n"
    )
    for name, size in sizes_on_server(url) if url else sizes(folder):
        print(f"{name:<34} {size / 1e6:10,.1f} MB {size / count:10.1f} bytes a call")
    engine = url.partition("://")[0] if url else "SQLite"
    print(f"\n{'':<42}   {f'{engine}, ms':>26}   {'DuckDB, ms':>26}")
    columns = f"{'cold':>8} {'warm':>8} {'CPU':>8}"
    print(f"{'':<34} {'rows':>7}   {columns}   {columns}")
    wrong, resident = 0, list[float]()
    for question in QUESTIONS:
        ours, theirs = (
            in_a_process(question, folder, engine, url) for engine in ("ledger", "duckdb")
        )
        resident += [ours["resident"], theirs["resident"]]
        same = ours["digest"] == theirs["digest"]
        wrong += not same
        remark = "" if ours["warm"] <= question.aim_ms else f"  over {question.aim_ms:,} ms"
        figures = "   ".join(
            " ".join(f"{one[name]:8.1f}" for name in ("cold", "warm", "cpu"))
            for one in (ours, theirs)
        )
        print(
            f"{question.name:<34} {ours['rows']:7,}   "
            f"{figures}{remark}{'' if same else '  WRONG: the answers differ'}",
            flush=True,
        )
    print(
        "\ncold: a fresh process, the files dropped from the page cache before (at most "
        f"{max(resident):.1%} of them was left); warm: the median of {WARM} more in that process; CPU: "
        "of this process, in the warm ones"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
