"""Threads, executors, generators and processes: where the owner is right by itself, by `instrument_executors()`, and where it is lost."""

from typing import Any

import pytest

from .matrix import check_column

NOBODYS = ("next work on the same thread", "next work on the same executor")


@pytest.mark.parametrize(
    ("carry", "column"),
    [("as it is", "as it is"), ("executors", "executors instrumented"), ("threads too", "executors and threads instrumented")],
    ids=["as it is", "executors", "threads too"],
)
def test_owner_in_each_place_of_a_process(carry: str, column: str, workers: Any) -> None:
    """Each place of one process and its children, for a user who is signed in."""
    workers.run("import runpy; runpy.run_module('threads_app', run_name='__main__', alter_sys=True)", CARRY=carry, VOIGHT_INGEST="0")
    owners = {call.tags.extra["place"]: call.tags.user_id for call in workers.calls()}
    assert owners.pop("first work on a thread") == (None if carry == "as it is" else "alice")
    found = {}
    for place, owner in owners.items():
        expected = None if place in NOBODYS else "alice"
        found[place] = "works" if owner == expected else "lost" if owner is None else "wrong"
    check_column("threads", "Python", column, found)
