"""record(): calls that no instrumentation sees."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware import Tags, Usage, configure, metered_call, record, tag
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.meter import add_observer, remove_observer, swap_meter
from voight_middleware.pipeline.pseudonyms import kept_call_id

from ..support.calls import Calls
from ..support.memory_provider import CHAT_USAGE, MESSAGES_USAGE, RESPONSES_USAGE, USAGE, chat_body, messages_body, responses_body

GOOD: dict[str, Any] = {"provider": "openai", "model": "gpt-4o-mini", "usage": CHAT_USAGE}

SDK_OBJECTS = {
    "chat": openai.types.chat.ChatCompletion.construct(**chat_body()).usage,
    "responses": openai.types.responses.Response.construct(**responses_body()).usage,
    "messages": anthropic.types.Message.construct(**messages_body()).usage,
}


@pytest.mark.parametrize(
    ("usage", "endpoint"),
    [
        (CHAT_USAGE, "chat"),
        (RESPONSES_USAGE, "responses"),
        (MESSAGES_USAGE, "messages"),
        *((one, name) for name, one in SDK_OBJECTS.items()),
    ],
    ids=["chat", "responses", "messages", "chat object", "responses object", "messages object"],
)
def test_a_providers_usage_is_recognised(usage: object, endpoint: str, calls: Calls) -> None:
    """The provider's JSON and the SDK's object come to the same counts as a metered call, without naming the dialect."""
    record(provider="p", model="m", usage=usage)

    call = calls.one()
    assert (call.endpoint, call.usage) == (endpoint, USAGE[endpoint])


@pytest.mark.parametrize(
    ("usage", "endpoint"),
    [
        ({"input_tokens": 3, "output_tokens": 2}, "messages"),
        ({"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}, "responses"),
        ({"input_tokens": 3, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}}, "responses"),
        ({"prompt_tokens": 3, "total_tokens": 3}, "chat"),
    ],
)
def test_a_short_usage_is_recognised_by_its_keys(usage: dict[str, Any], endpoint: str, calls: Calls) -> None:
    """``total_tokens`` is OpenAI's; without it and without details it is Anthropic's."""
    record(provider="p", model="m", usage=usage)

    assert calls.one().endpoint == endpoint


def test_the_dialect_that_is_named_wins(calls: Calls) -> None:
    """``endpoint=`` is believed: an embedding has no output."""
    record(provider="openai", model="text-embedding-3-small", usage={"prompt_tokens": 8, "total_tokens": 8}, endpoint="embeddings")

    call = calls.one()
    assert (call.endpoint, call.usage, call.cost_status) == ("embeddings", Usage(input=8), "priced")


def test_a_usage_of_ours_is_taken_as_it_is(calls: Calls) -> None:
    """A ``Usage`` needs no dialect, and keeps every count."""
    usage = Usage(input=10, cache_read=5, output=3, reasoning=1, seconds=7, tools={"web_search": 2})
    record(provider="openai", model="gpt-4o-mini", usage=usage)

    assert calls.one().usage == usage


def test_everything_that_is_said_is_kept(calls: Calls) -> None:
    """Provider, model, place, tier, batch, outcome and duration are on the call; seconds become microseconds."""
    call_id = record(
        **{**GOOD, "provider": " OpenAI "},
        duration=1.25,
        outcome="aborted",
        base_url="https://proxy.example.com/v1",
        service_tier="priority",
        batch=True,
    )

    call = calls.one()
    assert (call.call_id, call.provider, call.model, call.requested_model) == (call_id, "openai", "gpt-4o-mini", "gpt-4o-mini")
    assert (call.duration, call.outcome, call.batch, call.service_tier) == (1_250_000, "aborted", True, "priority")
    assert call.host == "proxy.example.com"
    assert json.loads(call.raw_usage or "") == CHAT_USAGE


def test_every_record_has_an_id_of_its_own(calls: Calls) -> None:
    """Without ``call_id`` two equal calls are two calls."""
    assert record(**GOOD) != record(**GOOD)
    assert len(calls.all()) == 2


def test_recording_an_id_again_changes_nothing(own_calls: Calls) -> None:
    """The ledger has one call of that id, as it was first recorded."""
    assert record(**GOOD, call_id="batch-7/line-1") == "batch-7/line-1"
    own_calls.all()
    record(**{**GOOD, "usage": {"prompt_tokens": 999, "completion_tokens": 9}}, call_id="batch-7/line-1")
    own_calls.all()
    record(**GOOD, call_id="batch-7/line-1")
    record(**GOOD, call_id="batch-7/line-1")
    own_calls.all()

    ledger = open_ledger(own_calls.meter.settings.ledger)
    try:
        kept = list(ledger.calls())
    finally:
        ledger.close()
    assert [(call.call_id, call.usage) for call in kept] == [("batch-7/line-1", USAGE["chat"])]


@pytest.mark.parametrize("hours", [-11, 0, 5.5, 14])
def test_a_time_in_another_zone_is_the_same_moment(hours: float, calls: Calls) -> None:
    """``occurred_at`` is kept in UTC, to the microsecond."""
    moment = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=timezone(timedelta(hours=hours)))
    record(**GOOD, occurred_at=moment)

    call = calls.one()
    assert call.time == moment
    assert call.time.utcoffset() == timedelta(0)


def test_the_time_is_now_where_none_is_given(calls: Calls) -> None:
    """A call that is recorded without a time happened just now."""
    before = datetime.now(UTC)
    record(**GOOD)
    after = datetime.now(UTC)

    assert before <= calls.one().time <= after


@pytest.mark.parametrize(
    "tags", [{"user_id": "u_2", "feature": "mail"}, Tags(user_id="u_2", extra={"feature": "mail"})], ids=["mapping", "Tags"]
)
def test_tags_are_laid_over_those_of_here_and_now(tags: Any, calls: Calls) -> None:
    """What the block says holds where ``tags=`` says nothing."""
    with tag(user_id="u_1", plan="pro", kind="night"):
        record(**GOOD, tags=tags)
        record(**GOOD)

    both, plain = calls.all()
    assert both.tags == Tags(user_id="u_2", plan="pro", extra={"kind": "night", "feature": "mail"})
    assert plain.tags == Tags(user_id="u_1", plan="pro", extra={"kind": "night"})
    assert (both.attribution, plain.attribution) == ("tag", "tag")


def test_numbers_are_owners_too(calls: Calls) -> None:
    """A user id that is a whole number is kept as text."""
    record(**GOOD, tags={"user_id": 7})  # type: ignore[dict-item]

    assert calls.one().tags.user_id == "7"


def test_nothing_is_recorded_while_it_is_switched_off(calls: Calls, tmp_path: Any) -> None:
    """``enabled=False`` still checks what it is given, and answers an id."""
    outer = swap_meter(None)
    try:
        configure(ledger=tmp_path / "off.db", enabled=False)
        assert record(**GOOD, call_id="mine") == "mine"
        with pytest.raises(ValueError, match="model"):
            record(**{**GOOD, "model": ""})
    finally:
        swap_meter(outer)

    assert not (tmp_path / "off.db").exists()
    assert calls.all() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("provider", ""),
        ("provider", " "),
        ("provider", None),
        ("provider", 7),
        ("model", ""),
        ("model", None),
        ("model", b"gpt"),
        ("outcome", "fine"),
        ("outcome", None),
        ("outcome", ["ok"]),
        ("occurred_at", datetime(2026, 1, 1)),  # noqa: DTZ001
        ("occurred_at", "2026-01-01"),
        ("occurred_at", 1767225600),
        ("duration", -1),
        ("duration", "1"),
        ("duration", True),
        ("duration", float("nan")),
        ("duration", float("inf")),
        ("call_id", ""),
        ("call_id", 7),
        ("call_id", "x" * 201),
        ("tags", "u_1"),
        ("tags", [("user_id", "u_1")]),
        ("base_url", 7),
        ("service_tier", 7),
        ("batch", "yes"),
        ("endpoint", "telepathy"),
        ("endpoint", 7),
        ("usage", None),
        ("usage", 7),
        ("usage", "10"),
        ("usage", []),
        ("usage", {}),
        ("usage", {"tokens": 7}),
        ("usage", object()),
        ("usage", {"prompt_tokens": -1}),
        ("usage", {"prompt_tokens": "7"}),
        ("usage", {"prompt_tokens": 1.5}),
        ("usage", {"prompt_tokens": object()}),
        ("usage", {"prompt_tokens": 1, "note": "x" * 20_000}),
        ("usage", Usage(input=-1)),
        ("usage", Usage(input=1.5)),  # type: ignore[arg-type]
        ("usage", Usage(tools={"web_search": -1})),
        ("usage", Usage(tools=7)),  # type: ignore[arg-type]
    ],
)
def test_a_bad_argument_is_a_value_error_that_names_it(field: str, value: object, calls: Calls) -> None:
    """A mistake raises at once, and nothing is recorded."""
    with pytest.raises(ValueError, match=field) as caught:
        record(**{**GOOD, field: value})

    assert "\n" not in str(caught.value)
    assert calls.all() == []


@pytest.mark.parametrize(
    ("endpoint", "usage", "counts"),
    [
        ("completions", CHAT_USAGE, USAGE["chat"]),
        ("compact", RESPONSES_USAGE, USAGE["responses"]),
        ("decisions", RESPONSES_USAGE, USAGE["responses"]),
        ("images", {"images": 2, "size": "1024x1024", "quality": "hd"}, Usage(images=2)),
        ("transcriptions", {"type": "duration", "seconds": 8.47}, Usage(seconds=9)),
        ("translations", {"type": "duration", "seconds": 3}, Usage(seconds=3)),
        ("speech", {"characters": 40}, Usage(characters=40)),
        ("videos", {"seconds": 8}, Usage(seconds=8)),
        (
            "realtime",
            {"input_tokens": 5, "output_tokens": 3, "output_token_details": {"audio_tokens": 2}},
            Usage(input=5, output=1, audio_out=2),
        ),
        ("runs", {"prompt_tokens": 5, "prompt_token_details": {"cached_tokens": 2}}, Usage(input=3, cache_read=2)),
        ("generate_content", {"promptTokenCount": 5, "candidatesTokenCount": 3}, Usage(input=5, output=3)),
    ],
)
def test_every_dialect_can_be_named(endpoint: str, usage: dict[str, Any], counts: Usage, calls: Calls) -> None:
    """What was made by another endpoint than a text one is recorded too, where it is named."""
    record(provider="openai", model="m", usage=usage, endpoint=endpoint)

    call = calls.one()
    assert (call.endpoint, call.usage) == (endpoint, counts)


def test_texts_of_a_call_are_looked_at_as_tags_are(calls: Calls) -> None:
    """A model, a tier and an id of one's own may name a person or be a key; a clean one stays as it is."""
    token = "vk_a1B2c3D4e5F6g7H8i9J0"
    for _ in range(2):
        kept = record(provider="openai", model=token, service_tier="alice@example.com", usage=CHAT_USAGE, call_id="alice@example.com/7")
    call = calls.one()
    assert "alice" not in f"{call} {kept}"
    assert token not in str(call)
    assert call.call_id == kept
    assert (call.model or "").startswith("key:v0:")
    assert call.requested_model == call.model

    record(provider="openai", model="gpt-5-nano" + "-x" * 200, usage=CHAT_USAGE, call_id="order 7")
    assert [call.model for call in calls.all()][1] == "gpt-5-nano" + "-x" * 200
    assert calls.all()[1].call_id == "order 7"


def test_an_id_of_ones_own_stays_where_it_is_allowed() -> None:
    """By the policy of ``call_id``, as of any tag."""
    assert kept_call_id("alice@example.com", {"call_id": "allow"}) == "alice@example.com"
    assert kept_call_id("alice@example.com", {}) == kept_call_id("alice@example.com", {"*": "redact"}) != "alice@example.com"


def test_a_watcher_is_shown_the_model_as_it_is_kept(calls: Calls) -> None:
    """A span has it in its name: a client's text must not be there, however long."""
    seen: list[str | None] = []

    class Watching:
        def on_call_start(self, start: Any) -> None:
            seen.append(start.requested_model)

        def on_call_response(self, token: Any) -> None: ...

        def on_call_end(self, token: Any, call: Any) -> None:
            seen.append(call.requested_model)

    watching = Watching()
    add_observer(watching)
    try:
        for model in ("alice@example.com", "x" * 5_000):
            with metered_call(provider="openai", model=model) as call:
                call.report(CHAT_USAGE)
    finally:
        remove_observer(watching)
    assert len(seen) == 4
    assert (seen[0], seen[2]) == (seen[1], seen[3])
    assert "alice" not in str(seen)
    assert max(len(model or "") for model in seen) <= 512


@pytest.mark.parametrize(
    ("usage", "counts", "reason"),
    [
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 6}},
            (5, 2),
            "usage contradicts itself: the parts of prompt_tokens add up to more than its 5, so they are left out",
        ),
        (
            Usage(input=5, output=2, reasoning=3),
            (5, 2),
            "usage contradicts itself: its 3 reasoning tokens are more than output = 2, of which they are a part",
        ),
        ({"prompt_tokens": 5, "completion_tokens": 2, "dreams": 7}, (5, 2), "usage has dreams = 7, which is not known here"),
    ],
    ids=["parts", "our own", "unknown"],
)
def test_a_recorded_contradiction_has_a_true_reason(usage: Any, counts: tuple[int, int], reason: str, calls: Calls) -> None:
    """What can be read is priced, and the call says what cannot."""
    record(provider="openai", model="gpt-4o-mini", usage=usage)
    call = calls.one()
    assert call.usage is not None
    assert (call.usage.input_tokens, call.usage.output_tokens) == counts
    assert (call.cost_status, call.cost_reasons) == ("partial", (reason,))
    assert call.cost_femto
