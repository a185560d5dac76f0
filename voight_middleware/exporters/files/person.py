"""Everything that a ledger keeps about one person, as one JSON document: what a request for access is answered with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from voight_middleware.exporters.files.jsonl import as_object
from voight_middleware.ledger import Ledger, PriceVersion
from voight_middleware.records.call import Call, Submission
from voight_middleware.records.money import from_femto, usd_text

_encode = msgspec.json.Encoder().encode
_BESIDE = (
    *("host", "streamed", "error", "http_status", "possibly_billed", "response_id", "job", "service_tier", "batch", "tool_calls"),
    *("estimated_input", "estimated_output"),
)


def document(ledger: Ledger, names: Collection[str]) -> Iterator[bytes]:
    """
    The document in pieces, as ``voight erase`` would find it.

    ``calls`` has the names of the JSON export and every other field that is kept of a call, with the prices that it had before; ``jobs``
    what the person submitted and has calls of, ``other_jobs`` how many more there are. ``elsewhere`` are calls of others that name the
    person in another tag: their ids and the tag, and nothing of those others.

    Args:
        ledger: Where the calls are.
        names: The ids of the person. They are compared as they are: ``*`` is no pattern in them.
    """
    names = sorted(set(names))
    held = ledger.personal_data(names)
    jobs: dict[str, None] = {}
    yield b'{"user_ids": ' + _encode(names)
    yield from _array("calls", (_as_object(call, ledger.price_history(call.call_id)) for call in _calls_of(ledger, names, jobs)))
    submitted = [one for one in ledger.submissions(jobs).values() if one.tags.user_id in names]
    yield from _array("jobs", map(_as_job, submitted))
    yield b',\n"other_jobs": ' + _encode(held.submissions - len(submitted))
    yield from _array("elsewhere", _elsewhere(ledger, names) if held.elsewhere else ())
    yield b"}\n"


def _array(name: str, objects: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    yield b',\n"' + name.encode() + b'": ['
    between = b"\n"
    for one in objects:
        yield between + _encode(one)
        between = b",\n"
    yield b"]"


def _calls_of(ledger: Ledger, names: Collection[str], jobs: dict[str, None]) -> Iterator[Call]:
    for name in names:
        # A star in a filter stands for any text, so that more than this person's calls may come: never to be handed out.
        for call in ledger.calls({"user_id": name}):
            if call.tags.user_id == name:
                if call.job is not None:
                    jobs[call.job] = None
                yield call


def _elsewhere(ledger: Ledger, names: Collection[str]) -> Iterator[dict[str, Any]]:
    for call in ledger.calls():
        tags = call.tags
        values = {**tags.extra, **{name: getattr(tags, name) for name in ("plan", "tenant_id", "route", "release", "session_id")}}
        found = [name for name, value in values.items() if value in names]
        if found and tags.user_id not in names:
            yield {"call_id": call.call_id, "occurred_at": as_object(call)["occurred_at"], "in": found}


def _as_object(call: Call, former: list[PriceVersion]) -> dict[str, Any]:
    return {
        **as_object(call),
        **{name: getattr(call, name) for name in _BESIDE},
        "list_usd": None if call.list_femto is None else usd_text(from_femto(call.list_femto)),
        "usage": _usage(call.raw_usage),
        "counts": call.usage,
        "former_costs": [
            {
                "version": one.version,
                "cost_usd": None if one.cost_femto is None else usd_text(from_femto(one.cost_femto)),
                "cost_status": one.cost_status,
                "cost_reasons": one.cost_reasons,
            }
            for one in former
        ],
    }


def _usage(raw: str | None) -> msgspec.Raw | str | None:
    """The provider's own object; as a text where it was none."""
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
