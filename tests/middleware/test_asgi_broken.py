"""Applications that break, under real servers, with CostTagMiddleware and without: nobody sees a difference."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ..support.listening import listens
from ..support.servers.ports import free_port
from ..support.waiting import wait_until

pytestmark = [pytest.mark.server, pytest.mark.slow]

SERVERS = {
    "uvicorn": "uvicorn broken:app --port {port}",
    "hypercorn": "hypercorn broken:app --bind 127.0.0.1:{port} --error-logfile - --access-logfile -",
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


class Server(NamedTuple):
    """A server with all applications; *workers* run it."""

    workers: Any
    port: int
    log: Path
    known: set[str]

    def visit(self, name: str) -> tuple[dict[str, bytes], list[str]]:
        """Visit every path of an application; answers what it has answered, and what the server has logged of it."""
        logged = len(self.log.read_text())
        answers = {path: raw(self.port, f"/{name}{path}") for path in ("/works", "/raises", "/refuses", "/breaks-off", "/nowhere")}
        assert b"200" in answers["/works"]
        assert b"500" in answers["/raises"]
        assert raw(self.port, f"/{name}/goes-on", until=b".").startswith(b"HTTP/1.1 200")
        wait_until(lambda: b"closed" in raw(self.port, f"/{name}/left"), every=0.02)
        answers["/left"] = raw(self.port, f"/{name}/left")
        return answers, told(self.log.read_text()[logged:])

    def attributions(self, count: int) -> list[str]:
        """Return those of the newest calls, as soon as there are *count* that this has not returned yet."""
        wait_until(lambda: len(self.workers.calls_so_far()) >= len(self.known) + count, every=0.02)
        new = [call for call in self.workers.calls_so_far() if call.call_id not in self.known]
        self.known.update(call.call_id for call in new)
        return [call.attribution for call in new]


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_workers: Any, voight_provider: Any
) -> Iterator[Server]:
    """Each of the servers in turn."""
    workers = make_workers(tmp_path_factory.mktemp(request.param))
    port = free_port()
    workers.start(*SERVERS[request.param].format(port=port).split(), PROVIDER_OPENAI=voight_provider.openai_base_url)
    workers.wait_until(lambda: listens(port))
    yield Server(workers, port, workers.log, set())
    workers.stop()


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_nobody_sees_a_difference(framework: str, server: Server) -> None:
    """Status, headers, body and log are those of the bare application; a handler whose client leaves is ended in the same way."""
    bare = server.visit(f"{framework}_bare")
    assert server.attributions(4) == ["none"] * 4
    ours = server.visit(f"{framework}_ours")
    assert server.attributions(4) == ["error"] * 4, "each was metered, and the getter's failure is told"
    assert bare == ours
    assert any("of the application, in its stream" in line for line in ours[1])
