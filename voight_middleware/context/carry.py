"""Carry tags into functions that run later, or elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, ParamSpec, TypeVar, cast

from voight_middleware.context.context import TagContext, current_context, set_context

P = ParamSpec("P")
R = TypeVar("R")


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """
    Wrap *function* to run elsewhere (a thread, an executor, a callback) with the current tags and
    request::

        executor.submit(voight.carry(summarize), document)

    Any callable works: a function or coroutine function, a method, a ``functools.partial``, a
    class. A coroutine or generator that it returns is carried too. The request is kept no longer
    than it lasts.
    """
    context = context_to_carry()
    return run_inside(function, lambda: context)


def context_to_carry() -> TagContext:
    """
    Return the current context, to be applied elsewhere.

    The user is resolved first if the request's getters work in the request's own context only.
    """
    context = current_context()
    if getattr(context.scope, "local", False):
        context.resolve()
    return context


def run_inside(function: Callable[P, R], context_for: Callable[[], TagContext]) -> Callable[P, R]:
    """Wrap *function* to run inside a context. A generator is inside it during its steps only."""
    import inspect

    if inspect.iscoroutinefunction(function):
        make: Callable[..., Any] = _coroutine_inside
    elif inspect.isasyncgenfunction(function):
        make = _async_generator_inside
    elif inspect.isgeneratorfunction(function):
        make = _generator_inside
    else:
        make = _function_inside
    # The attributes of a class are not those of a function.
    updated = () if isinstance(function, type) else functools.WRAPPER_UPDATES
    untyped: Callable[..., Any] = function
    wrapped = functools.wraps(untyped, updated=updated)(make(untyped, context_for))
    return cast("Callable[P, R]", wrapped)


def _function_inside(
    function: Callable[..., Any], context_for: Callable[[], TagContext]
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        outer = current_context()
        inner = context_for()
        set_context(inner)
        try:
            result = function(*args, **kwargs)
        finally:
            set_context(outer)
        # `lambda: coroutine()` and objects with `async def __call__` look like functions until they
        # return.
        make = _INSIDE.get(type(result))
        return result if make is None else make(lambda: result, lambda: inner)()

    return run


def _coroutine_inside(
    function: Callable[..., Any], context_for: Callable[[], TagContext]
) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        outer = current_context()
        set_context(context_for())
        try:
            return await function(*args, **kwargs)
        finally:
            set_context(outer)

    return run


def _generator_inside(
    function: Callable[..., Any], context_for: Callable[[], TagContext]
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        inner = context_for()
        steps = function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(next, steps)
        while True:
            outer = current_context()
            set_context(inner)
            try:
                item = step()
            except StopIteration as stop:
                return stop.value
            finally:
                inner = current_context()
                set_context(outer)
            try:
                sent = yield item
            except BaseException as error:
                step = functools.partial(steps.throw, error)
            else:
                step = functools.partial(steps.send, sent)

    return run


def _async_generator_inside(
    function: Callable[..., Any], context_for: Callable[[], TagContext]
) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        inner = context_for()
        steps = function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(anext, steps)
        while True:
            outer = current_context()
            set_context(inner)
            try:
                item = await step()
            except StopAsyncIteration:
                return
            finally:
                # a `with tag()` of the generator may stay open over a yield
                inner = current_context()
                set_context(outer)
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
