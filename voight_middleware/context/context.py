"""
Tags: who a call is for.

Explicit tags travel in one context variable, as a chain of immutable contexts. A context also names the request's scope, from which
the signed-in user is resolved lazily. Frames are set and restored by value, never by token: a generator may leave a ``with
tag(...)`` block in another copy of the context than the one that it entered in, and a token would raise there.
"""

from __future__ import annotations

import contextlib
import sys
from contextvars import ContextVar
from typing import Protocol

from voight_middleware.records.tags import NO_TAGS, Owner, Tags


class OwnerSource(Protocol):
    """What a boundary binds for the length of a request or job: its lazily resolved identity. Nothing here raises."""

    def known(self) -> Owner:
        """What is known by now, without asking anybody."""
        ...

    def resolve(self) -> Owner:
        """Ask the getters, from synchronous code; whatever would block stays unknown."""
        ...

    async def aresolve(self) -> Owner:
        """Ask the getters, awaiting the asynchronous ones."""
        ...

    def set_identity(self, tags: Tags, attribution: str) -> None:
        """Name the user, plan and tenant, instead of the getters."""
        ...

    def set_tags(self, tags: Tags) -> None:
        """Lay explicit tags over what is known, for the rest of the request."""
        ...

    def defer(self, call_id: str) -> None:
        """Note a call that was written without an owner, to be settled when the request ends."""
        ...


class TagContext:
    """What one context sees: the explicit tags, and the scope of the request that it is part of."""

    __slots__ = ("by", "outer", "scope", "tags")

    def __init__(self, scope: OwnerSource | None, tags: Tags, outer: TagContext | None = None, by: object = None) -> None:
        self.scope = scope
        self.tags = tags
        self.outer = outer
        self.by = by

    def owner(self) -> Owner:
        """The owner as far as it is known by now."""
        return overlay(self.scope.known() if self.scope is not None else NOBODY, self.tags)

    def resolve(self) -> Owner:
        """The owner, asking the request's getters from synchronous code."""
        return overlay(self.scope.resolve() if self.scope is not None else NOBODY, self.tags)

    async def aresolve(self) -> Owner:
        """As ``resolve``, from asynchronous code."""
        return overlay(await self.scope.aresolve() if self.scope is not None else NOBODY, self.tags)


def overlay(found: Owner, explicit: Tags) -> Owner:
    """
    What was *found* out about a request's user, under *explicit* tags.

    Where these name another user, the plan and the tenant of the signed-in one are not his, and are left out.
    """
    if explicit is NO_TAGS:
        return found
    user_id = explicit.user_id
    if user_id is None:
        return Owner(found.tags.merge(explicit), found.attribution)
    tags = found.tags
    if tags.user_id is not None and tags.user_id != user_id:
        tags = Tags(route=tags.route, release=tags.release)
    return Owner(tags.merge(explicit), "tag")


NOBODY = Owner(NO_TAGS, "none")
_context: ContextVar[TagContext] = ContextVar("voight_tags", default=TagContext(None, NO_TAGS))

current_context = _context.get
set_context = _context.set
"""Put a context in force, by value: that of ``current_frame`` elsewhere. For boundaries; an application uses ``tag`` and ``carry``."""


class use_scope:
    """
    Bind a fresh scope for the length of a ``with`` block, and nothing of an outer one.

    A server may start a request inside the context of the one before it (uvicorn does, for pipelined requests): merging would
    hand its user on.
    """

    __slots__ = ("_context", "_outer")

    def __init__(self, scope: OwnerSource, tags: Tags = NO_TAGS) -> None:
        self._context = TagContext(scope, tags)
        self._outer: TagContext | None = None

    def __enter__(self) -> None:
        self._outer = current_context()
        set_context(self._context)

    def __exit__(self, *exc_info: object) -> None:
        if self._outer is not None:
            set_context(self._outer)


def on_a_loop() -> bool:
    """Return whether this thread runs an event loop, which must not wait for anything. No library is imported to find out."""
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio.lowlevel")
    if asyncio is not None:
        with contextlib.suppress(RuntimeError):
            return asyncio.get_running_loop() is not None
    return trio is not None and bool(getattr(trio, "in_trio_run", bool)())
