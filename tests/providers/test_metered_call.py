"""metered_call(): one call of a worker, a router or another SDK, metered by hand."""

import asyncio
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from voight_middleware import Tags, Usage, configure, metered_call, tag
from voight_middleware.context.context import use_scope
from voight_middleware.instrumentation.request import current_request
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope
from voight_middleware.pipeline.meter import swap_meter

from ..support.calls import Calls
from ..support.memory_provider import CHAT_USAGE, MESSAGES_USAGE, RESPONSES_USAGE, USAGE, chat_body
from ..support.patching import Patch

HOW: dict[str, Any] = {"provider": "openai", "model": "gpt-4o-mini"}
USERS = 20
TASKS = 100


def user_of(number: int) -> str:
    return f"u_{number % USERS}"


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """After every test, what is sent here is metered as before."""
    yield
    assert current_request.get() is None


# -- what is reported ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "endpoint", "counts"),
    [
        (CHAT_USAGE, "chat", USAGE["chat"]),
        (RESPONSES_USAGE, "responses", USAGE["responses"]),
        (MESSAGES_USAGE, "messages", USAGE["messages"]),
        (openai.types.chat.ChatCompletion.construct(**chat_body()).usage, "chat", USAGE["chat"]),
        (Usage(input=12, output=3), "usage", Usage(input=12, output=3)),
    ],
    ids=["chat", "responses", "messages", "chat object", "Usage"],
)
def test_the_providers_usage_is_kept(usage: object, endpoint: str, counts: Usage, calls: Calls) -> None:
    """The provider's JSON, an SDK's object and a ``Usage`` come to the same counts as ``record()``."""
    with metered_call(**HOW) as call:
        call.report(usage)

    kept = calls.one()
    assert (kept.endpoint, kept.usage, kept.outcome) == (endpoint, counts, "ok")


def test_plain_counts_are_a_usage(calls: Calls) -> None:
    """Where the other SDK has no usage object of a provider's, the counts are said one by one, and priced."""
    with metered_call(**HOW) as call:
        call.report(input=1200, cache_read=0, output=80)

    kept = calls.one()
    assert (kept.usage, kept.cost_status) == (Usage(input=1200, cache_read=0, output=80), "priced")


def test_everything_that_is_said_is_kept(calls: Calls) -> None:
    """What the block says and what the report says are on the call."""
    block = metered_call(
        provider=" OpenAI ",
        model="gpt-4o-mini",
        tags={"user_id": "u_1", "feature": "mail"},
        endpoint="chat",
        base_url="https://router.example.com/v1",
        batch=True,
        call_id="job-7",
        streamed=True,
    )
    with block as call:
        assert call.call_id == "job-7"
        call.report(CHAT_USAGE, model="gpt-4o-mini-2024-07-18", response_id="chatcmpl-1", service_tier="flex", outcome="truncated")

    kept = calls.one()
    assert (kept.call_id, kept.provider, kept.endpoint, kept.host) == ("job-7", "openai", "chat", "router.example.com")
    assert (kept.requested_model, kept.model, kept.response_id) == ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "chatcmpl-1")
    assert (kept.batch, kept.streamed, kept.service_tier, kept.outcome) == (True, True, "flex", "truncated")
    assert (kept.tags, kept.attribution) == (Tags(user_id="u_1", extra={"feature": "mail"}), "tag")


def test_the_last_report_holds(calls: Calls) -> None:
    """A second report replaces what it names, and leaves the rest as it was."""
    with metered_call(**HOW) as call:
        call.report(CHAT_USAGE, model="gpt-4o", response_id="a")
        call.report(input=5, output=1, response_id="b")

    kept = calls.one()
    assert (kept.usage, kept.endpoint, kept.model, kept.response_id) == (Usage(input=5, output=1), "usage", "gpt-4o", "b")


def test_the_dialect_can_come_with_the_report(calls: Calls) -> None:
    """A router learns only from its answer whose usage it is."""
    with metered_call(**HOW, endpoint="messages") as call:
        call.report({"prompt_tokens": 7}, endpoint="embeddings")

    assert (calls.one().endpoint, calls.one().usage) == ("embeddings", Usage(input=7))


def test_time_is_measured(calls: Calls) -> None:
    """From the block's beginning to its end, and to the first of the first tokens."""
    before = time.time_ns() // 1000
    with metered_call(**HOW, streamed=True) as call:
        time.sleep(0.02)
        call.first_token()
        time.sleep(0.02)
        call.first_token()
        call.report(input=1)

    kept = calls.one()
    assert kept.ttft is not None
    assert kept.duration is not None
    assert 20_000 <= kept.ttft <= kept.duration - 20_000
    assert before <= kept.occurred_at <= time.time_ns() // 1000 - 40_000


# -- how a block ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("the prompt"), "error"),
        (TimeoutError(), "error"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (SystemExit(3), "cancelled"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
@pytest.mark.parametrize("reported", [True, False], ids=["reported", "not reported"])
def test_an_exception_is_passed_on_and_kept(error: BaseException, outcome: str, reported: bool, calls: Calls) -> None:
    """The caller gets the very object; the call keeps its class, and the usage that was reported before."""
    with pytest.raises(type(error)) as caught, metered_call(**HOW) as call:  # noqa: PT012
        if reported:
            call.report(CHAT_USAGE, outcome="ok")
        raise error

    kept = calls.one()
    assert caught.value is error
    assert (kept.outcome, kept.error) == (outcome, type(error).__name__)
    assert kept.usage == (USAGE["chat"] if reported else None)


def test_a_block_without_a_report_is_kept_unpriced(calls: Calls, caplog: pytest.LogCaptureFixture, patch: Patch) -> None:
    """Its usage is not known, and never 0; that is said once."""
    patch("_warned", set(), within="diagnostics")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with metered_call(**HOW):
                pass

    kept = calls.all()
    assert [(call.outcome, call.usage, call.cost_usd, call.cost_status) for call in kept] == [("ok", None, None, "unpriced")] * 3
    assert [record.message for record in caplog.records if "report()" in record.message] == [
        "a metered_call() block ended without report(): its cost is not known"
    ]


def test_a_report_without_a_usage_is_no_mistake(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    """A provider that reported none is a call whose usage is not known."""
    with caplog.at_level(logging.WARNING), metered_call(**HOW) as call:
        call.report(None, response_id="r_1")

    assert (calls.one().usage, calls.one().response_id) == (None, "r_1")
    assert not [record for record in caplog.records if "report()" in record.message]


def test_a_report_that_comes_too_late_changes_nothing(calls: Calls) -> None:
    """The call has been written when its block ended."""
    with metered_call(**HOW) as call:
        call.report(input=1)
    call.report(input=1000)
    call.first_token()

    assert calls.one().usage == Usage(input=1)


def test_a_block_is_one_call(calls: Calls) -> None:
    """A second block needs an object of its own."""
    block = metered_call(**HOW)
    with block as call:
        call.report(input=1)
    with pytest.raises(RuntimeError, match="metered_call"), block:
        pass

    calls.one()


def test_a_block_that_never_began_is_no_call(calls: Calls) -> None:
    """Making the object is not a call."""
    metered_call(**HOW)

    assert calls.all() == []


def test_nothing_is_metered_while_it_is_switched_off(calls: Calls, tmp_path: Any) -> None:
    """``enabled=False`` still checks what it is given."""
    outer = swap_meter(None)
    try:
        configure(ledger=tmp_path / "off.db", enabled=False)
        with metered_call(**HOW) as call:
            call.report(CHAT_USAGE)
            with pytest.raises(ValueError, match="usage"):
                call.report(7)
        with pytest.raises(ValueError, match="model"):
            metered_call(provider="p", model="")
    finally:
        swap_meter(outer)

    assert not (tmp_path / "off.db").exists()
    assert calls.all() == []


BAD: list[tuple[str, object]] = [
    ("provider", ""),
    ("provider", None),
    ("model", " "),
    ("model", 7),
    ("tags", "u_1"),
    ("endpoint", "telepathy"),
    ("endpoint", ["chat"]),
    ("base_url", 7),
    ("service_tier", 7),
    ("batch", "yes"),
    ("call_id", ""),
    ("call_id", 7),
    ("streamed", 1),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_argument_is_a_value_error_at_once(field: str, value: object, calls: Calls) -> None:
    """A mistake in the arguments raises before anything is sent."""
    with pytest.raises(ValueError, match=field):
        metered_call(**{**HOW, field: value})

    assert calls.all() == []


BAD_REPORTS: list[tuple[str, dict[str, Any]]] = [
    ("usage", {"usage": 7}),
    ("usage", {"usage": {}}),
    ("usage", {"usage": {"prompt_tokens": -1}}),
    ("input", {"input": -1}),
    ("output", {"output": 1.5}),
    ("output", {"output": "7"}),
    ("prompt_tokens", {"prompt_tokens": 7}),
    ("tools", {"tools": 7}),
    ("input", {"usage": CHAT_USAGE, "input": 7}),
    ("model", {"model": ""}),
    ("model", {"model": 7}),
    ("response_id", {"response_id": 7}),
    ("service_tier", {"service_tier": 7}),
    ("outcome", {"outcome": "fine"}),
    ("endpoint", {"endpoint": "telepathy"}),
]


@pytest.mark.parametrize(("field", "report"), BAD_REPORTS)
def test_a_bad_report_is_a_value_error_that_names_it(field: str, report: dict[str, Any], calls: Calls) -> None:
    """Nothing of such a report is kept."""
    with metered_call(**HOW) as call:
        call.report(input=1, model="gpt-4o")
        with pytest.raises(ValueError, match=field) as caught:
            call.report(**{"response_id": "r_1", **report})

    kept = calls.one()
    assert "\n" not in str(caught.value)
    assert (kept.usage, kept.model, kept.response_id, kept.outcome) == (Usage(input=1), "gpt-4o", None, "ok")


# -- whose call it is ----------------------------------------------------------------------------------------------------------


def test_the_owner_is_captured_at_the_beginning(calls: Calls) -> None:
    """Tags that are bound inside the block come too late; the block's own are laid over those outside."""
    with tag(user_id="u_1", plan="pro"), metered_call(**HOW, tags={"plan": "free"}) as call, tag(user_id="u_2"):
        call.report(input=1)

    assert calls.one().tags == Tags(user_id="u_1", plan="free")


async def test_a_requests_user_is_asked_for_once_and_waited_for(calls: Calls) -> None:
    """An asynchronous getter is awaited by ``async with``."""
    asked = 0

    async def user(_: Any) -> str:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return "u_1"

    with use_scope(RequestScope(lambda: "the request", Getters(user), lambda: "POST /chat")):
        async with metered_call(**HOW) as call:
            call.report(input=1)

    kept = calls.one()
    assert (kept.tags, kept.attribution, asked) == (Tags(user_id="u_1", route="POST /chat"), "getter", 1)


async def test_an_owner_that_is_known_later_is_settled(own_calls: Calls) -> None:
    """A synchronous block cannot wait for an asynchronous getter; the end of the request does."""

    async def user(_: Any) -> str:
        await asyncio.sleep(0)
        return "u_1"

    scope = RequestScope(lambda: "the request", Getters(user), lambda: None)
    with use_scope(scope):
        with metered_call(**HOW) as call:
            call.report(input=1)
        await scope.attribute_late()
    assert own_calls.one().tags.user_id is None

    from voight_middleware.ledger import open_ledger

    ledger = open_ledger(own_calls.meter.settings.ledger)
    try:
        assert [(call.tags.user_id, call.attribution) for call in ledger.calls()] == [("u_1", "settled")]
    finally:
        ledger.close()


async def test_a_hundred_tasks_of_twenty_users(calls: Calls) -> None:
    """Each call is its own user's, however the tasks are mixed."""

    async def work(number: int) -> None:
        with tag(user_id=user_of(number)):
            async with metered_call(**HOW) as call:
                await asyncio.sleep(number % 7 / 1000)
                call.report(input=number, output=1)

    await asyncio.gather(*(work(number) for number in range(TASKS)))

    kept = calls.all()
    assert len(kept) == TASKS
    assert all(call.usage is not None and call.usage.input is not None for call in kept)
    assert all(call.tags.user_id == user_of(call.usage.input or 0) for call in kept if call.usage is not None)


def test_a_hundred_jobs_in_threads(calls: Calls) -> None:
    """The same in threads, with the owner from the job itself."""

    def work(number: int) -> None:
        with metered_call(**HOW, tags={"user_id": user_of(number)}) as call:
            time.sleep(number % 7 / 1000)
            call.report(input=number)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, range(TASKS)))

    kept = calls.all()
    assert sorted(call.usage.input or 0 for call in kept if call.usage is not None) == list(range(TASKS))
    assert all(call.tags.user_id == user_of(call.usage.input or 0) for call in kept if call.usage is not None)
