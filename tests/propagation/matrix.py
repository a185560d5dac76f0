"""
Where code can run that a request or a job has caused, and whether the owner is right there.

A column is one framework under one server. The test of a column makes a call in every place, and ``check_column`` holds what came
out against ``tests/propagation/<column>.json``; ``test_documented.py`` holds the table of ``docs/propagation.md`` against all of them.
Run the tests with ``VOIGHT_WRITE_PROPAGATION=1`` to write what came out instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
WRITES = "VOIGHT_WRITE_PROPAGATION" in os.environ

REMEDIES: dict[str, str] = {
    "executor.submit(fn)": "`executor.submit(voight.carry(fn))`, a `CarryingThreadPoolExecutor`, or `instrument_executors()`",
    "Thread(target=fn)": "`Thread(target=voight.carry(fn))`, or `instrument_executors(threads=True)`",
    "Thread(target=copy_current_request_context(fn))": "`Thread(target=copy_current_request_context(voight.carry(fn)))`",
    "loop.run_in_executor(None, fn)": "`asyncio.to_thread(fn)`, `voight.carry(fn)`, or `instrument_executors()`",
    "gevent.spawn(fn)": "`gevent.spawn(voight.carry(fn))`",
    "worker task of the lifespan, fed by a queue": "put the tags, or `voight.carry(fn)`, into the queue",
    "handler of unexpected exceptions (500)": "wrap the whole application: `app = CostTagMiddleware(app)`",
    "receiver of request_finished": "make the call in the request, or in a thread that the request starts with `voight.carry(fn)`",
    "executor.map(fn, items)": "`executor.map(voight.carry(fn), items)`, a `CarryingThreadPoolExecutor`, or `instrument_executors()`",
    "Timer(seconds, fn)": "`Timer(seconds, voight.carry(fn))`, or `instrument_executors(threads=True)`",
    "generator stepped in another thread": "`carry_steps(generator)`, `acarry_steps(generator)`",
    "long-lived thread, fed by a queue": "put `voight.carry(fn)`, or the tags, into the queue",
    "ProcessPoolExecutor.submit(fn)": "send the user along, and `with voight.tag(user_id=...)` in the process",
    "multiprocessing.Process(target=fn)": "send the user along, and `with voight.tag(user_id=...)` in the process",
    "subprocess.run([...])": "send the user along, and `with voight.tag(user_id=...)` in the process",
    "delay() on the event loop, with an asynchronous getter": "`await anyio.to_thread.run_sync(task.delay)`",
}
"""What to do about each place in which the owner can be lost. A place that is lost must be here."""


def check_column(group: str, framework: str, server: str, found: Mapping[str, str]) -> None:
    """
    Hold the places of one column against what is written down.

    Args:
        group: The table that the column stands in: ``ASGI``, ``WSGI``, ``Django``, ``queues`` or ``threads``.
        framework: As its own documentation spells it.
        server: The server, or the kind of worker.
        found: By place, in the order of the table: ``works``, ``lost`` or ``wrong``.
    """
    assert set(found.values()) <= {"works", "lost"}, {place: cell for place, cell in found.items() if cell not in ("works", "lost")}
    without = {place for place, cell in found.items() if cell == "lost"} - REMEDIES.keys()
    assert not without, f"each place that is lost has its remedy: {without}"
    column = {"group": group, "framework": framework, "server": server, "places": dict(found)}
    path = FOLDER / f"{framework}-{server}.json".lower().replace(" ", "-")
    if WRITES:
        path.write_text(json.dumps(column, indent=2, ensure_ascii=False) + "\n")
    assert json.loads(path.read_text()) == column
    assert list(json.loads(path.read_text())["places"]) == list(found), "the order of the rows"


def table() -> str:
    """All columns, as the tables of ``docs/propagation.md``."""
    columns = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    lines: list[str] = []
    for group in ("ASGI", "WSGI", "Django", "queues", "threads"):
        members = [column for column in columns if column["group"] == group]
        if not members:
            continue
        places: list[str] = []
        for column in members:  # each column's order is kept; a place that only one has comes after its predecessor there
            for index, place in enumerate(list(column["places"])):
                if place not in places:
                    before = list(column["places"])[index - 1] if index else None
                    places.insert(places.index(before) + 1 if before else 0, place)
        heads = [f"{column['framework']}, {column['server']}" for column in members]
        lines += [f"### {group[0].upper()}{group[1:]}", "", f"| place | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for place in places:
            cells = [{"works": "yes", "lost": "**lost**", None: ""}[column["places"].get(place)] for column in members]
            lines.append(f"| {place.replace('|', '/')} | {' | '.join(cells)} |")
        lines.append("")
    lost = sorted({place for column in columns for place, cell in column["places"].items() if cell == "lost"}, key=list(REMEDIES).index)
    lines += ["### Where it is lost, and the remedy", "", "| place | remedy |", "|---|---|"]
    lines += [f"| {place} | {REMEDIES[place]} |" for place in lost]
    return "\n".join(lines)
