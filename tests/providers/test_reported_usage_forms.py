"""Where providers and compatible servers report usage, failures and fees in forms of their own."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from voight_middleware import wrap
from voight_middleware.instrumentation.event_formats import CHAT_SSE, SSE, Event, Events
from voight_middleware.providers import gemini
from voight_middleware.providers.anthropic import MessagesParser
from voight_middleware.providers.base import ResponseSummary, StreamParser, parse_response
from voight_middleware.providers.openai import jobs as openai_jobs
from voight_middleware.providers.openai import media as openai_media
from voight_middleware.providers.openai.streams import ChatParser, CompletionsParser
from voight_middleware.providers.openai.text import ResponsesParser, parse_responses

from ..support.calls import Calls
from ..support.memory_provider import JSON, Provider, responses_body

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]}
GOOD = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class _Response:
    status_code = 200
    request = None
    headers: Mapping[str, str] = {}


def show(reader: StreamParser, events: list[dict[str, Any]], form: Any = CHAT_SSE) -> StreamParser:
    """Show *events* to a reader as raw HTTP does."""
    body = Events(_Response(), form, reader)
    body.feed("".join(f"data: {json.dumps(event)}\n\n" for event in events).encode())
    return reader


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish, **more.pop("choice", {})}
    return {"id": "c1", "model": "m", "choices": [choice], **more}


def counts(answer: ResponseSummary) -> Any:
    return msgspec.json.decode(answer.usage)


@pytest.mark.parametrize(
    "last",
    [
        chunk(finish="stop", choice={"usage": GOOD}),
        chunk(finish="stop", x_groq={"id": "req", "usage": GOOD}),
        {"id": "c1", "choices": [], "x_groq": {"usage": GOOD}},
        chunk(finish="stop", usage=GOOD),
        {"id": "c1", "choices": None, "usage": GOOD},
        {"id": "c1", "usage": GOOD},
    ],
)
@pytest.mark.parametrize(("made", "form"), [(ChatParser, CHAT_SSE), (CompletionsParser, SSE)])
def test_usage_is_read_wherever_a_stream_has_it(made: Callable[[bool], StreamParser], form: Any, last: dict[str, Any]) -> None:
    """Moonshot has it in the last choice, Groq under x_groq, others beside the finish reason or without choices."""
    reader = show(made(), [chunk({"content": "a"}), last], form)
    assert (counts(reader.summary()), reader.done, reader.estimated_output()) == (GOOD, True, None)


@pytest.mark.parametrize("empty", [{}, {"prompt_tokens": None, "completion_tokens": None}])
@pytest.mark.parametrize(("made", "form"), [(ChatParser, CHAT_SSE), (CompletionsParser, SSE)])
def test_a_usage_that_says_nothing_is_none(made: Callable[[bool], StreamParser], form: Any, empty: dict[str, Any]) -> None:
    """It neither overwrites real counts nor stops the estimate."""
    text = {"text": "x" * 400}
    reader = show(made(), [chunk({"content": "x" * 400}, choice=text, usage=empty), chunk(finish="stop", usage=empty)], form)
    assert (bytes(reader.summary().usage), reader.estimated_output()) == (b"null", 100)
    reader = show(made(), [chunk(usage=GOOD, finish="stop"), {"id": "c1", "choices": [], "usage": empty}], form)
    assert counts(reader.summary()) == GOOD


def test_zeros_are_a_usage_that_any_count_overwrites() -> None:
    """What the provider says is not replaced by an estimate; zeros after real counts say nothing."""
    reader = show(ChatParser(), [chunk({"content": "x" * 400}, usage=ZEROS)])
    assert (counts(reader.summary()), reader.estimated_output()) == (ZEROS, None)
    reader = show(ChatParser(), [chunk(usage=ZEROS), chunk(finish="stop", usage=GOOD), chunk(usage=ZEROS)])
    assert counts(reader.summary()) == GOOD


@pytest.mark.parametrize(("made", "form"), [(ChatParser, CHAT_SSE), (CompletionsParser, SSE)])
def test_usage_with_every_chunk_does_not_end_a_stream(made: Callable[[bool], StreamParser], form: Any) -> None:
    """Only a finish reason or a last chunk without choices does."""
    reader = show(made(), [chunk({"content": "a"}, usage=GOOD)], form)
    assert (reader.done, counts(reader.summary())) == (False, GOOD)


TEXT = "x" * 400


@pytest.mark.parametrize(
    "delta",
    [
        {"content": None, "reasoning_content": TEXT},
        {"content": "", "reasoning": TEXT},
        {"reasoning": TEXT, "reasoning_content": TEXT},
        {"refusal": TEXT},
        {"function_call": {"name": "f", "arguments": TEXT}},
        {"tool_calls": [{"index": 0, "function": {"arguments": ""}}, {"index": 1, "function": {"name": "g", "arguments": TEXT}}]},
        {"tool_calls": [{"index": 0, "custom": {"name": "f", "input": TEXT}}]},
    ],
)
def test_every_kind_of_output_is_estimated(delta: dict[str, Any]) -> None:
    """Reasoning, refusals and the arguments of every tool call are output, and counted once."""
    assert show(ChatParser(), [chunk(delta)] * 50).estimated_output() == 5000


def test_a_failure_with_usage_in_a_stream_is_counted() -> None:
    """OpenRouter says in its error event what was used."""
    failed = chunk(finish="error", usage={"prompt_tokens": 43, "completion_tokens": 10}, error={"message": "Token limit reached"})
    reader = show(ChatParser(), [chunk({"content": "a"}), failed])
    assert (reader.failure, counts(reader.summary())) == ("error", {"prompt_tokens": 43, "completion_tokens": 10})


def test_an_overloaded_groq_is_a_failure() -> None:
    """Groq reports a failure in the middle of a stream under x_groq."""
    assert show(ChatParser(), [chunk(finish="stop", x_groq={"error": "over_capacity"})]).failure == "error"


def _message(started: dict[str, Any], *deltas: dict[str, Any]) -> dict[str, Any]:
    reader = MessagesParser()
    events = [{"type": "message_start", "message": {"id": "m", "model": "glm-5", "usage": started}}]
    events += [{"type": "message_delta", "delta": {}, "usage": usage} for usage in deltas]
    for event in events:
        reader.feed(json.loads(json.dumps(event), object_hook=Event))
    return dict(counts(reader.summary()))


def test_counts_of_a_message_never_become_less() -> None:
    """Gateways send 0 in message_delta for what message_start has counted; the details are cumulative too."""
    started = {
        "input_tokens": 1500,
        "cache_read_input_tokens": 500,
        "cache_creation_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 7},
        "output_tokens": 9,
    }
    zeros = {
        "input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0},
        "output_tokens": 4,
    }
    assert _message(started, zeros) == {**started, "output_tokens": 4}, "the output of message_start is a placeholder"
    assert _message(started, {"output_tokens": 200}, zeros) == {**started, "output_tokens": 200}
    assert _message({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 1500, "output_tokens": 2})["input_tokens"] == 1500
    assert _message(started, {"input_tokens": 11500, "output_tokens": 2})["input_tokens"] == 11500
    assert _message(started, {"output_tokens": None}) == started


REFUSED = {"error": {"message": "Provider returned error", "code": 502}}


@pytest.mark.parametrize(
    "read", [parse_response, parse_responses, openai_media.parse_images, openai_media.parse_transcript, gemini.parse_content]
)
def test_an_error_of_status_200_is_a_failure(read: Callable[[bytes], ResponseSummary]) -> None:
    """An answer that is an error is none; an error that says nothing is none."""
    assert read(json.dumps(REFUSED).encode()).failure == "error"
    for nothing in (None, {}, "", False):
        assert read(json.dumps({"error": nothing}).encode()).failure is None


def test_an_error_in_the_choice_is_a_failure() -> None:
    """OpenRouter ends the choice itself with an error; what it used is billed."""
    read = parse_response(json.dumps({"choices": [{"index": 0, "finish_reason": "error"}], "usage": GOOD}).encode())
    assert (read.failure, counts(read)) == ("error", GOOD)


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_whole_response_that_failed_is_an_error(provider: Provider, calls: Calls, status: str) -> None:
    """Its usage is billed all the same."""
    provider.answer = lambda path, body: (200, JSON, [json.dumps(responses_body(status)).encode()])
    wrap(provider.client("openai")).responses.create(model="gpt-4o-mini", input="x")
    call = calls.one()
    assert (call.outcome, call.error, call.cost_status) == ("error", f"response.{status}", "priced")


def test_an_error_of_status_200_is_an_error_call(provider: Provider, calls: Calls) -> None:
    """No answer was given: the call is an error, and its cost is not known."""
    provider.answer = lambda path, body: (200, JSON, [json.dumps(REFUSED).encode()])
    wrap(provider.client("openai")).chat.completions.with_raw_response.create(**CHAT)
    call = calls.one()
    assert (call.outcome, call.error, call.cost_status) == ("error", "error", "unpriced")


SEARCHES = [
    {"type": "web_search_call", "action": {"type": "search"}},
    {"type": "web_search_call", "action": {"type": "open_page", "url": "https://example.org"}},
    {"type": "web_search_call", "action": {"type": "find_in_page"}},
    {"type": "web_search_call"},
    {"type": "computer_call", "action": {"type": "click"}},
]


def test_only_searches_are_billed_as_web_searches() -> None:
    """Whole, streamed and in a batch: looking at a page is free. A call that does not say its action is billed."""
    body = responses_body(output=SEARCHES)
    assert parse_responses(json.dumps(body).encode()).tool_calls == {"web_search": 2}
    reader = show(ResponsesParser(), [{"type": "response.completed", "response": body}], SSE)
    assert reader.summary().tool_calls == {"web_search": 2}
    line = {"custom_id": "a", "response": {"status_code": 200, "body": body}}
    read = openai_jobs.parse_line(json.dumps(line).encode(), {"response": parse_responses})
    assert read is not None
    assert read.tool_calls == {"web_search": 2}


DRAWN = [{"type": "image_generation_call", "result": "QQ=="}]


def test_drawn_images_are_never_left_out() -> None:
    """With their tokens, in whichever counts, they are a component; without, a tool without a price."""
    told = {"output_tokens": 7024, "output_tokens_details": {"image_tokens": 7024}}
    read = parse_responses(json.dumps(responses_body(output=DRAWN, tool_usage={"image_gen": told})).encode())
    assert (read.tool_calls, counts(read)["tool_usage"]["image_gen"]["output_tokens"]) == (None, 7024)
    for untold in ({}, {"tool_usage": None}, {"tool_usage": {"image_gen": {"total_tokens": 0}}}):
        assert parse_responses(json.dumps(responses_body(output=DRAWN, **untold)).encode()).tool_calls == {"image_generation": 1}


def test_an_empty_usage_of_a_response_is_none() -> None:
    """The same of the Responses API."""
    events = [
        {"type": "response.output_text.delta", "delta": TEXT},
        {"type": "response.completed", "response": responses_body(usage=False) | {"usage": {}}},
    ]
    reader = show(ResponsesParser(), events, SSE)
    assert (bytes(reader.summary().usage), reader.estimated_output()) == (b"null", 100)
