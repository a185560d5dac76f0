"""What the tests of Django have in common, and the clients of all."""

import gc
import platform
from collections.abc import Iterator

import pytest

from ..support.trust import one_authority

# Python 3.13 complains of connections that nobody has closed: Django leaves those of threads that have ended to the garbage collector.
_LEFT_BY_DJANGO = "ignore:Exception ignored in. <sqlite3.Connection:pytest.PytestUnraisableExceptionWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith("test_django"):
            item.add_marker(pytest.mark.filterwarnings(_LEFT_BY_DJANGO))


@pytest.fixture(scope="module", autouse=True)
def _cheap_clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Clients are made in 3 ms instead of 60: many tests make several."""
    platform.uname().processor  # noqa: B018 - the SDKs ask for it, and Python runs `uname` the first time: not in a test
    with one_authority(tmp_path_factory.mktemp("trust")):
        yield


@pytest.fixture(scope="module", autouse=True)
def _collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a module of Django's tests leaves is collected before the next one begins."""
    yield
    if request.path.name.startswith("test_django"):
        gc.collect()
