"""Where the owner of a call is known in a Django project, under gunicorn (WSGI) and uvicorn (ASGI)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .matrix import check_column
from .web import serve

SERVERS = {
    "gunicorn gthread": "gunicorn places_django:application -b 127.0.0.1:{port} -k gthread --threads 1 --keep-alive 60",
    "uvicorn": "uvicorn places_django:asgi_application --port {port}",
}
PLACES = (
    "handler, sync",
    "handler, async",
    "handler, async, with a synchronous client",
    "middleware, sync",
    "middleware, async",
    "template",
    "streamed response, sync generator",
    "streamed response, async generator",
    "server-sent events",
    "asyncio.create_task",
    "asyncio.gather",
    "anyio task group",
    "loop.call_soon",
    "task that outlives the request",
    "asyncio.to_thread",
    "sync_to_async(fn)",
    "sync_to_async(fn, thread_sensitive=False)",
    "async_to_sync(fn)",
    "asyncio.run in a sync handler",
    "loop.run_in_executor(None, fn)",
    "executor.submit(fn)",
    "Thread(target=fn)",
    "executor.submit(copy_context().run, fn)",
    "executor.submit(carry(fn))",
    "Thread(target=carry(fn))",
    "Thread(target=carry(fn)) that outlives the request",
    "handler of a specific exception",
    "handler of unexpected exceptions (500)",
    "receiver of request_finished",
    "next request on the same thread or connection",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
@pytest.mark.parametrize("server", SERVERS)
def test_owner_in_each_place_of_a_django_project(server: str, workers: Any, voight_provider: Any) -> None:
    """Every place of the project, asked by alice, and one by nobody after her on the same thread and connection."""
    asgi = server == "uvicorn"
    expected = {place for place in PLACES if asgi or place != "task that outlives the request"}
    with httpx.Client(base_url=f"http://127.0.0.1:{serve(workers, voight_provider, SERVERS[server])}", timeout=30) as client:
        for name in ("sync", "async", "stream", "astream", "events", "middleware", "template", "error", "failure", "finished", "thread"):
            assert client.get(f"/{name}", headers={"x-user": "alice"}).status_code == (500 if name == "failure" else 200)
            if name in ("sync", "stream", "finished"):
                client.get("/anonymous")
        if asgi:
            client.get("/outlived", headers={"x-user": "alice"})
        # What outlives its request makes its call 0.3 seconds later.
        workers.wait_until(lambda: expected <= {str(call.model) for call in workers.calls_so_far()})
    owners: dict[str, set[str | None]] = {}
    for call in workers.calls():
        owners.setdefault(str(call.model), set()).add(call.tags.user_id)
    assert owners.keys() == expected
    found = {}
    for place in filter(expected.__contains__, PLACES):
        right = None if place.startswith("next request") else "alice"
        found[place] = "works" if owners[place] == {right} else "lost" if owners[place] == {None} else "wrong"
    check_column("Django", "Django", server, found)
