"""Fixtures of the provider tests: the calls that a test made, and a provider that answers from memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from voight_middleware.meter import swap_meter
from voight_middleware.providers import gate, sdk

from ..support.calls import Calls
from ..support.memory_provider import Provider


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    """Collects the calls of a test; afterwards nothing is metered any more, and nothing of ours has failed that was not made to."""
    taken = Calls(tmp_path)
    outer = swap_meter(taken.meter)
    yield taken
    gate.uninstrument()
    sdk._refusing_usage.clear()
    swap_meter(outer)
    taken.meter.close()
    assert taken.faults == 0 or taken.faults_expected, "something of ours failed inside"


@pytest.fixture
def provider() -> Provider:
    """A provider that answers from memory."""
    return Provider()
