"""Carry tags into executors, threads and generators, which do not copy the context themselves."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from voight_middleware.context.carry import carry, context_to_carry
from voight_middleware.context.context import current_context, set_context

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_WORKERS = ("concurrent.futures.", "multiprocessing.", "anyio.", "voight_middleware.")
"""Modules whose threads work for others later. They do not belong to one request."""


class CarryingThreadPoolExecutor(ThreadPoolExecutor):
    """A ``ThreadPoolExecutor`` whose work has its submitter's tags and request."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Submit a call of *fn*, carried."""
        return super().submit(carry(fn), *args, **kwargs)


def instrument_executors(threads: bool = False) -> None:
    """
    Carry tags into every ``ThreadPoolExecutor`` of this process, and so into
    ``loop.run_in_executor(None, fn)``.

    Repeated calls are harmless. A ``ProcessPoolExecutor`` is not changed: tags do not reach its
    processes.

    Args:
        threads: Whether a ``threading.Thread`` starts with the current tags too. Do not use it if
            your application starts threads inside a request that later work for others, fed by a
            queue: they would stay with that request. Workers of the standard library's executors
            and pools, and of anyio, are recognized.
    """
    with _lock:
        _carrying.add("submit")
        _patch(ThreadPoolExecutor, "submit", _carrying_submit)
        if threads:
            _carrying.add("start")
            _patch(threading.Thread, "start", _carrying_start)


def uninstrument_executors() -> None:
    """Undo ``instrument_executors()``, for executors and threads. Harmless without it."""
    with _lock:
        _carrying.clear()
        for name, (owner, original, ours) in list(_patched.items()):
            # else another patch is over ours, which then does nothing
            if getattr(owner, name) is ours:
                setattr(owner, name, original)
                del _patched[name]


_lock = threading.Lock()
_carrying: set[str] = set()
_patched: dict[str, tuple[type, Callable[..., Any], Callable[..., Any]]] = {}


def _patch(
    owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    if name not in _patched:
        original = getattr(owner, name)
        ours = functools.wraps(original)(make(original))
        _patched[name] = owner, original, ours
        setattr(owner, name, ours)


def _carrying_submit(original: Callable[..., Any]) -> Callable[..., Any]:
    def submit(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        if (
            "submit" in _carrying
            and not isinstance(self, CarryingThreadPoolExecutor)
            and not _is_interpreter_pool(self)
        ):
            fn = carry(fn)
        return original(self, fn, *args, **kwargs)

    return submit


def _is_interpreter_pool(executor: ThreadPoolExecutor) -> bool:
    """Return whether this is Python 3.14's executor, a subclass that pickles its functions."""
    module = sys.modules.get("concurrent.futures.interpreter")
    return module is not None and isinstance(executor, module.InterpreterPoolExecutor)


def _carrying_start(original: Callable[..., Any]) -> Callable[..., Any]:
    def start(self: threading.Thread) -> None:
        if "start" not in _carrying or _works_for_others(self) or "run" in self.__dict__:
            original(self)
            return
        context, run = context_to_carry(), self.run

        def run_carried() -> None:
            self.__dict__.pop("run", None)  # the thread and its `run` would keep each other alive
            set_context(context)
            run()

        self.run = run_carried  # type: ignore[method-assign]
        try:
            original(self)
        except BaseException:
            self.__dict__.pop("run", None)
            raise

    return start


def _works_for_others(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    return f"{getattr(target, '__module__', None)}.".startswith(
        _WORKERS
    ) or f"{type(thread).__module__}.".startswith(_WORKERS)


def carry_steps(iterable: Iterable[T]) -> Generator[T, Any, Any]:
    """
    Wrap *iterable* to run each of its steps with the current tags and request::

        return Response(carry_steps(generate_reply()))

    Between the steps, the consumer's own tags apply. For an iterator that is driven elsewhere: by a
    server's thread, or after the request. ``send``, ``throw`` and ``close`` reach it.
    """
    return _Steps(iterable)


def acarry_steps(iterable: AsyncIterable[T]) -> AsyncGenerator[T, Any]:
    """As ``carry_steps``, for an asynchronous iterable."""
    return _AsyncSteps(iterable)


class _Steps(Generator[Any, Any, Any]):
    def __init__(self, iterable: Iterable[Any]) -> None:
        self._steps: Iterator[Any] = iter(iterable)
        self._context = context_to_carry()

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        outer = current_context()
        set_context(self._context)
        try:
            return step(*args)
        finally:
            # a `with tag()` of the generator may stay open over a yield
            self._context = current_context()
            set_context(outer)

    def __next__(self) -> Any:
        return self._step(next, self._steps)

    def send(self, value: Any, /) -> Any:
        if value is None:
            return self._step(next, self._steps)
        return self._step(self._steps.send, value)  # type: ignore[attr-defined]

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None, /) -> Any:
        error = kind if value is None else value
        if trace is not None:
            error = error.with_traceback(trace)
        return self._step(self._steps.throw, error)  # type: ignore[attr-defined]

    def close(self) -> None:
        close = getattr(self._steps, "close", None)
        if close is not None:
            self._step(close)


class _AsyncSteps(AsyncGenerator[Any, Any]):
    def __init__(self, iterable: AsyncIterable[Any]) -> None:
        self._steps: AsyncIterator[Any] = aiter(iterable)
        self._context = context_to_carry()

    async def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        outer = current_context()
        set_context(self._context)
        try:
            return await step(*args)
        finally:
            self._context = current_context()
            set_context(outer)

    async def __anext__(self) -> Any:
        return await self._step(anext, self._steps)

    async def asend(self, value: Any, /) -> Any:
        if value is None:
            return await self._step(anext, self._steps)
        return await self._step(self._steps.asend, value)  # type: ignore[attr-defined]

    async def athrow(
        self, kind: Any, value: Any = None, trace: TracebackType | None = None, /
    ) -> Any:
        error = kind if value is None else value
        if trace is not None:
            error = error.with_traceback(trace)
        return await self._step(self._steps.athrow, error)  # type: ignore[attr-defined]

    async def aclose(self) -> None:
        close = getattr(self._steps, "aclose", None)
        if close is not None:
            await self._step(close)
