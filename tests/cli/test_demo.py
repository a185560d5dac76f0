"""`voight demo` gets its options."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import voight_middleware.cli
from voight_middleware.cli import main


def test_demo_is_handed_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """`voight demo` hands its options on, and its answer is the exit code."""
    seen: list[Any] = []

    def run(args: Any) -> int:
        seen.append(args)
        return 7

    stub = SimpleNamespace(main=run)
    monkeypatch.setitem(sys.modules, "voight_middleware.cli.demo", stub)
    monkeypatch.setattr(voight_middleware.cli, "demo", stub, raising=False)
    assert main(["demo", "--requests", "12", "--keep"]) == 7
    assert main(["demo", "--real", "--yes"]) == 7
    assert (seen[0].requests, seen[0].keep, seen[0].real, seen[0].yes) == (12, True, False, False)
    assert (seen[1].requests, seen[1].keep, seen[1].real, seen[1].yes) == (200, False, True, True)
