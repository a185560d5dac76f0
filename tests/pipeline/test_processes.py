"""Whole processes: how they end, and what the others do then."""

import signal
from collections import Counter
from typing import Any

import pytest

from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.ingest import drain
from voight_middleware.pipeline.journal import segments
from voight_middleware.pipeline.lock import IngestLock

RECORD = """
import sys, time, voight_middleware as voight
for number in range(int(sys.argv[1])):
    print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}), flush=True)
"""


def ledger_ids(scripts: Any) -> list[str]:
    ledger = open_ledger(f"sqlite:///{scripts.ledger}")
    try:
        return sorted(call.call_id for call in ledger.calls())
    finally:
        ledger.close()


@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "import threading; threading.Thread(target=time.sleep, args=(0.2,)).start()"])
def test_a_script_that_ends_has_its_calls_in_the_ledger(scripts: Any, ending: str) -> None:
    """No `flush()` is needed at the end of a program, and no journal is left behind."""
    ids = scripts.run(RECORD + ending, "50").split()
    assert ledger_ids(scripts) == sorted(ids)
    assert segments(scripts.journal) == []


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL])
def test_a_script_that_is_killed_leaves_its_calls_to_the_next(scripts: Any, blow: signal.Signals) -> None:
    """Neither signal runs an exit handler: whoever drains brings the calls in."""
    process = scripts.start(RECORD + "time.sleep(60)", "50")
    ids = [process.stdout.readline().strip() for _ in range(50)]
    process.send_signal(blow)
    process.wait()
    drain(f"sqlite:///{scripts.ledger}", scripts.journal)
    assert ledger_ids(scripts) == sorted(ids)
    assert segments(scripts.journal) == []


def test_two_processes_elect_one_and_the_other_takes_over(scripts: Any) -> None:
    """The elected one is killed: the survivor brings in what both have written, without a restart."""
    source = """
    import sys, voight_middleware as voight
    for line in sys.stdin:
        if line == "record\\n":
            print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}), flush=True)
        else:
            print(voight.flush(30), flush=True)
    """
    first, second = scripts.start(source), scripts.start(source)

    def ask(process: Any, what: str) -> str:
        process.stdin.write(what + "\n")
        process.stdin.flush()
        return str(process.stdout.readline().strip())

    ids = [ask(first, "record")]
    assert ask(first, "flush") == "True"
    ids += [ask(second, "record"), ask(first, "record")]
    assert ask(second, "flush") == "True"
    assert set(ids[:2]) <= set(ledger_ids(scripts))
    lock = IngestLock(scripts.journal)
    assert not lock.acquire(), "one of them is elected"
    ids.append(ask(first, "record"))
    first.kill()
    first.wait()
    ids.append(ask(second, "record"))
    assert ask(second, "flush") == "True"
    assert ledger_ids(scripts) == sorted(ids)
    assert Counter(segment.name.split("-")[0] for segment in segments(scripts.journal)) == {str(second.pid): 1}


def test_a_call_that_ends_with_the_process_is_kept(scripts: Any) -> None:
    """The first call of a process is one that ends while the interpreter does, when no thread can be started any more."""
    scripts.run(
        """
        import atexit
        import voight_middleware as voight

        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        atexit.register(lambda: voight.record(provider="openai", model="gpt-4o-mini", usage=usage))
        """
    )
    assert len(ledger_ids(scripts)) == 1
