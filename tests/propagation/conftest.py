"""Clients of the tests and of the servers that they start."""

import platform
from collections.abc import Iterator

import pytest

from ..support.trust import one_authority


@pytest.fixture(scope="module", autouse=True)
def _cheap_clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Clients are made in 3 ms instead of 60: applications make one for each asynchronous call."""
    platform.uname().processor  # noqa: B018 - the SDKs ask for it, and Python runs `uname` the first time: not in a test
    with one_authority(tmp_path_factory.mktemp("trust")):
        yield
