"""OpenAI's assistants: threads, their messages and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.response import (
    EVENTS,
    EndpointRequest,
    EndpointResponse,
    need,
    now,
    page,
    plain,
    polled,
    reported,
)
from voight_middleware.testing.fake_data import FakeResponse, Json, hexadecimal
from voight_middleware.testing.store import Job

_MINUTES = 600
_TIMES = ("started", "cancelled", "failed", "completed")


@dataclass(eq=False, slots=True)
class Thread:
    """A conversation."""

    shown: Json
    messages: list[Json] = field(default_factory=list)
    replies: dict[str, Json] = field(default_factory=dict)
    """The replies of runs that no poll has seen completed, by run id."""


def assistant(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/assistants``."""
    need(request.body, "model")
    made = f"asst_{hexadecimal(24)}"
    named = {
        name: request.body.get(name)
        for name in ("name", "description", "instructions", "response_format")
    }
    settings = {
        "tools": request.body.get("tools") or [],
        "metadata": request.body.get("metadata") or {},
        "temperature": 1.0,
        "top_p": 1.0,
    }
    shown = {
        "id": made,
        "object": "assistant",
        "created_at": now(),
        "model": request.body["model"],
        **named,
        **settings,
    }
    request.store.keep("assistant", made, shown, request.user)
    return plain(shown)


def thread(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/threads``."""
    return plain(_thread(request, request.body).shown)


def add_message(request: EndpointRequest) -> EndpointResponse:
    """
    ``POST /v1/threads/{thread}/messages``. The thread belongs to the last user named in a message.
    """
    need(request.body, "content", "role")
    thread: Thread = request.store.find("thread", request.ids["thread"])
    thread.messages.append(_message(thread, request.body["role"], request.body["content"]))
    request.store.keep("thread", request.ids["thread"], thread, request.user)
    return plain(thread.messages[-1])


def messages(request: EndpointRequest) -> EndpointResponse:
    """``GET /v1/threads/{thread}/messages``: the newest first."""
    thread: Thread = request.store.find("thread", request.ids["thread"])
    return plain(
        page(
            thread.messages if request.query.get("order") == "asc" else thread.messages[::-1],
            request.query,
        )
    )


def run(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/threads/{thread}/runs``."""
    thread: Thread = request.store.find("thread", request.ids["thread"])
    thread.messages += [
        _message(thread, message["role"], message["content"])
        for message in request.body.get("additional_messages") or ()
    ]
    return _run(request, thread, [])


def thread_and_run(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/threads/runs``."""
    thread = _thread(request, request.body.get("thread") or {})
    return _run(request, thread, [("thread.created", thread.shown)])


def retrieve(request: EndpointRequest) -> EndpointResponse:
    """
    ``GET /v1/threads/{thread}/runs/{run}``: in progress at the first poll, then completed, with
    usage and message.
    """
    thread: Thread = request.store.find("thread", request.ids["thread"])
    job: Job = request.store.find("run", request.ids["run"])
    response = polled(job, status="in_progress", started_at=job.initial["created_at"])
    _add_reply(thread, job)
    return response


def cancel(request: EndpointRequest) -> EndpointResponse:
    """
    ``POST /v1/threads/{thread}/runs/{run}/cancel``: the run ends without usage. A run that was seen
    completed stays.
    """
    thread: Thread = request.store.find("thread", request.ids["thread"])
    job: Job = request.store.find("run", request.ids["run"])
    if not job.seen:
        thread.replies.pop(request.ids["run"], None)
        job.cancel(status="cancelled", cancelled_at=now(), expires_at=None)
    return plain(job.finished if job.seen else {**job.initial, "status": "cancelling"})


def _thread(request: EndpointRequest, body: Json) -> Thread:
    made = f"thread_{hexadecimal(24)}"
    shown = {
        "id": made,
        "object": "thread",
        "created_at": now(),
        "metadata": body.get("metadata") or {},
        "tool_resources": {},
    }
    thread = Thread(shown)
    thread.messages += [
        _message(thread, message["role"], message["content"])
        for message in body.get("messages") or ()
    ]
    request.store.keep("thread", made, thread, request.user)
    return thread


def _message(thread: Thread, role: str, content: Any, **more: Any) -> Json:
    texts = (
        [content]
        if isinstance(content, str)
        else [part["text"] for part in content if part["type"] == "text"]
    )
    return {
        "id": f"msg_{hexadecimal(24)}",
        "object": "thread.message",
        "created_at": now(),
        "assistant_id": None,
        "thread_id": thread.shown["id"],
        "run_id": None,
        "status": "completed",
        "incomplete_details": None,
        "incomplete_at": None,
        "completed_at": now(),
        "role": role,
        "content": [{"type": "text", "text": {"value": text, "annotations": []}} for text in texts],
        "attachments": [],
        "metadata": {},
        **more,
    }


def _run(
    request: EndpointRequest, thread: Thread, before: list[tuple[str, Json]]
) -> EndpointResponse:
    need(request.body, "assistant_id")
    body, by = request.body, request.store.find("assistant", request.body["assistant_id"])
    instructions = body.get("instructions") or by["instructions"] or ""
    texts = [part["text"]["value"] for message in thread.messages for part in message["content"]]
    prompt = {
        "model": body.get("model") or by["model"],
        "messages": texts,
        "instructions": instructions,
    }
    made = FakeResponse(prompt, None, body.get("max_completion_tokens"))
    usage = reported(request.options, lambda: _usage(made))
    initial: Json = {
        "id": f"run_{hexadecimal(24)}",
        "object": "thread.run",
        "created_at": now(),
        "assistant_id": by["id"],
        "thread_id": thread.shown["id"],
        "status": "queued",
        "expires_at": now() + _MINUTES,
        **{f"{name}_at": None for name in _TIMES},
        "required_action": None,
        "last_error": None,
        "model": prompt["model"],
        "instructions": instructions,
        "tools": body.get("tools") or by["tools"],
        "metadata": body.get("metadata") or {},
        "temperature": 1.0,
        "top_p": 1.0,
        "max_completion_tokens": body.get("max_completion_tokens"),
        "max_prompt_tokens": body.get("max_prompt_tokens"),
        "truncation_strategy": {"type": "auto", "last_messages": None},
        "incomplete_details": None,
        "usage": None,
        "response_format": "auto",
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }
    done = {"started_at": now(), "completed_at": now(), "expires_at": None, "usage": usage}
    finished = {**initial, "status": "completed", **done}
    if made.cut_short:
        finished |= {
            "status": "incomplete",
            "completed_at": None,
            "incomplete_details": {"reason": "max_completion_tokens"},
        }
    pieces, polls = made.pieces(request.options.chunks), request.options.polls
    reply = _message(
        thread, "assistant", "".join(pieces), assistant_id=by["id"], run_id=initial["id"]
    )
    job = Job(initial, finished, 1 if polls is None else polls, [Charge(usage, request.user)])
    request.store.keep("run", initial["id"], job, request.user)
    thread.replies[initial["id"]] = reply
    if not body.get("stream"):
        return plain(initial)
    job.seen = True
    _add_reply(thread, job)
    events = [*before, *_events(initial, finished, reply, pieces)]
    parts = [
        f"event: {name}\n".encode() + b"data: " + msgspec.json.encode(shown) + b"\n\n"
        for name, shown in events
    ]
    return EndpointResponse(
        [*parts, b"event: done\ndata: [DONE]\n\n"], job.charges, len(events) - 1, EVENTS
    )


def _add_reply(thread: Thread, job: Job) -> None:
    """Add the run's message to the thread, if the run was seen completed."""
    if job.seen and (reply := thread.replies.pop(job.initial["id"], None)) is not None:
        thread.messages.append(reply)


def _events(
    initial: Json, finished: Json, reply: Json, pieces: Sequence[str]
) -> list[tuple[str, Json]]:
    running = {**initial, "status": "in_progress", "started_at": now()}
    step: Json = {
        "id": f"step_{hexadecimal(24)}",
        "object": "thread.run.step",
        "created_at": now(),
        "run_id": initial["id"],
        "assistant_id": initial["assistant_id"],
        "thread_id": initial["thread_id"],
        "type": "message_creation",
        "status": "in_progress",
        "expires_at": initial["expires_at"],
        **{f"{name}_at": None for name in _TIMES[1:]},
        "last_error": None,
        "step_details": {
            "type": "message_creation",
            "message_creation": {"message_id": reply["id"]},
        },
        "usage": None,
    }
    opened = {**reply, "status": "in_progress", "content": [], "completed_at": None}
    delta: Json = {"id": reply["id"], "object": "thread.message.delta"}
    texts = [
        {"index": 0, "type": "text", "text": {"value": piece, "annotations": []}}
        for piece in pieces
    ]
    return [
        *(
            ("thread.run.created", initial),
            ("thread.run.queued", initial),
            ("thread.run.in_progress", running),
        ),
        *(("thread.run.step.created", step), ("thread.run.step.in_progress", step)),
        *(("thread.message.created", opened), ("thread.message.in_progress", opened)),
        *(("thread.message.delta", {**delta, "delta": {"content": [text]}}) for text in texts),
        ("thread.message.completed", reply),
        (
            "thread.run.step.completed",
            {**step, "status": "completed", "completed_at": now(), "usage": finished["usage"]},
        ),
        (f"thread.run.{finished['status']}", finished),
    ]


def _usage(made: FakeResponse) -> Json:
    counts = made.openai_usage("prompt", "completion")
    cached, reasoning = counts["prompt_tokens_details"]["cached_tokens"], made.reasoning_tokens
    totals = {name: counts[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    details = {
        "prompt_token_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    return {**totals, **details}  # runs use the singular: `prompt_token_details`
