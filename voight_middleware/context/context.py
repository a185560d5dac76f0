"""
The tag context: the tags and the request scope that apply to the calls of a context.

One context variable holds a chain of immutable ``TagContext`` objects. Each has explicit tags and
names a request scope, from which the signed-in user is resolved lazily.

A ``with tag(...)`` block sets and restores contexts by value. A generator may leave it in another
copy of the context than the one in which it entered, where a token would raise.
"""

from __future__ import annotations

import contextlib
import sys
from contextvars import ContextVar, Token
from typing import Protocol

from voight_middleware.records.tags import NO_TAGS, Owner, Tags


class OwnerSource(Protocol):
    """The identity of a request or job, resolved lazily. Its methods never raise."""

    def known(self) -> Owner:
        """Return the owner as known so far, without calling a getter."""
        ...

    def resolve(self) -> Owner:
        """Call the getters from synchronous code. A value that needs awaiting stays unknown."""
        ...

    async def aresolve(self) -> Owner:
        """Call the getters, awaiting the asynchronous ones."""
        ...

    def set_identity(self, tags: Tags, attribution: str) -> None:
        """Set the user, plan and tenant, instead of the getters."""
        ...

    def set_tags(self, tags: Tags) -> None:
        """Merge explicit tags onto the identity, for the rest of the request."""
        ...

    def defer(self, call_id: str) -> None:
        """Note a call that was written without an owner. It gets one when the request ends."""
        ...


class TagContext:
    """
    The explicit tags of one context, and the scope of the request that it is part of.

    Args:
        scope: The request scope, or None outside of a request or job.
        tags: The explicit tags, those of outer contexts included.
        outer: The context to restore after a ``with tag(...)`` block.
        by: The ``tag`` that made this context.
    """

    __slots__ = ("by", "outer", "scope", "tags")

    def __init__(
        self,
        scope: OwnerSource | None,
        tags: Tags,
        outer: TagContext | None = None,
        by: object = None,
    ) -> None:
        self.scope = scope
        self.tags = tags
        self.outer = outer
        self.by = by

    def owner(self) -> Owner:
        """Return the owner as known so far."""
        return overlay(self.scope.known() if self.scope is not None else NOBODY, self.tags)

    def resolve(self) -> Owner:
        """Return the owner. Call the request's getters from synchronous code."""
        if self.scope is None and self.tags.user_id is not None:
            return _owner(Owner, (self.tags, "tag"))
        return overlay(self.scope.resolve() if self.scope is not None else NOBODY, self.tags)

    async def aresolve(self) -> Owner:
        """As ``resolve``, from asynchronous code."""
        return overlay(await self.scope.aresolve() if self.scope is not None else NOBODY, self.tags)


def overlay(resolved: Owner, explicit: Tags) -> Owner:
    """
    Return the *resolved* owner of a request, with *explicit* tags on top.

    If these name another user, the signed-in user's plan and tenant are dropped.
    """
    if explicit is NO_TAGS:
        return resolved
    user_id = explicit.user_id
    if user_id is None:
        return _owner(Owner, (resolved.tags.merge(explicit), resolved.attribution))
    tags = resolved.tags
    if tags.user_id is not None and tags.user_id != user_id:
        tags = Tags(route=tags.route, release=tags.release)
    return _owner(Owner, (tags.merge(explicit), "tag"))


_owner = tuple.__new__
"""Makes a named tuple in a fifth of the time."""
NOBODY = Owner(NO_TAGS, "none")
_OUTSIDE = TagContext(None, NO_TAGS)
_context: ContextVar[TagContext] = ContextVar("voight_tags", default=_OUTSIDE)

current_context = _context.get
set_context = _context.set
"""Apply a context, by value. For middleware; an application uses ``tag`` and ``carry``."""
reset_context = _context.reset
"""
Undo a ``set_context`` of the same call. A third of the time of setting the outer context again.

It raises ValueError in another copy of the context: ``restore_context`` does it there.
"""


def restore_context(token: Token[TagContext]) -> None:
    """Apply the context from before a ``set_context``, by value, in any copy of the context."""
    outer = token.old_value
    set_context(_OUTSIDE if outer is Token.MISSING else outer)


class use_scope:
    """
    Bind a fresh scope for the length of a ``with`` block. Nothing of an outer scope is kept.

    A server may start a request inside the context of the one before it (uvicorn does, for
    pipelined requests). Merging would pass that request's user on.
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
    """Return whether this thread runs an event loop, which must not block. Imports nothing."""
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio.lowlevel")
    if asyncio is not None:
        with contextlib.suppress(RuntimeError):
            return asyncio.get_running_loop() is not None
    return trio is not None and bool(getattr(trio, "in_trio_run", bool)())
