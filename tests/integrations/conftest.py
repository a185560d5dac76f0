"""What the tests of the integrations have in common."""

import gc
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import voight_middleware as voight

# Python 3.13 complains of connections that nobody has closed: Django leaves those of threads that have ended to the garbage collector.
_LEFT_BY_DJANGO = "ignore:Exception ignored in. <sqlite3.Connection:pytest.PytestUnraisableExceptionWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith("test_django"):
            item.add_marker(pytest.mark.filterwarnings(_LEFT_BY_DJANGO))


@pytest.fixture(scope="module", autouse=True)
def _collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a module of Django's tests leaves is collected before the next one begins."""
    yield
    if request.path.name.startswith("test_django"):
        gc.collect()


QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@pytest.fixture
def ask(voight_provider: Any) -> Iterator[Callable[[], str]]:
    """Makes a call; answers what the model has said."""
    import openai

    with openai.OpenAI(api_key="k", base_url=voight_provider.openai_base_url) as client:
        voight.wrap(client)
        yield lambda: str(client.chat.completions.create(**QUESTION).choices[0].message.content)


@pytest.fixture
def aask(voight_provider: Any) -> Callable[[], Awaitable[str]]:
    """As ``ask``, asynchronously and with a client of its own each time."""
    import openai

    async def call() -> str:
        async with openai.AsyncOpenAI(api_key="k", base_url=voight_provider.openai_base_url) as client:
            return str((await voight.wrap(client).chat.completions.create(**QUESTION)).choices[0].message.content)

    return call


class RunFlask:
    """Serves WSGI applications as ``flask run`` does, with a thread for each request."""

    def __init__(self) -> None:
        self._servers: list[tuple[Any, threading.Thread]] = []

    def __call__(self, app: Any) -> str:
        """Start *app*; answers its URL."""
        from werkzeug.serving import make_server

        server: Any = make_server("127.0.0.1", 0, app, threaded=True)
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self._servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    def stop(self) -> None:
        """Wait until every request has been closed."""
        while self._servers:
            server, thread = self._servers.pop()
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def run(ask: Any) -> Iterator[RunFlask]:
    """Serves WSGI applications until the test ends."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    running = RunFlask()
    yield running
    running.stop()
