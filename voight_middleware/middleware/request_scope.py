"""Scope: the mutable holder of one request's identity, resolved at the first LLM call and settled at the request's end."""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from opcode import opmap
from pathlib import Path
from types import CodeType, CoroutineType
from typing import Any

from voight_middleware.context.context import overlay
from voight_middleware.diagnostics import counters, report_internal_error, warn_once
from voight_middleware.middleware.getters import Getter, Getters
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.records.tag_values import clean_value
from voight_middleware.records.tags import NO_TAGS, Owner, Tags, make_tags

_asking: ContextVar[RequestScope | None] = ContextVar("voight_asking", default=None)
"""The scope whose getters are running here: an LLM call that a getter makes must not ask it again."""


class RequestScope:
    """
    The identity of one request, as ``tags.OwnerSource``.

    The getters are asked again until they name a user: an authentication middleware or dependency may run after ours. Two tasks
    may ask at the same time; both get the same answer, and nothing is locked.
    """

    # What most requests never change is the class's: a scope is made for every request, and few of them make a call.
    _identity = NO_TAGS
    _found: Tags | None = None
    """The route, once it is known."""
    _explicit = NO_TAGS
    _how = "getter"
    _failed = False
    _routed = False
    _asked = False
    _ended = False
    _closed = False
    pending: list[str] | None = None
    """The calls that were written without an owner."""
    local = False
    """Whether the getters answer only in the request's own context (Flask's): whoever carries the scope elsewhere asks before."""

    def __init__(
        self, request: Callable[[], Any] | None, getters: Getters, route: Callable[[], str | None] | None, local: bool = False
    ) -> None:
        self._request = request
        self._getters = getters
        self._route = route
        if local:
            self.local = True

    def make_request(self) -> Any:
        """The framework's request, for the getters."""
        assert self._request is not None
        return self._request()

    def read_route(self) -> str | None:
        """The route as method and path template; None while it is not known."""
        return self._route() if self._route is not None else None

    def drop_request(self) -> None:
        """Keep nothing of the request."""
        self._request = None
        self._route = None

    def release(self) -> None:
        """
        The request has ended. What is known of its user is kept for a task that outlives it, and nothing else of the request.

        Where nobody has asked yet, such a task may be the first: the request is kept as long as the task, and let go when it has asked.
        """
        self._ended = True
        if self._asked or self.local or self._identity.user_id is not None:
            self._close()

    def _close(self) -> None:
        self.find_route()
        self._closed = True
        self.drop_request()

    def known(self) -> Owner:
        """What is known by now, without asking anybody."""
        self.find_route()
        identity = self._identity
        if identity.route is None and self._found is not None:  # another thread has named the user meanwhile, of tags without the route
            identity = self._identity = identity.merge(self._found)
        how = self._how if identity.user_id is not None else "error" if self._failed else "none"
        return overlay(Owner(identity, how), self._explicit)

    def resolve(self) -> Owner:
        """Ask the getters from synchronous code. One that would have to wait is asked again, and awaited, when the request ends."""
        if self._identity.user_id is None and not self._closed and _asking.get() is not self:
            self._asked = True
            token = _asking.set(self)
            try:
                request = self.make_request()
                self._take({name: self._ask(name, getter, request) for name, getter in self._named_getters()})
            except Exception as error:
                if not self._closed:  # else the request has ended meanwhile, in another thread
                    self.fail("user_id", error, "the request")
            finally:
                _asking.reset(token)
                if self._ended:
                    self._close()
        return self.known()

    async def aresolve(self) -> Owner:
        """Ask the getters, awaiting the asynchronous ones."""
        if self._identity.user_id is None and not self._closed and _asking.get() is not self:
            self._asked = True
            outer = _asking.get()
            _asking.set(self)
            try:
                request = self.make_request()
                self._take({name: await self._aask(name, getter, request) for name, getter in self._named_getters()})
            except Exception as error:
                if not self._closed:  # else the request has ended meanwhile, in another thread
                    self.fail("user_id", error, "the request")
            finally:
                _asking.set(outer)
                if self._ended:
                    self._close()
        return self.known()

    def set_identity(self, tags: Tags, attribution: str) -> None:
        """Name the user, plan and tenant, instead of the getters."""
        known = self._identity
        if known.user_id is not None and tags.user_id not in (None, known.user_id):
            known = Tags(route=known.route)
        self._identity = known.merge(tags)
        if tags.user_id is not None:
            self._how = attribution

    def set_tags(self, tags: Tags) -> None:
        """Lay explicit tags over what is known, for the rest of the request."""
        self._explicit = self._explicit.merge(tags)

    def defer(self, call_id: str) -> None:
        """Note a call that was written without an owner."""
        if not self._ended:
            if self.pending is None:
                self.pending = []
            self.pending.append(call_id)

    async def attribute_late(self) -> None:
        """At the end of the request: ask once more if calls wait for their owner, write it, and let go of the request. Never raises."""
        try:
            if self.pending is not None:
                self._write(await self.aresolve())
        finally:  # the server may cancel a request whose getter does not answer
            self.release()

    def attribute_late_now(self) -> None:
        """As ``settle``, from synchronous code."""
        try:
            if self.pending is not None:
                self._write(self.resolve())
        finally:
            self.release()

    def _write(self, owner: Owner) -> None:
        pending, self.pending = self.pending, None
        if pending and owner.tags.user_id is not None:
            self._how = "settled"
            current_meter().attribute_late(pending, Owner(owner.tags, "settled"))

    def find_route(self) -> None:
        """Ask for the route, until it is known."""
        if self._routed:
            return
        try:
            route = self.read_route()
        except Exception as error:
            self._routed = True
            report_internal_error(error)
            return
        if route is not None:
            self._found = Tags(route=clean_value(route))
            self._routed = True  # only now: another thread asks no further

    def _named_getters(self) -> list[tuple[str, Getter]]:
        getters = self._getters
        named = (("user_id", getters.user), ("plan", getters.plan), ("tenant_id", getters.tenant), ("tags", getters.tags))
        return [(name, getter) for name, getter in named if getter is not None]

    def _ask(self, name: str, getter: Getter, request: Any) -> object:
        try:
            value = getter(request)
            return self._wait_for(value, name, getter, request) if isinstance(value, Awaitable) else value
        except BaseException as error:
            if _is_for_the_application(error):
                raise
            self.fail(name, error, getter=getter)
            return None

    async def _aask(self, name: str, getter: Getter, request: Any) -> object:
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
        In a worker thread of anyio (a ``def`` endpoint) the event loop can be asked; on the loop's own thread nothing may wait.

        There, only a coroutine that cannot wait is run. One that might is not even begun: stopped half-way, it could leave a database
        connection that it shares with the application in the middle of a query.
        """
        if isinstance(awaitable, CoroutineType) and _never_waits(awaitable.cr_code):
            try:
                awaitable.send(None)
            except StopIteration as done:
                return done.value
        if isinstance(awaitable, Coroutine):
            awaitable.close()
        if "anyio" not in sys.modules:
            return None
        from anyio import from_thread

        try:
            return from_thread.run(self._aask, name, getter, request)
        except RuntimeError:  # no worker thread of anyio: the request's end will settle it
            return None

    def _take(self, values: dict[str, Any]) -> None:
        if self._identity.user_id is None:  # else somebody has been named while the getters were awaited
            self._identity = self._identity.merge(self.read_values(values))

    def read_values(self, values: dict[str, Any]) -> Tags:
        """What getters have answered, as tags; what cannot be kept is a failure of its getter."""
        tags = values.pop("tags", None)
        if tags is not None and not isinstance(tags, Mapping):
            self.fail("tags", TypeError(), hint=f" (it answered {type(tags).__name__}, not a mapping)")
            tags = None
        user = values.get("user_id")
        if user is not None:
            try:
                clean_value(user)
            except TypeError as error:
                self.fail("user_id", error, hint=f" ({error})")
        return make_tags({**(tags or {}), **{name: value for name, value in values.items() if value is not None}})

    def fail(self, about: str, error: BaseException, who: str = "", *, getter: Getter | None = None, hint: str = "") -> None:
        """
        Count and log what a getter raised. A call without a user is an ``error`` only if the getter might have named one.

        Args:
            about: What it was asked for: ``user_id``, ``plan``, ``tenant_id`` or ``tags``.
            error: What it raised. Its text may name the user, and is not logged.
            who: What raised it; by default the *getter*.
            getter: The getter.
            hint: What else to say.
        """
        if about in ("user_id", "tags"):
            self._failed = True
        counters["getter_errors"] += 1
        name = "" if getter is None else f" {getattr(getter, '__name__', type(getter).__name__)}"
        who = who or f"{about.removesuffix('_id')}_getter{name}"
        lost = {"user_id": "have no owner", "plan": "have no plan", "tenant_id": "have no tenant"}.get(about, "lack its tags")
        warn_once(f"{who} raised {type(error).__name__}{_place(error)}: calls of such requests {lost}{hint}")


def _place(error: BaseException) -> str:
    """Where an exception was raised, in the code of the application: `` at accounts/billing.py:12``."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if (
            _PACKAGE not in file.parents
            and file.parent.name not in _INTEGRATIONS
            and not any(part.startswith("python3") for part in file.parts)
        ):
            place = f" at {'/'.join(file.parts[-2:])}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


_PACKAGE = Path(__file__).parents[1]
_INTEGRATIONS = ("voight_django", "voight_fastapi", "voight_flask")


def _is_for_the_application(error: BaseException) -> bool:
    """Return whether an exception is meant for the application: an interrupt, or the cancellation of the task that asks."""
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
    except RuntimeError:  # no event loop runs here
        return False
    return task is not None and task.cancelling() > 0


@functools.lru_cache(256)
def _never_waits(code: CodeType) -> bool:
    """Whether a coroutine function has no ``await`` in it, as one that only reads what a middleware has left has none."""
    return _SEND not in code.co_code[::2]


_SEND = opmap["SEND"]
"""What ``await``, ``async for`` and ``async with`` wait by, since Python 3.11."""


async def flush_if_synchronous() -> None:
    """At the end of a request on an event loop, where delivery is synchronous: wait in a thread until its calls are in the ledger."""
    try:
        from anyio import to_thread
    except ImportError:  # under Django, which runs on asyncio only
        import asyncio

        await asyncio.to_thread(current_meter().flush_if_synchronous)
    else:
        await to_thread.run_sync(current_meter().flush_if_synchronous)
