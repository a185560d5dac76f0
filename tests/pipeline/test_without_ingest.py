"""An application that leaves its journal to a sidecar, or to another worker of its own."""

from collections.abc import Callable
from pathlib import Path

from voight_middleware.pipeline.ingest import drain
from voight_middleware.pipeline.journal import segments
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.pipeline.meter import Meter
from voight_middleware.records.call import Call

from ..support.scripts import Scripts
from .journals import NewCall, finish
from .sidecar import ids_of


def test_an_application_beside_a_sidecar_needs_nothing_of_the_ledger(scripts: Scripts) -> None:
    """No lock, no ledger, no driver and no prices are imported; `flush()` is True as soon as the call is on disk."""
    source = """
    import os, sys
    os.environ |= {"VOIGHT_INGEST": "no", "VOIGHT_LEDGER": "postgresql://u:p@nowhere.invalid/d", "VOIGHT_JOURNAL": sys.argv[1]}
    import voight_middleware as voight
    print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}))
    assert voight.flush(5)
    import time
    time.sleep(1.5)
    needless = ("psycopg", "clickhouse", "sqlite3", "genai_prices", "voight_middleware.ledger", "voight_middleware.pricing")
    assert not [name for name in sys.modules if name.startswith(needless)], sys.modules.keys()
    """
    journal = scripts.folder / "shared"
    call_id = scripts.run(source, str(journal)).strip()
    assert not (journal / "ingest.lock").exists()
    assert drain(f"sqlite:///{scripts.ledger}", journal) == 1
    assert ids_of(scripts) == [call_id]


def test_a_worker_that_is_not_elected_imports_nothing_of_the_ledger(scripts: Scripts) -> None:
    """Another worker holds the lock: this one tries in every round, and has neither prices nor a driver in its memory."""
    source = """
    import os, queue, sys
    os.environ |= {"VOIGHT_LEDGER": sys.argv[1], "VOIGHT_JOURNAL": sys.argv[2]}
    from voight_middleware.pipeline.lock import IngestLock
    acquire, tried = IngestLock.acquire, queue.SimpleQueue()
    IngestLock.acquire = lambda lock: (taken := acquire(lock), tried.put(taken))[0]
    import voight_middleware as voight
    from voight_middleware.pipeline.meter import current_meter
    print(voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}))
    for _ in range(2):
        current_meter()._worker.wake()
        assert tried.get(timeout=30) is False
    needless = ("psycopg", "clickhouse", "sqlite3", "genai_prices", "voight_middleware.ledger", "voight_middleware.pricing")
    print(*(name for name in sys.modules if name.startswith(needless)), flush=True)
    os._exit(0)
    """
    journal = scripts.folder / "shared"
    lock = IngestLock(journal)
    assert lock.acquire()
    call_id, *imported = scripts.run(source, f"sqlite:///{scripts.ledger}", str(journal)).split()
    assert imported == []
    lock.release()
    assert drain(f"sqlite:///{scripts.ledger}", journal) == 1
    assert ids_of(scripts) == [call_id]


def test_its_listeners_hear_all_the_same(make_meter: Callable[..., Meter], new_call: NewCall, folder: Path) -> None:
    """Listeners need no ledger: they hear priced calls, and `flush()` waits for that."""
    heard: list[Call] = []
    meter = make_meter(heard.append, ingest=False)
    call_id = finish(meter, new_call())
    assert meter.flush()
    assert [(call.call_id, call.cost_status) for call in heard] == [(call_id, "priced")]
    assert len(segments(folder)) == 1
    (folder / "x").write_text("")


def test_its_flush_is_false_while_nothing_can_be_written(make_meter: Callable[..., Meter], new_call: NewCall, folder: Path) -> None:
    """What is in memory only is not on disk."""
    folder.write_text("in the way")
    meter = make_meter(ingest=False)
    finish(meter, new_call())
    assert not meter.flush(0.1)
    folder.unlink()
    assert meter.flush()
