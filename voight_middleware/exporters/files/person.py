"""All data of one person in a ledger, as a JSON document, to fulfill a request for access."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from voight_middleware.exporters.files.jsonl import as_object
from voight_middleware.ledger import Ledger, PriceVersion
from voight_middleware.records.call import Call, Submission
from voight_middleware.records.money import from_femto, usd_text

_encode = msgspec.json.Encoder().encode
_MORE_FIELDS = (
    *(
        "host",
        "streamed",
        "error",
        "http_status",
        "possibly_billed",
        "response_id",
        "job",
        "service_tier",
        "batch",
        "tool_calls",
    ),
    *("estimated_input", "estimated_output"),
)


def document(ledger: Ledger, names: Collection[str]) -> Iterator[bytes]:
    """
    Yield the document in pieces. It has the data that ``voight erase`` would find.

    ``calls`` has the names of the JSON export, all other stored fields, and former prices. ``jobs``
    has the person's submissions with calls, and ``other_jobs`` the number of further submissions.
    ``elsewhere`` has calls of other users that name the person in another tag: only their ids and
    the tag, with no data of those users.

    Args:
        ledger: The ledger to read.
        names: The ids of the person. They are compared exactly: ``*`` is not a pattern here.
    """
    names = sorted(set(names))
    data = ledger.personal_data(names)
    jobs: dict[str, None] = {}
    yield b'{"user_ids": ' + _encode(names)
    yield from _array(
        "calls",
        (
            _as_object(call, ledger.price_history(call.call_id))
            for call in _calls_of(ledger, names, jobs)
        ),
    )
    submitted = [
        submission
        for submission in ledger.submissions(jobs).values()
        if submission.tags.user_id in names
    ]
    yield from _array("jobs", map(_as_job, submitted))
    yield b',\n"other_jobs": ' + _encode(data.submissions - len(submitted))
    yield from _array("elsewhere", _elsewhere(ledger, names) if data.elsewhere else ())
    yield b"}\n"


def _array(name: str, objects: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    yield b',\n"' + name.encode() + b'": ['
    between = b"\n"
    for item in objects:
        yield between + _encode(item)
        between = b",\n"
    yield b"]"


def _calls_of(ledger: Ledger, names: Collection[str], jobs: dict[str, None]) -> Iterator[Call]:
    for name in names:
        # A star in a filter matches any text, so calls of other people may come: never include
        # them.
        for call in ledger.calls({"user_id": name}):
            if call.tags.user_id == name:
                if call.job is not None:
                    jobs[call.job] = None
                yield call


def _elsewhere(ledger: Ledger, names: Collection[str]) -> Iterator[dict[str, Any]]:
    for call in ledger.calls():
        tags = call.tags
        values = {
            **tags.extra,
            **{
                name: getattr(tags, name)
                for name in ("plan", "tenant_id", "route", "release", "session_id")
            },
        }
        matching = [name for name, value in values.items() if value in names]
        if matching and tags.user_id not in names:
            yield {
                "call_id": call.call_id,
                "occurred_at": as_object(call)["occurred_at"],
                "in": matching,
            }


def _as_object(call: Call, former: list[PriceVersion]) -> dict[str, Any]:
    return {
        **as_object(call),
        **{name: getattr(call, name) for name in _MORE_FIELDS},
        "list_usd": None if call.list_femto is None else usd_text(from_femto(call.list_femto)),
        "usage": _usage(call.raw_usage),
        "counts": call.usage,
        "former_costs": [
            {
                "version": price.version,
                "cost_usd": None
                if price.cost_femto is None
                else usd_text(from_femto(price.cost_femto)),
                "cost_status": price.cost_status,
                "cost_reasons": price.cost_reasons,
            }
            for price in former
        ],
    }


def _usage(raw: str | None) -> msgspec.Raw | str | None:
    """Return the provider's own object, or the text if it is not JSON."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return raw


def _as_job(submission: Submission) -> dict[str, Any]:
    return {
        "job": submission.job,
        "part_of": submission.part_of,
        "submitted_at": submission.submitted_at,
        "tags": submission.tags,
        "attribution": submission.attribution,
    }
