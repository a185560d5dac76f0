"""A receiver of its own for each test."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Receiving = runpy.run_path(str(Path(__file__).parents[1] / "apps" / "otlp_spans.py"))["Receiving"]


@pytest.fixture
def receiving(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts receivers."""
    started: list[Any] = []

    def start(**options: Any) -> Receiving:
        started.append(Receiving(tmp_path / str(len(started)), **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()
