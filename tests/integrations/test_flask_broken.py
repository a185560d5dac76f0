"""voight_flask: applications that break look as they did without us, under every worker of gunicorn."""

from __future__ import annotations

import collections
import contextlib
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.records.call import Call

from ..support.servers.ports import free_port


def exchange(port: int, path: str, user: str, enough: int | None = None) -> bytes:
    """The bytes of an answer until the server closes, or until there are *enough*, when the client leaves."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: x\r\nx-user: {user}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while (enough is None or len(answer) < enough) and (data := connection.recv(65536)):
                answer += data
    return re.sub(rb"Date: .*\r\n", b"", answer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_a_broken_application_behaves_as_without_us(kind: str, tmp_path: Path, make_workers: Any, voight_provider: Any) -> None:
    """
    Views and streams that raise, exit or hang until gunicorn kills the worker, and clients that leave, look as they did without us; each
    call keeps its owner, and whoever comes next is nobody.
    """
    ending = ["hangs", "stream_hangs", "exits"] if kind == "sync" else []  # the others have no timeout for a request

    preload = " --preload" if ending else ""  # each new worker has imported the application then

    def visit(app: str) -> tuple[dict[str, bytes], list[Call]]:
        """What the visitors of one application have got, and the calls that were made."""
        (tmp_path / app).mkdir()
        workers, port = make_workers(tmp_path / app), free_port()
        command = f"gunicorn broken_flask:app -b 127.0.0.1:{port} -k {kind} -t 2 --log-level critical{preload}"
        workers.start(*command.split(), PROVIDER_OPENAI=voight_provider.openai_base_url, APP=app)
        workers.wait_until(lambda: answers(port))
        answered = {}
        for page in ("raises", "stream_raises", "endless", *ending):
            answered[page] = exchange(port, page, page, 100_000 if page == "endless" else None)[: 200 if page == "endless" else None]
            if page == "endless":
                workers.wait_until(lambda: exchange(port, "closed", "").endswith(b"closed"))
            if page in ending:
                workers.wait_until(lambda: answers(port))
            answered[f"after {page}"] = exchange(port, "anybody", "")
        answered["a broken getter"] = exchange(port, "anybody", "broken")
        return answered, workers.calls()

    with ThreadPoolExecutor(2) as pool:
        (bare, _), (ours, calls) = pool.map(visit, ("bare", "ours"))
    assert ours == bare
    expected = {"raises": 1, "stream_raises": 1, "endless": 2, **dict.fromkeys(ending, 1)}
    owned = [call for call in calls if call.tags.user_id is not None]
    assert collections.Counter(call.tags.user_id for call in owned) == expected
    assert {call.tags.route for call in owned if call.tags.user_id == "endless"} == {"GET /endless"}
    assert collections.Counter(call.attribution for call in calls if call.tags.user_id is None) == {"none": len(expected), "error": 1}


def answers(port: int) -> bool:
    try:
        return exchange(port, "closed", "").startswith(b"HTTP/1.1 200")
    except OSError:
        return False
