"""Erasure in a PostgreSQL ledger: replace a person's ids in every column."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from voight_middleware.ledger.base import PersonalData
from voight_middleware.ledger.erasure import (
    MIN_SEARCHED_LENGTH,
    PLACES,
    erased_tags,
    names_anyone,
    spellings,
)
from voight_middleware.ledger.postgres.dialect import femto
from voight_middleware.records.call import Submission

Run: TypeAlias = Callable[[str, Sequence[Any]], Any]
"""Executes a statement with a ``?`` for each value and returns the cursor."""

_ELSEWHERE = (
    " OR ".join(f"{name} = ANY(params.names)" for name in (*PLACES, "session_id"))
    + " OR EXISTS (SELECT FROM jsonb_each_text(tags_extra) WHERE value = ANY(params.names))"
)
_PARAMS = "(SELECT ?::text[] AS names, ?::text AS token) AS params"
_ERASED = f"""(
    SELECT jsonb_object_agg(key, CASE WHEN EXISTS (
        SELECT FROM unnest(params.names) AS name
        WHERE value = name OR (char_length(name) >= {MIN_SEARCHED_LENGTH} AND strpos(value, name) > 0)) THEN params.token ELSE value END)
    FROM jsonb_each_text(tags_extra))"""


def _replaced(names: Sequence[str]) -> str:
    return ", ".join(
        f"{name} = CASE WHEN {name} = ANY(params.names) THEN params.token ELSE {name} END"
        for name in names
    )


_ERASE = f"""
UPDATE voight.calls SET {_replaced(("user_id", *PLACES))}, session_id = NULL, response_id = NULL, tags_extra = {_ERASED}
FROM {_PARAMS} WHERE user_id = ANY(params.names)"""
_ERASE_ELSEWHERE = f"""
UPDATE voight.calls SET {_replaced((*PLACES, "session_id"))}, tags_extra = {_ERASED} FROM {_PARAMS} WHERE {_ELSEWHERE}"""
_COUNT = (
    "SELECT COUNT(*), SUM(cost), MIN(occurred_at), MAX(occurred_at) FROM voight.calls WHERE "
    "user_id = ANY(?)"
)
_COUNT_ELSEWHERE = f"""
SELECT COUNT(*) FROM voight.calls, {_PARAMS} WHERE ({_ELSEWHERE}) AND (user_id IS NULL OR NOT user_id = ANY(params.names))"""
_SUBMISSIONS = (
    "SELECT job, submission FROM voight.jobs WHERE EXISTS (SELECT FROM unnest(?::text[]) AS name "
    "WHERE strpos(submission, name) > 0)"
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Submission).decode


def personal_data(run: Run, names: Collection[str]) -> PersonalData:
    """Return the records under any of *names*."""
    calls, cost, first, last = run(_COUNT, [list(names)]).fetchone()
    (elsewhere,) = run(_COUNT_ELSEWHERE, [list(names), ""]).fetchone()
    return PersonalData(
        calls, femto(cost), first, last, elsewhere, sum(1 for _ in _mentioning(run, names))
    )


def erase(run: Run, names: Collection[str], token: str) -> PersonalData:
    """Replace each of *names* by *token*, inside a transaction. Return the records found."""
    data = personal_data(run, names)
    run(_ERASE, [list(names), token])
    run(_ERASE_ELSEWHERE, [list(names), token])
    for job, submission in list(_mentioning(run, names)):
        changed = msgspec.structs.replace(
            submission, tags=erased_tags(submission.tags, names, token)
        )
        run("UPDATE voight.jobs SET submission = ? WHERE job = ?", [_encode(changed).decode(), job])
    return data


def _mentioning(run: Run, names: Collection[str]) -> Iterator[tuple[str, Submission]]:
    for job, text in run(_SUBMISSIONS, [spellings(names)]).fetchall():
        submission = _decode(text)
        if names_anyone(submission.tags, names):
            yield job, submission
