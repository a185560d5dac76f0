"""
Request scope: the mutable holder of one request's identity.

It is resolved at the first LLM call. At the end of the request, calls without an owner get one.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from opcode import opmap
from pathlib import Path
from types import CodeType, CoroutineType
from typing import Any

from voight_middleware.context.context import TagContext, overlay
from voight_middleware.diagnostics import counters, report_internal_error, warn_once
from voight_middleware.middleware.getters import Getter, Getters
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.records.tag_values import clean_value
from voight_middleware.records.tags import NO_TAGS, Owner, Tags, make_tags

_resolving: ContextVar[RequestScope | None] = ContextVar("voight_asking", default=None)
"""The scope whose getters are running. An LLM call of a getter must not call them again."""


class RequestScope:
    """
    The identity of one request, as ``context.OwnerSource``.

    The getters are called until they name a user: an authentication middleware or dependency may
    run after ours. Two tasks may call them at the same time. Both get the same result, and nothing
    is locked.
    """

    # The defaults are the class's: a scope is made for every request, and few of them make a call.
    _identity = NO_TAGS
    _route_tags: Tags | None = None
    """The route, once it is known."""
    _explicit = NO_TAGS
    _attribution = "getter"
    _failed = False
    _routed = False
    _resolved = False
    _ended = False
    _closed = False
    pending: list[str] | None = None
    """The calls that were written without an owner."""
    local = False
    """Whether the getters work only in the request's own context, as Flask's do."""

    def __init__(
        self,
        request: Callable[[], Any] | None,
        getters: Getters,
        route: Callable[[], str | None] | None,
        local: bool = False,
    ) -> None:
        self._request = request
        self._getters = getters
        self._route = route
        if local:
            self.local = True

    def make_request(self) -> Any:
        """Return the framework's request, for the getters."""
        assert self._request is not None
        return self._request()

    def read_route(self) -> str | None:
        """Return the route as method and path template; None while it is not known."""
        return self._route() if self._route is not None else None

    def drop_request(self) -> None:
        """Drop the request."""
        self._request = None
        self._route = None

    def release(self) -> None:
        """
        End the request. Its user is kept for a task that outlives it, and nothing else of the
        request.

        If the user was never resolved, such a task may be the first to do so. Then the request is
        kept as long as the task, and dropped after resolving.
        """
        self._ended = True
        if self._resolved or self.local or self._identity.user_id is not None:
            self._close()

    def _close(self) -> None:
        self.find_route()
        self._closed = True
        self.drop_request()

    def known(self) -> Owner:
        """Return the owner as known so far, without calling a getter."""
        self.find_route()
        identity = self._identity
        # Another thread may have set the user meanwhile, in tags without the route.
        if identity.route is None and self._route_tags is not None:
            identity = self._identity = identity.merge(self._route_tags)
        attribution = (
            self._attribution
            if identity.user_id is not None
            else "error"
            if self._failed
            else "none"
        )
        return overlay(Owner(identity, attribution), self._explicit)

    def resolve(self) -> Owner:
        """
        Call the getters from synchronous code.

        A getter that would have to be awaited is called and awaited again when the request ends.
        """
        if self._identity.user_id is None and not self._closed and _resolving.get() is not self:
            self._resolved = True
            token = _resolving.set(self)
            try:
                request = self.make_request()
                self._take_values(
                    {
                        name: self._call_getter(name, getter, request)
                        for name, getter in self._named_getters()
                    }
                )
            except Exception as error:
                if not self._closed:  # else the request has ended meanwhile, in another thread
                    self.fail("user_id", error, "the request")
            finally:
                _resolving.reset(token)
                if self._ended:
                    self._close()
        return self.known()

    async def aresolve(self) -> Owner:
        """Call the getters, awaiting the asynchronous ones."""
        if self._identity.user_id is None and not self._closed and _resolving.get() is not self:
            self._resolved = True
            outer = _resolving.get()
            _resolving.set(self)
            try:
                request = self.make_request()
                self._take_values(
                    {
                        name: await self._acall_getter(name, getter, request)
                        for name, getter in self._named_getters()
                    }
                )
            except Exception as error:
                if not self._closed:  # else the request has ended meanwhile, in another thread
                    self.fail("user_id", error, "the request")
            finally:
                _resolving.set(outer)
                if self._ended:
                    self._close()
        return self.known()

    def set_identity(self, tags: Tags, attribution: str) -> None:
        """Set the user, plan and tenant, instead of the getters."""
        known = self._identity
        if known.user_id is not None and tags.user_id not in (None, known.user_id):
            known = Tags(route=known.route)
        self._identity = known.merge(tags)
        if tags.user_id is not None:
            self._attribution = attribution

    def set_tags(self, tags: Tags) -> None:
        """Merge explicit tags onto the identity, for the rest of the request."""
        self._explicit = self._explicit.merge(tags)

    def defer(self, call_id: str) -> None:
        """Note a call that was written without an owner."""
        if not self._ended:
            if self.pending is None:
                self.pending = []
            self.pending.append(call_id)

    async def attribute_late(self) -> None:
        """End the request. Resolve once more if calls have no owner, and write it. Never raises."""
        try:
            if self.pending is not None:
                self._write(await self.aresolve())
        finally:  # the server may cancel a request whose getter hangs
            self.release()

    def attribute_late_now(self) -> None:
        """As ``attribute_late``, from synchronous code."""
        try:
            if self.pending is not None:
                self._write(self.resolve())
        finally:
            self.release()

    def _write(self, owner: Owner) -> None:
        pending, self.pending = self.pending, None
        if pending and owner.tags.user_id is not None:
            self._attribution = "settled"
            current_meter().attribute_late(pending, Owner(owner.tags, "settled"))

    def find_route(self) -> None:
        """Read the route, until it is known."""
        if self._routed:
            return
        try:
            route = self.read_route()
        except Exception as error:
            self._routed = True
            report_internal_error(error)
            return
        if route is not None:
            self._route_tags = Tags(route=clean_value(route))
            self._routed = True  # only now, as another thread reads no further

    def _named_getters(self) -> list[tuple[str, Getter]]:
        getters = self._getters
        named = (
            ("user_id", getters.user),
            ("plan", getters.plan),
            ("tenant_id", getters.tenant),
            ("tags", getters.tags),
        )
        return [(name, getter) for name, getter in named if getter is not None]

    def _call_getter(self, name: str, getter: Getter, request: Any) -> object:
        try:
            value = getter(request)
            return (
                self._wait_for(value, name, getter, request)
                if isinstance(value, Awaitable)
                else value
            )
        except BaseException as error:
            if _is_for_the_application(error):
                raise
            self.fail(name, error, getter=getter)
            return None

    async def _acall_getter(self, name: str, getter: Getter, request: Any) -> object:
        try:
            value = getter(request)
            return await value if isinstance(value, Awaitable) else value
        except BaseException as error:
            if _is_for_the_application(error):
                raise
            self.fail(name, error, getter=getter)
            return None

    def _wait_for(self, awaitable: Any, name: str, getter: Getter, request: Any) -> object:
        """
        Return the result of an asynchronous getter, from synchronous code.

        In a worker thread of anyio (a ``def`` endpoint) the event loop can run it. On the loop's
        own thread nothing may block, so only a coroutine that cannot wait is run there. One that
        might is not even started. Stopped halfway, it could leave a database connection that it
        shares with the application in the middle of a query.
        """
        if isinstance(awaitable, CoroutineType) and _never_waits(awaitable.cr_code):
            try:
                awaitable.send(None)
            except StopIteration as stop:
                return stop.value
        if isinstance(awaitable, Coroutine):
            awaitable.close()
        if "anyio" not in sys.modules:
            return None
        from anyio import from_thread

        try:
            return from_thread.run(self._acall_getter, name, getter, request)
        except RuntimeError:
            # not a worker thread of anyio: late attribution resolves it when the request ends
            return None

    def _take_values(self, values: dict[str, Any]) -> None:
        if self._identity.user_id is None:  # else one was set while the getters were awaited
            self._identity = self._identity.merge(self.read_values(values))

    def read_values(self, values: dict[str, Any]) -> Tags:
        """Return the getters' values as tags. A value that cannot be kept is a failure."""
        tags = values.pop("tags", None)
        if tags is not None and not isinstance(tags, Mapping):
            self.fail(
                "tags", TypeError(), hint=f" (it returned {type(tags).__name__}, not a mapping)"
            )
            tags = None
        user = values.get("user_id")
        if user is not None:
            try:
                clean_value(user)
            except TypeError as error:
                self.fail("user_id", error, hint=f" ({error})")
        return make_tags(
            {**(tags or {}), **{name: value for name, value in values.items() if value is not None}}
        )

    def fail(
        self,
        about: str,
        error: BaseException,
        who: str = "",
        *,
        getter: Getter | None = None,
        hint: str = "",
    ) -> None:
        """
        Count and log the exception of a getter.

        A call without a user is an ``error`` only if the getter might have named one.

        Args:
            about: The value that it should return: ``user_id``, ``plan``, ``tenant_id`` or
                ``tags``.
            error: The exception. Its text may name the user, and is not logged.
            who: The function that raised; by default the *getter*.
            getter: The getter.
            hint: A text to add to the log message.
        """
        if about in ("user_id", "tags"):
            self._failed = True
        counters["getter_errors"] += 1
        name = "" if getter is None else f" {getattr(getter, '__name__', type(getter).__name__)}"
        who = who or f"{about.removesuffix('_id')}_getter{name}"
        lost = {
            "user_id": "have no owner",
            "plan": "have no plan",
            "tenant_id": "have no tenant",
        }.get(about, "lack its tags")
        warn_once(
            f"{who} raised {type(error).__name__}{_raised_at(error)}: calls of such requests "
            f"{lost}{hint}"
        )


class RequestContext(TagContext):
    """
    The tag context of one request. It makes its scope at the first use, as most requests make no
    LLM call.

    The first use may come after the request, in a thread or task that it started.
    """

    # A subclass sets `made` and `ended` itself: calling this class's constructor would cost a fifth
    # of what we add to a request.
    __slots__ = ("ended", "made")

    tags = NO_TAGS
    outer = None
    by = None
    made: RequestScope | None
    """The scope, once it is made."""
    ended: bool
    """Whether the request has ended."""

    def make_scope(self) -> RequestScope:
        """Return a new scope for this request. Each kind of server has its own."""
        raise NotImplementedError  # no abstract class: making a context is on the path of a request

    @property
    def scope(self) -> RequestScope:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The scope of the request."""
        made = self.made
        if made is None:
            with _making:  # threads of one request share its scope
                made = self.made
                if made is None:
                    made = self.made = self.make_scope()
            if self.ended:
                made.release()
        return made

    def end(self) -> None:
        """End the request, from synchronous code: write the owner of its calls."""
        self.ended = True
        if self.made is not None:
            self.made.attribute_late_now()


_making = threading.Lock()


def _after_fork() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _raised_at(error: BaseException) -> str:
    """Return the line of the application that raised, as ``at accounts/billing.py:12``."""
    location, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if (
            _PACKAGE not in file.parents
            and file.parent.name not in _INTEGRATIONS
            and not any(part.startswith("python3") for part in file.parts)
        ):
            location = f" at {'/'.join(file.parts[-2:])}:{trace.tb_lineno}"
        trace = trace.tb_next
    return location


_PACKAGE = Path(__file__).parents[1]
_INTEGRATIONS = ("voight_django", "voight_fastapi", "voight_flask")


def _is_for_the_application(error: BaseException) -> bool:
    """Return whether the application expects an exception: an interrupt or a cancellation."""
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return True
    kind = type(error)
    if kind.__name__ == "Cancelled" and kind.__module__.startswith("trio"):
        return True
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return False
    return task is not None and task.cancelling() > 0


@functools.lru_cache(256)
def _never_waits(code: CodeType) -> bool:
    """Return whether a coroutine function has no ``await``, as if it only reads attributes."""
    return _SEND not in code.co_code[::2]


_SEND = opmap["SEND"]
"""The instruction by which ``await``, ``async for`` and ``async with`` wait, since Python 3.11."""


async def flush_if_synchronous() -> None:
    """In synchronous mode, flush in a thread at the end of a request on an event loop."""
    try:
        from anyio import to_thread
    except ImportError:  # Django runs on asyncio only
        import asyncio

        await asyncio.to_thread(current_meter().flush_if_synchronous)
    else:
        await to_thread.run_sync(current_meter().flush_if_synchronous)
