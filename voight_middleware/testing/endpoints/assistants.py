"""OpenAI's assistants: threads, their messages and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.response import EVENTS, Answer, Asked, need, now, page, plain, polled, reported
from voight_middleware.testing.fake_data import FakeAnswer, Json, hexadecimal
from voight_middleware.testing.store import Job

_MINUTES = 600
_TIMES = ("started", "cancelled", "failed", "completed")


@dataclass(eq=False, slots=True)
class Thread:
    """A conversation."""

    shown: Json
    messages: list[Json] = field(default_factory=list)
    replies: dict[str, Json] = field(default_factory=dict)
    """What the runs will say that nobody has seen completed, by their ids."""


def assistant(asked: Asked) -> Answer:
    """``POST /v1/assistants``."""
    need(asked.body, "model")
    made = f"asst_{hexadecimal(24)}"
    named = {name: asked.body.get(name) for name in ("name", "description", "instructions", "response_format")}
    settings = {"tools": asked.body.get("tools") or [], "metadata": asked.body.get("metadata") or {}, "temperature": 1.0, "top_p": 1.0}
    shown = {"id": made, "object": "assistant", "created_at": now(), "model": asked.body["model"], **named, **settings}
    asked.store.keep("assistant", made, shown, asked.user)
    return plain(shown)


def thread(asked: Asked) -> Answer:
    """``POST /v1/threads``."""
    return plain(_thread(asked, asked.body).shown)


def add_message(asked: Asked) -> Answer:
    """``POST /v1/threads/{thread}/messages``; the thread belongs to the last user who is named in one."""
    need(asked.body, "content", "role")
    found: Thread = asked.store.find("thread", asked.ids["thread"])
    found.messages.append(_message(found, asked.body["role"], asked.body["content"]))
    asked.store.keep("thread", asked.ids["thread"], found, asked.user)
    return plain(found.messages[-1])


def messages(asked: Asked) -> Answer:
    """``GET /v1/threads/{thread}/messages``: the newest first."""
    found: Thread = asked.store.find("thread", asked.ids["thread"])
    return plain(page(found.messages if asked.query.get("order") == "asc" else found.messages[::-1], asked.query))


def run(asked: Asked) -> Answer:
    """``POST /v1/threads/{thread}/runs``."""
    found: Thread = asked.store.find("thread", asked.ids["thread"])
    found.messages += [_message(found, one["role"], one["content"]) for one in asked.body.get("additional_messages") or ()]
    return _run(asked, found, [])


def thread_and_run(asked: Asked) -> Answer:
    """``POST /v1/threads/runs``."""
    found = _thread(asked, asked.body.get("thread") or {})
    return _run(asked, found, [("thread.created", found.shown)])


def retrieve(asked: Asked) -> Answer:
    """``GET /v1/threads/{thread}/runs/{run}``: in progress at the first poll, then completed, with its usage and its message."""
    found: Thread = asked.store.find("thread", asked.ids["thread"])
    job: Job = asked.store.find("run", asked.ids["run"])
    answer = polled(job, status="in_progress", started_at=job.begun["created_at"])
    _say(found, job)
    return answer


def cancel(asked: Asked) -> Answer:
    """``POST /v1/threads/{thread}/runs/{run}/cancel``: without a usage; one that was seen completed stays."""
    found: Thread = asked.store.find("thread", asked.ids["thread"])
    job: Job = asked.store.find("run", asked.ids["run"])
    if not job.seen:
        found.replies.pop(asked.ids["run"], None)
        job.cancel(status="cancelled", cancelled_at=now(), expires_at=None)
    return plain(job.finished if job.seen else {**job.begun, "status": "cancelling"})


def _thread(asked: Asked, body: Json) -> Thread:
    made = f"thread_{hexadecimal(24)}"
    shown = {"id": made, "object": "thread", "created_at": now(), "metadata": body.get("metadata") or {}, "tool_resources": {}}
    found = Thread(shown)
    found.messages += [_message(found, one["role"], one["content"]) for one in body.get("messages") or ()]
    asked.store.keep("thread", made, found, asked.user)
    return found


def _message(thread: Thread, role: str, content: Any, **more: Any) -> Json:
    texts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
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


def _run(asked: Asked, thread: Thread, before: list[tuple[str, Json]]) -> Answer:
    need(asked.body, "assistant_id")
    body, by = asked.body, asked.store.find("assistant", asked.body["assistant_id"])
    instructions = body.get("instructions") or by["instructions"] or ""
    said = [part["text"]["value"] for message in thread.messages for part in message["content"]]
    prompt = {"model": body.get("model") or by["model"], "messages": said, "instructions": instructions}
    made = FakeAnswer(prompt, None, body.get("max_completion_tokens"))
    usage = reported(asked.options, lambda: _usage(made))
    begun: Json = {
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
    finished = {**begun, "status": "completed", **done}
    if made.cut_short:
        finished |= {"status": "incomplete", "completed_at": None, "incomplete_details": {"reason": "max_completion_tokens"}}
    pieces, polls = made.pieces(asked.options.chunks), asked.options.polls
    reply = _message(thread, "assistant", "".join(pieces), assistant_id=by["id"], run_id=begun["id"])
    job = Job(begun, finished, 1 if polls is None else polls, [Charge(usage, asked.user)])
    asked.store.keep("run", begun["id"], job, asked.user)
    thread.replies[begun["id"]] = reply
    if not body.get("stream"):
        return plain(begun)
    job.seen = True
    _say(thread, job)
    events = [*before, *_events(begun, finished, reply, pieces)]
    parts = [f"event: {name}\n".encode() + b"data: " + msgspec.json.encode(shown) + b"\n\n" for name, shown in events]
    return Answer([*parts, b"event: done\ndata: [DONE]\n\n"], job.bills, len(events) - 1, EVENTS)


def _say(thread: Thread, job: Job) -> None:
    """Add the run's message to the thread, where the run was seen completed."""
    if job.seen and (reply := thread.replies.pop(job.begun["id"], None)) is not None:
        thread.messages.append(reply)


def _events(begun: Json, finished: Json, reply: Json, pieces: Sequence[str]) -> list[tuple[str, Json]]:
    running = {**begun, "status": "in_progress", "started_at": now()}
    step: Json = {
        "id": f"step_{hexadecimal(24)}",
        "object": "thread.run.step",
        "created_at": now(),
        "run_id": begun["id"],
        "assistant_id": begun["assistant_id"],
        "thread_id": begun["thread_id"],
        "type": "message_creation",
        "status": "in_progress",
        "expires_at": begun["expires_at"],
        **{f"{name}_at": None for name in _TIMES[1:]},
        "last_error": None,
        "step_details": {"type": "message_creation", "message_creation": {"message_id": reply["id"]}},
        "usage": None,
    }
    opened = {**reply, "status": "in_progress", "content": [], "completed_at": None}
    delta: Json = {"id": reply["id"], "object": "thread.message.delta"}
    texts = [{"index": 0, "type": "text", "text": {"value": piece, "annotations": []}} for piece in pieces]
    return [
        *(("thread.run.created", begun), ("thread.run.queued", begun), ("thread.run.in_progress", running)),
        *(("thread.run.step.created", step), ("thread.run.step.in_progress", step)),
        *(("thread.message.created", opened), ("thread.message.in_progress", opened)),
        *(("thread.message.delta", {**delta, "delta": {"content": [text]}}) for text in texts),
        ("thread.message.completed", reply),
        ("thread.run.step.completed", {**step, "status": "completed", "completed_at": now(), "usage": finished["usage"]}),
        (f"thread.run.{finished['status']}", finished),
    ]


def _usage(made: FakeAnswer) -> Json:
    counts = made.openai_usage("prompt", "completion")
    cached, reasoning = counts["prompt_tokens_details"]["cached_tokens"], made.reasoning_tokens
    totals = {name: counts[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    details = {"prompt_token_details": {"cached_tokens": cached}, "completion_tokens_details": {"reasoning_tokens": reasoning}}
    return {**totals, **details}  # runs have one s less: `prompt_token_details`
