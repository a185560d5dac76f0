"""Starlette: where code can run that a request has caused, and whose calls are made there."""

from __future__ import annotations

from typing import Any

import pytest

from .asgi import SERVERS, check_asgi_column


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
def test_owner_in_each_place_of_a_starlette_application(server: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says, under every server."""
    check_asgi_column("Starlette", server, "places_starlette:app", workers, voight_provider)
