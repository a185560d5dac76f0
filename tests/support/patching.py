"""Names of the library that a test replaces: found by walking the modules, wherever they stand and have been imported to."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest


def library_modules(within: str = "") -> Iterator[ModuleType]:
    """Return the loaded modules of the library and its integrations; *within* is the last part of a module's name, or several."""
    end = f".{within}" if within else ""
    for name in sorted(name for name in sys.modules if name.startswith("voight_")):
        if f".{name}".endswith(end):
            yield sys.modules[name]


class Patch:
    """Replaces names of the library until the test ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, name: str, value: Any, *, within: str = "") -> None:
        """
        Replace *name* in every loaded module that has it: ``SEGMENT_BYTES``, or ``Journal.append`` for a method.

        Raises:
            LookupError: No module has the name, or modules have different things by it: say *within* which.
        """
        first, _, attribute = name.partition(".")
        holders = [module for module in library_modules(within) if first in vars(module)]
        found = {id(vars(module)[first]): vars(module)[first] for module in holders}
        if len(found) != 1:
            names = ", ".join(module.__name__ for module in holders) or "none"
            raise LookupError(f"{len(found)} different things have the name {first}, in these modules: {names}")
        if attribute:
            self._monkeypatch.setattr(next(iter(found.values())), attribute, value)
        else:
            for module in holders:
                self._monkeypatch.setattr(module, first, value)
