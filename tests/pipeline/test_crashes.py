"""`kill -9` of the ingester and of the ledger's server in the middle of batches: no call is lost, none is there twice, sums are exact."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import pytest

from voight_middleware.ledger import LedgerError, open_ledger
from voight_middleware.pipeline.journal import Journal, segments
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call, LateAttribution
from voight_middleware.records.tags import Tags

from ..support.depth import times
from ..support.servers.clickhouse import connect
from ..support.servers.ledgers import empty_ledger

KILLS = times(2, 20)
CALLS = times(2_000, 8_000)
HOSTS = 2
INGESTERS = """
import os, sys
from pathlib import Path
from voight_middleware.pipeline.ingest import drain
from voight_middleware.pricing import PriceBook

PriceBook()  # once, and not in each of the many that are killed
for line in sys.stdin:
    url, *folders = line.split()
    children = []
    for folder in folders:
        if not (child := os.fork()):
            try:
                drain(url, Path(folder))
            finally:
                os._exit(0)
        children.append(child)
    print(*children, flush=True)
    print(sum(os.WIFSIGNALED(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""
NewCall = Callable[..., Call]
pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(400)]


class Server(Protocol):
    """What can be killed and started again on what the crash has left."""

    def start(self) -> None: ...

    def kill(self) -> None: ...


class Place:
    """A ledger on a server, and hosts with a journal each."""

    def __init__(self, url: str, server: Server, folder: Path, new_call: NewCall) -> None:
        self._new_call = new_call
        self._book = PriceBook()
        self.calls = 0
        self.url = url
        self.server = server
        self.journals = [folder / f"host{number}" for number in range(HOSTS)]
        self.users: dict[str, tuple[int, int]] = {}
        self._forks: Any = subprocess.Popen(
            [sys.executable, "-c", INGESTERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def close(self) -> None:
        """End the process that starts ingesters."""
        self._forks.communicate()

    def write(self) -> None:
        """Fill the journals: calls of forty users, of exactly known costs, each fifth settled late."""
        self.calls += CALLS
        for number, folder in enumerate(self.journals):
            journal = Journal(folder)
            for index in range(CALLS // HOSTS):
                user = f"u_{index % 40}"
                late = index % 5 == 0
                tags = Tags(plan="pro") if late else Tags(user_id=user, plan="pro")
                usage = f'{{"prompt_tokens":{index + 1},"completion_tokens":{number + 1}}}'
                call = self._new_call(raw_usage=usage, tags=tags, attribution="none" if late else "tag")
                journal.append(call)
                if late:
                    journal.append(LateAttribution(call_ids=(call.call_id,), tags=Tags(user_id=user)))
                price_call(call, self._book)
                assert call.cost_femto is not None
                calls, cost = self.users.get(user, (0, 0))
                self.users[user] = (calls + 1, cost + call.cost_femto)
                if index % 500 == 499:
                    journal.rotate()
            journal.rotate()

    def ingest(self) -> list[int]:
        """Begin to ingest each host's journal, in processes of their own; answers their ids."""
        self._forks.stdin.write(" ".join([self.url, *map(str, self.journals)]) + "\n")
        self._forks.stdin.flush()
        return [int(pid) for pid in self._forks.stdout.readline().split()]

    def wait(self) -> int:
        """Wait until all of them have ended; answers how many were killed."""
        return int(self._forks.stdout.readline())

    def kept(self) -> int | None:
        """How many calls are in the ledger; None where it does not answer."""
        try:
            with closing(open_ledger(self.url, create=False)) as ledger:
                return ledger.spend()[0].calls
        except LedgerError:
            return None

    def finish(self) -> None:
        """Bring in what is left, with nobody interfering."""
        deadline = time.monotonic() + 180
        while any(segments(folder) for folder in self.journals):
            assert time.monotonic() < deadline
            self.ingest()
            self.wait()

    def check(self) -> None:
        """Every call is there once, with its owner and its cost."""
        with closing(open_ledger(self.url, create=False)) as ledger:
            (total,) = ledger.spend()
            assert (total.calls, total.unpriced_calls) == (self.calls, 0)
            rows = {row.dimensions["user_id"]: (row.calls, row.cost_femto) for row in ledger.spend(["user_id"])}
            assert rows == self.users
            by_call = [call.cost_femto or 0 for call in ledger.calls()]
            assert (len(by_call), sum(by_call)) == (self.calls, sum(cost for _, cost in self.users.values()))
            assert all(ledger.progress(segment.name) == 0 for folder in self.journals for segment in segments(folder))
        # What the server's own sum says, in decimals of a dollar, is the sum of what each call costs.
        assert self.money() == Decimal(sum(cost for _, cost in self.users.values())).scaleb(-15)

    def money(self) -> Decimal:
        """The sum that the server itself answers."""
        if self.url.startswith("postgres"):
            import psycopg

            with psycopg.connect(self.url) as db:
                row = db.execute("SELECT sum(cost) FROM voight.calls").fetchone()
        else:
            with closing(connect(self.url)) as client:
                (row,) = client.query("SELECT sum(cost) FROM calls FINAL").result_rows
        assert row is not None
        return Decimal(row[0])


@pytest.fixture(params=["postgres", "clickhouse"])
def place(request: pytest.FixtureRequest, tmp_path: Path, new_call: NewCall) -> Any:
    """A server of its own sort, with an empty ledger and full journals."""
    server = request.getfixturevalue("postgres_server" if request.param == "postgres" else "clickhouse_bridge")
    made = Place(empty_ledger(request, request.param, tmp_path), server, tmp_path, new_call)
    made.write()
    yield made
    made.close()


def under_way(place: Place, chance: random.Random) -> list[int]:
    """Begin to ingest; answers the processes at a moment that chance chooses after the first batch."""
    before = place.kept() or 0
    if before == place.calls:
        place.write()
    running = place.ingest()
    deadline = time.monotonic() + 10
    with closing(open_ledger(place.url, create=False)) as ledger:
        while ledger.spend()[0].calls == before and time.monotonic() < deadline:
            time.sleep(0.01)
    time.sleep(chance.random() * 0.05)
    return running


def test_ingesters_are_killed(place: Place) -> None:
    """Several times, in the middle of their batches."""
    chance = random.Random(7)
    killed = 0
    while killed < KILLS:
        for process in under_way(place, chance):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        killed += place.wait()
    place.finish()
    place.check()


def test_the_server_is_killed(place: Place) -> None:
    """Several times, in the middle of what two ingesters write; it comes back on what the crash has left."""
    chance = random.Random(8)
    for _ in range(KILLS):
        under_way(place, chance)
        place.server.kill()
        place.wait()
        place.server.start()
    place.finish()
    place.check()
