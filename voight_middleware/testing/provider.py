"""
The loopback provider: a real HTTP server that speaks the wire formats of OpenAI and Anthropic, for tests and demonstrations.

It answers ``POST /v1/chat/completions``, ``/v1/responses``, ``/v1/embeddings`` and ``/v1/messages``, whole or streamed, and keeps
its own count of what it has reported. A request asks for a fault with a header, through the SDKs' ``extra_headers``:

=============================== ================================================================================================
``x-loopback-status: 429``      an error of this status; with ``x-loopback-status-times: N`` only for the first N requests that
                                have the same ``x-loopback-key``
``x-loopback-delay-ms``         wait before the answer
``x-loopback-chunk-delay-ms``   wait before each event
``x-loopback-chunks: N``        stream the text in N pieces (12)
``x-loopback-cut-after: N``     close the socket after N events; in the middle of an answer that is not streamed
``x-loopback-end-after: N``     end the stream cleanly after N events
``x-loopback-no-usage: 1``      report no usage
``x-loopback-usage: {…}``       report this usage
``x-loopback-reject: NAME``     refuse the request if it has this parameter, as servers do that do not know ``stream_options``
=============================== ================================================================================================

An application that does not pass headers on can be given the same in the prompt, in brackets: ``[x-loopback-status: 500]``.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any, Literal, Self

import msgspec

from voight_middleware.testing import wire
from voight_middleware.testing.made_up import Options, prompt_texts
from voight_middleware.testing.wire import Answer, Refusal

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise ImportError("the loopback provider needs starlette and uvicorn: pip install 'voight-middleware[testing]'") from error

KEPT_REQUESTS = 1000
_START_SECONDS = 10.0

_USER = re.compile(r"\[user:([^\]]+)\]")
_IN_PROMPT = re.compile(r"\[(x-loopback-[a-z-]+): *([^\]]+)\]")
_MESSAGES = {
    401: "Incorrect API key provided.",
    429: "Rate limit reached for requests per min (RPM): Limit 500, Used 500, Requested 1. Please try again in 1ms.",
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The engine is currently overloaded, please try again later.",
    529: "Overloaded",
}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_ENDPOINTS: Mapping[str, Callable[[dict[str, Any], Options], Answer]] = {
    "/v1/chat/completions": wire.chat,
    "/v1/responses": wire.responses,
    "/v1/embeddings": wire.embeddings,
    "/v1/messages": wire.messages,
}


@dataclass(slots=True)
class Count:
    """What the provider counted for one user; tokens as it reported them, in tokens."""

    calls: int = 0
    """HTTP requests, retries of an SDK included."""
    completed: int = 0
    """Answers whose final usage (or last byte, where none is reported) was written to the socket."""
    broken: int = 0
    """Answers that were cut, ended too early, or left by the client."""
    errors: int = 0
    input_tokens: int = 0
    """All input of completed answers, cached and written tokens included."""
    cached_tokens: int = 0
    """The part of the input that was read from the cache."""
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """The provider's own count, by the ``[user:ID]`` in the prompt; ``-`` where there was none."""

    by_user: Mapping[str, Count]

    @property
    def total(self) -> Count:
        """All users together."""
        rows = [astuple(count) for count in self.by_user.values()]
        return Count(*map(sum, zip(*rows, strict=True)))


class _Faults(msgspec.Struct, rename=lambda name: f"x-loopback-{name.replace('_', '-')}"):
    status: int | None = None
    status_times: int | None = None
    key: str = ""
    delay_ms: float = 0
    chunk_delay_ms: float = 0
    chunks: int = 12
    cut_after: int | None = None
    end_after: int | None = None
    no_usage: Literal[0, 1] = 0
    usage: str | None = None
    reject: str | None = None


@dataclass(slots=True)
class _Books:
    """The provider's own count, and what it received."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: defaultdict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    failed: Counter[str] = field(default_factory=Counter)
    requests: deque[Any] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))

    def received(self, user: str, body: Any) -> None:
        with self.lock:
            self.users[user].calls += 1
            self.requests.append(body)

    def still_failing(self, key: str, times: int | None) -> bool:
        with self.lock:
            self.failed[key] += 1
            return times is None or self.failed[key] <= times

    def refused(self, user: str) -> None:
        with self.lock:
            self.users[user].errors += 1

    def broke(self, user: str) -> None:
        with self.lock:
            self.users[user].broken += 1

    def completed(self, user: str, usage: Any) -> None:
        read, cached, output = _tokens(usage)
        with self.lock:
            count = self.users[user]
            count.completed += 1
            count.input_tokens += read
            count.cached_tokens += cached
            count.output_tokens += output

    def counts(self) -> Counts:
        with self.lock:
            return Counts({user: replace(count) for user, count in sorted(self.users.items())})

    def reset(self) -> None:
        with self.lock:
            self.users.clear()
            self.failed.clear()
            self.requests.clear()


class LoopbackProvider:
    """
    The loopback provider in a background thread, on a free port of 127.0.0.1::

        with LoopbackProvider() as provider:
            client = OpenAI(base_url=provider.openai_base_url, api_key="any")
    """

    def __init__(self, port: int = 0) -> None:
        self._books = _Books()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        """Without a path."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                _app(self._books),
                lifespan="off",
                ws="none",
                log_config=None,
                log_level="critical",
                access_log=False,
                timeout_keep_alive=300,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="loopback-provider", daemon=True)

    @property
    def openai_base_url(self) -> str:
        """For ``OpenAI(base_url=…)``, or ``OPENAI_BASE_URL``."""
        return f"{self.url}/v1"

    @property
    def anthropic_base_url(self) -> str:
        """For ``Anthropic(base_url=…)``, or ``ANTHROPIC_BASE_URL``."""
        return self.url

    @property
    def requests(self) -> list[Any]:
        """The bodies of the last 1000 requests, the oldest first."""
        with self._books.lock:
            return list(self._books.requests)

    def counts(self) -> Counts:
        """What was counted so far."""
        return self._books.counts()

    def reset(self) -> None:
        """Forget what was counted and received."""
        self._books.reset()

    def start(self) -> None:
        """
        Start to answer.

        Raises:
            RuntimeError: The server did not start within ten seconds.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the loopback provider did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop to answer; streams that are still running are cut."""
        self._server.should_exit = True
        self._thread.join(_START_SECONDS)
        self._socket.close()

    def serve(self) -> None:
        """Answer in this thread until the process is interrupted."""
        self._server.run([self._socket])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class _Reply(Response):
    """Sends the parts of an answer one by one, and books it when the part that completes it goes out."""

    def __init__(self, books: _Books, user: str, answer: Answer, faults: _Faults, headers: Mapping[str, str], *, streamed: bool) -> None:
        self._books, self._user, self._answer, self._faults = books, user, answer, faults
        self._booked = False
        super().__init__(media_type="text/event-stream" if streamed else "application/json")
        del self.headers["content-length"]
        self.headers.update(headers)
        self._parts = list(answer.parts)
        self._ends = True
        if faults.cut_after is not None or faults.end_after is not None:
            self._ends = faults.cut_after is None
            self._parts = self._parts[: faults.end_after if faults.cut_after is None else faults.cut_after]
        if not streamed:
            (body,) = answer.parts
            self.headers["content-length"] = str(len(body))
            self._parts = [body] if self._ends else [body[: len(body) // 2]]
            self._answer = answer if self._ends else Answer(answer.parts, answer.usage, len(answer.parts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(receive())  # the body has been read: what comes next is the client's leaving
        try:
            await asyncio.sleep(self._faults.delay_ms / 1000)
            if gone.done():
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for number, part in enumerate(self._parts):
                await asyncio.sleep(self._faults.chunk_delay_ms / 1000)  # also lets other streams go on, and a client's leaving be seen
                if gone.done():
                    return
                if number == self._answer.complete_at:
                    self._book(whole=True)
                await send({"type": "http.response.body", "body": part, "more_body": True})
            if self._ends:
                self._book(whole=False)
                await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            self._book(whole=False)

    def _book(self, *, whole: bool) -> None:
        """Count the answer, once; always before its last byte is sent, so that whoever has read it finds it in the counts."""
        if self._booked:
            return
        self._booked = True
        if whole:
            self._books.completed(self._user, self._answer.usage)
        else:
            self._books.broke(self._user)


def _app(books: _Books) -> Starlette:
    async def answer(request: Request) -> Response:
        return await _answer(request, books)

    async def counts(_request: Request) -> Response:
        counted = books.counts()
        by_user = {user: asdict(count) for user, count in counted.by_user.items()}
        return JSONResponse({"by_user": by_user, "total": asdict(counted.total)})

    routes = [Route(path, answer, methods=["POST"]) for path in _ENDPOINTS]
    return Starlette(routes=[*routes, Route("/_loopback/counts", counts)])


async def _answer(request: Request, books: _Books) -> Response:
    path = request.url.path
    request_id = f"req_{uuid.uuid4().hex}"
    user = "-"
    try:
        try:
            body = msgspec.json.decode(await request.body())
        except msgspec.DecodeError as error:
            raise Refusal(400, "We could not parse the JSON body of your request.") from error
        prompt = list(prompt_texts(body))
        user = next((found[1] for text in prompt if (found := _USER.search(text))), "-")
        books.received(user, body)
        if not isinstance(body, dict):
            raise Refusal(400, "The JSON body of your request is no object.")
        faults = _faults(request, prompt)
        if faults.status is not None and books.still_failing(faults.key, faults.status_times):
            await asyncio.sleep(faults.delay_ms / 1000)
            message = _MESSAGES.get(faults.status, "The request failed.")
            raise Refusal(faults.status, message, code=_CODES.get(faults.status), headers={"retry-after-ms": "1"})
        if faults.reject is not None and faults.reject in body:
            raise Refusal(400, f"Unrecognized request argument supplied: {faults.reject}")
        usage = None if faults.usage is None else msgspec.json.decode(faults.usage)
        made = _ENDPOINTS[path](body, Options(faults.chunks, usage, bool(faults.no_usage)))
        return _Reply(books, user, made, faults, _headers(path, request_id), streamed=bool(body.get("stream")))
    except Refusal as refusal:
        books.refused(user)
        shown = wire.anthropic_error(refusal, request_id) if path == "/v1/messages" else wire.openai_error(refusal)
        headers = {**_headers(path, request_id), **refusal.headers}
        return Response(shown, refusal.status, headers, media_type="application/json")


def _faults(request: Request, prompt: list[str]) -> _Faults:
    asked = {name: value for name, value in request.headers.items() if name.startswith("x-loopback-")}
    asked |= {name: value for text in prompt for name, value in _IN_PROMPT.findall(text)}
    if unknown := asked.keys() - set(_Faults.__struct_encode_fields__):
        raise Refusal(400, f"the loopback provider knows no {', '.join(sorted(unknown))}")
    try:
        if "x-loopback-usage" in asked:
            msgspec.json.decode(asked["x-loopback-usage"])
        return msgspec.convert(asked, _Faults, strict=False)
    except msgspec.MsgspecError as error:
        raise Refusal(400, f"a header of the loopback provider cannot be read: {error}") from error


def _headers(path: str, request_id: str) -> dict[str, str]:
    if path == "/v1/messages":
        return {"request-id": request_id, "anthropic-organization-id": "4d1c4a52-0d0b-4f0c-8a3b-000000000000"}
    return {"x-request-id": request_id, "openai-organization": "org-loopback", "openai-processing-ms": "1", "openai-version": "2020-10-01"}


def _tokens(usage: Any) -> tuple[int, int, int]:
    """Input, cached and output tokens of a usage; on purpose not by the library's own readers, which are checked against it."""
    parts = usage.get("iterations") or [usage] if isinstance(usage, dict) else []
    read, cached, output = 0, 0, 0
    for part in parts:
        details = part.get("prompt_tokens_details") or part.get("input_tokens_details") or {}
        from_cache = part.get("cache_read_input_tokens") or 0
        read += _number(part.get("prompt_tokens", part.get("input_tokens"))) + _number(from_cache)
        read += _number(part.get("cache_creation_input_tokens"))
        cached += _number(details.get("cached_tokens")) + _number(from_cache)
        output += _number(part.get("completion_tokens", part.get("output_tokens")))
    return read, cached, output


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def main() -> None:
    """``python -m voight_middleware.testing.provider --port 8099``."""
    parser = argparse.ArgumentParser(description="A server that speaks the wire formats of OpenAI and Anthropic.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    provider = LoopbackProvider(parser.parse_args().port)
    sys.stdout.write(
        f"export OPENAI_BASE_URL={provider.openai_base_url} OPENAI_API_KEY=loopback\n"
        f"export ANTHROPIC_BASE_URL={provider.anthropic_base_url} ANTHROPIC_API_KEY=loopback\n"
        f"# what it counted: {provider.url}/_loopback/counts\n"
    )
    sys.stdout.flush()
    provider.serve()


if __name__ == "__main__":
    main()
