"""Times of a call: when it began, how long it took, and when the first part of a stream came."""

import time

import pytest

from voight_middleware import wrap

from ..support.calls import Calls
from ..support.memory_provider import Provider
from .entry_points import CHAT

MICROSECOND = 1_000
"""In nanoseconds."""


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_the_times_of_a_call_are_in_microseconds(streamed: bool, provider: Provider, calls: Calls) -> None:
    """They lie within the time that the caller waited, and the first part of a stream comes before its end."""
    client = wrap(provider.client("openai"))
    began, began_at = time.perf_counter_ns(), time.time_ns()
    answer = client.chat.completions.create(**CHAT, stream=streamed)
    if streamed:
        assert list(answer)
    took = (time.perf_counter_ns() - began) // MICROSECOND

    call = calls.one()
    assert call.duration is not None
    assert 0 < call.duration <= took
    assert began_at // MICROSECOND <= call.occurred_at <= time.time_ns() // MICROSECOND
    if streamed:
        assert call.ttft is not None
        assert 0 < call.ttft <= call.duration
    else:
        assert call.ttft is None
