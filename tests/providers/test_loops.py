"""Loops that the SDKs run for their caller: each turn of a tool runner is a call, and no page of a list is one."""

import json
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from voight_middleware import tag, wrap
from voight_middleware.records.call import Call

from ..support.calls import Calls
from ..support.memory_provider import JSON, MESSAGES_USAGE, SSE, USAGE, Provider, messages_body, responses_body, sse, usual
from .entry_points import MESSAGES, RESPONSES, both_kinds, needs

PLAIN_AND_STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def is_each_turn(calls: list[Call], endpoint: str) -> None:
    """Two turns, each with the provider's own counts, and both of whoever started the loop."""
    assert [(call.outcome, call.endpoint, call.usage, call.tags.user_id) for call in calls] == [
        ("ok", endpoint, USAGE[endpoint], "u_1")
    ] * 2


# -- tool runners ----------------------------------------------------------------------------------------------------------------


def first_the_tool(path: str, body: dict[str, Any]) -> Any:
    """A message that calls the tool, and once its result is there the usual one."""
    if "tool_result" in str(body["messages"]):
        return usual(path, body)
    whole = messages_body(text=None)
    tool = {"type": "tool_use", "id": "toolu_1", "name": "height"}
    if not body.get("stream"):
        answer = {**whole, "content": [{**tool, "input": {"city": "Oslo"}}], "stop_reason": "tool_use"}
        return 200, JSON, [json.dumps(answer).encode()]
    events = sse(
        {"type": "message_start", "message": {**whole, "usage": {**MESSAGES_USAGE, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {**tool, "input": {}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"city": "Oslo"}'}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {"output_tokens": 45}},
        {"type": "message_stop"},
    )
    return 200, SSE, events


@pytest.mark.slow
@needs("anthropic", "beta.messages.tool_runner")
@PLAIN_AND_STREAMED
@both_kinds
async def test_each_turn_of_a_message_tool_runner_is_a_call(asynchronous: bool, stream: bool, provider: Provider, calls: Calls) -> None:
    """The model asks for a tool, the tool runs once, and the model answers: two calls."""
    ran: list[str] = []

    def height(city: str) -> str:
        """How high a city lies, in metres."""
        ran.append(city)
        return "23"

    async def aheight(city: str) -> str:
        return height(city)

    provider.answer = first_the_tool
    client = wrap(provider.client("anthropic", asynchronous=asynchronous))
    make = anthropic.beta_async_tool if asynchronous else anthropic.beta_tool
    tool: Any = make(aheight if asynchronous else height, name="height", description="How high a city lies.")
    with tag(user_id="u_1"):
        runner: Any = client.beta.messages.tool_runner(**MESSAGES, tools=[tool], stream=stream)
        last = await runner.until_done() if asynchronous else runner.until_done()

    assert ran == ["Oslo"]
    assert last.content[0].text
    is_each_turn(calls.all(), "messages")


def first_the_function(path: str, body: dict[str, Any]) -> Any:
    """A response that calls the function, and once its output is there the usual one."""
    if isinstance(body["input"], list) and any(item.get("type") == "function_call_output" for item in body["input"]):
        return usual(path, body)
    function = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "Height", "status": "completed"}
    function["arguments"] = '{"city":"Oslo"}'
    answer = responses_body(output=[function])
    if not body.get("stream"):
        return 200, JSON, [json.dumps(answer).encode()]
    place = {"item_id": "fc_1", "output_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": responses_body("in_progress", usage=False)},
        {"type": "response.output_item.added", "output_index": 0, "item": {**function, "arguments": "", "status": "in_progress"}},
        {"type": "response.function_call_arguments.delta", **place, "delta": function["arguments"]},
        {"type": "response.function_call_arguments.done", **place, "arguments": function["arguments"], "name": "Height"},
        {"type": "response.output_item.done", "output_index": 0, "item": function},
        {"type": "response.completed", "response": answer},
    ]
    return 200, SSE, sse(*({**event, "sequence_number": number} for number, event in enumerate(events)))


class Height(BaseModel):
    """How high a city lies, in metres."""

    city: str


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(openai, "pydantic_responses_function_tool"), reason="this openai has no tool runner")
@PLAIN_AND_STREAMED
@both_kinds
async def test_each_turn_of_a_responses_tool_runner_is_a_call(asynchronous: bool, stream: bool, provider: Provider, calls: Calls) -> None:
    """The same with the runner of openai's Responses API."""
    from openai.lib import responses_tool_runner as runners

    ran: list[str] = []

    def height(asked: Height) -> str:
        ran.append(asked.city)
        return "23"

    async def aheight(asked: Height) -> str:
        return height(asked)

    provider.answer = first_the_function
    client = wrap(provider.client("openai", asynchronous=asynchronous))
    tool: Any = openai.pydantic_responses_function_tool(Height)
    with tag(user_id="u_1"):
        if asynchronous:
            afunction = runners.AsyncRegisteredFunction.from_tool(tool, execute=aheight)
            last: Any = await runners.AsyncResponsesToolRunner(functions=[afunction]).run(client, RESPONSES, max_steps=3, stream=stream)
        else:
            function = runners.RegisteredFunction.from_tool(tool, execute=height)
            last = runners.ResponsesToolRunner(functions=[function]).run(client, RESPONSES, max_steps=3, stream=stream)

    assert ran == ["Oslo"]
    assert last.output_text
    is_each_turn(calls.all(), "responses")


# -- pages -----------------------------------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize(("sdk", "name", "pages"), [("openai", "models", 1), ("openai", "files", 2), ("anthropic", "models", 2)])
async def test_the_pages_of_a_list_are_no_calls(
    sdk: str, name: str, pages: int, asynchronous: bool, provider: Provider, calls: Calls
) -> None:
    """Going through a list asks for page after page, and none of them is billed."""

    def page(path: str, body: dict[str, Any]) -> Any:
        number = len(provider.bodies)
        listed = {"data": [{"id": f"it_{number}"}], "has_more": number == 1, "first_id": f"it_{number}", "last_id": f"it_{number}"}
        return 200, JSON, [json.dumps(listed).encode()]

    provider.answer = page
    client = wrap(provider.client(sdk, asynchronous=asynchronous))
    found = getattr(client, name).list()
    listed = [one async for one in found] if asynchronous else list(found)

    assert [one.id for one in listed] == ["it_1", "it_2"][:pages]
    assert len(provider.bodies) == pages
    assert calls.all() == []
