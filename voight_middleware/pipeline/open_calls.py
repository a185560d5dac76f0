"""
Open calls: streams and connections that have begun and not ended.

A stream ends when it is exhausted, closed or dropped. One that nobody reads on, held by a cycle, a suspended generator or a global, ends
here: at the end of the process or of the server, and before that as soon as the garbage collector can find it.
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
"""Seconds between two collections for abandoned streams: doubled each time that one finds none."""


class OpenStream(Protocol):
    """A stream that has not ended."""

    @property
    def inside(self) -> bool:
        """Whether somebody waits for its next event."""
        ...

    def drop(self) -> None:
        """Report that nobody will read on."""
        ...

    def discard_after_fork(self) -> None:
        """Never report its end: it is another process's."""
        ...


_streams: set[OpenStream] = set()
_connections: list[Callable[[], None]] = []
_readers: set[threading.Thread] = set()
_idle: set[OpenStream] = set()
_survivors: set[OpenStream] = set()
"""Idle streams that somebody holds, as a collection has left them."""
_pause = FIRST_PAUSE
_next_look = 0.0

begun = _streams.add
"""Note a stream that has begun. Atomic, as is ``ended``: a finalizer may run at any time, in any thread."""
ended = _streams.discard
"""Forget a stream that has ended."""
on_end_all = _connections.append
"""Have a function called by ``end_all``."""


def end_all() -> None:
    """End every open stream and connection, as the process or the server ends. Never raises."""
    for end in tuple(_connections):  # first: who reads a body by hand has seen more of it than its stream
        with contextlib.suppress(Exception):
            end()
    for stream in _streams.copy():
        with contextlib.suppress(Exception):
            stream.drop()


def look_after() -> None:
    """
    Have abandoned streams collected. The background thread calls it in each of its rounds.

    A stream for whose next event nobody waits in two rounds may be abandoned, or its reader may be slow: only the garbage collector knows.
    It is asked seldom, and never without such a stream.
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
    """End the streams that are abandoned by now. It costs nothing unless there is one that the garbage collector has not looked at yet."""
    if any(not stream.inside and stream not in _survivors for stream in _streams.copy()):
        _collect()


def _collect() -> None:
    gc.collect()
    _survivors.clear()
    _survivors.update(stream for stream in _streams.copy() if not stream.inside)


def read_in_thread(read: Callable[[], None], name: str) -> None:
    """Read a large body in a thread of its own, which ``wait_for_readers`` waits for."""

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
    """Wait until large bodies are read, or until *deadline* by ``time.monotonic()``; return whether they are."""
    for thread in tuple(_readers):
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    return all(thread is threading.current_thread() or not thread.is_alive() for thread in tuple(_readers))


def _after_fork() -> None:
    """In a child: open streams are the parent's to count."""
    for stream in _streams.copy():
        stream.discard_after_fork()
    _streams.clear()
    _idle.clear()
    _survivors.clear()
    _readers.clear()


os.register_at_fork(after_in_child=_after_fork)
