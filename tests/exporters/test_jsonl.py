"""The export writes one JSON object per call, with the names of the documentation."""

import json

from voight_middleware.exporters.files.jsonl import lines
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage


def test_one_object_per_call() -> None:
    """A call is one line; times are ISO 8601 in UTC, durations seconds, money a decimal string."""
    call = Call(
        call_id="c1",
        occurred_at=1_793_534_400_000_001,
        provider="anthropic",
        endpoint="messages",
        requested_model="claude",
        model="claude-1",
        outcome="aborted",
        attempts=2,
        duration=1_234_567,
        ttft=250_000,
        estimated_output=7,
        tags=Tags(user_id="zoë", plan="p", tenant_id="t", route="GET /", release="r", session_id="s", extra={"feature": "f"}),
        attribution="getter",
        usage=Usage(input=1, cache_read=2, cache_write_5m=3, cache_write_1h=4, output=7),
        cost_femto=1_500_000_000,
        cost_status="partial",
        cost_reasons=("tier",),
    )
    (line,) = lines([call])
    assert line.endswith(b"}\n")
    assert list(json.loads(line).items()) == [
        ("call_id", "c1"),
        ("occurred_at", "2026-11-01T12:00:00.000001Z"),
        ("user_id", "zoë"),
        ("plan", "p"),
        ("tenant_id", "t"),
        ("route", "GET /"),
        ("release", "r"),
        ("session_id", "s"),
        ("tags", {"feature": "f"}),
        ("provider", "anthropic"),
        ("model", "claude-1"),
        ("requested_model", "claude"),
        ("endpoint", "messages"),
        ("outcome", "aborted"),
        ("attribution", "getter"),
        ("duration_s", 1.234567),
        ("ttft_s", 0.25),
        ("attempts", 2),
        ("input_tokens", 10),
        ("cache_read_tokens", 2),
        ("cache_write_tokens", 7),
        ("output_tokens", 7),
        ("estimated", True),
        ("cost_usd", "0.0000015"),
        ("cost_status", "partial"),
        ("cost_reasons", ["tier"]),
    ]


def test_what_is_unknown_is_null() -> None:
    """A call about which little is known has every key, null where nothing is known, and no cost of 0."""
    (line,) = lines([Call(call_id="c", occurred_at=0, provider="p", endpoint="e")])
    row = json.loads(line)
    unknown = {key for key, value in row.items() if value is None}
    assert unknown == {
        *("user_id", "plan", "tenant_id", "route", "release", "session_id", "model", "requested_model", "duration_s", "ttft_s"),
        *("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "cost_usd"),
    }
    assert row["occurred_at"] == "1970-01-01T00:00:00.000000Z"
    assert (row["tags"], row["estimated"], row["cost_status"]) == ({}, False, "unpriced")
