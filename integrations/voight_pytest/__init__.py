"""
The pytest plugin: the fixtures ``voight_calls`` and ``voight_provider``.

pytest loads it in every environment that has the library. So it is a separate package, which
imports the library only for tests that use a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from voight_middleware.testing.plugin import VoightCalls
    from voight_middleware.testing.provider import LoopbackProvider

__all__ = ["voight_calls", "voight_provider"]


@pytest.fixture
def voight_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VoightCalls]:
    """Collect the calls of this test, separate from other tests and from the real ledger."""
    from voight_middleware.testing.plugin import calls_of_a_test

    with calls_of_a_test(tmp_path, monkeypatch) as calls:
        yield calls


@pytest.fixture(scope="session")
def voight_provider() -> Iterator[LoopbackProvider]:
    """Start a loopback provider that serves the openai and anthropic SDKs."""
    from voight_middleware.testing.provider import LoopbackProvider

    with LoopbackProvider() as provider:
        yield provider
