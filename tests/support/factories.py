"""Calls as the tests of the ledger make them, by hand and by hypothesis."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from voight_middleware.ledger.base import MAX_COUNT
from voight_middleware.records.call import ATTRIBUTIONS, OUTCOMES, Call, Submission, job_call_id, new_call_id
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Component, Usage

NOON = 1_793_534_400_000_000  # 2026-11-01 12:00 UTC
SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
DEAREST = 2**63 - 1


def make_call(cost: int | None = 1_000, at: int = NOON, **values: Any) -> Call:
    """A finished call that costs so many femto-dollars."""
    values.setdefault("call_id", new_call_id())
    status = "unpriced" if cost is None else "priced"
    usage = values.setdefault("usage", Usage(input=10, cache_read=5, output=7))
    values.setdefault("components", () if usage is None else (Component(usage=usage),))
    return Call(
        **{"provider": "openai", "endpoint": "chat", "model": "m", "cost_status": status, **values}, occurred_at=at, cost_femto=cost
    )


def priced(call: Call, cost: int | None, status: str | None = None, **values: Any) -> Call:
    """*call* with another price."""
    status = status or ("unpriced" if cost is None else "priced")
    return msgspec.structs.replace(call, cost_femto=cost, cost_status=status, **values)


def job_call(job: str, **values: Any) -> Call:
    """An answer of *job*."""
    return make_call(call_id=job_call_id(job), job=job, **values)


def unread(job: str, **values: Any) -> Call:
    """*job* as it is kept when it is begun."""
    return job_call(job, cost=None, usage=None, **values)


def submission(job: str, user: str | None, *, part_of: str | None = None, attribution: str = "tag") -> Submission:
    """Who has submitted *job*."""
    return Submission(job=job, submitted_at=NOON, part_of=part_of, tags=Tags(user_id=user, extra={"k": "v"}), attribution=attribution)


# PostgreSQL's texts have no NUL, and a lone surrogate is no text: there are tests of their own.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20) | st.sampled_from(
    ["'", '"', "%", "_", "\\", "\\N", "NULL", "*", "[a]", "zoë 🦔 \u202e", "\t\n\r", "{}", "\\x00", "{x:String}", "%s", "$1", ":x", "?"]
)
maybe = st.none() | texts
counts = st.none() | st.integers(0, MAX_COUNT)
_tools = st.none() | st.dictionaries(texts, st.integers(0, 99), max_size=2)
_tag_sets = st.builds(
    Tags,
    user_id=maybe,
    plan=maybe,
    tenant_id=maybe,
    route=maybe,
    release=maybe,
    session_id=maybe,
    extra=st.dictionaries(texts, texts, max_size=3),
)
_usages = st.builds(Usage, tools=_tools, **{name: counts for name in Usage.__struct_fields__ if name != "tools"}).filter(
    lambda usage: usage != Usage()
)
_components = st.lists(st.builds(Component, model=maybe, usage=_usages), max_size=3).map(tuple)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Any call that a ledger can keep, of an id of its own."""
    cost = draw(st.none() | st.integers(0, DEAREST))
    usage = draw(st.none() | _usages)
    parts = (Component(usage=usage),) if usage is not None and draw(st.booleans()) else draw(_components) if usage is not None else ()
    return Call(
        call_id=new_call_id(),
        occurred_at=draw(st.integers(0, 4 * 10**15)),
        provider=draw(texts),
        endpoint=draw(texts),
        requested_model=draw(maybe),
        model=draw(maybe),
        host=draw(maybe),
        streamed=draw(st.booleans()),
        outcome=draw(st.sampled_from(OUTCOMES)),
        error=draw(maybe),
        http_status=draw(st.none() | st.integers(100, 599)),
        attempts=draw(st.integers(1, 9)),
        possibly_billed=draw(st.none() | st.integers(0, 9)),
        duration=draw(counts),
        ttft=draw(counts),
        response_id=draw(maybe),
        job=draw(maybe),
        service_tier=draw(maybe),
        batch=draw(st.booleans()),
        raw_usage=draw(st.none() | st.just('{"input_tokens": 1, "é": null}')),
        tool_calls=draw(_tools),
        estimated_input=draw(counts),
        estimated_output=draw(counts),
        tags=draw(_tag_sets),
        attribution=draw(st.sampled_from(ATTRIBUTIONS)),
        usage=usage,
        components=parts,
        cost_femto=cost,
        list_femto=draw(st.none() | st.integers(0, DEAREST)),
        cost_status="unpriced" if cost is None else draw(st.sampled_from(["priced", "partial"])),
        cost_reasons=draw(st.lists(texts, max_size=2).map(tuple)),
        price=draw(maybe),
    )
