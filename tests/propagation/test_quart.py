"""Quart: where code can run that a request has caused, and whose calls are made there."""

from __future__ import annotations

from typing import Any

import pytest

from .asgi import check_asgi_column


@pytest.mark.slow
@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_owner_in_each_place_of_a_quart_application(server: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says, under both of its servers."""
    check_asgi_column("Quart", server, "places_quart:app", workers, voight_provider)
