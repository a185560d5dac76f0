"""The observers of a meter: they see its calls start and end, for example to make spans."""

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
    Sees calls as they run.

    The methods run on the application's threads, so they must not block. Exceptions are counted
    (``observer_errors``) and never passed on. A listener with these three methods is an observer
    too.
    """

    def on_call_start(self, start: CallStart) -> object:
        """
        Observe that a call starts. Return a token of your own, or None.

        This runs on the caller's thread and in the caller's context, before the request is sent.
        """
        ...

    def on_call_response(self, token: Any) -> None:
        """
        Observe that the request got a response or failed.

        This runs in the context of ``on_call_start``. A stream has not been read yet.
        """
        ...

    def on_call_end(self, token: Any, call: Call) -> None:
        """
        Observe that a call ended: for a stream, with its last byte.

        This runs on any thread, perhaps in a finalizer, before the call is priced. *token* is None
        for a call that did not start here: a call of ``record()``, or the result of a batch.
        """
        ...


Observed = tuple[tuple[CallObserver, Any], ...]
"""The observers of one call, with their tokens."""


class CallObservers:
    """
    The observers of one meter. No method raises.

    Args:
        present: The observers, in the order in which they see a call start.
    """

    __slots__ = ("present",)

    def __init__(self, present: Iterable[CallObserver]) -> None:
        self.present: tuple[CallObserver, ...] = tuple(present)

    def start(self, start: CallStart) -> Observed:
        """Show the start of a call to all observers."""
        observed: list[tuple[CallObserver, Any]] = []
        for observer in self.present:
            token = None
            try:
                token = observer.on_call_start(start)
            except Exception as error:
                _report(error)
            observed.append((observer, token))
        return tuple(observed)

    def respond(self, observed: Observed) -> None:
        """Report the response, or the failure of the request, to those that saw the call start."""
        for observer, token in reversed(observed):
            try:
                if token is not None:
                    observer.on_call_response(token)
            except Exception as error:
                _report(error)

    def end(self, observed: Observed | None, call: Call) -> None:
        """
        Show the end of a call to those that saw it start.

        If *observed* is None, nobody saw the start, and all observers see the end.
        """
        for observer, token in (
            [(observer, None) for observer in self.present] if observed is None else observed
        ):
            try:
                observer.on_call_end(token, call)
            except Exception as error:
                _report(error)


def _report(error: Exception) -> None:
    counters["observer_errors"] += 1
    warn_once(f"a call observer raised {type(error).__name__}; the call continues and is metered")


class CallStart(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a call that are known when it starts."""

    provider: str
    endpoint: str
    requested_model: str | None
    host: str | None
    streamed: bool
    started_at: int
    """Nanoseconds since 1970, UTC."""
    owner: Owner
    """As known so far. It may contain personal data: ``Meter.pseudonymized`` removes it."""
    context: TagContext
    """Finds the owner if it becomes known later."""
    client: Any = None
    """The SDK client that makes the call, if there is one."""
    options: Any = None
    """The SDK's request options. They contain the prompt: keep nothing of them."""
