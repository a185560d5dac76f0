"""
The functions through which a writer role may change existing calls. They run with their owner's
rights, so that the role itself can read no call.

Each takes rows as a JSON array of objects with the columns of ``calls``.
"""

from __future__ import annotations

from voight_middleware.ledger.postgres.values import STORED, stored
from voight_middleware.ledger.rows import OWNER, REATTRIBUTABLE_SQL, RESULT_COLUMNS

_ROWS = "jsonb_populate_recordset(NULL::voight.calls, $1)"
_HEAD = "SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$"

_TELL = f"""
CREATE FUNCTION voight.tell(calls jsonb) RETURNS bigint LANGUAGE plpgsql {_HEAD}
DECLARE number bigint;
BEGIN
    INSERT INTO voight.calls AS kept ({", ".join(STORED)}) SELECT {", ".join(STORED)} FROM {_ROWS}
    ON CONFLICT (call_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in stored(RESULT_COLUMNS))}
    WHERE kept.job IS NOT NULL AND kept.raw_usage IS NULL AND (excluded.raw_usage IS NOT NULL OR excluded.outcome <> 'ok');
    GET DIAGNOSTICS number = ROW_COUNT;
    RETURN number;
END $body$"""
"""
Insert calls of jobs. A call from the job's submission gets the result, and keeps its owner and its
time.
"""

_FILLED = tuple(name for name in OWNER if name not in ("user_id", "tags_extra"))
_ATTRIBUTE_LATE = f"""
CREATE FUNCTION voight.settle(owners jsonb) RETURNS void LANGUAGE sql {_HEAD}
    UPDATE voight.calls SET
        user_id = CASE WHEN calls.attribution = 'request' THEN owner.user_id ELSE COALESCE(calls.user_id, owner.user_id) END,
        {", ".join(f"{name} = COALESCE(calls.{name}, owner.{name})" for name in _FILLED)},
        tags_extra = COALESCE(owner.tags_extra || COALESCE(calls.tags_extra, '{{}}'), calls.tags_extra),
        attribution = owner.attribution
    FROM {_ROWS} AS owner
    WHERE calls.call_id = owner.call_id AND calls.attribution IN {REATTRIBUTABLE_SQL}
$body$"""
"""Set the owners of calls without one. *owners* has each call once."""

_SUBMITTED = f"""
CREATE FUNCTION voight.submitted(jobs text[]) RETURNS TABLE (job text, submission text) LANGUAGE sql STABLE {_HEAD}
    SELECT jobs.job, jobs.submission FROM voight.jobs WHERE jobs.job = ANY($1)
$body$"""
"""Return the submissions of jobs that the caller can name."""

_SUBMIT = f"""
CREATE FUNCTION voight.submit(job text, part_of text, submitted_at bigint, submission text, owner jsonb)
RETURNS void LANGUAGE plpgsql {_HEAD}
DECLARE part text COLLATE "C";
BEGIN
    INSERT INTO voight.jobs VALUES ($1, $2, $3, $4) ON CONFLICT ON CONSTRAINT jobs_pkey
    DO UPDATE SET part_of = excluded.part_of, submitted_at = excluded.submitted_at, submission = excluded.submission;
    IF $5 IS NULL THEN RETURN; END IF;
    FOR part IN SELECT $1 UNION ALL SELECT jobs.job FROM voight.jobs WHERE jobs.part_of = $1 AND NOT starts_with(jobs.job, $1 || '/') LOOP
        UPDATE voight.calls SET {", ".join(f"{name} = owner.{name}" for name in (*OWNER, "attribution"))}
        FROM jsonb_populate_record(NULL::voight.calls, $5) AS owner
        WHERE calls.call_id IN (  -- apart: an OR was answered by a walk through the calls of all jobs
            SELECT answer.call_id FROM voight.calls AS answer WHERE answer.job = part
            UNION ALL SELECT answer.call_id FROM voight.calls AS answer WHERE answer.job > part || '/' AND answer.job < part || '0');
    END LOOP;
END $body$"""
"""Store a submission. With an owner, give it the calls of the job and of its parts."""

SIGNATURES = (
    "tell(jsonb)",
    "settle(jsonb)",
    "submitted(text[])",
    "submit(text, text, bigint, text, jsonb)",
)
STATEMENTS = (
    *(_TELL, _ATTRIBUTE_LATE, _SUBMITTED, _SUBMIT),
    *(f"REVOKE ALL ON FUNCTION voight.{signature} FROM PUBLIC" for signature in SIGNATURES),
)
