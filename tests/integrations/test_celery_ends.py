"""voight_celery: what a worker has spent is in the ledger when it has ended."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.journal import segments

from .queue_worker import celery_worker


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["one process", "solo"])
def test_no_call_is_lost_when_a_worker_ends(pool: str, redis_url: str, workers: Any, voight_provider: Any) -> None:
    """
    The calls of processes that are recycled, and of a worker that is shut down right behind them, are in the ledger, each once.

    Nothing in the journal waits for somebody to look.
    """
    own = celery_worker(pool, redis_url, workers, voight_provider)
    own.send(
        """
        import voight_middleware as voight
        from celery_app import *

        with voight.tag(user_id="u"):
            results = [work.delay(str(number)) for number in range(5)]
        for result in results:
            result.get(timeout=60)
        """
    )
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(30) == 0
    assert [segment.size() for segment in segments(workers.journal) if segment.size()] == []
    ledger = open_ledger(workers.ledger)
    kept = sorted((call.tags.extra["place"], call.tags.user_id, call.attribution) for call in ledger.calls())
    ledger.close()
    assert kept == [(str(number), "u", "tag") for number in range(5)]
