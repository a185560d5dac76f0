"""The watchers of a meter, which see its calls as they run: spans are begun and ended so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import msgspec

from voight_middleware.context.context import TagContext
from voight_middleware.diagnostics import counters, warn_once
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Owner


@runtime_checkable
class CallObserver(Protocol):
    """
    Sees calls as they run, on the threads of the application: nothing in it may wait. What it raises is counted
    (``observer_errors``), and never passed on. A listener that has these three methods watches too.
    """

    def on_call_start(self, start: CallStart) -> object:
        """A call begins: on its caller's thread and in his context, before the request is sent. The answer is a token of your own."""
        ...

    def on_call_response(self, token: Any) -> None:
        """The request has been answered or has failed: in the context of ``begin``. A stream has not been read by now."""
        ...

    def on_call_end(self, token: Any, call: Call) -> None:
        """
        A call has ended, with the last byte of a stream: on any thread, perhaps in a finalizer, before the call is priced.

        *token* is None for a call that had no start here: one that ``record()`` tells of, the answer to a batch.
        """
        ...


Observed = tuple[tuple[CallObserver, Any], ...]
"""The watchers of one call, with their tokens."""


class CallObservers:
    """
    Those of one meter. No method raises.

    Args:
        present: In the order in which they see a call begin.
    """

    __slots__ = ("present",)

    def __init__(self, present: Iterable[CallObserver]) -> None:
        self.present: tuple[CallObserver, ...] = tuple(present)

    def start(self, start: CallStart) -> Observed:
        """Show them a call that begins."""
        observed: list[tuple[CallObserver, Any]] = []
        for watcher in self.present:
            token = None
            try:
                token = watcher.on_call_start(start)
            except Exception as error:
                _report(error)
            observed.append((watcher, token))
        return tuple(observed)

    def respond(self, observed: Observed) -> None:
        """Tell those who saw it begin that the request was answered or has failed."""
        for watcher, token in reversed(observed):
            try:
                if token is not None:
                    watcher.on_call_response(token)
            except Exception as error:
                _report(error)

    def end(self, observed: Observed | None, call: Call) -> None:
        """Show a call that has ended to those who saw it begin, or all of them one that nobody saw begin (None)."""
        for watcher, token in [(watcher, None) for watcher in self.present] if observed is None else observed:
            try:
                watcher.on_call_end(token, call)
            except Exception as error:
                _report(error)


def _report(error: Exception) -> None:
    counters["observer_errors"] += 1
    warn_once(f"a call observer raised {type(error).__name__}; the call goes on, and is metered all the same")


class CallStart(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a call when it begins: what a watcher is shown."""

    provider: str
    endpoint: str
    requested_model: str | None
    host: str | None
    streamed: bool
    started_at: int
    """Nanoseconds since 1970, UTC."""
    owner: Owner
    """As it is known by now, and before personal data was taken out of it: ``Meter.guarded`` does that."""
    context: TagContext
    """Knows the owner when it is known later."""
    client: Any = None
    """The SDK's client that makes the call, where one does."""
    options: Any = None
    """The SDK's options of the request. It holds the prompt: nothing of it may be kept."""
