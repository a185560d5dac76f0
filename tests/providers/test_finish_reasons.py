"""Why a model stopped: in the provider's words, for listeners and spans, and never anything of an answer's text."""

import json
from contextlib import closing
from typing import Any

import anthropic
import httpx
import msgspec
import openai
import pytest

from voight_middleware import metered_transport, wrap
from voight_middleware.diagnostics import counters
from voight_middleware.ledger import open_ledger
from voight_middleware.providers.finish_reasons import MAX_REASONS
from voight_middleware.records.call import Call
from voight_middleware.testing.provider import LoopbackProvider

from ..support.calls import Calls
from ..support.memory_provider import (
    JSON,
    MODELS,
    SSE,
    TEXT_USAGE,
    USAGE,
    Answer,
    Provider,
    chat_body,
    chat_chunk,
    completion,
    messages_body,
    messages_events,
    responses_body,
    sse,
)
from .batches import anthropic_batches, as_json, line, openai_batches
from .entry_points import CHAT, MESSAGES, RESPONSES, both_kinds
from .raw_http import ANTHROPIC, BEDROCK, GEMINI, OPENAI, frame, gemini_answer, invoked_frame, leading_to

pytestmark = pytest.mark.slow  # a sweep over many cases

STREAMS = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
LEGACY: dict[str, Any] = {"model": "gpt-3.5-turbo-instruct", "prompt": "Where?"}
WHOLE, SHORT = False, True


def as_events(*events: Any) -> Answer:
    """An answer that is streamed."""
    return 200, SSE, sse(*events)


async def called(client: Any, resource: str, **arguments: Any) -> Any:
    """What an SDK's caller gets: the answer, or all events of the stream."""
    for name in resource.split("."):
        client = getattr(client, name)
    made = client.create(**arguments)
    if hasattr(made, "__await__"):
        made = await made
        return [event async for event in made] if arguments.get("stream") else made
    return list(made) if arguments.get("stream") else made


# -- from real SDKs and real sockets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "arguments", "limit", "stopped", "cut"),
    [
        ("chat.completions", CHAT, "max_completion_tokens", "stop", "length"),
        ("completions", LEGACY, "max_tokens", "stop", "length"),
        ("responses", RESPONSES, "max_output_tokens", "stop", "max_output_tokens"),
        ("messages", MESSAGES, "max_tokens", "end_turn", "max_tokens"),
    ],
)
@STREAMS
@both_kinds
async def test_an_sdk_s_answer_says_why_it_ended(  # noqa: PLR0917 - a row of the table above
    resource: str,
    arguments: dict[str, Any],
    limit: str,
    stopped: str,
    cut: str,
    streamed: bool,
    asynchronous: bool,
    loopback: LoopbackProvider,
    calls: Calls,
) -> None:
    """Once to its end, and once up to the limit of tokens; a listener hears it, and the ledger does not keep it."""
    sdk, base_url = (anthropic, loopback.anthropic_base_url) if resource == "messages" else (openai, loopback.openai_base_url)
    kinds: Any = {
        (anthropic, False): anthropic.Anthropic,
        (anthropic, True): anthropic.AsyncAnthropic,
        (openai, False): openai.OpenAI,
        (openai, True): openai.AsyncOpenAI,
    }
    client = wrap(kinds[sdk, asynchronous](api_key="k", base_url=base_url, max_retries=0))
    more = {"stream": True} if streamed else {}
    await called(client, resource, **{**arguments, limit: 4000}, **more)
    await called(client, resource, **{**arguments, limit: 3}, **more)
    await client.close() if asynchronous else client.close()

    whole, short = calls.all()
    assert (whole.finish_reasons, short.finish_reasons) == ((stopped,), (cut,))
    with closing(open_ledger(calls.meter.settings.ledger)) as ledger:
        kept = ledger.call(short.call_id)
    assert kept is not None
    assert kept.finish_reasons is None


@pytest.mark.parametrize(
    ("url", "arguments", "limit", "stopped", "cut"),
    [
        (f"{OPENAI}/chat/completions", CHAT, "max_completion_tokens", "stop", "length"),
        (f"{OPENAI}/completions", LEGACY, "max_tokens", "stop", "length"),
        (f"{OPENAI}/responses", RESPONSES, "max_output_tokens", "stop", "max_output_tokens"),
        (f"{ANTHROPIC}/messages", MESSAGES, "max_tokens", "end_turn", "max_tokens"),
        (f"{GEMINI}:generateContent", {"contents": [{"parts": [{"text": "Where?"}]}]}, "maxOutputTokens", "STOP", "MAX_TOKENS"),
    ],
)
@STREAMS
@both_kinds
async def test_raw_http_says_why_it_ended(  # noqa: PLR0917 - a row of the table above
    url: str,
    arguments: dict[str, Any],
    limit: str,
    stopped: str,
    cut: str,
    streamed: bool,
    asynchronous: bool,
    loopback: LoopbackProvider,
    calls: Calls,
) -> None:
    """The same without an SDK."""
    transport = metered_transport(leading_to(loopback, httpx, asynchronous))
    client: Any = (httpx.AsyncClient if asynchronous else httpx.Client)(transport=transport)
    for tokens in (4000, 3):
        body = {**arguments, **({"generationConfig": {limit: tokens}} if limit == "maxOutputTokens" else {limit: tokens})}
        if streamed and limit != "maxOutputTokens":
            body["stream"] = True
        made = client.post(url.replace("generate", "streamGenerate") if streamed else url, json=body)
        assert (await made if asynchronous else made).status_code == 200
    await client.aclose() if asynchronous else client.close()

    assert [call.finish_reasons for call in calls.all()] == [(stopped,), (cut,)]


# -- choices -------------------------------------------------------------------------------------------------------------------


def choices(*reasons: tuple[int, Any]) -> list[dict[str, Any]]:
    message = {"role": "assistant", "content": "Oslo"}
    return [{"index": index, "message": message, "finish_reason": reason, "logprobs": None} for index, reason in reasons]


def chunk(index: Any, text: str, finish: Any = None) -> dict[str, Any]:
    return chat_chunk({"content": text}, choices=[{"index": index, "delta": {"content": text}, "finish_reason": finish}])


BOTH = [{"index": 1, "delta": {}, "finish_reason": "length"}, {"index": 0, "delta": {}, "finish_reason": None}]
LEGACY_CHOICES = [{"index": index, "text": "Oslo", "finish_reason": why} for index, why in ((1, "length"), (0, "stop"))]


@pytest.mark.parametrize("raw", [False, True], ids=["sdk", "http"])
@pytest.mark.parametrize(
    ("answer", "reasons"),
    [
        (as_json({**chat_body(), "choices": choices((0, "stop"), (1, "length"))}), ("stop", "length")),
        (as_json({**chat_body(), "choices": choices((1, "length"), (0, "tool_calls"))}), ("tool_calls", "length")),
        (as_json({**chat_body(), "choices": choices((0, "stop"), (1, None))}), ("stop",)),
        (as_json({**chat_body(), "choices": choices((0, None), (1, "stop"))}), None),
        (as_json({**chat_body(), "choices": choices((0, "stop"), (1, ["stop"]))}), None),
        (as_json({**chat_body(), "choices": choices(*((n, f"r{n}") for n in range(40)))}), tuple(f"r{n}" for n in range(MAX_REASONS))),
        (as_json({**chat_body(), "choices": []}), None),
        (as_json({**chat_body(), "choices": None}), None),
        (as_json({**chat_body(), "choices": choices((0, "stop")), "service_tier": 7}), ("stop",)),
        (as_events(chunk(1, "a", "length"), chunk(0, "b"), chunk(0, "", "stop"), "[DONE]"), ("stop", "length")),
        (as_events(chat_chunk({}, choices=BOTH), chunk(0, "", "content_filter"), "[DONE]"), ("content_filter", "length")),
        (as_events(chunk(0, "a", ""), chunk(0, "", "stop"), chunk(0, "", ""), "[DONE]"), ("stop",)),
        (as_events(chunk("0", "a"), chunk(None, "", "stop"), "[DONE]"), ("stop",)),
        (as_events(chunk(0, "a"), chunk(-7, "", "stop"), "[DONE]"), ("stop",)),
        (as_events(chunk(0, "a"), chunk(10**9, "b", "stop"), "[DONE]"), None),
        (as_events(chunk(0, "a"), chunk(1, "b", "stop"), "[DONE]"), None),
        (as_events(chat_chunk({}, choices=[{"index": 0, "finish_reason": "stop"}]), "[DONE]"), ("stop",)),
    ],
)
def test_every_choice_has_its_place(raw: bool, answer: Answer, reasons: Any, provider: Provider, calls: Calls) -> None:
    """In order of index, whatever order they come in; a reason that is missing before another makes all of them unknown."""
    provider.answer = lambda path, body: answer
    body = {**CHAT, "stream": answer[1] is SSE}
    if raw:
        httpx.Client(transport=metered_transport(provider.http_client(httpx)._transport)).post(f"{OPENAI}/chat/completions", json=body)
    else:
        made = wrap(provider.client("openai")).chat.completions.create(**body)
        assert made if answer[1] is JSON else list(made)

    assert calls.one().finish_reasons == reasons


@STREAMS
def test_choices_of_a_legacy_completion(streamed: bool, provider: Provider, calls: Calls) -> None:
    """All of them, in order."""
    whole = completion(choices=LEGACY_CHOICES, usage=TEXT_USAGE)
    provider.answer = lambda path, body: as_events(whole, "[DONE]") if streamed else as_json(whole)
    made = wrap(provider.client("openai")).completions.create(**LEGACY, stream=streamed)
    assert made if not streamed else list(made)

    assert calls.one().finish_reasons == ("stop", "length")


@STREAMS
def test_candidates_of_gemini(streamed: bool, provider: Provider, calls: Calls) -> None:
    """Each with its own reason; the last chunk of a stream may be of another candidate."""
    both = [{"index": index, "content": {"parts": []}, "finishReason": why} for index, why in ((1, "SAFETY"), (0, "STOP"))]
    answers = [gemini_answer("", candidate=one) for one in both] if streamed else [{**gemini_answer(""), "candidates": both}]
    provider.answer = lambda path, body: as_events(*answers) if streamed else as_json(answers[0])
    client = wrap(provider.http_client(httpx))
    client.post(f"{GEMINI}:{'streamGenerateContent?alt=sse' if streamed else 'generateContent'}", json={"contents": []})

    assert calls.one().finish_reasons == ("STOP", "SAFETY")


# -- where a provider has no word for it ---------------------------------------------------------------------------------------


def output(*kinds: str) -> dict[str, Any]:
    return {"output": [{"type": kind, "id": f"i_{kind}", "call_id": "c", "name": "n", "arguments": "{}", "input": ""} for kind in kinds]}


@STREAMS
@pytest.mark.parametrize(
    ("status", "more", "reasons"),
    [
        ("completed", {}, ("stop",)),
        ("completed", output("function_call"), ("tool_calls",)),
        ("completed", output("custom_tool_call"), ("tool_calls",)),
        ("completed", output("web_search_call", "reasoning"), ("stop",)),
        ("incomplete", {"incomplete_details": {"reason": "content_filter"}}, ("content_filter",)),
        ("incomplete", {"incomplete_details": {}}, ("incomplete",)),
        ("incomplete", {"incomplete_details": None}, ("incomplete",)),
        ("incomplete", {"incomplete_details": {"reason": "what the model said"}}, None),
        ("incomplete", {"incomplete_details": {"reason": ["stop"]}}, None),
        ("failed", {"incomplete_details": None}, ("error",)),
        ("in_progress", {}, None),
        ("something new", {}, None),
    ],
)
def test_a_response_has_a_status(status: str, more: dict[str, Any], reasons: Any, streamed: bool, provider: Provider, calls: Calls) -> None:
    """A response says why it is incomplete; the words for any other are those of OpenTelemetry's instrumentation."""
    body = responses_body(status, **more)
    kind = f"response.{status}" if status in ("failed", "incomplete") else "response.completed"
    provider.answer = lambda path, _: as_events({"type": kind, "sequence_number": 1, "response": body}) if streamed else as_json(body)
    made = wrap(provider.client("openai")).responses.create(**RESPONSES, stream=streamed)
    assert made if not streamed else list(made)

    assert calls.one().finish_reasons == reasons


@pytest.mark.parametrize(
    ("model", "action", "answer", "reasons"),
    [
        ("meta.llama3-8b", "invoke", as_json({"generation": "Oslo", "stop_reason": "length"}), ("length",)),
        ("amazon.nova-pro-v1:0", "invoke", as_json({"stopReason": "end_turn", "usage": {}}), ("end_turn",)),
        ("meta.llama3-8b", "stream", [{"generation": "O", "stop_reason": None}, {"generation": "", "stop_reason": "stop"}], ("stop",)),
        (
            "amazon.nova-pro-v1:0",
            "stream",
            [{"messageStart": {}}, {"messageStop": {"stopReason": "max_tokens"}}, {"metadata": {}}],
            ("max_tokens",),
        ),
        ("amazon.nova-pro-v1:0", "stream", [{"messageStop": "Oslo"}, {"stop_reason": ["Oslo"]}], None),
    ],
)
def test_other_models_on_bedrock(model: str, action: str, answer: Any, reasons: Any, provider: Provider, calls: Calls) -> None:
    """Llama and Nova say it in their own way."""
    counts = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 3, "outputTokenCount": 2}}
    framed = {"content-type": "application/vnd.amazon.eventstream"}
    if action == "stream":
        action, answer = (
            "invoke-with-response-stream",
            (200, framed, [invoked_frame(json.dumps(one).encode()) for one in (*answer, counts)]),
        )
    provider.answer = lambda path, body: answer
    wrap(provider.http_client(httpx)).post(f"{BEDROCK}/{model}/{action}", json={"prompt": "Where?"})

    assert calls.one().finish_reasons == reasons


def test_lines_of_batches(provider: Provider, calls: Calls) -> None:
    """Each answer of a file says it, as it would alone."""
    provider.answer = openai_batches([line("a", chat_body()), line("b", responses_body())])
    wrap(provider.client("openai")).files.content("file-out")
    provider.answer = anthropic_batches
    list(wrap(provider.client("anthropic")).messages.batches.results("msgbatch_1"))

    assert sorted(call.finish_reasons or () for call in calls.all()) == [("end_turn",), ("end_turn",), ("stop",), ("stop",)]


def test_a_stream_that_is_left_has_none(provider: Provider, calls: Calls) -> None:
    """Unknown is None."""
    with wrap(provider.client("openai")).chat.completions.create(**CHAT, stream=True) as stream:
        next(stream)

    assert (calls.one().outcome, calls.one().finish_reasons) == ("aborted", None)


# -- harmless ------------------------------------------------------------------------------------------------------------------

SECRET = "a text of the user's"
ODD = [
    *(7, 1.5, True, False, None, [], ["stop"], {}, {"reason": "stop"}, "", "Oslo is it.", SECRET, "a\nb", '"', "ü", "x" * 65),
    pytest.param("x" * 10_000_000, id="10 MB"),
]
"""What stands where a reason should; each is JSON."""


def ends(kind: str, odd: Any) -> tuple[Answer, Answer]:
    """The usual answer of an endpoint, plain and streamed, but for its reason."""
    if kind == "chat":
        head, *middle, end = sse(
            *(chat_chunk({"content": piece}) for piece in "abc"), chat_chunk({}, finish=odd, usage=chat_body()["usage"])
        )
        return as_json({**chat_body(), "choices": choices((0, odd))}), (200, SSE, [head, *middle, end])
    if kind == "messages":
        events = [json.loads(event.split(b"data: ")[1]) for event in messages_events()]
        events[-2]["delta"]["stop_reason"] = odd
        return as_json({**messages_body(), "stop_reason": odd}), as_events(*events)
    body = responses_body("incomplete", incomplete_details=odd if odd is None or isinstance(odd, dict) else {"reason": odd})
    return as_json(body), as_events({"type": "response.incomplete", "sequence_number": 1, "response": body})


def shown(made: Any) -> Any:
    if hasattr(made, "to_dict"):
        return made.to_dict(warnings=False)
    events = [event.to_dict(warnings=False) for event in made]
    return [{key: value for key, value in event.items() if (key, value) != ("usage", None)} for event in events]  # null is for who asks


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ["chat", "messages", "responses"])
@STREAMS
def test_an_odd_reason_changes_nothing(kind: str, streamed: bool, odd: Any, provider: Provider, calls: Calls) -> None:
    """The caller gets what they would have got, the usage is exact, and nothing of it is kept."""
    plain, events = ends(kind, odd)
    provider.answer = lambda path, body: events if streamed else plain
    resource, arguments = {"chat": ("chat.completions", CHAT), "messages": ("messages", MESSAGES), "responses": ("responses", RESPONSES)}[
        kind
    ]

    def answer(client: Any) -> Any:
        for name in resource.split("."):
            client = getattr(client, name)
        return shown(client.create(**arguments, stream=streamed))

    sdk = "anthropic" if kind == "messages" else "openai"
    assert answer(wrap(provider.client(sdk))) == answer(provider.client(sdk))

    call = calls.one()
    incomplete = kind == "responses" and odd in (None, {}, {"reason": "stop"})
    expected = (("incomplete",) if not (isinstance(odd, dict) and odd) else ("stop",)) if incomplete else None
    assert call.finish_reasons == expected
    outcome = "truncated" if (kind, streamed, odd) == ("chat", True, None) else "ok"  # usage beside a choice ends no stream
    assert (call.outcome, call.usage, call.model) == (outcome, USAGE[kind], MODELS[kind][1])
    assert counters["unreadable_responses"] == 0


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ["gemini", "converse"])
@STREAMS
def test_an_odd_reason_over_http(kind: str, streamed: bool, odd: Any, provider: Provider, calls: Calls) -> None:
    """The same of what has no SDK here."""
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2} if kind == "gemini" else {"inputTokens": 3, "outputTokens": 2}
    if kind == "gemini":
        whole = gemini_answer("Oslo", candidate={"finishReason": odd}, usageMetadata=usage)
        answer = as_events(whole) if streamed else as_json(whole)
        url = f"{GEMINI}:{'streamGenerateContent?alt=sse' if streamed else 'generateContent'}"
    else:
        events = [frame({"stopReason": odd}), frame({"usage": usage})]
        framed = {"content-type": "application/vnd.amazon.eventstream"}
        answer = (200, framed, events) if streamed else as_json({"stopReason": odd, "usage": usage})
        url = f"{BEDROCK}/claude/{'converse-stream' if streamed else 'converse'}"
    provider.answer = lambda path, body: answer
    assert wrap(provider.http_client(httpx)).post(url, json={}).content == b"".join(answer[2])

    call = calls.one()
    says_nothing = (kind, streamed, odd) == ("gemini", True, None)
    assert (call.outcome, call.finish_reasons) == ("truncated" if says_nothing else "ok", None)
    assert call.usage is not None
    assert (call.usage.input_tokens, call.usage.output_tokens) == (3, 2)


def test_what_a_server_calls_as_we_do_is_not_taken_for_ours(provider: Provider, calls: Calls) -> None:
    """Names of our own fields in an answer mean nothing."""
    ours = {"finish_reasons": [SECRET], "tool_calls": {"web_search": 9}, "job": SECRET, "failure": SECRET, "batch_endpoint": SECRET}
    provider.answer = lambda path, body: as_json({**chat_body(), **ours})
    wrap(provider.client("openai")).chat.completions.create(**CHAT)

    call = calls.one()
    assert (call.finish_reasons, call.tool_calls, call.job, call.outcome) == (("stop",), None, None, "ok")
    assert SECRET not in msgspec.json.encode(call).decode()


def test_lines_of_older_journals_are_read() -> None:
    """The field is new, and left out where it says nothing."""
    old = Call(call_id="c_1", occurred_at=1, provider="openai", endpoint="chat")
    written = msgspec.json.encode(old)
    assert b"finish_reasons" not in written
    assert msgspec.json.decode(written, type=Call) == old
    told = msgspec.structs.replace(old, finish_reasons=("stop", "length"))
    assert msgspec.json.decode(msgspec.json.encode(told), type=Call) == told
