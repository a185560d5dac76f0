"""Many users at once under a real uvicorn with two workers: no wrong owner, no call lost or doubled, also when workers are killed."""

from __future__ import annotations

import asyncio
import collections
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from voight_middleware.call import Call
from voight_middleware.ingest import drain
from voight_middleware.ledger import open_ledger

USERS = [f"user-{number:02d}" for number in range(50)]
CONCURRENT = 100
PLANS = ("free", "pro", "team")


class Server:
    """uvicorn with two workers, as a deployment starts it."""

    def __init__(self, folder: Path, provider: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.ledger = f"sqlite:///{folder}/ledger.db"
        self.journal = folder / "ledger.db.journal"
        environment = {"PROVIDER_OPENAI": provider.openai_base_url, "PROVIDER_ANTHROPIC": provider.anthropic_base_url}
        command = f"{sys.executable} -m uvicorn load_app:app --workers 2 --port {self.port} --log-level critical --timeout-keep-alive 60"
        self.process = subprocess.Popen(
            [*command.split(), "--app-dir", str(Path(__file__).parent / "apps")],
            cwd=folder,
            env={**os.environ, **environment, "VOIGHT_LEDGER": self.ledger},
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[int]:
        """The process ids of the workers that live right now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def wait(self) -> None:
        for _ in range(600):
            try:
                httpx.get(self.url + "/none", timeout=5)
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("uvicorn did not start")

    def calls(self) -> list[Call]:
        """Stop gracefully, bring in what is left, and answer every call of the ledger."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        drain(self.ledger, self.journal)
        ledger = open_ledger(self.ledger, create=False)
        try:
            return list(ledger.calls())
        finally:
            ledger.close()


@pytest.fixture
def server(tmp_path: Path, voight_provider: Any) -> Iterator[Server]:
    server = Server(tmp_path, voight_provider)
    server.wait()
    yield server
    server.process.kill()
    server.process.wait(10)


async def drive(server: Server, numbers: range, ended: dict[str, str]) -> collections.Counter[str]:
    """Send these requests of all users, ``CONCURRENT`` at a time; notes the user of every answer id that arrived whole."""
    failed: collections.Counter[str] = collections.Counter()
    gate = asyncio.Semaphore(CONCURRENT)
    limits = httpx.Limits(max_connections=CONCURRENT, max_keepalive_connections=CONCURRENT)

    async def one(client: httpx.AsyncClient, number: int) -> None:
        user = USERS[number % len(USERS)]
        async with gate:
            try:
                headers = {"x-user": user, "x-plan": PLANS[len(user) % 3], "x-request": str(number)}
                answer = await client.get(f"{server.url}/{number % 4}", headers=headers)
            except httpx.TransportError as error:
                failed[type(error).__name__] += 1
                return
            if answer.status_code == 200:
                identity = answer.text.split(" ")[-1]
                assert identity not in ended, "the provider's answer ids are unique"
                ended[identity] = user

    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        await asyncio.gather(*(one(client, number) for number in numbers))
    return failed


def totals(calls: list[Call]) -> dict[str, list[int]]:
    """Calls, input tokens and output tokens by user."""
    by_user: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for call in calls:
        assert call.usage is not None
        row = by_user[str(call.tags.user_id)]
        for index, count in enumerate((1, call.usage.input_tokens, call.usage.output_tokens)):
            row[index] += count or 0
    return dict(by_user)


def test_concurrent_users(server: Server, voight_provider: Any) -> None:
    """5,000 requests of 50 users, 100 at a time: every call once, with its own user, and the provider's own count of tokens."""
    voight_provider.reset()
    requests = 5_000
    ended: dict[str, str] = {}
    failed = asyncio.run(drive(server, range(requests), ended))
    calls = server.calls()

    assert failed == {}
    assert len(ended) == requests
    assert len(calls) == requests
    assert {call.response_id: call.tags.user_id for call in calls} == ended
    assert {call.outcome for call in calls} == {"ok"}
    assert not any(call.estimated for call in calls)
    counted = {user: [row.completed, row.input_tokens, row.output_tokens] for user, row in voight_provider.counts().by_user.items()}
    assert totals(calls) == counted


def test_killed_workers(server: Server, voight_provider: Any) -> None:
    """Ten workers are killed with SIGKILL under load: every call whose answer had ended is in the ledger, once, with its owner."""
    voight_provider.reset()
    ended: dict[str, str] = {}
    killed: list[int] = []

    async def kill() -> None:
        chance = random.Random(7)
        while len(killed) < 10:
            enough = len(ended) + 100
            while len(ended) < enough or not (workers := server.workers()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            killed.append(chance.choice(workers))
            os.kill(killed[-1], signal.SIGKILL)

    async def both() -> None:
        killing = asyncio.create_task(kill())
        offset = 0
        while not killing.done():
            await drive(server, range(offset, offset + 200), ended)
            offset += 200
        await killing

    asyncio.run(both())
    calls = server.calls()
    kept = collections.Counter(call.response_id for call in calls if call.response_id)

    assert len(set(killed)) == 10
    assert len(ended) >= 1000, "the load went on between the kills"
    assert [identity for identity in ended if identity not in kept] == []
    assert [identity for identity, count in kept.items() if count > 1] == []
    owners = {call.response_id: call.tags.user_id for call in calls}
    assert {identity: owners[identity] for identity in ended} == ended
