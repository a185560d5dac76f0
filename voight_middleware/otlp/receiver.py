"""
The receiver: it takes OTLP over HTTP from any language, and writes to the journal of this process.

The response is 200 only when all calls of a request are in the journal. Everything about a request
is bounded: its size on the wire and unpacked, its spans, its sender's time, and the number of
waiting requests.

Source of the protocol: OpenTelemetry, "OTLP specification" 1.x, "OTLP/HTTP".
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from voight_middleware.otlp import wire
from voight_middleware.otlp.framing import Malformed, TooLarge
from voight_middleware.otlp.intake import Intake, NotWritten, Taken
from voight_middleware.otlp.unpacking import UNPACKERS
from voight_middleware.pipeline.meter import Meter
from voight_middleware.providers.hosts import host_name, is_loopback
from voight_middleware.records.tag_values import clean_value

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
    from uvicorn.protocols.http.h11_impl import H11Protocol

    decode_protobuf = wire.protobuf_decoder()
except ImportError as missing:
    raise ImportError(
        "the OTLP receiver needs starlette, uvicorn and opentelemetry-proto: pip install "
        "'voight-middleware[otlp]'"
    ) from missing

logger = logging.getLogger(__name__)

MAX_BODY = 16 * 1024 * 1024
"""The maximum size of a request's body on the wire, in bytes."""
MAX_UNPACKED = 64 * 1024 * 1024
"""The maximum size of an unpacked protobuf body, in bytes."""
MAX_JSON = 32 * 1024 * 1024
"""The maximum size of an unpacked JSON body, in bytes."""
SMALL_BODY = 1024 * 1024
"""
The maximum size of an unpacked body that is processed in one piece, in bytes. Larger ones take
turns, in slices. Small ones run between the slices.
"""
MAX_WAITING = 64 * 1024 * 1024
"""The maximum size of all bodies that arrive or wait, in bytes."""
MAX_REQUESTS = 256
"""The maximum number of connections. More get a 503."""
BODY_SECONDS = 30.0
"""How long a sender may take for a body, in seconds."""
HEADER_SECONDS = 10.0
"""
How long a sender may take for the headers of its first request, or for the rest of partial headers,
in seconds.
"""
IDLE_SECONDS = 75.0
"""How long a connection may stay open after a request, in seconds."""
MAX_IDLE = 128
"""
The maximum number of connections from one address without a complete request. Beyond it, the oldest
is closed to make room.
"""
RETRY_SECONDS = 5
STOP_SECONDS = 10

_TYPES = {"application/x-protobuf": False, "application/json": True}
"""The accepted content types, and whether each is JSON."""
_SIGNALS = {"/v1/metrics": "metrics", "/v1/logs": "logs"}
# gRPC status codes, for google.rpc.Status
_INVALID, _DENIED, _EXHAUSTED, _UNAVAILABLE, _UNAUTHENTICATED, _INTERNAL = 3, 7, 8, 14, 16, 13
_ENDED = object()
T = TypeVar("T")


class Refused(Exception):
    """A request that gets an error response."""

    def __init__(self, code: int, reason: str, grpc: int = _INVALID, **headers: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = clean_value(reason) or ""  # it may quote the request, and is logged
        self.grpc = grpc
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Receiver:
    """
    Takes requests for one meter. One separate thread processes the bodies, one after the other.
    """

    def __init__(self, meter: Meter, token: str | None = None) -> None:
        self._intake = Intake(meter)
        self._token = token.encode() if token else None
        self._large = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, "voight-otlp")
        self._waiting = 0
        self._logged: set[int] = set()
        self.totals: Taken = self._intake.totals

    def application(self) -> Starlette:
        """Return the ASGI application."""
        routes = [Route("/v1/traces", self._endpoint(self._traces), methods=["POST"])]
        routes += [
            Route(path, self._endpoint(self._dropped), methods=["POST"]) for path in _SIGNALS
        ]

        @asynccontextmanager
        async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
            yield
            await asyncio.to_thread(self._worker.shutdown)

        return Starlette(routes=routes, lifespan=lifespan)

    def _endpoint(
        self, handle: Callable[[Request, bool], Awaitable[bytes]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            as_json = _TYPES.get(content_type, False)
            media_type = "application/json" if as_json else "application/x-protobuf"
            try:
                self._check_sender(request)
                if content_type not in _TYPES:
                    raise Refused(
                        415,
                        "send application/x-protobuf or application/json, not "
                        f"{content_type[:100] or 'nothing'}",
                    )
                return Response(await handle(request, as_json), 200, media_type=media_type)
            except Refused as refused:
                self._log(request, refused)
                # The rest of the body is not read, so the connection cannot be used again.
                headers = {**refused.headers, "connection": "close"}
                return Response(
                    wire.status(refused.grpc, refused.reason, as_json=as_json),
                    refused.code,
                    headers,
                    media_type,
                )
            except ClientDisconnect:
                return Response(status_code=400)

        return endpoint

    def _log(self, request: Request, refused: Refused) -> None:
        """
        Log the first refusal of each status, as the receiver's operator may not see the sender's
        logs.
        """
        if refused.code not in self._logged:
            self._logged.add(refused.code)
            sender = request.client.host if request.client is not None else "an unknown sender"
            logger.warning(
                "a request from %s gets %d: %s; further ones are not logged",
                sender,
                refused.code,
                refused.reason,
            )

    def _check_sender(self, request: Request) -> None:
        if self._token is None:
            _check_page(request)
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode(), self._token
        ):
            raise Refused(
                401,
                "send Authorization: Bearer and the receiver's token",
                _UNAUTHENTICATED,
                www_authenticate='Bearer realm="voight"',
            )

    async def _traces(self, request: Request, as_json: bool) -> bytes:
        encoding = request.headers.get("content-encoding", "identity").strip().lower() or "identity"
        if encoding not in UNPACKERS:
            raise Refused(415, f"send the body as gzip, deflate or identity, not {encoding[:100]}")
        body = await self._body(request)
        size = len(body)
        try:
            taken = await self._process(body, encoding, as_json)
        finally:
            self._waiting -= size
        if not taken.rejected:
            return b"{}" if as_json else b""
        reasons = "; ".join(
            f"{reason} ({count:,} times)" for reason, count in taken.why.most_common(5)
        )
        return wire.export_response(taken.rejected, f"not used: {reasons}", as_json=as_json)

    async def _process(self, packed: bytes, encoding: str, as_json: bool) -> Taken:
        """Process a body. Only one large body is unpacked at a time: each may have 64 MB."""
        taken = Taken()

        def small() -> bool:
            try:
                body = UNPACKERS[encoding](packed, SMALL_BODY)
            except TooLarge:
                return False
            for _ in self._intake.slices(decode(body), taken):
                pass
            return True

        def large() -> Iterator[None]:
            yield from self._intake.slices(
                decode(UNPACKERS[encoding](packed, MAX_JSON if as_json else MAX_UNPACKED)), taken
            )

        decode = wire.decode_json if as_json else decode_protobuf
        if not await self._in_worker(small):
            async with self._large:
                slices = large()
                while await self._in_worker(lambda: next(slices, _ENDED)) is not _ENDED:
                    pass
        return taken

    async def _in_worker(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, _refusing, work)
        except RuntimeError as error:  # the worker has been shut down
            raise Refused(
                503, "the receiver is stopping", _UNAVAILABLE, retry_after=str(RETRY_SECONDS)
            ) from error

    async def _dropped(self, request: Request, as_json: bool) -> bytes:
        """
        Drop metrics and logs, with a message. A refusal would make senders repeat them again and
        again.
        """
        self._waiting -= len(await self._body(request))
        name = _SIGNALS[request.url.path]
        return wire.export_response(
            0, f"voight reads spans only; it drops {name}: send them elsewhere", as_json=as_json
        )

    async def _body(self, request: Request) -> bytes:
        """Return the body. Its size counts as waiting until the caller subtracts it."""
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and (len(length) > 15 or int(length) > MAX_BODY):
            raise _too_large(f"a body may have at most {MAX_BODY:,} bytes")
        body = bytearray()
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    if size + len(part) > MAX_BODY:
                        raise _too_large(f"a body may have at most {MAX_BODY:,} bytes")
                    if self._waiting + len(part) > MAX_WAITING:
                        raise Refused(
                            429,
                            "too many bodies are waiting: try again later",
                            _EXHAUSTED,
                            retry_after="1",
                        )
                    size += len(part)
                    self._waiting += len(part)
                    body += part
            return bytes(body)
        except BaseException as error:
            self._waiting -= size
            if isinstance(error, TimeoutError):
                raise Refused(
                    408, f"send the body within {BODY_SECONDS:.0f} seconds", _UNAVAILABLE
                ) from error
            raise


def _refusing(work: Callable[[], T]) -> T:
    try:
        return work()
    except Malformed as error:
        raise Refused(400, str(error)) from error
    except TooLarge as error:
        raise _too_large(str(error)) from error
    except NotWritten as error:
        raise Refused(
            503,
            "the journal cannot be written: try again later",
            _UNAVAILABLE,
            retry_after=str(RETRY_SECONDS),
        ) from error
    except Exception as error:
        logger.exception("a request could not be processed")
        raise Refused(
            500, f"internal error of the receiver: {type(error).__name__}", _INTERNAL
        ) from error


def _check_page(request: Request) -> None:
    """
    Refuse requests of a web page in a browser on this machine (DNS rebinding).

    Raises:
        Refused: The request names a host, or comes from a page of a host, that is not this machine.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not is_loopback(host_name(host) or "") or (
        origin is not None and not is_loopback(host_name(origin) or "")
    ):
        raise Refused(
            403,
            "without a token, only requests to localhost are accepted: set VOIGHT_OTLP_TOKEN",
            _DENIED,
        )


def _too_large(reason: str) -> Refused:
    return Refused(413, f"{reason}: send less at once", _EXHAUSTED)


class Connection(H11Protocol):
    """A connection that times out, and leaves room for others of its address."""

    idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle_since = time.monotonic()
        address = self.client and self.client[0]
        connections = [
            connection
            for connection in self.connections
            if isinstance(connection, Connection) and not connection.has_all
        ]
        unready = [
            connection
            for connection in connections
            if (connection.client and connection.client[0]) == address
        ]
        if len(unready) > MAX_IDLE:
            oldest = min(unready, key=lambda connection: connection.idle_since)
            oldest.transport.close()
            # at once: uvicorn does so only in a later step of the loop
            self.connections.discard(oldest)

    def on_response_complete(self) -> None:
        self.idle_since = time.monotonic()
        super().on_response_complete()

    @property
    def has_all(self) -> bool:
        """Whether a complete request has arrived, and its response has not ended."""
        return not self.is_idle and not self.cycle.more_body

    @property
    def is_idle(self) -> bool:
        """Whether no request is running, or only a part of its headers has arrived."""
        cycle: Any = self.cycle  # None before the first request
        return cycle is None or bool(cycle.response_complete)

    def close_if_late(self) -> None:
        """Close the connection if it has been idle for too long."""
        cycle: Any = self.cycle
        limit = HEADER_SECONDS if cycle is None or self.conn.trailing_data[0] else IDLE_SECONDS
        if self.is_idle and time.monotonic() - self.idle_since > limit:
            self.transport.close()


class Server:
    """A receiver on a socket."""

    def __init__(
        self, meter: Meter, host: str = "127.0.0.1", port: int = 4318, token: str | None = None
    ) -> None:
        """
        Bind the socket.

        Raises:
            OSError: The socket cannot be bound.
        """
        self._meter = meter
        self.receiver = Receiver(meter, token)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=512)
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.receiver.application(),
                http=Connection,  # h11 bounds the headers of a request; httptools does not
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                limit_concurrency=MAX_REQUESTS,
                timeout_keep_alive=int(IDLE_SECONDS),
                timeout_graceful_shutdown=STOP_SECONDS,
                proxy_headers=False,  # log and limit by the connection's own address
            )
        )

    def serve(self, ready: Callable[[], None] | None = None) -> None:
        """
        Serve until SIGTERM or SIGINT. Then finish the running requests, and ingest the journal.
        """
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # uvicorn raises the signal again when it has stopped. That must not end the process
            # before the ledger has all calls.
            before = {
                number: signal.signal(number, lambda *_: None)
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        try:
            asyncio.run(self._serve(ready))
            self._meter.close(STOP_SECONDS)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Stop ``serve``."""
        self._server.should_exit = True

    async def _serve(self, ready: Callable[[], None] | None) -> None:
        watching = asyncio.create_task(self._close_idle())
        if ready is not None:
            ready()  # the socket is already listening
        try:
            await self._server.serve([self._socket])
        finally:
            watching.cancel()

    async def _close_idle(self) -> None:
        """
        Close connections of slow senders: uvicorn waits forever for the rest of a request's
        headers.
        """
        while True:
            await asyncio.sleep(min(1.0, HEADER_SECONDS / 4))
            for connection in list(self._server.server_state.connections):
                if isinstance(connection, Connection):
                    connection.close_if_late()
