"""The usage of chat streams: asked for, read, and hidden again."""

from typing import Any

import openai
import pytest

from voight_middleware import wrap

from ..support.calls import Calls
from ..support.memory_provider import CHAT_USAGE, USAGE, Provider, chat_chunk, refusal, sse, usual
from .entry_points import CHAT, MESSAGES, RESPONSES, both_kinds


def chunks(client: Any, **options: Any) -> list[Any]:
    return [chunk.to_dict() for chunk in client.chat.completions.create(**CHAT, stream=True, **options)]


def test_usage_is_asked_for_and_its_chunk_hidden(provider: Provider, calls: Calls) -> None:
    """A chat stream reports its usage though the caller did not ask, and the caller sees exactly what the SDK alone shows."""
    bare = chunks(provider.client("openai"))

    seen = chunks(wrap(provider.client("openai")))

    assert seen == bare
    assert provider.bodies[1]["stream_options"] == {"include_usage": True}
    assert calls.one().usage == USAGE["chat"]


def test_a_caller_who_asks_for_usage_sees_it(provider: Provider, calls: Calls) -> None:
    """``include_usage=True`` is the caller's own, and so is its chunk."""
    seen = chunks(wrap(provider.client("openai")), stream_options={"include_usage": True})

    assert seen[-1]["usage"] == CHAT_USAGE
    assert calls.one().usage == USAGE["chat"]


@pytest.mark.parametrize("how", ["argument", "extra_body"])
def test_a_caller_who_wants_no_usage_gets_none(how: str, provider: Provider, calls: Calls) -> None:
    """``include_usage=False`` is respected, wherever it is said; the counts are estimates then."""
    wish = {"stream_options": {"include_usage": False}}
    chunks(wrap(provider.client("openai")), **(wish if how == "argument" else {"extra_body": wish}))

    assert provider.bodies[0]["stream_options"] == {"include_usage": False}
    call = calls.one()
    assert (call.outcome, call.raw_usage, call.estimated) == ("ok", None, True)
    assert call.estimated_output == 4


def test_other_stream_options_are_kept(provider: Provider, calls: Calls) -> None:
    """What else the caller put into ``stream_options`` is sent beside ours, and their own dictionary is not changed."""
    options = {"include_obfuscation": False}

    chunks(wrap(provider.client("openai")), stream_options=options)

    assert provider.bodies[0]["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert options == {"include_obfuscation": False}
    assert calls.one().usage == USAGE["chat"]


@pytest.mark.parametrize("method", ["responses", "messages"])
def test_nothing_is_added_to_other_requests(method: str, provider: Provider, calls: Calls) -> None:
    """Responses and messages report usage unasked: what is sent is what the SDK alone sends."""
    sdk, arguments = ("openai", RESPONSES) if method == "responses" else ("anthropic", MESSAGES)
    for client in (provider.client(sdk), wrap(provider.client(sdk))):
        list(getattr(client, method).create(**arguments, stream=True))

    assert provider.bodies[0] == provider.bodies[1]
    assert calls.one().usage == USAGE[method]


def test_chunks_without_choices_that_carry_no_usage_are_not_hidden(provider: Provider, calls: Calls) -> None:
    """Azure's first chunk has filter results and no choices; the caller sees it."""
    first = chat_chunk(prompt_filter_results=[{"prompt_index": 0}], id="", model="")
    provider.answer = lambda path, body: (
        200,
        {"content-type": "text/event-stream"},
        sse(first, chat_chunk({"content": "hi"}), chat_chunk({}, finish="stop"), chat_chunk(usage=CHAT_USAGE), "[DONE]"),
    )

    seen = chunks(wrap(provider.client("openai")))

    assert [len(chunk["choices"]) for chunk in seen] == [0, 1, 1]
    assert calls.one().usage == USAGE["chat"]


def test_usage_on_the_last_piece_of_content_is_not_hidden(provider: Provider, calls: Calls) -> None:
    """A compatible server that puts usage on a chunk with content loses nothing of it."""
    provider.answer = lambda path, body: (
        200,
        {"content-type": "text/event-stream"},
        sse(chat_chunk({"content": "hi"}), chat_chunk({"content": "!"}, finish="stop", usage=CHAT_USAGE), "[DONE]"),
    )

    seen = chunks(wrap(provider.client("openai")))

    assert [chunk["choices"][0]["delta"]["content"] for chunk in seen] == ["hi", "!"]
    assert calls.one().usage == USAGE["chat"]


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_that_refuses_stream_options_costs_the_caller_nothing(
    status: int, asynchronous: bool, provider: Provider, calls: Calls
) -> None:
    """The stream comes without usage and is estimated; that host is not asked again, and every other one is."""

    def refusing(path: str, body: dict[str, Any]) -> Any:
        return refusal(status, "extra fields not permitted: stream_options") if "stream_options" in body else usual(path, body)

    bare = chunks(provider.client("openai"))
    provider.answer = refusing
    client = wrap(provider.client("openai", asynchronous=asynchronous, base_url="https://old.example.com/v1"))

    for _ in range(2):
        if asynchronous:
            seen = [chunk.to_dict() async for chunk in await client.chat.completions.create(**CHAT, stream=True)]
        else:
            seen = chunks(client)
        assert seen == bare

    assert ["stream_options" in body for body in provider.bodies[1:]] == [True, False, False]
    assert [(call.outcome, call.estimated, call.estimated_output) for call in calls.all()] == [("ok", True, 4)] * 2
    provider.answer_in_turn(None)
    chunks(wrap(provider.client("openai")))
    assert calls.all()[-1].usage == USAGE["chat"]


def test_a_refusal_of_the_callers_own_stream_options_is_his(provider: Provider, calls: Calls) -> None:
    """Nothing is sent again if the caller asked for usage."""
    provider.answer_in_turn(refusal(400, "stream_options is not allowed"))

    with pytest.raises(openai.BadRequestError, match="stream_options"):
        chunks(wrap(provider.client("openai")), stream_options={"include_usage": True})

    assert len(provider.bodies) == 1
    assert (calls.one().outcome, calls.one().http_status) == ("error", 400)
