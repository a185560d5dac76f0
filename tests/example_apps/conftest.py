"""What all tests of this folder have."""

from collections.abc import Iterator

import pytest

from ..support.authorities import few_authorities


@pytest.fixture(scope="package", autouse=True)
def _few_authorities() -> Iterator[None]:
    """None of the tests here talks over TLS."""
    with few_authorities():
        yield
