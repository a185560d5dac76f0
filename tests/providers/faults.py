"""Faults of ours: anything inside the library fails, by its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ..support.patching import Patch


class Fault(Exception):
    """Something of ours that fails."""


@contextmanager
def failing(hook: str) -> Iterator[list[str]]:
    """
    Let a function, class or method of ours raise ``Fault`` at every call; gives the list of its calls.

    Args:
        hook: ``Entry.answered``, or ``entry:Call`` for the name as one module has it.
    """
    within, _, name = hook.rpartition(":")
    happened: list[str] = []

    def fail(*args: object, **kwargs: object) -> Any:
        happened.append(hook)
        raise Fault(hook)

    with pytest.MonkeyPatch.context() as monkeypatch:
        Patch(monkeypatch)(name, fail, within=within)
        yield happened
