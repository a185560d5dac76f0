"""
The rules of the markers ``server`` and ``slow``, which pytest holds the tests to.

A test that starts a process of its own (a server, a worker, a script, a browser) is ``server``: by a fixture that starts one, or by the
marker. A test is ``slow`` if it takes more than two seconds, or if all its cases together take more than an eighth of a second. A test
without a marker fails if it starts a process, or if it is slow by far.
"""

import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

SERVER_FIXTURES = {
    "chdb_path",  # an engine in this process, which takes seconds to stop
    "clickhouse_bridge",
    "clickhouse_server_url",
    "killable_postgres",
    "localstripe",
    "make_workers",
    "postgres_server",
    "redis_server",
    "scripts",
}
"""A test that needs one of these is ``server``."""

MAX_CPU = 10.0
"""Seconds of CPU that a test without ``slow`` may use: five times the rule, as machines differ."""
MAX_WALL = 20.0
"""Seconds that a test without ``slow`` may take on a machine that is not overloaded: ten times the rule."""

_STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty"}
_CORES = os.cpu_count() or 1
_started: list[str] = []
_listening = False
_broken = pytest.StashKey[str]()


_NOT_OURS = ("uname", "fc-list")
"""
Programs that libraries run for themselves. ``platform`` asks ``uname`` for the machine that an SDK names in its headers. matplotlib asks
``fc-list`` for the fonts of a machine on which it was never imported before.
"""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event in _STARTS and not (arguments and arguments[0] in _NOT_OURS):
        _started.append(f"{event} {arguments[0] if arguments else ''}".strip())


sys.addaudithook(_audit)


def mark(items: list[pytest.Item]) -> None:
    """Mark each test that needs a fixture that starts a process."""
    for item in items:
        if not SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def watch_fixtures(item: pytest.Item) -> Iterator[None]:
    """Watch for processes that the fixtures of the test start."""
    global _listening
    _started.clear()
    _listening = True
    try:
        yield
    finally:
        _listening = False
        if _started and not item.get_closest_marker("server"):
            item.stash[_broken] = f"a fixture of the test starts a process ({_started[0]}): mark the test `server`"


def watch(item: pytest.Item) -> Iterator[None]:
    """Watch the test itself, without its fixtures."""
    global _listening
    _started.clear()
    _listening = True
    wall, cpu = time.perf_counter(), _cpu()
    try:
        yield
    finally:
        _listening = False
        wall, cpu = time.perf_counter() - wall, _cpu() - cpu
        marked = {marker.name for marker in item.iter_markers()}
        if _started and "server" not in marked:
            item.stash[_broken] = f"the test starts a process ({_started[0]}): mark it `server`, or do without"
        elif marked.isdisjoint({"slow", "server"}) and (cpu > MAX_CPU or wall > MAX_WALL * max(1.0, os.getloadavg()[0] / _CORES)):
            item.stash[_broken] = f"the test took {wall:.1f} s ({cpu:.1f} s of CPU): mark it `slow`, or make it faster"


def judge(item: pytest.Item, report: pytest.TestReport) -> None:
    """Fail the passed test that breaks a rule."""
    broken = item.stash.get(_broken, None)
    if broken and report.when == "call" and report.passed:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: {broken} (CONTRIBUTING.md, markers)"


def heavy_first(items: list[pytest.Item]) -> None:
    """Order the files by their heavy tests: a long file that is started last would keep one process busy alone."""
    weights: dict[object, int] = {}
    for item in items:
        weights[item.path] = weights.get(item.path, 0) + sum(weight for name, weight in _WEIGHTS.items() if item.get_closest_marker(name))
    items.sort(key=lambda item: -min(weights[item.path], _HEAVY))


_WEIGHTS = {"slow": 3, "server": 1}
_HEAVY = 30
"""More than this is not heavier: it is a sweep of many short cases."""
