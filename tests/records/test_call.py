"""Call: its id, its time, and its shape on a line of the journal."""

import os
import random
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest

from voight_middleware.records.call import ATTRIBUTIONS, OUTCOMES, Call, LateAttribution, Record, new_call_id
from voight_middleware.records.tags import Tags

decode = msgspec.json.Decoder(Record).decode


def test_an_id_is_a_uuid_of_version_7() -> None:
    """An id is what RFC 9562 says of version 7, in 32 hexadecimal digits."""
    call_id = new_call_id()
    parsed = uuid.UUID(call_id)
    assert (len(call_id), parsed.hex, parsed.version, parsed.variant) == (32, call_id, 7, uuid.RFC_4122)


def test_an_id_carries_the_millisecond_that_it_was_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids sort by time, as their first 48 bits are milliseconds."""
    monkeypatch.setattr("time.time_ns", lambda: 1_790_000_000_123_999_999)
    earlier = new_call_id()
    monkeypatch.setattr("time.time_ns", lambda: 1_790_000_000_124_000_000)
    later = new_call_id()
    assert int(earlier[:12], 16) == 1_790_000_000_123
    assert earlier < later


def test_ids_are_unique_even_where_the_application_seeds_random() -> None:
    """`random.seed()` in the application does not make our ids repeat."""
    ids = []
    for _ in range(50):
        random.seed(1)
        ids += [new_call_id() for _ in range(100)]
    assert len(set(ids)) == 5000


def test_ids_are_unique_across_threads() -> None:
    """Many threads make ids at the same time without repeating one."""
    ids: list[list[str]] = [[] for _ in range(8)]
    threads = [threading.Thread(target=lambda mine=mine: mine.extend(new_call_id() for _ in range(2000))) for mine in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({call_id for mine in ids for call_id in mine}) == 16_000


@pytest.mark.server
def test_a_forked_child_makes_ids_of_its_own() -> None:
    """Parent and child do not go on with the same series, at the same millisecond, with the same seed."""
    script = """
import os, random, sys, time
from voight_middleware.records.call import new_call_id
time.time_ns = lambda: 1_790_000_000_000_000_000
new_call_id()
sys.stdout.flush()
child = os.fork()
random.seed(1)
for _ in range(200):
    os.write(1, new_call_id().encode() + b"\\n")
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
"""
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    ids = output.stdout.split()
    assert len(ids) == 400
    assert len(set(ids)) == 400


def test_a_call_survives_the_journals_encoding() -> None:
    """Every field that the journal carries comes back as it was, Unicode included."""
    call = Call(
        call_id="c1",
        occurred_at=1_790_000_000_123_456,
        provider="openai",
        endpoint="chat",
        requested_model="gpt-5-nano",
        model="gpt-5-nano-2025-08-07",
        streamed=True,
        outcome="aborted",
        error="APIConnectionError",
        http_status=200,
        attempts=3,
        duration=1,
        ttft=0,
        raw_usage='{"prompt_tokens": 1, "note": "line\\nbreak \u2028 \U0001f600"}',
        tool_calls={"web_search": 2},
        estimated_output=0,
        tags=Tags(user_id="ünïcode-\u4f60", extra={"feature": "summary"}),
        attribution="tag",
    )
    line = msgspec.json.encode(call)
    assert b"\n" not in line
    assert decode(line) == call


def test_a_settlement_is_told_from_a_call() -> None:
    """One journal holds both kinds of records, and decoding tells them apart."""
    settlement = LateAttribution(call_ids=("a", "b"), tags=Tags(user_id="u"))
    assert decode(msgspec.json.encode(settlement)) == settlement
    assert settlement.attribution in ATTRIBUTIONS


def test_a_call_that_says_little_writes_little() -> None:
    """Fields that have their default are not written."""
    line = msgspec.json.encode(Call(call_id="c", occurred_at=1, provider="p", endpoint="chat"))
    assert msgspec.json.decode(line) == {"type": "call", "call_id": "c", "occurred_at": 1, "provider": "p", "endpoint": "chat"}


def test_time_is_aware_and_exact() -> None:
    """`time` is UTC, to the microsecond, before 1970 too."""
    call = Call(call_id="c", occurred_at=1_790_000_000_123_456, provider="p", endpoint="chat")
    assert call.time == datetime(2026, 9, 21, 14, 13, 20, 123_456, tzinfo=UTC)
    assert call.time.utcoffset() == UTC.utcoffset(None)
    call.occurred_at = -1
    assert call.time == datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


def test_a_cost_that_is_unknown_is_none_and_a_cost_of_nothing_is_zero() -> None:
    """None and 0 dollars are two things."""
    call = Call(call_id="c", occurred_at=1, provider="p", endpoint="chat")
    assert call.cost_usd is None
    call.cost_femto = 0
    assert call.cost_usd == 0
    assert call.cost_usd is not None
    call.cost_femto = 1_315_680_000_000
    assert call.cost_usd == Decimal("0.00131568")


@pytest.mark.parametrize(("field", "value"), [("estimated_input", 0), ("estimated_output", 0), ("estimated_output", 7)])
def test_a_call_with_any_estimate_says_so(field: str, value: int) -> None:
    """An estimate of 0 tokens is an estimate as well."""
    call = Call(call_id="c", occurred_at=1, provider="p", endpoint="chat")
    assert not call.estimated
    setattr(call, field, value)
    assert call.estimated


def test_the_defaults_are_words_of_the_vocabulary() -> None:
    """A fresh call has a known outcome and a known attribution."""
    call = Call(call_id="c", occurred_at=1, provider="p", endpoint="chat")
    assert call.outcome in OUTCOMES
    assert call.attribution in ATTRIBUTIONS
