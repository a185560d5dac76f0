"""
Erasure in a SQLite ledger: replace a person's ids in every column, and find them in the bytes of
the file.
"""

from __future__ import annotations

import mmap
import sqlite3
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from voight_middleware.ledger.base import PersonalData
from voight_middleware.ledger.erasure import (
    MIN_SEARCHED_LENGTH,
    PLACES,
    erased_tags,
    erased_text,
    names_anyone,
    spellings,
)
from voight_middleware.ledger.sqlite.triggers import LIMB
from voight_middleware.records.call import Submission

_NAMED = "(SELECT value FROM json_each(:names))"
_ELSEWHERE = (
    " OR ".join(f"{name} IN {_NAMED}" for name in (*PLACES, "session_id"))
    + f" OR (tags_extra IS NOT NULL AND EXISTS (SELECT 1 FROM json_each(tags_extra) WHERE value IN {_NAMED}))"
)
_ERASE = f"""
UPDATE calls SET
    user_id = IIF(user_id IN {_NAMED}, :token, user_id), session_id = NULL, response_id = NULL,
    {", ".join(f"{name} = IIF({name} IN {_NAMED}, :token, {name})" for name in PLACES)},
    tags_extra = erased(tags_extra)
WHERE user_id IN {_NAMED}"""
_ERASE_ELSEWHERE = f"""
UPDATE calls SET
    {", ".join(f"{name} = IIF({name} IN {_NAMED}, :token, {name})" for name in (*PLACES, "session_id"))},
    tags_extra = erased(tags_extra)
WHERE {_ELSEWHERE}"""
_DROP_PLACES = f"DELETE FROM places WHERE {' OR '.join(f'{name} IN {_NAMED}' for name in ('plan', 'route', 'release'))}"
"""No call is there any more: each has got another place."""
_COUNT = f"""
SELECT COUNT(*), SUM(cost_femto / {LIMB}), SUM(cost_femto % {LIMB}), MIN(occurred_at), MAX(occurred_at)
FROM calls WHERE user_id IN {_NAMED}"""
_SUBMISSIONS = (
    "SELECT job, submission FROM jobs WHERE EXISTS (SELECT 1 FROM json_each(:names) WHERE "
    "instr(submission, value))"
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Submission).decode


def personal_data(db: sqlite3.Connection, names: Collection[str]) -> PersonalData:
    """Return the records under any of *names*."""
    bound = {"names": _encode(list(names)).decode()}
    calls, high, low, first, last = db.execute(_COUNT, bound).fetchone()
    others = (
        f"SELECT COUNT(*) FROM calls WHERE ({_ELSEWHERE}) AND (user_id IS NULL OR user_id NOT IN "
        f"{_NAMED})"
    )
    (elsewhere,) = db.execute(others, bound).fetchone()
    submissions = sum(1 for _ in _mentioning(db, names))
    cost = None if high is None else high * LIMB + low
    return PersonalData(calls, cost, first, last, elsewhere, submissions)


def erase(db: sqlite3.Connection, names: Collection[str], token: str) -> PersonalData:
    """Replace each of *names* by *token*, inside a transaction. Return the records found."""
    data = personal_data(db, names)
    bound = {"names": _encode(list(names)).decode(), "token": token}
    db.create_function(
        "erased",
        1,
        lambda extra: None if extra is None else erased_text(extra, names, token),
        deterministic=True,
    )
    db.execute(_ERASE, bound)
    db.execute(_ERASE_ELSEWHERE, bound)
    db.execute(_DROP_PLACES, bound)
    for job, submission in list(_mentioning(db, names)):
        changed = erased_tags(submission.tags, names, token)
        db.execute(
            "UPDATE jobs SET submission = ? WHERE job = ?",
            (_encode(msgspec.structs.replace(submission, tags=changed)).decode(), job),
        )
    return data


def _mentioning(db: sqlite3.Connection, names: Collection[str]) -> Iterable[tuple[str, Submission]]:
    for job, text in db.execute(_SUBMISSIONS, {"names": _encode(spellings(names)).decode()}):
        submission = _decode(text)
        if names_anyone(submission.tags, names):
            yield job, submission


def remains(paths: Iterable[Path], names: Collection[str]) -> list[Path]:
    """
    Return the files that still contain one of *names*. Ids too short to search for are skipped.
    """
    wanted = [name.encode() for name in spellings(names) if len(name) >= MIN_SEARCHED_LENGTH]
    remaining = []
    for path in paths:
        if not path.exists() or not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if any(data.find(name) >= 0 for name in wanted):
                remaining.append(path)
    return remaining
