"""Tag calls: ``tag``, ``set_tags`` and ``current_tags``."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from voight_middleware.context.carry import P, R, run_inside
from voight_middleware.context.context import TagContext, current_context, on_a_loop, set_context
from voight_middleware.diagnostics import warn_once
from voight_middleware.records.tag_values import keep_extra, keep_value
from voight_middleware.records.tags import NO_TAGS, Tags

_LEFT_ELSEWHERE = (
    "a `with voight.tag(...)` block ended in another context than it started in, so its tags "
    "reached no call in between. "
    "FastAPI does so with a plain `def` dependency that has a `yield`: make it `async def`, or "
    "call voight.set_tags() in it"
)


class tag:
    """
    Tag every call made inside a ``with`` block or a decorated function. Nested tags merge onto the
    outer ones.

    Works in synchronous and asynchronous code, on functions, coroutine functions, generators and
    asynchronous generators. Many tasks may use one instance at once. Keys other than the named ones
    become ``extra`` keys::

        with voight.tag(user_id="u_7", plan="pro", feature="summary"):
            client.chat.completions.create(...)

    Values are strings, whole numbers or UUIDs; None leaves a key as it is. A bad value never
    raises: it is dropped and logged once.
    """

    __slots__ = ("tags",)

    def __init__(
        self,
        *,
        user_id: object = None,
        plan: object = None,
        tenant_id: object = None,
        route: object = None,
        release: object = None,
        session_id: object = None,
        **extra: object,
    ) -> None:
        self.tags = Tags(
            user_id=None if user_id is None else keep_value("user_id", user_id),
            plan=None if plan is None else keep_value("plan", plan),
            tenant_id=None if tenant_id is None else keep_value("tenant_id", tenant_id),
            route=None if route is None else keep_value("route", route),
            release=None if release is None else keep_value("release", release),
            session_id=None if session_id is None else keep_value("session_id", session_id),
            extra=keep_extra(extra) if extra else {},
        )

    def __enter__(self) -> None:
        outer = current_context()
        tags = self.tags if outer.tags is NO_TAGS else outer.tags.merge(self.tags)
        set_context(TagContext(outer.scope, tags, outer, self))

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        context = current_context()
        if context.by is self and context.outer is not None:
            set_context(context.outer)
        elif exc_type is None and not on_a_loop():
            # on a loop, a generator may be closed in another task than it ran in
            warn_once(_LEFT_ELSEWHERE)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        def inner() -> TagContext:
            outer = current_context()
            return TagContext(outer.scope, outer.tags.merge(self.tags), outer, self)

        return run_inside(function, inner)


def set_tags(
    *,
    user_id: object = None,
    plan: object = None,
    tenant_id: object = None,
    route: object = None,
    release: object = None,
    session_id: object = None,
    **extra: object,
) -> None:
    """
    Set tags for the rest of the current request or job, or else for the rest of the current
    context.

    An enclosing ``with tag(...)`` block wins over them, key by key.
    """
    tags = Tags(
        user_id=keep_value("user_id", user_id),
        plan=keep_value("plan", plan),
        tenant_id=keep_value("tenant_id", tenant_id),
        route=keep_value("route", route),
        release=keep_value("release", release),
        session_id=keep_value("session_id", session_id),
        extra=keep_extra(extra) if extra else {},
    )
    context = current_context()
    if context.scope is not None:
        context.scope.set_tags(tags)
    else:
        set_context(_merge_under(context, tags))


def _merge_under(context: TagContext, tags: Tags) -> TagContext:
    """Return *context* with *tags* merged under those of every open ``tag``."""
    if context.outer is None or not isinstance(context.by, tag):
        return TagContext(None, context.tags.merge(tags))
    outer = _merge_under(context.outer, tags)
    return TagContext(None, outer.tags.merge(context.by.tags), outer, context.by)


def current_tags() -> Tags:
    """Return the tags of a call made now. Resolve the request's user if necessary."""
    return current_context().resolve().tags
