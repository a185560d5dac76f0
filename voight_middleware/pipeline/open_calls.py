"""
Open calls: streams and connections that have started and not ended.

A stream ends when it is exhausted, closed or dropped. An abandoned one may be kept alive by a
cycle, a suspended generator or a global. It ends here: when the garbage collector finds it, or
when the process or the server ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

FIRST_PAUSE, MAX_PAUSE = 5.0, 300.0
"""Seconds between two collections for abandoned streams. Doubled after one that finds none."""


class OpenStream(Protocol):
    """A stream that has not ended."""

    @property
    def inside(self) -> bool:
        """Whether a reader waits for its next event."""
        ...

    def drop(self) -> None:
        """End the stream: nobody will continue to read it."""
        ...

    def discard_after_fork(self) -> None:
        """Never report its end: it belongs to another process."""
        ...


_streams: set[OpenStream] = set()
_connections: list[Callable[[], None]] = []
_readers: set[threading.Thread] = set()
_idle: set[OpenStream] = set()
_survivors: set[OpenStream] = set()
"""Idle streams that survived the last collection: something still refers to them."""
_pause = FIRST_PAUSE
_next_look = 0.0

begun = _streams.add
"""
Register a stream that has started. Atomic, as is ``ended``: a finalizer may run at any time, in
any thread.
"""
ended = _streams.discard
"""Remove a stream that has ended."""
on_end_all = _connections.append
"""Register a function for ``end_all`` to call."""


def end_all() -> None:
    """End every open stream and connection when the process or the server ends. Never raises."""
    # first: a manual reader of a body has seen more of it than its stream
    for end in tuple(_connections):
        with contextlib.suppress(Exception):
            end()
    for stream in _streams.copy():
        with contextlib.suppress(Exception):
            stream.drop()


def look_after() -> None:
    """
    Collect abandoned streams. The worker calls this in each round.

    A stream without a waiting reader in two rounds may be abandoned, or its reader may be slow.
    Only the garbage collector knows. It runs rarely, and never without such a stream.
    """
    global _idle, _pause, _next_look
    _survivors.intersection_update(_streams.copy())
    idle = {stream for stream in _streams.copy() if not stream.inside}
    waiting, _idle = idle & _idle, idle
    now = time.monotonic()
    if not waiting or now < _next_look:
        return
    _pause = FIRST_PAUSE if waiting - _survivors else min(2 * _pause, MAX_PAUSE)
    _next_look = now + _pause
    _collect()


def collect() -> None:
    """
    End the abandoned streams. This is free unless there is an idle stream that no collection has
    seen yet.
    """
    if any(not stream.inside and stream not in _survivors for stream in _streams.copy()):
        _collect()


def _collect() -> None:
    gc.collect()
    _survivors.clear()
    _survivors.update(stream for stream in _streams.copy() if not stream.inside)


def read_in_thread(read: Callable[[], None], name: str) -> None:
    """Read a large body in its own thread. ``wait_for_readers`` waits for that thread."""

    def run() -> None:
        try:
            read()
        finally:
            _readers.discard(thread)

    thread = threading.Thread(target=run, name=name)
    _readers.add(thread)
    try:
        thread.start()
    except RuntimeError:  # too many threads, or the process ends
        _readers.discard(thread)
        read()


def wait_for_readers(deadline: float) -> bool:
    """
    Wait until large bodies are read, or until *deadline* by ``time.monotonic()``. Return whether
    they are.
    """
    for thread in tuple(_readers):
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    return all(
        thread is threading.current_thread() or not thread.is_alive() for thread in tuple(_readers)
    )


def _after_fork() -> None:
    """Forget open streams in a forked child: the parent counts them."""
    for stream in _streams.copy():
        stream.discard_after_fork()
    _streams.clear()
    _idle.clear()
    _survivors.clear()
    _readers.clear()


os.register_at_fork(after_in_child=_after_fork)
