"""Visits every place of an ASGI application under a real server, each for a user of its own, and looks up whose calls they were."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import websockets.asyncio.client

from voight_middleware.records.call import Call

from .matrix import check_column
from .web import serve

SERVERS = {
    "uvicorn": "uvicorn {app} --port {port} --log-level critical",
    "hypercorn": "hypercorn {app} --bind 127.0.0.1:{port} --log-level CRITICAL",
    "gunicorn asgi": "gunicorn {app} -k asgi -b 127.0.0.1:{port} --log-level critical",
}
NEXT, PIPELINED = "next request on the same thread or connection", "pipelined request"
FIRST = "the request before it"


def check_asgi_column(framework: str, server: str, app: str, workers: Any, provider: Any, group: str = "ASGI") -> None:
    """
    Start *app* under *server*, visit all of its places, and check the column.

    The application answers its places as JSON at ``/places``: a path for each, which begins with ``ws:`` for a WebSocket, and is
    empty where the request to the path before passes this place too; at ``/called`` those in which a call has been made; and at
    ``/any`` it makes a call in the place that the header ``x-place`` names.
    """
    port = serve(workers, provider, SERVERS[server].replace("{app}", app))
    paths = asyncio.run(_visit(port))
    calls = {str(call.requested_model): call for call in _once(workers.calls())}
    found: dict[str, str] = {}
    expected = ""
    for index, (place, path) in enumerate(paths.items()):
        user, expected = calls[place].tags.user_id, f"user-{index}" if path else expected
        found[place] = "works" if user == expected else "lost" if user is None else "wrong"
    for place in (NEXT, PIPELINED):
        assert calls[f"{FIRST}: {place}"].tags.user_id == "alice"
        found[place] = "works" if calls[place].tags.user_id is None else "wrong"
    check_column(group, framework, server, found)


def _once(calls: list[Call]) -> list[Call]:
    models = [call.requested_model for call in calls]
    assert len(models) == len(set(models)), "one call in each place"
    return calls


async def _visit(port: int) -> dict[str, str]:
    """All at once, so that each has others beside it."""
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        paths: dict[str, str] = (await client.get("/places")).json()

        async def one(index: int, path: str) -> None:
            headers = {"x-user": f"user-{index}"}
            if path.startswith("ws:"):
                async with websockets.asyncio.client.connect(f"ws://127.0.0.1:{port}{path[3:]}", additional_headers=headers) as connection:
                    await connection.recv()
            else:
                await client.get(path, headers=headers)

        await asyncio.gather(*(one(index, path) for index, path in enumerate(paths.values()) if path))
        await _connection(port, NEXT, pipelined=False)
        await _connection(port, PIPELINED, pipelined=True)
        expected = {*paths, NEXT, PIPELINED}
        async with asyncio.timeout(30):
            while not expected <= set((await client.get("/called")).json()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    return paths


async def _connection(port: int, place: str, *, pipelined: bool) -> None:
    """Alice, and behind her on the same connection nobody."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    alices = f"GET /any HTTP/1.1\r\nhost: x\r\nx-user: alice\r\nx-place: {FIRST}: {place}\r\n\r\n".encode()
    nobodys = f"GET /any HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-place: {place}\r\n\r\n".encode()
    writer.write(alices + nobodys if pipelined else alices)
    answer = b""
    while b"made" not in answer:
        data = await reader.read(65536)
        assert data, answer
        answer += data
    if not pipelined:
        writer.write(nobodys)
    answer += await reader.read(-1)
    assert answer.count(b"200 ") == 2, answer
    writer.close()
