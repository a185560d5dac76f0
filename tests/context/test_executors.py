"""Carrying executors, instrumented executors and threads, and steps of generators."""

import asyncio
import gc
import inspect
import threading
import weakref
from collections.abc import AsyncGenerator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware import Tags, carry, current_tags, tag
from voight_middleware.context.context import use_scope
from voight_middleware.context.executors import (
    CarryingThreadPoolExecutor,
    acarry_steps,
    carry_steps,
    instrument_executors,
    uninstrument_executors,
)
from voight_middleware.middleware.getters import Getters
from voight_middleware.middleware.request_scope import RequestScope

from ..support.garbage import collected


def user() -> str | None:
    return current_tags().user_id


def user_and(*values: int, **more: int) -> tuple[Any, ...]:
    return (user(), values, more)


@pytest.fixture
def instrumented() -> Iterator[None]:
    instrument_executors(threads=True)
    yield
    uninstrument_executors()


def test_a_carrying_executor_works_for_who_submits() -> None:
    """`submit` and `map` pass arguments, results and exceptions on, and leave nothing on the worker."""
    with CarryingThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        for name in ("u", "v"):
            with tag(user_id=name):
                assert pool.submit(user_and, 1, a=2).result() == (name, (1,), {"a": 2})
                assert list(pool.map(user_and, [1, 2], [3, 4])) == [(name, (1, 3), {}), (name, (2, 4), {})]
        assert pool.submit(user).result() is None
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()


async def test_a_carrying_executor_of_a_loop() -> None:
    """As the executor of `run_in_executor`, given or as the default one."""
    loop = asyncio.get_running_loop()
    pool = CarryingThreadPoolExecutor(1)
    loop.set_default_executor(pool)
    with tag(user_id="u"):
        assert await loop.run_in_executor(pool, user) == "u"
        assert await loop.run_in_executor(None, user) == "u"
    assert await loop.run_in_executor(None, user) is None


def test_instrumented_executors_and_threads(instrumented: None) -> None:
    """Each piece of work and each thread has the tags of where it was begun, and none of the one before it."""
    with ThreadPoolExecutor(1) as pool:
        for name in ("u", "v", None):
            with tag(user_id=name):
                assert pool.submit(user).result() == name
                assert list(pool.map(user_and, [1])) == [(name, (1,), {})]
                assert in_thread(user) == name
    with CarryingThreadPoolExecutor(1) as pool, tag(user_id="u"):
        assert pool.submit(user).result() == "u"


def in_thread(function: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


class Working(threading.Thread):
    """A thread of a class of its own."""

    found: str | None = "nothing"

    def run(self) -> None:
        self.found = user()


def test_a_thread_of_a_class_of_its_own(instrumented: None) -> None:
    """`run` may be overridden; the thread is left as it was, and may not be started twice, as before."""
    thread = Working()
    with tag(user_id="u"):
        thread.start()
    thread.join()
    assert thread.found == "u"
    assert "run" not in vars(thread)
    with pytest.raises(RuntimeError, match="once"):
        thread.start()
    assert "run" not in vars(thread)


def test_workers_of_executors_are_of_no_request(instrumented: None) -> None:
    """A pool that a request has started works for others afterwards, also where it does not say whose work it does."""
    from multiprocessing.pool import ThreadPool

    with tag(user_id="u"):
        pool = ThreadPool(1)
        executor = ThreadPoolExecutor(1)
        executor.submit(user).result()
    assert pool.apply(user) is None
    uninstrument_executors()
    assert executor.submit(user).result() is None
    executor.shutdown()
    pool.close()
    pool.join()


def test_instrumenting_is_undone_completely() -> None:
    """Repeated calls are one, and behind `uninstrument_executors` everything is as Python made it."""
    before = ThreadPoolExecutor.submit, threading.Thread.start
    uninstrument_executors()
    for _ in range(3):
        instrument_executors(threads=True)
    assert ThreadPoolExecutor.submit is not before[0]
    assert inspect.signature(ThreadPoolExecutor.submit) == inspect.signature(before[0])
    uninstrument_executors()
    assert (ThreadPoolExecutor.submit, threading.Thread.start) == before
    instrument_executors()
    assert threading.Thread.start is before[1], "threads only where asked for"
    uninstrument_executors()
    assert (ThreadPoolExecutor.submit, threading.Thread.start) == before


def test_a_patch_of_somebody_else_over_ours_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch over ours stays. Ours does nothing below it, and may be enabled again."""
    before = ThreadPoolExecutor.submit
    instrument_executors()
    ours = ThreadPoolExecutor.submit
    submitted: list[Any] = []

    def theirs(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        submitted.append(fn)
        return ours(self, fn, *args, **kwargs)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", theirs)
    uninstrument_executors()
    with ThreadPoolExecutor(1) as pool, tag(user_id="u"):
        assert pool.submit(user).result() is None
        instrument_executors()
        assert pool.submit(user).result() == "u"
    assert submitted == [user, user]
    monkeypatch.undo()
    uninstrument_executors()
    assert ThreadPoolExecutor.submit is before


class Request:
    """What a request holds on to."""


def test_carried_work_does_not_keep_a_request(voight_calls: Any, instrumented: None) -> None:
    """When the request has ended, nothing that it has carried away holds it: neither functions, nor pools, nor threads."""

    def hold() -> tuple[weakref.ref[Request], Any, Any, ThreadPoolExecutor, Working]:
        request = Request()
        scope = RequestScope(lambda: request, Getters(lambda _: None), lambda: None)
        with use_scope(scope):
            pool, thread = ThreadPoolExecutor(1), Working()
            pool.submit(voight.current_tags).result()
            thread.start()
            thread.join()
            kept = carry(user), carry_steps(iter([1]))
        scope.attribute_late_now()
        return weakref.ref(request), *kept, pool, thread

    with collected():
        gone, *kept = hold()
    assert gone() is None
    del kept


async def test_who_can_be_asked_in_the_request_only_is_asked_there(instrumented: None) -> None:
    """Where getters need the thread or context of their request (Flask, WSGI), whatever carries it asks them before."""
    here = threading.get_ident()

    def getter(_: Any) -> str | None:
        return "u" if threading.get_ident() == here else None

    async def asteps() -> AsyncGenerator[Any, Any]:
        yield user()

    def scope() -> use_scope:
        return use_scope(RequestScope(lambda: None, Getters(getter), lambda: None, local=True))

    with scope():
        assert in_thread(user) == "u"
    with scope(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(user).result() == "u"
    with scope():
        carried: Any = carry_steps(user() for _ in range(1))
    assert in_thread(lambda: next(carried)) == "u"
    with scope():
        acarried = acarry_steps(asteps())
    assert await asyncio.to_thread(asyncio.run, first(acarried)) == "u"


async def first(steps: AsyncGenerator[Any, Any]) -> Any:
    return await anext(steps)


def test_a_carried_thread_is_no_cycle(instrumented: None) -> None:
    """A thread that has ended goes at once."""
    gc.disable()
    try:
        thread = threading.Thread(target=user)
        thread.start()
        thread.join()
        gone = weakref.ref(thread)
        del thread
        assert gone() is None
    finally:
        gc.enable()


def steps() -> Generator[Any, Any, str]:
    with tag(step="1"):
        got = yield current_tags()
        try:
            yield current_tags(), got
        except KeyError:
            yield "caught", user()
    return "done"


def test_steps_of_a_generator() -> None:
    """Each step has the tags of where it was carried from, the consumer their own; send, throw and the result pass through."""
    with tag(user_id="u"):
        carried = carry_steps(steps())
    with tag(user_id="consumer"):
        assert next(carried) == Tags(user_id="u", extra={"step": "1"})
        assert user() == "consumer"
        assert carried.send("hello") == (Tags(user_id="u", extra={"step": "1"}), "hello")
        assert carried.throw(KeyError()) == ("caught", "u")
        with pytest.raises(StopIteration) as stop:
            next(carried)
        assert stop.value.value == "done"
        assert user() == "consumer"


def test_steps_in_other_threads() -> None:
    """Every step may be on another thread, as a server has it."""
    with tag(user_id="u"):
        carried = carry_steps(user() for _ in range(3))
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        assert [pool.submit(next, carried).result() for pool in (first, second, first)] == ["u", "u", "u"]
        assert first.submit(user).result() is None


class Closing:
    """An iterator with a `close` of its own, as WSGI servers call it."""

    def __init__(self) -> None:
        self.closed_by: list[str | None] = []

    def __iter__(self) -> Iterator[str | None]:
        return self

    def __next__(self) -> str | None:
        return user()

    def close(self) -> None:
        self.closed_by.append(user())


def test_closing_reaches_what_is_carried() -> None:
    """Also before the first step, and as the owner; an iterable without `close` has none."""
    with tag(user_id="u"):
        inner = Closing()
        carried, plain = carry_steps(inner), carry_steps([1, 2])
    carried.close()
    assert inner.closed_by == ["u"]
    plain.close()
    assert list(plain) == [1, 2]


async def async_steps(cleaned: list[Any]) -> AsyncGenerator[Any, Any]:
    try:
        await asyncio.sleep(0)
        got = yield user()
        try:
            yield user(), got
        except KeyError:
            yield "caught", user()
    finally:
        await asyncio.sleep(0)
        cleaned.append(user())


async def test_steps_of_an_asynchronous_generator() -> None:
    """As for a generator: asend, athrow and aclose pass through, and the consumer has their own tags between."""
    cleaned: list[Any] = []
    with tag(user_id="u"):
        carried = acarry_steps(async_steps(cleaned))
    with tag(user_id="consumer"):
        assert await anext(carried) == "u"
        assert user() == "consumer"
        assert await carried.asend("hello") == ("u", "hello")
        assert await carried.athrow(KeyError()) == ("caught", "u")
        await carried.aclose()
        assert cleaned == ["u"]
        assert [item async for item in carry_of_two("v")] == ["v", "v"]
        assert user() == "consumer"


def carry_of_two(name: str) -> Any:
    async def two() -> AsyncGenerator[Any, Any]:
        yield user()
        yield user()

    with tag(user_id=name):
        return acarry_steps(two())


async def test_steps_that_are_cancelled() -> None:
    """A step that is cancelled gives the consumer their tags back, and the generator its cleanup."""
    cleaned: list[Any] = []

    async def never() -> AsyncGenerator[Any, Any]:
        try:
            await asyncio.Event().wait()
            yield
        finally:
            cleaned.append(user())

    with tag(user_id="u"):
        carried = acarry_steps(never())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(carried), 0.01)
    assert cleaned == ["u"]
    assert user() is None
