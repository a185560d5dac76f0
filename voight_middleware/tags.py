"""
Tags: who a call is for.

Explicit tags travel in one context variable, as a chain of immutable frames. A frame also names the request's scope, from which
the signed-in user is resolved lazily. Frames are set and restored by value, never by token: a generator may leave a ``with
tag(...)`` block in another copy of the context than the one that it entered in, and a token would raise there.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import AsyncGeneratorType, CoroutineType, GeneratorType, TracebackType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import msgspec

from voight_middleware.diagnostics import warn_once
from voight_middleware.tag_values import first_extra, keep_extra, keep_value

P = ParamSpec("P")
R = TypeVar("R")


class Tags(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Who a call is for. None means not known."""

    user_id: str | None = None
    plan: str | None = None
    tenant_id: str | None = None
    route: str | None = None
    """The route template, as method and path: ``POST /chats/{chat_id}``."""
    release: str | None = None
    session_id: str | None = None
    extra: Mapping[str, str] = {}
    """Keys of your own, such as ``feature``."""

    def merge(self, inner: Tags) -> Tags:
        """These tags with every value that *inner* has laid over them."""
        if self is NO_TAGS:
            return inner
        if inner is NO_TAGS:
            return self
        return Tags(
            user_id=self.user_id if inner.user_id is None else inner.user_id,
            plan=self.plan if inner.plan is None else inner.plan,
            tenant_id=self.tenant_id if inner.tenant_id is None else inner.tenant_id,
            route=self.route if inner.route is None else inner.route,
            release=self.release if inner.release is None else inner.release,
            session_id=self.session_id if inner.session_id is None else inner.session_id,
            extra=first_extra({**inner.extra, **self.extra, **inner.extra}) if inner.extra else self.extra,
        )


NO_TAGS = Tags()
_NAMED = frozenset(Tags.__struct_fields__) - {"extra"}


def make_tags(values: Mapping[str, object]) -> Tags:
    """
    Tags from keyword values: the named ones, and the rest as extra keys. None leaves a key out.

    A value or key that cannot be kept is left out and logged once; this never raises, as it runs inside the application's requests.
    """
    named: dict[str, str | None] = {}
    extra: dict[str, str] = {}
    for key, value in values.items():
        if key in _NAMED:
            named[key] = keep_value(key, value)
        elif key == "extra" and isinstance(value, Mapping):
            extra.update(keep_extra(value))
        else:
            extra.update(keep_extra({key: value}))
    return Tags(extra=extra, **named)


class Owner(NamedTuple):
    """The tags of a call, and how they came about (one of ``call.ATTRIBUTIONS``)."""

    tags: Tags
    attribution: str


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

    def identify(self, tags: Tags, attribution: str) -> None:
        """Name the user, plan and tenant, instead of the getters."""
        ...

    def set_tags(self, tags: Tags) -> None:
        """Lay explicit tags over what is known, for the rest of the request."""
        ...

    def await_settlement(self, call_id: str) -> None:
        """Note a call that was written without an owner, to be settled when the request ends."""
        ...


class Frame:
    """What one context sees: the explicit tags, and the scope of the request that it is part of."""

    __slots__ = ("by", "outer", "scope", "tags")

    def __init__(self, scope: OwnerSource | None, tags: Tags, outer: Frame | None = None, by: object = None) -> None:
        self.scope = scope
        self.tags = tags
        self.outer = outer
        self.by = by

    def owner(self) -> Owner:
        """The owner as far as it is known by now."""
        return lay_over(self.scope.known() if self.scope is not None else NOBODY, self.tags)

    def resolve(self) -> Owner:
        """The owner, asking the request's getters from synchronous code."""
        return lay_over(self.scope.resolve() if self.scope is not None else NOBODY, self.tags)

    async def aresolve(self) -> Owner:
        """As ``resolve``, from asynchronous code."""
        return lay_over(await self.scope.aresolve() if self.scope is not None else NOBODY, self.tags)


def lay_over(found: Owner, explicit: Tags) -> Owner:
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
_frame: ContextVar[Frame] = ContextVar("voight_tags", default=Frame(None, NO_TAGS))

current_frame = _frame.get
set_frame = _frame.set
"""Put a frame in force, by value: that of ``current_frame`` elsewhere. For boundaries; an application uses ``tag`` and ``carry``."""


class bind:
    """
    Bind a fresh scope for the length of a ``with`` block, and nothing of an outer one.

    A server may start a request inside the context of the one before it (uvicorn does, for pipelined requests): merging would
    hand its user on.
    """

    __slots__ = ("_frame", "_outer")

    def __init__(self, scope: OwnerSource, tags: Tags = NO_TAGS) -> None:
        self._frame = Frame(scope, tags)
        self._outer: Frame | None = None

    def __enter__(self) -> None:
        self._outer = current_frame()
        set_frame(self._frame)

    def __exit__(self, *exc_info: object) -> None:
        if self._outer is not None:
            set_frame(self._outer)


def on_a_loop() -> bool:
    """Return whether this thread runs an event loop, which must not wait for anything. No library is imported to find out."""
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio.lowlevel")
    if asyncio is not None:
        with contextlib.suppress(RuntimeError):
            return asyncio.get_running_loop() is not None
    return trio is not None and bool(getattr(trio, "in_trio_run", bool)())


_LEFT_ELSEWHERE = (
    "a `with voight.tag(...)` block ended in another context than the one that it began in, so its tags reached no call between the two. "
    "FastAPI runs a dependency with `yield` that is a plain `def` so: make it `async def`, or call voight.set_tags() in it"
)


class tag:
    """
    Tag every call made inside a ``with`` block or a decorated function; nested tags merge onto the outer ones.

    Works in synchronous and asynchronous code, on functions, coroutine functions, generators and asynchronous generators, and one
    instance may be used by many tasks at once. Keys other than the named ones become ``extra`` keys::

        with voight.tag(user_id="u_7", plan="pro", feature="summary"):
            client.chat.completions.create(...)

    Values are text, whole numbers or UUIDs; None leaves a key as it is. Nothing is raised for a bad value: it is left out and logged once.
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
            user_id=keep_value("user_id", user_id),
            plan=keep_value("plan", plan),
            tenant_id=keep_value("tenant_id", tenant_id),
            route=keep_value("route", route),
            release=keep_value("release", release),
            session_id=keep_value("session_id", session_id),
            extra=keep_extra(extra) if extra else {},
        )

    def __enter__(self) -> None:
        outer = current_frame()
        set_frame(Frame(outer.scope, outer.tags.merge(self.tags), outer, self))

    def __exit__(
        self, exc_type: type[BaseException] | None = None, exc: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        frame = current_frame()
        if frame.by is self and frame.outer is not None:
            set_frame(frame.outer)
        elif exc_type is None and not on_a_loop():  # on a loop, a generator may well be closed in another task than it ran in
            warn_once(_LEFT_ELSEWHERE)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.__exit__()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        def inner() -> Frame:
            outer = current_frame()
            return Frame(outer.scope, outer.tags.merge(self.tags), outer, self)

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
    Set tags for the rest of the current request or job; without one, for the rest of the current context.

    An enclosing ``with tag(...)`` block still wins over them, key by key.
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
    frame = current_frame()
    if frame.scope is not None:
        frame.scope.set_tags(tags)
    else:
        set_frame(_laid_under(frame, tags))


def _laid_under(frame: Frame, tags: Tags) -> Frame:
    """*frame* with *tags* below those of every ``tag`` that is in force."""
    if frame.outer is None or not isinstance(frame.by, tag):
        return Frame(None, frame.tags.merge(tags))
    outer = _laid_under(frame.outer, tags)
    return Frame(None, outer.tags.merge(frame.by.tags), outer, frame.by)


def current_tags() -> Tags:
    """The tags that a call made here and now would carry; resolves the request's user if that has not happened yet."""
    return current_frame().resolve().tags


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """
    *function*, to be run elsewhere (another thread, an executor, a callback) with the tags and the request of here and now::

        executor.submit(voight.carry(summarise), document)

    Any callable: a function or coroutine function, a method, a ``functools.partial``, a class. A coroutine or generator that it answers
    is carried too. It keeps the request alive no longer than the request lasts.
    """
    frame = frame_to_carry()
    return run_inside(function, lambda: frame)


def frame_to_carry() -> Frame:
    """The frame of here and now, to be put in force elsewhere: with the user, where the request's getters can be asked here only."""
    frame = current_frame()
    if getattr(frame.scope, "local", False):
        frame.resolve()
    return frame


def run_inside(function: Callable[P, R], frame_for: Callable[[], Frame]) -> Callable[P, R]:
    """*function*, wrapped to run inside a frame; a generator is inside it during each of its steps only."""
    import inspect

    if inspect.iscoroutinefunction(function):
        make: Callable[..., Any] = _coroutine_inside
    elif inspect.isasyncgenfunction(function):
        make = _async_generator_inside
    elif inspect.isgeneratorfunction(function):
        make = _generator_inside
    else:
        make = _function_inside
    # What a class has as attributes is no function's.
    updated = () if isinstance(function, type) else functools.WRAPPER_UPDATES
    whole: Callable[..., Any] = function
    wrapped = functools.wraps(whole, updated=updated)(make(whole, frame_for))
    return cast("Callable[P, R]", wrapped)


def _function_inside(function: Callable[..., Any], frame_for: Callable[[], Frame]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        outer = current_frame()
        inner = frame_for()
        set_frame(inner)
        try:
            result = function(*args, **kwargs)
        finally:
            set_frame(outer)
        # `lambda: coroutine()`, and an object with `async def __call__`, look like functions until they have answered.
        make = _INSIDE.get(type(result))
        return result if make is None else make(lambda: result, lambda: inner)()

    return run


def _coroutine_inside(function: Callable[..., Any], frame_for: Callable[[], Frame]) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        outer = current_frame()
        set_frame(frame_for())
        try:
            return await function(*args, **kwargs)
        finally:
            set_frame(outer)

    return run


def _generator_inside(function: Callable[..., Any], frame_for: Callable[[], Frame]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        inner = frame_for()
        steps = function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(next, steps)
        while True:
            outer = current_frame()
            set_frame(inner)
            try:
                item = step()
            except StopIteration as stop:
                return stop.value
            finally:
                inner = current_frame()
                set_frame(outer)
            try:
                sent = yield item
            except BaseException as error:
                step = functools.partial(steps.throw, error)
            else:
                step = functools.partial(steps.send, sent)

    return run


def _async_generator_inside(function: Callable[..., Any], frame_for: Callable[[], Frame]) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        inner = frame_for()
        steps = function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(anext, steps)
        while True:
            outer = current_frame()
            set_frame(inner)
            try:
                item = await step()
            except StopAsyncIteration:
                return
            finally:
                inner = current_frame()  # a `with tag()` of the generator's own may stay open over a yield
                set_frame(outer)
            try:
                sent = yield item
            except BaseException as error:
                step = functools.partial(steps.athrow, error)
            else:
                step = functools.partial(steps.asend, sent)

    return run


_INSIDE: dict[type, Callable[..., Any]] = {
    CoroutineType: _coroutine_inside,
    GeneratorType: _generator_inside,
    AsyncGeneratorType: _async_generator_inside,
}
