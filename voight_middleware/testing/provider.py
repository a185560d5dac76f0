"""
The loopback provider: a real HTTP server on 127.0.0.1 that speaks the wire formats of OpenAI and Anthropic, for the demo, the
examples and the tests.

It serves chat completions, responses, embeddings and messages, as JSON and as server-sent events. The usage of an answer follows
from the text of the question. It keeps its own count of what it reported, by the marker ``[user:ID]`` in the question. Faults are
asked for by request headers, which the SDKs send from ``extra_headers``:

=================================  ====================================================================================
``x-loopback-status``              answer with this error status
``x-loopback-status-times``        only the first so many times, counted by ``x-loopback-key``
``x-loopback-delay-ms``            wait before the answer
``x-loopback-chunk-delay-ms``      wait before every event
``x-loopback-chunks``              stream so many content chunks (12)
``x-loopback-cut-after``           break the connection after so many events
``x-loopback-end-after``           end the stream after so many events, in order, without its last ones
``x-loopback-no-usage``            leave usage out
``x-loopback-usage``               report this usage object (JSON)
``x-loopback-reject``              answer 400 where the request has this field
=================================  ====================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    raise ImportError("the loopback provider needs Starlette and uvicorn: pip install 'voight-middleware[testing]'") from error

from voight_middleware.testing import wire
from voight_middleware.testing.wire import Question
from voight_middleware.usage import read_usage

_MARKER = re.compile(r"\[user:([^\]]*)\]")


class _Cut(Exception):
    """Raised inside an answer to make the server drop the connection."""


@dataclass(slots=True)
class UserCount:
    """What was reported to one user's calls; tokens as the provider bills them, cached ones included in the input."""

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Counts:
    """The provider's own count. A call is counted when its usage has been written to the socket."""

    by_user: dict[str, UserCount] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    """Streams that ended before their usage, by user."""
    errors: int = 0

    @property
    def total(self) -> UserCount:
        """All users together."""
        rows = self.by_user.values()
        return UserCount(
            calls=sum(row.calls for row in rows),
            input_tokens=sum(row.input_tokens for row in rows),
            cached_tokens=sum(row.cached_tokens for row in rows),
            output_tokens=sum(row.output_tokens for row in rows),
        )


class LoopbackProvider:
    """
    The provider as a context manager, served from a thread of this process::

        with LoopbackProvider() as provider:
            client = OpenAI(api_key="any", base_url=provider.openai_base_url)
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: collections.deque[Mapping[str, Any]] = collections.deque(maxlen=1000)
        """The bodies of the last thousand requests."""
        self._counts = Counts()
        self._lock = threading.Lock()
        self._failures: collections.Counter[str] = collections.Counter()
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/responses", self._responses, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/messages", self._messages, methods=["POST"]),
            Route("/_loopback/counts", self._show_counts),
        ]
        self.app = Starlette(routes=routes)
        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=port, log_config=None, log_level="critical", access_log=False, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="loopback-provider", daemon=True)

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    @property
    def openai_base_url(self) -> str:
        """For ``OpenAI(base_url=…)`` or ``OPENAI_BASE_URL``."""
        return f"{self.url}/v1"

    @property
    def anthropic_base_url(self) -> str:
        """For ``Anthropic(base_url=…)`` or ``ANTHROPIC_BASE_URL``."""
        return self.url

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the loopback provider did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(5)

    def counts(self) -> Counts:
        """What it has reported so far."""
        with self._lock:
            by_user = {user: UserCount(**asdict(row)) for user, row in self._counts.by_user.items()}
            return Counts(by_user, dict(self._counts.broken), self._counts.errors)

    def reset(self) -> None:
        """Forget counts and requests."""
        with self._lock:
            self._counts = Counts()
        self.requests.clear()
        self._failures.clear()

    # -- endpoints -------------------------------------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        body, question = await self._question(request)
        if (refused := self._refusal(request, body, anthropic=False)) is not None:
            return refused
        await _wait(request, "x-loopback-delay-ms")
        if body.get("stream"):
            wanted = bool((body.get("stream_options") or {}).get("include_usage")) and "x-loopback-no-usage" not in request.headers
            events = wire.chat_events(question, wanted)
            return self._stream(request, question, "chat", events, lambda event: event.get("usage"), named=False)
        return self._answer(request, question, "chat", wire.chat_answer(question))

    async def _responses(self, request: Request) -> Response:
        body, question = await self._question(request)
        if (refused := self._refusal(request, body, anthropic=False)) is not None:
            return refused
        await _wait(request, "x-loopback-delay-ms")
        if body.get("stream"):
            events = wire.responses_events(question)
            return self._stream(request, question, "responses", events, lambda event: event.get("response", {}).get("usage"), named=True)
        return self._answer(request, question, "responses", wire.responses_answer(question))

    async def _embeddings(self, request: Request) -> Response:
        body, question = await self._question(request)
        if (refused := self._refusal(request, body, anthropic=False)) is not None:
            return refused
        await _wait(request, "x-loopback-delay-ms")
        count = len(body["input"]) if isinstance(body.get("input"), list) else 1
        answer = wire.embeddings_answer(question, count, body.get("encoding_format", "float"))
        return self._answer(request, question, "embeddings", answer)

    async def _messages(self, request: Request) -> Response:
        body, question = await self._question(request)
        if (refused := self._refusal(request, body, anthropic=True)) is not None:
            return refused
        await _wait(request, "x-loopback-delay-ms")
        if body.get("stream"):
            events = wire.messages_events(question)
            return self._stream(
                request,
                question,
                "messages",
                events,
                lambda event: wire.messages_usage(question) if event["type"] == "message_delta" else None,
                named=True,
            )
        return self._answer(request, question, "messages", wire.messages_answer(question))

    async def _show_counts(self, request: Request) -> Response:
        counts = self.counts()
        return JSONResponse({**asdict(counts), "total": asdict(counts.total)})

    # -- what they share -------------------------------------------------------------------------------------------------------

    async def _question(self, request: Request) -> tuple[dict[str, Any], Question]:
        body = await request.json()
        self.requests.append(body)
        usage = request.headers.get("x-loopback-usage")
        chunks = int(request.headers.get("x-loopback-chunks", "12"))
        question = Question(str(body.get("model", "")), wire.text_of(body), chunks, json.loads(usage) if usage else None)
        return body, question

    def _refusal(self, request: Request, body: Mapping[str, Any], *, anthropic: bool) -> Response | None:
        field_name = request.headers.get("x-loopback-reject")
        if field_name is not None and field_name in body:
            message = f"Unrecognized request argument supplied: {field_name}"
            return JSONResponse(wire.error_body(anthropic, 400, message), 400)
        status = int(request.headers.get("x-loopback-status", "0"))
        times = request.headers.get("x-loopback-status-times")
        if status and times is not None:
            key = request.headers.get("x-loopback-key", "")
            self._failures[key] += 1
            status = status if self._failures[key] <= int(times) else 0
        if not status:
            return None
        with self._lock:
            self._counts.errors += 1
        return JSONResponse(wire.error_body(anthropic, status), status, {"retry-after-ms": "1", "x-request-id": "req_loopback"})

    def _answer(self, request: Request, question: Question, dialect: str, answer: dict[str, Any]) -> Response:
        if "x-loopback-no-usage" in request.headers:
            del answer["usage"]
        else:
            self._count(question, dialect, answer["usage"])
        # OpenAI prints its answers over several lines, Anthropic on one.
        text = json.dumps(answer) if dialect == "messages" else json.dumps(answer, indent=2)
        name = "request-id" if dialect == "messages" else "x-request-id"
        return Response(text, media_type="application/json", headers={name: f"req_{question.seed:016x}"})

    def _stream(
        self, request: Request, question: Question, dialect: str, events: Iterable[dict[str, Any]], usage_of: Any, *, named: bool
    ) -> Response:
        headers = request.headers
        cut, end = (int(headers.get(f"x-loopback-{name}-after", "-1")) for name in ("cut", "end"))

        async def body() -> AsyncIterator[bytes]:
            counted = False
            try:
                for number, event in enumerate(events):
                    if number == cut:
                        raise _Cut
                    if number == end:
                        return
                    await _wait(request, "x-loopback-chunk-delay-ms")
                    yield wire.sse(event, named)
                    if not counted and (usage := usage_of(event)) is not None:
                        self._count(question, dialect, usage)
                        counted = True
                if not named:
                    yield b"data: [DONE]\n\n"
            finally:
                if not counted:
                    with self._lock:
                        user = _user(question)
                        self._counts.broken[user] = self._counts.broken.get(user, 0) + 1

        return StreamingResponse(body(), media_type="text/event-stream", headers={"x-request-id": f"req_{question.seed:016x}"})

    def _count(self, question: Question, dialect: str, usage: Mapping[str, Any]) -> None:
        with self._lock:
            row = self._counts.by_user.setdefault(_user(question), UserCount())
            row.calls += 1
            for component in read_usage(dialect, usage):
                row.input_tokens += component.usage.input_tokens or 0
                row.cached_tokens += component.usage.cache_read or 0
                row.output_tokens += component.usage.output_tokens or 0


def _user(question: Question) -> str:
    found = _MARKER.search(question.text)
    return found.group(1) if found else "-"


async def _wait(request: Request, header: str) -> None:
    if header in request.headers:
        await asyncio.sleep(int(request.headers[header]) / 1000)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve the loopback provider.")
    parser.add_argument("--port", type=int, default=0)
    with LoopbackProvider(parser.parse_args().port) as provider, contextlib.suppress(KeyboardInterrupt):
        print(f"OPENAI_BASE_URL={provider.openai_base_url} ANTHROPIC_BASE_URL={provider.anthropic_base_url}", flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
