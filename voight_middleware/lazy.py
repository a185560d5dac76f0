"""
Lazy: imports and regular expressions that wait for their first use.

A child that is forked during an import in another thread can never import that module: its import
lock stays taken. So a late import holds a lock, and a fork waits for it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging as _  # noqa: F401  its fork handlers must not be new while a fork waits for us
import os
import re
import threading
from collections.abc import Callable, Generator
from typing import Any, cast

__all__ = ("FORK_SECONDS", "at_exit", "at_fork", "late_imports", "lazy_pattern")

FORK_SECONDS = 5.0
"""How long a fork may wait for the end of imports, in seconds."""

_importing = threading.RLock()


@contextlib.contextmanager
def late_imports() -> Generator[None]:
    """Let no fork happen during the block, which imports."""
    lock = _importing
    # with a timeout: code that an import runs may wait for another thread's import
    held = lock.acquire(timeout=FORK_SECONDS)
    try:
        yield
    finally:
        if held:
            lock.release()


_at_exit: list[Callable[[], None]] = []


def at_exit(function: Callable[[], None]) -> None:
    """
    Call *function* when the process ends, even if its module is imported while it does.

    Its place among the exit handlers is that of importing the package: those of an application that
    were registered later run before.
    """
    _at_exit.append(function)


@atexit.register
def _run_at_exit() -> None:
    while _at_exit:
        _at_exit.pop()()


_PATTERN_METHODS = ("search", "match", "fullmatch", "split", "findall", "finditer", "sub")


def lazy_pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    """
    Return ``re.compile(text, flags)``, which is compiled when one of its methods is first used.

    Most processes use few patterns, and compiling all of them would take a third of our start.
    """
    return cast("re.Pattern[str]", _Pattern(text, flags))


class _Pattern:
    def __init__(self, text: str, flags: int) -> None:
        self._text = text
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        compiled = re.compile(self._text, self._flags)
        # from now on, the methods are found in the object itself
        self.__dict__.update({method: getattr(compiled, method) for method in _PATTERN_METHODS})
        return getattr(compiled, name)


_held_by_fork: list[threading.RLock] = []


_at_fork: list[tuple[Callable[[], None], Callable[[], None]]] = []


def at_fork(before: Callable[[], None], after_in_parent: Callable[[], None]) -> None:
    """
    Call *before* before each fork, and *after_in_parent* after it.

    Python calls only what was registered when the fork began. If an import that registers something
    ends while the fork waits for it, this is called too.
    """
    _at_fork.append((before, after_in_parent))


def _before_fork() -> None:
    called = 0
    while True:
        for before, _after in _at_fork[called:]:
            called += 1
            before()
        held = _importing.acquire(timeout=FORK_SECONDS)
        if called == len(_at_fork):
            break
        if held:  # a round that a function waits for may have to import
            _importing.release()
    if held:
        _held_by_fork.append(_importing)


def _after_fork_in_parent() -> None:
    while _held_by_fork:
        _held_by_fork.pop().release()
    for _before, after in reversed(_at_fork):
        after()


def _after_fork() -> None:
    global _importing
    _held_by_fork.clear()
    _importing = threading.RLock()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork
)
