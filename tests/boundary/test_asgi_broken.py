"""Applications that break, under real servers, with CostTagMiddleware and without: nobody sees a difference."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

import pytest

SERVERS = {
    "uvicorn": "uvicorn broken:{app} --port {port}",
    "hypercorn": "hypercorn broken:{app} --bind 127.0.0.1:{port} --error-logfile - --access-logfile -",
}


def raw(port: int, path: str, until: bytes = b"") -> bytes:
    """Every byte that the server answers, or those up to *until*, after which the client leaves."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while (data := connection.recv(65536)) and not (until and until in answer):
            answer += data
    return re.sub(rb"(?i)\r\ndate: [^\r]*", b"", answer)


def told(log: str) -> list[str]:
    """The errors that the server has logged: their kinds, and the application's own frames in them."""
    wanted = re.findall(r"ERROR|Traceback|broken\.py\", line \d+, in \w+|^[ |]*[\w.]*Error.*|^During handling.*", log, re.MULTILINE)
    return [line for line in wanted if "of the getter" not in line]


def listens(port: int) -> bool:
    """Whether the server has started."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
@pytest.mark.parametrize("server", SERVERS)
def test_nobody_sees_a_difference(server: str, framework: str, workers: Any, voight_provider: Any) -> None:
    """Status, headers, body and log are those of the bare application; a handler whose client leaves is ended in the same way."""
    seen = []
    for variant in ("bare", "ours"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        workers.log.write_text("")
        command = SERVERS[server].format(app=f"{framework}_{variant}", port=port)
        process = workers.start(*command.split(), PROVIDER_OPENAI=voight_provider.openai_base_url)
        workers.wait_until(lambda port=port: listens(port))
        answers = {path: raw(port, path) for path in ("/works", "/raises", "/refuses", "/breaks-off", "/nowhere")}
        assert b"200" in answers["/works"]
        assert b"500" in answers["/raises"]
        assert raw(port, "/goes-on", until=b".").startswith(b"HTTP/1.1 200")
        deadline = time.monotonic() + 20
        while b"closed" not in (left := raw(port, "/left")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        answers["/left"] = left
        process.terminate()
        process.wait(20)
        seen.append((answers, told(workers.log.read_text())))
    assert seen[0] == seen[1]
    assert any("of the application, in its stream" in line for line in seen[1][1])
    calls = workers.calls()
    assert {call.attribution for call in calls} >= {"none", "error"}, "each was metered, and the getter's failure is told"
