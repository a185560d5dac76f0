"""Nothing of a call stays behind: benchmarks/leaks.py in small. The whole of it, over 100,000 calls, is run by hand."""

import gc
import runpy
from collections import Counter
from pathlib import Path

import pytest

from voight_middleware.testing.plugin import VoightCalls

from .support.depth import times

CALLS = times(3, 20) * 3 * 14
"""So many rounds in each of three steps, of fourteen ways to make a call."""
ANSWERED = Counter({"voight_middleware.pipeline.worker._FlushRequest": 1})
"""A round that has answered a flush holds what it was asked until it returns: in another thread, a moment later."""
LEAKS = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "leaks.py"))


@pytest.mark.slow
def test_no_stream_client_or_call_is_left_over(voight_calls: VoightCalls) -> None:
    """Plain, streamed, left, dropped, closed, refused and raw calls of clients that stay and of clients that go."""
    steps: list[int] = []
    more = LEAKS["run"](CALLS, 3, lambda calls, size, now: steps.append(now.total()))

    gc.collect()  # the last stream that was left goes with the event loop

    assert not more - ANSWERED
    assert len(voight_calls.all()) == CALLS
    assert len(steps) == 3
