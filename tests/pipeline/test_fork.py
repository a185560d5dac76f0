"""Forks: parent and child each meter for themselves, and neither harms the other."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.ingest import drain
from voight_middleware.pipeline.journal import segments
from voight_middleware.pipeline.lock import IngestLock

from ..support.depth import times

PRELUDE = """
import os, random, sys, threading, time
import voight_middleware as voight

def spend(count=1):
    ids = [voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}) for _ in range(count)]
    os.write(1, "".join(f"{call_id}\\n" for call_id in ids).encode())  # one write: the lines of two processes do not mix

def say(what):
    os.write(1, f"{what}\\n".encode())

def wait_for(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"
"""


def ledger_ids(scripts: Any) -> list[str]:
    drain(f"sqlite:///{scripts.ledger}", scripts.journal)
    ledger = open_ledger(f"sqlite:///{scripts.ledger}")
    try:
        return sorted(call.call_id for call in ledger.calls())
    finally:
        ledger.close()


def run(scripts: Any, source: str, calls: int) -> list[str]:
    """Run a script; its calls are all in the ledger, each once, and no journal is left. Answers what else it said."""
    words = scripts.run(PRELUDE + source).split()
    ids, said = [word for word in words if len(word) == 32], [word for word in words if len(word) != 32]
    assert len(set(ids)) == len(ids) == calls
    assert ledger_ids(scripts) == sorted(ids)
    assert segments(scripts.journal) == []
    return said


@pytest.mark.parametrize("flushed", ["", "assert voight.flush()"], ids=["before the first round", "after the ledger is open"])
@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)", "assert voight.flush(); os._exit(0)"])
def test_parent_and_child_both_meter(scripts: Any, end: str, flushed: str) -> None:
    """After a fork of a running meter both write on, however the child ends; ids differ even where both seed `random` alike."""
    run(
        scripts,
        f"""
spend(10)
{flushed}
child = os.fork()
random.seed(1)
spend(10)
if child == 0:
    {end}
wait_for(child)
spend(10)
assert voight.flush(30)
""",
        calls=40,
    )


def test_a_childs_flush_waits_for_the_parents_ingester(scripts: Any) -> None:
    """While the parent is elected, the child's `flush()` is True once the parent has brought its calls in."""
    said = run(
        scripts,
        """
spend()
assert voight.flush()
child = os.fork()
if child == 0:
    spend(5)
    say(voight.flush(30))
    os._exit(0)
wait_for(child)
""",
        calls=6,
    )
    assert said == ["True"]


def test_the_parent_stays_elected_and_keeps_its_segment_when_a_child_ends(scripts: Any) -> None:
    """A child that ends releases neither the lock nor the lock on the segment that the parent is writing."""
    process = scripts.start(
        PRELUDE
        + """
spend()
assert voight.flush()
for end in (sys.exit, os._exit):
    child = os.fork()
    if child == 0:
        end(0)
    wait_for(child)
say("forked")
sys.stdin.readline()
spend()
"""
    )
    ids = [process.stdout.readline().strip()]
    assert process.stdout.readline() == "forked\n"
    lock = IngestLock(scripts.journal)
    assert not lock.acquire()
    (segment,) = segments(scripts.journal)
    with segment.adopt() as dead:
        assert not dead
    ids += process.communicate("\n")[0].split()
    assert process.returncode == 0
    assert ledger_ids(scripts) == sorted(ids)


def test_the_parents_segment_is_free_when_the_parent_is_gone(scripts: Any) -> None:
    """A child that lives on does not hold its dead parent's segment or lock: others can adopt both."""
    process = scripts.start(
        PRELUDE
        + """
spend(3)
assert voight.flush()
child = os.fork()
if child == 0:
    say("child")
    sys.stdin.readline()
    os._exit(0)
spend(3)
os.kill(os.getpid(), 9)
"""
    )
    words = [process.stdout.readline().strip() for _ in range(7)]
    process.wait()
    assert len(ledger_ids(scripts)) == 6
    assert segments(scripts.journal) == []
    lock = IngestLock(scripts.journal)
    assert lock.acquire()
    lock.release()
    process.stdin.write("\n")
    process.stdin.flush()
    assert sorted(word for word in words if word != "child") == ledger_ids(scripts)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_child_inherits_no_open_ledger(scripts: Any) -> None:
    """SQLite takes locks that were inherited for its own: the ledger is closed for the fork, and opened again by whoever needs it."""
    said = run(
        scripts,
        """
def is_open():
    links = [os.readlink(entry) if os.path.lexists(entry) else "" for entry in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))]
    return any(".db" in link and ".journal" not in link for link in links)
spend()
assert voight.flush()
say(f"parent={is_open()}")
child = os.fork()
if child == 0:
    say(f"child={is_open()}")
    os._exit(0)
wait_for(child)
spend()
assert voight.flush()
""",
        calls=2,
    )
    assert said == ["parent=True", "child=False"]


def test_multiprocessing_children_are_metered(scripts: Any) -> None:
    """Children of a fork pool run no exit handler: their journals are adopted."""
    run(
        scripts,
        """
import multiprocessing
spend()
context = multiprocessing.get_context("fork")
children = [context.Process(target=spend, args=(20,)) for _ in range(4)]
for child in children:
    child.start()
for child in children:
    child.join()
    assert child.exitcode == 0
spend()
""",
        calls=82,
    )


def test_grandchildren_are_metered(scripts: Any) -> None:
    """A child forks in its turn."""
    run(
        scripts,
        """
spend()
if os.fork() == 0:
    spend()
    child = os.fork()
    spend()
    if child:
        wait_for(child)
    sys.exit(0)
os.wait()
spend()
""",
        calls=5,
    )


def test_a_fork_during_the_first_import_of_the_price_data_hangs_nobody(scripts: Any) -> None:
    """A module that another thread was importing at the fork could never be imported by the child: the fork waits for it."""
    run(
        scripts,
        """
class Slow:
    begun = threading.Event()
    def find_spec(self, name, path=None, target=None):
        if name in ("genai_prices", "voight_middleware.ledger.sqlite"):
            self.begun.set()
            time.sleep(0.3)
sys.meta_path.insert(0, Slow())
spend()
Slow.begun.wait()
child = os.fork()
spend()
if child == 0:
    threading.Timer(20, os._exit, (1,)).start()
    assert voight.flush(10)
    os._exit(0)
wait_for(child)
""",
        calls=3,
    )


STORM = """
stop = threading.Event()

def work():
    while not stop.is_set():
        spend(10)
        time.sleep(0.01)

def rounds():
    while not stop.is_set():
        voight.flush(0.05)

threads = [threading.Thread(target=target, daemon=True) for target in (work, work, rounds)]
for thread in threads:
    thread.start()
for number in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        spend(5)
        if number % 2:
            os._exit(0)
        sys.exit(0)
    wait_for(child)
stop.set()
for thread in threads:
    thread.join()
"""


def test_a_fork_in_the_middle_of_appends_and_rounds_harms_nobody(scripts: Any) -> None:
    """Children are forked while four threads record and the ingester inserts: nothing hangs, no call is lost, the file is whole."""
    forks = times(8, 40)
    file = scripts.ledger.parents[2] / "voight.toml"
    file.write_text('tz = "Europe/Berlin"\n')  # the first call reads it, and imports what reads it
    words = scripts.run(f"import os; os.environ['VOIGHT_CONFIG'] = {str(file)!r}" + PRELUDE + STORM, str(forks)).split()
    assert len(set(words)) == len(words) > 5 * forks
    assert ledger_ids(scripts) == sorted(words)
    database = sqlite3.connect(scripts.ledger)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


def test_a_listener_hears_the_calls_of_its_own_process(scripts: Any) -> None:
    """A child's listener is not handed what the parent had finished before the fork, nor the other way round."""
    said = run(
        scripts,
        """
heard = []
voight.configure(listeners=[lambda call: heard.append(call.call_id)])
spend(3)
child = os.fork()
spend(2 if child else 4)
if child == 0:
    voight.flush(30)
    say(f"child={len(heard)}")
    os._exit(0)
wait_for(child)
assert voight.flush(30)
say(f"parent={len(heard)}")
""",
        calls=9,
    )
    assert sorted(said) == ["child=4", "parent=5"]


def test_a_child_of_a_meter_that_waits_for_the_disk_takes_nothing_twice(scripts: Any) -> None:
    """Records that wait in the parent's memory are the parent's: the child does not write them as well."""
    run(
        scripts,
        """
import pathlib
folder = pathlib.Path(os.environ["VOIGHT_LEDGER"] + ".journal")
folder.parent.mkdir()
folder.write_text("in the way")
spend(3)
child = os.fork()
if child == 0:
    spend(2)
    sys.stdin.readline()
    assert voight.flush(30)
    os._exit(0)
folder.unlink()
assert voight.flush(30)
wait_for(child)
""",
        calls=5,
    )
