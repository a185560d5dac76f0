"""What an event says of a call."""

import json
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.events import sender as events
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support.event_server import EventServer, check
from .sending import USAGE, pump


def test_a_call_as_it_arrives(server: EventServer, configured: Any) -> None:
    """Its fields are those of the documentation, and our own id is with it."""
    configured()
    with voight.tag(user_id="u_7", plan="pro", tenant_id="acme", route="POST /chat", session_id="s_1", release="r1", feature="summary"):
        call_id = voight.record(provider="openai", model="gpt-5-nano", usage=USAGE, duration=1.2345)
    pump(server, 1)
    (event,) = server.events
    metadata = event.pop("metadata")
    assert event.pop("timestamp").endswith("Z")
    assert event == {"agentId": "tests", "type": "reasoning", "outcome": "success", "durationMs": 1234, "model": "gpt-5-nano"}
    assert metadata == {
        "callId": call_id,
        "privacyLevel": "minimal",
        "source": "openai-sdk",
        "streaming": False,
        "tags": {"userId": "u_7", "plan": "pro", "tenantId": "acme", "release": "r1", "feature": "summary"},
        "attribution": "tag",
        "endpoint": "POST /chat",
        "sessionId": "s_1",
        "costStatus": "priced",
        "costUsd": "0.0000013",
        "tokens": {"input": 10, "output": 2, "total": 12},
        "tokensBreakdown": {"inputBase": 10, "output": 2},
    }


CACHED = Usage(input=70, cache_read=20, cache_write_5m=10, output=5, reasoning=3)


@pytest.mark.parametrize(
    ("provider", "endpoint", "input_tokens"),
    [
        ("openai", "chat", 100),
        ("openai", "responses", 100),
        ("anthropic", "messages", 70),
        ("bedrock", "converse", 70),
        ("anthropic", "usage", 70),
    ],
)
def test_tokens_are_counted_as_the_provider_counts(new_call: Any, provider: str, endpoint: str, input_tokens: int) -> None:
    """OpenAI's input has what was cached in it, Anthropic's has not; the breakdown is the same for all."""
    metadata = events.event(new_call(provider=provider, endpoint=endpoint, usage=CACHED), "a")["metadata"]
    assert metadata["tokens"] == {
        "input": input_tokens,
        "output": 5,
        "total": input_tokens + 5,
        "cache_read": 20,
        "cache_creation": 10,
        "reasoning": 3,
    }
    assert metadata["tokensBreakdown"] == {"inputBase": 70, "cacheCreation": 10, "cacheRead": 20, "output": 5}
    assert metadata.get("api") == ("responses" if endpoint == "responses" else None)


def test_what_is_not_known_is_left_out(new_call: Any) -> None:
    """An unknown count is no 0, and an unknown cost none."""
    event = events.event(new_call(model=None, usage=None), "a")
    assert {"model", "durationMs", "errorMessage"}.isdisjoint(event)
    assert {"tokens", "tokensBreakdown", "costUsd", "endpoint", "sessionId"}.isdisjoint(event["metadata"])
    assert events.event(new_call(usage=Usage(images=1)), "a")["metadata"].keys().isdisjoint({"tokens", "tokensBreakdown"})


@pytest.mark.parametrize("outcome", ["error", "aborted", "cancelled", "truncated"])
def test_a_failure_says_its_class_and_no_more(new_call: Any, outcome: str) -> None:
    """A broken-off stream is no success."""
    event = events.event(new_call(outcome=outcome, error="RateLimitError", http_status=429), "a")
    assert (event["outcome"], event["errorMessage"]) == ("failed", "RateLimitError (HTTP 429)")
    assert event["metadata"]["callOutcome"] == outcome
    assert events.event(new_call(outcome=outcome), "a")["errorMessage"] == outcome


def test_every_event_is_one_that_the_server_takes(new_call: Any) -> None:
    """Whatever a call holds: strange tags, a time before 1970, a negative duration."""
    strange = Tags(user_id="\U0001f600" * 256, plan="p" * 256, extra={"userId": "forged", "tokens": "x", "a.b-c": "\\u0000"})
    for values in (
        {"tags": strange},
        {"occurred_at": -1},
        {"occurred_at": 0},
        {"duration": -5},
        {"duration": 1},
        {"usage": CACHED, "cost_femto": 123456789, "cost_status": "partial", "batch": True, "estimated_input": 4, "service_tier": "flex"},
    ):
        event = events.event(new_call(**values), "a")
        assert check(json.dumps(event).encode()) == []
    assert events.event(new_call(tags=strange), "a")["metadata"]["tags"]["userId"] == strange.user_id
