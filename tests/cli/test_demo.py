"""`voight demo` gets its options."""

from typing import Any

import pytest

from voight_middleware.cli import demo, main
from voight_middleware.cli.context import Context


def test_demo_is_handed_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """`voight demo` receives its options, and its return value is the exit code."""
    seen: list[Any] = []

    def run(context: Context) -> int:
        seen.append(context.args)
        return 7

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo", "--requests", "12", "--keep"]) == 7
    assert main(["demo", "--real", "--yes"]) == 7
    assert (seen[0].requests, seen[0].keep, seen[0].real, seen[0].yes) == (12, True, False, False)
    assert (seen[1].requests, seen[1].keep, seen[1].real, seen[1].yes) == (200, False, True, True)
