"""Scope: the mutable holder of one request's identity, resolved at the first LLM call and settled at the request's end."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from typing import Any

from voight_middleware.boundary.identity import Getter, Getters
from voight_middleware.meter import current_meter
from voight_middleware.tag_values import clean_value, complain
from voight_middleware.tags import NO_TAGS, Owner, Tags, lay_over, make_tags

_asking: ContextVar[Scope | None] = ContextVar("voight_asking", default=None)
"""The scope whose getters are running here: an LLM call that a getter makes must not ask it again."""


class Scope:
    """
    The identity of one request, as ``tags.OwnerSource``.

    The getters are asked again until they name a user: an authentication middleware or dependency may run after ours. Two tasks
    may ask at the same time; both get the same answer, and nothing is locked.
    """

    __slots__ = ("_explicit", "_failed", "_getters", "_how", "_identity", "_pending", "_request", "_route", "_settled")

    def __init__(self, request: Callable[[], Any], getters: Getters, route: Callable[[], str | None]) -> None:
        self._request: Callable[[], Any] | None = request
        self._getters = getters
        self._route: Callable[[], str | None] | None = route
        self._identity = NO_TAGS
        self._explicit = NO_TAGS
        self._how = "getter"
        self._failed = False
        self._settled = False
        self._pending: list[str] | None = None

    def known(self) -> Owner:
        """What is known by now, without asking anybody."""
        self._find_route()
        identity = self._identity
        how = self._how if identity.user_id is not None else "error" if self._failed else "none"
        return lay_over(Owner(identity, how), self._explicit)

    def resolve(self) -> Owner:
        """Ask the getters from synchronous code. One that would have to wait is asked again, and awaited, when the request ends."""
        if self._identity.user_id is None and self._request is not None and _asking.get() is not self:
            token = _asking.set(self)
            try:
                request = self._request()
                self._take({name: self._ask(getter, request) for name, getter in self._named_getters()})
            except Exception as error:
                self._fail("request", error)
            finally:
                _asking.reset(token)
        return self.known()

    async def aresolve(self) -> Owner:
        """Ask the getters, awaiting the asynchronous ones."""
        if self._identity.user_id is None and self._request is not None and _asking.get() is not self:
            outer = _asking.get()
            _asking.set(self)
            try:
                request = self._request()
                self._take({name: await self._aask(getter, request) for name, getter in self._named_getters()})
            except Exception as error:
                self._fail("request", error)
            finally:
                _asking.set(outer)
        return self.known()

    def identify(self, tags: Tags, attribution: str) -> None:
        """Name the user, plan and tenant, instead of the getters."""
        known = self._identity
        if known.user_id is not None and tags.user_id not in (None, known.user_id):
            known = Tags(route=known.route)
        self._identity = known.merge(tags)
        self._how = attribution

    def set_tags(self, tags: Tags) -> None:
        """Lay explicit tags over what is known, for the rest of the request."""
        self._explicit = self._explicit.merge(tags)

    def await_settlement(self, call_id: str) -> None:
        """Note a call that was written without an owner."""
        if not self._settled:
            if self._pending is None:
                self._pending = []
            self._pending.append(call_id)

    async def settle(self) -> None:
        """At the end of the request: ask once more if calls wait for their owner, write it, and let go of the request. Never raises."""
        try:
            if self._pending is not None:
                self._write(await self.aresolve())
        finally:  # the server may cancel a request whose getter does not answer
            self._let_go()

    def settle_now(self) -> None:
        """As ``settle``, from synchronous code."""
        try:
            if self._pending is not None:
                self._write(self.resolve())
        finally:
            self._let_go()

    def _write(self, owner: Owner) -> None:
        pending, self._pending = self._pending, None
        if pending and owner.tags.user_id is not None:
            self._how = "settled"
            current_meter().settle(pending, Owner(owner.tags, "settled"))

    def _let_go(self) -> None:
        self._find_route()
        self._settled = True
        self._request = None
        self._route = None

    def _find_route(self) -> None:
        if self._route is not None and self._identity.route is None:
            try:
                route = self._route()
            except Exception as error:
                self._route = None
                current_meter().note(error)
                return
            if route is not None:
                self._identity = self._identity.merge(Tags(route=clean_value(route)))
                self._route = None

    def _named_getters(self) -> list[tuple[str, Getter]]:
        getters = self._getters
        named = (("user_id", getters.user), ("plan", getters.plan), ("tenant_id", getters.tenant), ("tags", getters.tags))
        return [(name, getter) for name, getter in named if getter is not None]

    def _ask(self, getter: Getter, request: Any) -> object:
        try:
            value = getter(request)
            return self._wait_for(value, getter, request) if isinstance(value, Awaitable) else value
        except Exception as error:
            self._fail(getattr(getter, "__name__", "getter"), error)
            return None

    async def _aask(self, getter: Getter, request: Any) -> object:
        try:
            value = getter(request)
            return await value if isinstance(value, Awaitable) else value
        except Exception as error:
            self._fail(getattr(getter, "__name__", "getter"), error)
            return None

    def _wait_for(self, awaitable: Any, getter: Getter, request: Any) -> object:
        """In a worker thread of anyio (a ``def`` endpoint) the event loop can be asked; on the loop's own thread nothing may wait."""
        if isinstance(awaitable, Coroutine):
            awaitable.close()
        if "anyio" not in sys.modules:
            return None
        from anyio import from_thread

        try:
            return from_thread.run(self._aask, getter, request)
        except RuntimeError:  # no worker thread of anyio: the request's end will settle it
            return None

    def _take(self, values: dict[str, Any]) -> None:
        if self._identity.user_id is not None:  # somebody has been named while the getters were awaited
            return
        tags = values.pop("tags", None)
        if tags is not None and not isinstance(tags, Mapping):
            self._fail("tags_getter", TypeError(), f" (it answered {type(tags).__name__}, not a mapping)")
            tags = None
        user = values.get("user_id")
        if user is not None:
            try:
                clean_value(user)
            except TypeError as error:
                self._fail("user_getter", error, f" ({error})")
        self._identity = self._identity.merge(
            make_tags({**(tags or {}), **{name: value for name, value in values.items() if value is not None}})
        )

    def _fail(self, getter: str, error: Exception, hint: str = "") -> None:
        self._failed = True
        current_meter().counters["getter_errors"] += 1
        complain(f"{getter} raised {type(error).__name__}: calls of such requests have no owner{hint}")  # its text may name the user
