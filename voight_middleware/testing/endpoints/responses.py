"""OpenAI's responses: synchronous or in the background, stored, compacted and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.errors import Refusal
from voight_middleware.testing.endpoints.response import (
    EndpointRequest,
    EndpointResponse,
    need,
    now,
    plain,
    polled,
    present,
    reported,
    schema,
    stream,
    tier,
)
from voight_middleware.testing.fake_data import (
    IMAGE,
    SVG_MODEL,
    FakeResponse,
    Json,
    Options,
    hexadecimal,
)
from voight_middleware.testing.store import Job

_ECHOED: Json = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


@dataclass(frozen=True, slots=True)
class Response:
    """A fake response: at its start, finished, and in pieces."""

    whole: Json
    initial: Json
    pieces: Sequence[str]
    charges: Sequence[Charge]

    def events(self) -> Sequence[Json]:
        """Return the response as a stream of events."""
        kinds = ("created", "queued") if self.initial["background"] else ("created",)
        events: list[Json] = [
            {"type": f"response.{kind}", "response": self.initial} for kind in kinds
        ]
        events.append(
            {"type": "response.in_progress", "response": {**self.initial, "status": "in_progress"}}
        )
        for index, item in enumerate(self.whole["output"]):
            events += (
                _message_events(item, self.pieces, index)
                if item["type"] == "message"
                else _item_events(item, index)
            )
        events.append({"type": f"response.{self.whole['status']}", "response": self.whole})
        return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def create(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/responses``."""
    body = request.body
    response = respond(body, request.options)
    keep(request, response)
    if body.get("stream"):
        return stream(response.events(), *response.charges)
    return (
        plain(response.initial)
        if body.get("background")
        else plain(response.whole, *response.charges)
    )


def keep(request: EndpointRequest, response: Response) -> None:
    """
    Store the response. A background response is queued; by default, one poll sees it unfinished.
    """
    background = bool(request.body.get("background"))
    if background or request.body.get("store") is not False:
        polls = request.options.polls
        job = Job(
            response.initial,
            response.whole,
            1 if polls is None else polls,
            response.charges,
            response.events,
            seen=not background,
        )
        request.store.keep("response", response.whole["id"], job, request.user)


def retrieve(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/responses/{id}``: as it is now. With ``?stream=true``, all its events at once."""
    job: Job = request.store.find("response", request.ids["id"])
    if request.query.get("stream") != "true":
        return polled(job, status="in_progress")
    after = int(request.query.get("starting_after") or -1)
    if not (events := [event for event in job.events() if event["sequence_number"] > after]):
        raise Refusal(400, "This response has no events to stream.", "stream")
    job.seen = True
    return stream(events, *job.charges)


def cancel(request: EndpointRequest) -> EndpointResponse:
    """
    ``POST /v1/responses/{id}/cancel``: the response ends without usage. One that was seen finished
    is returned unchanged.
    """
    job: Job = request.store.find("response", request.ids["id"])
    if not job.initial["background"]:
        raise Refusal(400, "Cannot cancel a synchronous response.")
    job.cancel(status="cancelled")
    return polled(job)


def compact(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/responses/compact``."""
    body = request.body
    need(body, "model")
    made = FakeResponse(body, None, None)
    usage = reported(request.options, lambda: made.openai_usage("input", "output"))
    summary = {
        "id": f"cmp_{hexadecimal(50)}",
        "type": "compaction",
        "encrypted_content": f"gAAAAAB{hexadecimal(57)}",
    }
    compacted = {
        "id": f"resp_{hexadecimal(50)}",
        "object": "response.compaction",
        "created_at": now(),
        "output": [summary],
    }
    return plain({**compacted, **present(usage)}, Charge(usage))


def count_input(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/responses/input_tokens``: free."""
    made = FakeResponse({"model": "-", **request.body}, None, None)
    return plain({"object": "response.input_tokens", "input_tokens": made.input_tokens})


def decide(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/decisions``: the first option of a choice, and the middle of a range."""
    body = request.body
    need(body, "model", "input", "questions")
    made = FakeResponse(body, None, None)
    usage = reported(request.options, lambda: made.openai_usage("input", "output"))
    return plain(
        {
            "answers": [_decision(question) for question in body["questions"]],
            "model": made.model,
            **present(usage),
        },
        Charge(usage),
    )


def respond(body: Json, options: Options) -> Response:
    """Return the response to this request, over HTTP or a WebSocket."""
    need(body, "model", "input")
    if "include_usage" in (body.get("stream_options") or {}):
        name = "stream_options.include_usage"
        raise Refusal(400, f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    made = FakeResponse(body, schema(body, "text", "format"), body.get("max_output_tokens"))
    usage = reported(options, lambda: made.openai_usage("input", "output"))
    pieces = made.pieces(options.chunks)
    part: Json = {"type": "output_text", "annotations": [], "logprobs": [], "text": "".join(pieces)}
    message: Json = {
        "id": f"msg_{hexadecimal(50)}",
        "type": "message",
        "status": "completed",
        "content": [part],
        "role": "assistant",
    }
    thoughts: list[Json] = (
        [{"id": f"rs_{hexadecimal(50)}", "type": "reasoning", "summary": []}]
        if made.reasons
        else []
    )
    tools, tool_usage, tool_charges = _tools(body, made)
    status = "incomplete" if made.cut_short else "completed"
    whole: Json = {
        "id": f"resp_{hexadecimal(50)}",
        "object": "response",
        "created_at": now(),
        "status": status,
        "completed_at": now() if status == "completed" else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": made.model,
        "output": [*thoughts, *tools, message],
        "reasoning": body.get(
            "reasoning", {"effort": "medium" if made.reasons else None, "summary": None}
        ),
        **{name: body.get(name, default) for name, default in _ECHOED.items()},
        "service_tier": tier(body),
        **present(tool_usage, "tool_usage"),
        "usage": usage,
    }
    initial = {
        **whole,
        "completed_at": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }
    initial |= {
        "status": "queued" if body.get("background") else "in_progress",
        "service_tier": body.get("service_tier") or "auto",
    }
    if tool_usage is not None:
        initial["tool_usage"] = _tool_usage(0, 0)
    return Response(whole, initial, pieces, [Charge(usage), *tool_charges])


def _message_events(message: Json, pieces: Sequence[str], index: int) -> list[Json]:
    (part,) = message["content"]
    place = {"content_index": 0, "item_id": message["id"], "output_index": index}
    extra: Json = {"logprobs": [], "obfuscation": "mZhSFjZXJr0X"}
    return [
        {
            "type": "response.output_item.added",
            "item": {**message, "status": "in_progress", "content": []},
            "output_index": index,
        },
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        *(
            {"type": "response.output_text.delta", **place, "delta": piece, **extra}
            for piece in pieces
        ),
        {"type": "response.output_text.done", **place, "logprobs": [], "text": part["text"]},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "item": message, "output_index": index},
    ]


def _item_events(item: Json, index: int) -> list[Json]:
    """Return the events of a reasoning item or a tool call."""
    steps = {
        "web_search_call": ("in_progress", "searching", "completed"),
        "image_generation_call": ("in_progress", "generating", "completed"),
    }.get(item["type"], ())
    opened = (
        {**item, "status": "in_progress", **({"result": None} if "result" in item else {})}
        if steps
        else item
    )
    return [
        {"type": "response.output_item.added", "item": opened, "output_index": index},
        *(
            {
                "type": f"response.{item['type']}.{step}",
                "item_id": item["id"],
                "output_index": index,
            }
            for step in steps
        ),
        {"type": "response.output_item.done", "item": item, "output_index": index},
    ]


def _tools(body: Json, made: FakeResponse) -> tuple[list[Json], Json | None, list[Charge]]:
    """
    Return the calls of tools that OpenAI itself runs and bills, their usage, and their charges.
    """
    items: list[Json] = []
    searches, images = 0, 0
    for tool in body.get("tools") or ():
        if str(tool.get("type")).startswith("web_search"):
            searches = made.number("searches", 1, 4)
            action = {"type": "search", "query": "replica lag", "queries": ["replica lag"]}
            call = {"type": "web_search_call", "status": "completed", "action": action}
            items += [{"id": f"ws_{hexadecimal(50)}", **call} for _ in range(searches)]
        elif tool.get("type") == "image_generation":
            images = 1
            items.append(_drawing(tool, made))
    if not items:
        return [], None, []
    used = _tool_usage(searches, made.number("image text", 20, 400) if images else 0)
    drawn_by_others = [Charge(item["svg_usage"]) for item in items if "svg_usage" in item]
    return (
        items,
        used,
        [Charge(used["image_gen"], images=images, web_searches=searches), *drawn_by_others],
    )


def _drawing(tool: Json, made: FakeResponse) -> Json:
    shape = {
        "action": "generate",
        "background": "opaque",
        "output_format": "png",
        "quality": "low",
        "size": "1024x1024",
    }
    chosen = {name: tool[name] for name in shape if tool.get(name) not in (None, "auto")}
    drawn: Json = {
        "id": f"ig_{hexadecimal(50)}",
        "type": "image_generation_call",
        "status": "completed",
        **shape,
        **chosen,
    }
    if tool.get("output_format") == "svg":
        drawn["svg_usage"] = made.svg_usage((tool.get("svg") or {}).get("model") or SVG_MODEL)
    return {**drawn, "result": IMAGE, "revised_prompt": "A replica that lags behind its leader."}


def _tool_usage(searches: int, text_tokens: int) -> Json:
    """Return the usage of both tools, with zeros for an unused one."""
    output = 272 if text_tokens else 0
    image_gen = {
        "input_tokens": text_tokens,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": text_tokens},
        "output_tokens": output,
        "output_tokens_details": {"image_tokens": output, "text_tokens": 0},
        "total_tokens": text_tokens + output,
    }
    return {"image_gen": image_gen, "web_search": {"num_requests": searches}}


def _decision(question: Json) -> Json:
    name = {"name": question["name"]} if "name" in question else {}
    if question["type"] == "choice":
        values = [choice["value"] for choice in question["choices"]]
        probabilities = [{"value": value, "probability": 1 / len(values)} for value in values]
        return {
            "type": "choice",
            **name,
            "choice": values[0],
            "confidence": 1 / len(values),
            "probabilities": probabilities,
        }
    if question["type"] == "score":
        labels = [level["label"] for level in question["levels"]]
        spread = [
            {"label": label, "value": value, "probability": 1 / len(labels)}
            for value, label in enumerate(labels)
        ]
        return {
            "type": "score",
            **name,
            "score": (len(labels) - 1) / 2,
            "confidence": 1 / len(labels),
            "probabilities": spread,
        }
    return {"type": "predicate", **name, "probability": 0.5}
