"""
Erasure in a ClickHouse ledger: replace a person's ids in every column, all in one change.

The server keeps the text of its last hundred changes. So the change does not contain the ids, but
hashes of them with a one-time key.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence

import msgspec
from msgspec.structs import replace

from voight_middleware.ledger.base import PersonalData
from voight_middleware.ledger.clickhouse.changes import Change
from voight_middleware.ledger.clickhouse.database import Database
from voight_middleware.ledger.clickhouse.dialect import literal
from voight_middleware.ledger.clickhouse.schema import femto
from voight_middleware.ledger.clickhouse.writer import JOB, job_row
from voight_middleware.ledger.erasure import MIN_SEARCHED_LENGTH, PLACES, erased_tags, names_anyone
from voight_middleware.ledger.rows import encode
from voight_middleware.records.call import Submission

_PLACES = (*PLACES, "session_id")
_DAY = 86_400_000_000
_decode = msgspec.json.Decoder(Submission).decode


def personal_data(db: Database, names: Collection[str]) -> PersonalData:
    """Return the records under any of *names*."""
    names = _given(names)
    if not names:
        return PersonalData()
    of_person, elsewhere = _of_person(names), _elsewhere(names)
    calls = f"{db.name}.calls FINAL"
    count, cost, first, last = db.private(
        f"SELECT COUNT(*), SUM(cost), MIN(occurred_at), MAX(occurred_at) FROM {calls} WHERE "
        f"{of_person}"
    )[0]
    others = db.private(
        f"SELECT COUNT(*) FROM {calls} WHERE ({elsewhere}) AND NOT ifNull({of_person}, 0)"
    )[0][0]
    submissions = sum(1 for _ in _mentioning(db, names))
    return PersonalData(
        count, femto(cost), first if count else None, last if count else None, others, submissions
    )


def erase(db: Database, names: Collection[str], token: str) -> PersonalData:
    """Replace each of *names* by *token*. Return the records found."""
    names = _given(names)
    data = personal_data(db, names)
    if data.calls or data.elsewhere:
        change, days = _change(db, names, token)
        db.days.changing(days)
        db.rewrite(change)
    _forget_sums(db, names)
    changed = [
        replace(job, tags=erased_tags(job.tags, names, token)) for job in _mentioning(db, names)
    ]
    if changed:
        db.add("jobs", JOB, [job_row(submission, replaced=True) for submission in changed])
        _rewrite_jobs(db)
    return data


def purge(db: Database, names: Collection[str]) -> list[str]:
    """
    See ``Ledger.purge``. Return the tables that still contain one of *names*, replaced rows
    included.
    """
    names = _given(names)
    if not names:
        return []
    if list(_mentioning(db, names, " ")):
        _rewrite_jobs(db)
    _forget_sums(db, names)
    remains = []
    if db.private(
        f"SELECT 1 FROM {db.name}.calls WHERE {_of_person(names)} OR {_elsewhere(names)} LIMIT 1"
    ):
        remains.append(f"{db.server.name}: calls")
    if list(_mentioning(db, names, " ")):
        remains.append(f"{db.server.name}: jobs")
    return remains


def _forget_sums(db: Database, names: Collection[str]) -> None:
    """Delete the sums of days that contain one of *names*, replaced sums included."""
    days = db.days.naming(names, ("user_id", *PLACES))
    if days:
        db.days.mark(days)
        db.days.forget(f"day IN ({', '.join(map(literal, days))})")


def _change(db: Database, names: Collection[str], token: str) -> tuple[Change, Sequence[int]]:
    """Return the change, and a time of each day with calls that it affects."""
    key = ", ".join(f"toUInt64({secrets.randbits(64)})" for _ in range(2))

    def hashed(text: str) -> str:
        return f"hex(sipHash128Keyed(({key}), {text}))"

    # A longer text of an extra key is replaced as a whole if it contains an id.
    long = literal([name for name in names if len(name) >= MIN_SEARCHED_LENGTH])
    affected = f"{db.name}.calls WHERE {_of_person(names)} OR {_elsewhere(names)}"
    values = f"SELECT DISTINCT arrayJoin(mapValues(tags_extra)) AS value FROM {affected}"
    texts = (
        db.private(
            f"SELECT value FROM ({values}) WHERE arrayExists(name -> position(value, name) > 0, "
            f"{long})"
        )
        if long != "[]"
        else []
    )
    ids = db.private(f"SELECT {hashed('arrayJoin(?)')}", [list(names)])
    mentions = (
        db.private(f"SELECT {hashed('arrayJoin(?)')}", [[text for (text,) in texts]])
        if texts
        else []
    )
    known = f"({', '.join(literal(hash_) for (hash_,) in ids)})"
    erased = f"({', '.join(literal(hash_) for (hash_,) in dict.fromkeys((*ids, *mentions)))})"

    def named(column: str) -> str:
        text = f"ifNull(CAST({column}, 'Nullable(String)'), '')"
        return f"{hashed(text)} IN {known}"

    is_user, new = named("user_id"), literal(token)
    sets = {
        "user_id": f"IF({is_user}, {new}, user_id)",
        "session_id": f"IF({is_user}, NULL, IF({named('session_id')}, {new}, session_id))",
        "response_id": f"IF({is_user}, NULL, response_id)",
        **{name: f"IF({named(name)}, {new}, {name})" for name in PLACES},
        "tags_extra": (
            f"mapApply((key, value) -> (key, IF({hashed('value')} IN {erased}, {new}, value)), "
            "tags_extra)"
        ),
    }
    values_named = f"arrayExists(value -> {hashed('value')} IN {known}, mapValues(tags_extra))"
    # Hashing all calls is slow. The time range limits it to the months with matches.
    first, last = db.private(f"SELECT MIN(occurred_at), MAX(occurred_at) FROM {affected}")[0]
    days = db.private(f"SELECT DISTINCT intDiv(occurred_at, {_DAY}) * {_DAY} FROM {affected}")
    change = Change(
        sets,
        f"occurred_at BETWEEN {first} AND {last} AND "
        f"({' OR '.join((is_user, *map(named, _PLACES), values_named))})",
    )
    return change, [at for (at,) in days]


def _given(names: Collection[str]) -> list[str]:
    """Return *names* without duplicates and empty texts. An empty text stands for no value."""
    return [name for name in dict.fromkeys(names) if name]


def _of_person(names: Collection[str]) -> str:
    return f"(user_id IN ({', '.join(map(literal, names))}))"


def _elsewhere(names: Collection[str]) -> str:
    among = ", ".join(map(literal, names))
    return " OR ".join(
        (
            *(f"ifNull({name} IN ({among}), 0)" for name in _PLACES),
            f"hasAny(mapValues(tags_extra), [{among}])",
        )
    )


def _mentioning(db: Database, names: Collection[str], final: str = "FINAL") -> Iterator[Submission]:
    spelled = literal([encode(name).decode()[1:-1] for name in names])  # as spelled in JSON text
    mentions = f"arrayExists(name -> position(submission, name) > 0, {spelled})"
    for (text,) in db.private(f"SELECT submission FROM {db.name}.jobs {final} WHERE {mentions}"):
        submission = _decode(text)
        if names_anyone(submission.tags, names):
            yield submission


def _rewrite_jobs(db: Database) -> None:
    """Remove replaced rows."""
    db.run(f"OPTIMIZE TABLE {db.name}.jobs FINAL")
