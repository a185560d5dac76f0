"""Responses that are made in the background: each is one call, and belongs to who submitted it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voight_middleware import tag, wrap
from voight_middleware.pipeline.meter import add_observer, remove_observer
from voight_middleware.pipeline.observers import CallStart
from voight_middleware.records.call import Call

from ..support.calls import Calls
from ..support.memory_provider import (
    JSON,
    SSE,
    USAGE,
    Answer,
    Provider,
    responses_body,
    responses_events,
)
from .batches import Elsewhere, as_json, kept
from .entry_points import RESPONSES, both_kinds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def calls(own_calls: Calls) -> Calls:
    """The calls of a test, in a ledger of its own: jobs of other tests have the same names."""
    return own_calls


@pytest.fixture
def elsewhere(calls: Calls, tmp_path: Path) -> Any:
    made = Elsewhere(calls, tmp_path / "elsewhere")
    yield made
    made.meter.close()


def in_background(*states: str) -> Callable[[str, dict[str, Any]], Answer]:
    """A response that is in each of these states when it is asked for, and stays in the last one."""
    left = list(states)

    def answer(_path: str, body: dict[str, Any]) -> Answer:
        if body:
            return as_json(responses_body("queued", usage=False, background=True))
        state = left.pop(0) if len(left) > 1 else left[0]
        return as_json(responses_body(state, usage=state not in ("queued", "in_progress", "cancelled"), background=True))

    return answer


async def retrieve(client: Any, asynchronous: bool, **more: Any) -> Any:
    made = client.responses.retrieve("resp_1", **more)
    return await made if asynchronous else made


@both_kinds
async def test_a_background_response_is_one_call_however_often_it_is_retrieved(
    asynchronous: bool, provider: Provider, calls: Calls
) -> None:
    """It is known from the start, unpriced; the first answer with usage completes it; it stays with who submitted it."""
    client = wrap(provider.client("openai", asynchronous=asynchronous))
    provider.answer = in_background("queued", "in_progress", "completed")
    with tag(user_id="u_1", plan="pro"):
        made = client.responses.create(**RESPONSES, background=True)
        begun = await made if asynchronous else made

    (open_call,) = kept(calls)
    assert (open_call.usage, open_call.cost_usd, open_call.cost_status) == (None, None, "unpriced")
    assert open_call.cost_reasons == ("nobody has read yet what this job used",)

    with tag(user_id="u_2"):
        for _ in range(5):
            await retrieve(client, asynchronous)

    (call,) = kept(calls)
    assert (call.call_id, call.response_id) == (open_call.call_id, begun.id)
    assert (call.usage, call.cost_status) == (USAGE["responses"], "priced")
    assert (call.tags.user_id, call.tags.plan, call.attribution) == ("u_1", "pro", "tag")
    assert (call.occurred_at, call.requested_model) == (open_call.occurred_at, "gpt-4o-mini")


def test_a_stored_response_is_not_billed_again(provider: Provider, calls: Calls) -> None:
    """A response that was answered at once is one call, whoever reads it again."""
    client = wrap(provider.client("openai"))
    provider.answer = lambda path, body: as_json(responses_body())
    client.responses.create(**RESPONSES)
    for _ in range(3):
        client.responses.retrieve("resp_1")

    assert len(kept(calls)) == 1


@pytest.mark.parametrize("submitted_first", [True, False], ids=["submission first", "answer first"])
def test_the_answer_may_be_read_by_another_process(submitted_first: bool, provider: Provider, calls: Calls, elsewhere: Elsewhere) -> None:
    """Whichever journal is ingested first, the call is one, complete, and the submitter's."""
    client = wrap(provider.client("openai"))
    provider.answer = in_background("completed")

    def submit() -> None:
        with tag(user_id="u_1", plan="pro"):
            client.responses.create(**RESPONSES, background=True)
        assert calls.meter.flush(30)

    def read() -> None:
        with elsewhere, tag(user_id="worker"):
            client.responses.retrieve("resp_1")
        elsewhere.flush()

    for step in (submit, read) if submitted_first else (read, submit):
        step()

    (call,) = kept(calls)
    assert (call.tags.user_id, call.tags.plan, call.usage) == ("u_1", "pro", USAGE["responses"])


@pytest.mark.slow
def test_a_background_response_that_is_streamed_is_one_call(provider: Provider, calls: Calls) -> None:
    """Streamed when it is made, and retrieved afterwards: the same call."""
    client = wrap(provider.client("openai"))

    def answer(_path: str, body: dict[str, Any]) -> Answer:
        if body:
            events = [event.replace(b'"created_at": 1', b'"created_at": 1, "background": true') for event in responses_events()]
            return 200, SSE, events
        return as_json(responses_body(background=True))

    provider.answer = answer
    with tag(user_id="u_1"):
        list(client.responses.create(**RESPONSES, background=True, stream=True))
    client.responses.retrieve("resp_1")

    (call,) = kept(calls)
    assert (call.tags.user_id, call.usage, call.outcome) == ("u_1", USAGE["responses"], "ok")


def test_a_background_stream_that_was_left_is_completed_when_it_is_retrieved(provider: Provider, calls: Calls) -> None:
    """The stream broke off without usage; the stored answer has it, exactly."""
    client = wrap(provider.client("openai"))

    def answer(_path: str, body: dict[str, Any]) -> Answer:
        if body:
            events = [event.replace(b'"created_at": 1', b'"created_at": 1, "background": true') for event in responses_events()]
            return 200, SSE, events
        return as_json(responses_body(background=True))

    provider.answer = answer
    with client.responses.create(**RESPONSES, background=True, stream=True) as stream:
        for _ in range(5):
            next(stream)
    assert kept(calls)[0].estimated
    client.responses.retrieve("resp_1")

    (call,) = kept(calls)
    assert (call.usage, call.estimated, call.outcome) == (USAGE["responses"], False, "ok")


def test_a_retrieved_stream_tells_too(provider: Provider, calls: Calls) -> None:
    """``retrieve(stream=True)`` ends with the usage."""
    client = wrap(provider.client("openai"))
    events = [event.replace(b'"created_at": 1', b'"created_at": 1, "background": true') for event in responses_events()]
    provider.answer = lambda path, body: as_json(responses_body("queued", usage=False, background=True)) if body else (200, SSE, events)
    with tag(user_id="u_1"):
        client.responses.create(**RESPONSES, background=True)
    list(client.responses.retrieve("resp_1", stream=True))

    (call,) = kept(calls)
    assert (call.usage, call.tags.user_id) == (USAGE["responses"], "u_1")


def test_a_cancelled_background_response_stays_unknown(provider: Provider, calls: Calls) -> None:
    """Its usage is null for good: the cost is not known, and that is said."""
    client = wrap(provider.client("openai"))
    provider.answer = in_background("cancelled")
    client.responses.create(**RESPONSES, background=True)
    client.responses.retrieve("resp_1")

    (call,) = kept(calls)
    assert (call.cost_usd, call.cost_status) == (None, "unpriced")


def test_a_background_response_that_failed_is_an_error(provider: Provider, calls: Calls) -> None:
    """What it used until then is billed."""
    client = wrap(provider.client("openai"))
    provider.answer = in_background("failed")
    client.responses.create(**RESPONSES, background=True)
    client.responses.retrieve("resp_1")

    (call,) = kept(calls)
    assert (call.outcome, call.error, call.usage) == ("error", "response.failed", USAGE["responses"])


def test_polling_that_fails_is_no_call(provider: Provider, calls: Calls) -> None:
    """Asking for a response costs nothing, whether it is there or not."""
    client = wrap(provider.client("openai"))
    provider.answer = lambda path, body: (404, JSON, [b'{"error": {"message": "no"}}'])
    with pytest.raises(Exception, match="no"):
        client.responses.retrieve("resp_1")

    assert kept(calls) == []


class Starts:
    """An observer that keeps the endpoints of the calls that start."""

    def __init__(self) -> None:
        self.endpoints: list[str] = []

    def on_call_start(self, start: CallStart) -> None:
        self.endpoints.append(start.endpoint)

    def on_call_response(self, token: object) -> None:
        pass

    def on_call_end(self, token: object, call: Call) -> None:
        pass


def test_polling_a_job_starts_no_call(provider: Provider, calls: Calls) -> None:
    """An observer sees the call that submits a job start, and none of the requests that poll it."""
    observer = Starts()
    add_observer(observer)
    try:
        client = wrap(provider.client("openai"))
        provider.answer = in_background("in_progress", "completed")
        client.responses.create(**RESPONSES, background=True)
        for _ in range(3):
            client.responses.retrieve("resp_1")
    finally:
        remove_observer(observer)

    assert observer.endpoints == ["responses"]
    assert len(kept(calls)) == 1
