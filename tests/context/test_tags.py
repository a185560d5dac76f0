"""Tags: merging, nesting, isolation between tasks, and values as people send them."""

import asyncio
import contextvars
import enum
import functools
import logging
import threading
import uuid
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware import Tags, carry, current_tags, set_tags, tag


def user() -> str | None:
    return current_tags().user_id


TEXT = st.none() | st.text(min_size=1, max_size=3)
TAGS = st.builds(Tags, user_id=TEXT, plan=TEXT, route=TEXT, extra=st.dictionaries(st.sampled_from("abc"), st.text(max_size=3)))


@pytest.mark.slow
@given(TAGS, TAGS, TAGS)
def test_merging_is_associative_and_the_inner_wins(a: Tags, b: Tags, c: Tags) -> None:
    """However tags are grouped, the innermost value of each key wins, and no tags change nothing."""
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(Tags()) == a == Tags().merge(a)
    assert a.merge(b).user_id == (a.user_id if b.user_id is None else b.user_id)
    assert a.merge(b).extra == {**a.extra, **b.extra}


def test_nested_tags_merge_and_are_undone() -> None:
    """An inner block adds and overrides; what it did is gone behind it, on an exception too."""
    assert current_tags() == Tags()
    with tag(user_id="u", plan="free", feature="a"):
        with suppress(RuntimeError), tag(plan="pro", step="1"):
            assert current_tags() == Tags(user_id="u", plan="pro", extra={"feature": "a", "step": "1"})
            raise RuntimeError
        assert current_tags() == Tags(user_id="u", plan="free", extra={"feature": "a"})
    assert current_tags() == Tags()


def test_one_instance_may_be_nested_in_itself() -> None:
    """Entering the same instance twice and leaving it twice ends where it began."""
    shared = tag(user_id="u")
    with shared:
        with shared:
            assert user() == "u"
        assert user() == "u"
    assert user() is None


async def test_gathered_tasks_do_not_see_each_other() -> None:
    """Tasks that interleave at every await keep their own user from beginning to end."""

    async def work(name: str) -> set[str | None]:
        seen = set()
        async with tag(user_id=name):
            for _ in range(20):
                await asyncio.sleep(0)
                seen.add(user())
        return seen | ({"leak"} if user() is not None else set())

    results = await asyncio.gather(*(work(f"u{number}") for number in range(20)))
    assert results == [{f"u{number}"} for number in range(20)]
    assert user() is None


async def test_tasks_that_share_one_instance_never_leak() -> None:
    """One `tag` object, entered by many tasks under different outer users, gives each task back its own."""
    shared = tag(feature="x")

    async def work(name: str, pauses: int) -> None:
        with tag(user_id=name):
            for _ in range(5):
                with shared:
                    for _ in range(pauses):
                        await asyncio.sleep(0)
                    assert current_tags() == Tags(user_id=name, extra={"feature": "x"})
                assert current_tags() == Tags(user_id=name)
                await asyncio.sleep(0)

    await asyncio.gather(*(work(f"u{number}", number % 4) for number in range(12)))
    assert current_tags() == Tags()


def test_a_decorated_function_is_tagged_during_each_call() -> None:
    """A function keeps its name, gets its arguments, and is tagged while it runs, also when it raises."""

    @tag(user_id="u")
    def work(value: int, *, fail: bool = False) -> tuple[int, str | None]:
        if fail:
            raise ValueError
        return value, user()

    assert work.__name__ == "work"
    assert work(3) == (3, "u")
    with pytest.raises(ValueError):  # noqa: PT011
        work(3, fail=True)
    assert user() is None
    with tag(user_id="v", plan="pro"):
        assert work(4) == (4, "u")
        assert user() == "v"


async def test_a_decorated_coroutine_function_is_tagged_until_it_ends() -> None:
    """The tags are bound over every await of the coroutine, and only there."""

    @tag(user_id="u")
    async def work() -> str | None:
        await asyncio.sleep(0)
        return user()

    assert asyncio.iscoroutinefunction(work)
    assert await asyncio.gather(work(), work()) == ["u", "u"]
    assert user() is None


def test_a_decorated_generator_is_tagged_during_its_steps_only() -> None:
    """The consumer between two steps sees its own tags; what it sends, throws and gets returned passes through."""

    @tag(user_id="u")
    def work() -> Generator[str | None, str, str]:
        got = yield user()
        assert got == "hello"
        try:
            yield user()
        except KeyError:
            yield f"caught as {user()}"
        return "done"

    steps = work()
    with tag(user_id="consumer"):
        assert next(steps) == "u"
        assert user() == "consumer"
        assert steps.send("hello") == "u"
        assert user() == "consumer"
        assert steps.throw(KeyError()) == "caught as u"
        with pytest.raises(StopIteration) as stop:
            next(steps)
        assert stop.value.value == "done"
        assert user() == "consumer"
    assert user() is None


def test_closing_a_decorated_generator_runs_its_cleanup_under_its_tags() -> None:
    """A call in a `finally` belongs to the generator's user."""
    seen = []

    @tag(user_id="u")
    def work() -> Generator[int]:
        try:
            yield 1
        finally:
            seen.append(user())

    steps = work()
    next(steps)
    steps.close()
    assert seen == ["u"]
    assert user() is None


async def test_a_decorated_async_generator_is_tagged_during_its_steps_only() -> None:
    """As for a generator: between the steps the consumer's tags are in force; asend, athrow and aclose pass through."""
    cleaned = []

    @tag(user_id="u")
    async def work() -> AsyncGenerator[str | None, str]:
        try:
            got = yield user()
            assert got == "hello"
            try:
                yield user()
            except KeyError:
                await asyncio.sleep(0)
                yield f"caught as {user()}"
            yield "last"
        finally:
            await asyncio.sleep(0)
            cleaned.append(user())

    steps = work()
    assert await anext(steps) == "u"
    assert user() is None
    assert await steps.asend("hello") == "u"
    assert await steps.athrow(KeyError()) == "caught as u"
    assert user() is None
    await steps.aclose()
    assert cleaned == ["u"]
    assert [item async for item in tag(user_id="v")(two)()] == ["v", "v"]


async def two() -> AsyncGenerator[str | None]:
    yield user()
    yield user()


async def test_tags_set_inside_a_decorated_generator_last_over_its_steps() -> None:
    """A `with tag()` block of the generator's own is still in force after a yield inside it."""

    @tag(user_id="u")
    def work() -> Generator[Tags]:
        with tag(feature="x"):
            yield current_tags()
            yield current_tags()
        yield current_tags()

    @tag(user_id="u")
    async def awork() -> AsyncGenerator[Tags]:
        with tag(feature="x"):
            yield current_tags()
            yield current_tags()
        yield current_tags()

    inside, outside = Tags(user_id="u", extra={"feature": "x"}), Tags(user_id="u")
    assert list(work()) == [inside, inside, outside]
    assert [tags async for tags in awork()] == [inside, inside, outside]
    assert current_tags() == Tags()


def test_leaving_in_another_copy_of_the_context_raises_nothing() -> None:
    """A server that runs each step of a generator in another copy of the context may leave the block anywhere."""

    def body() -> Generator[str | None]:
        with tag(user_id="u"):
            yield user()
            yield user()

    @tag(user_id="d")
    def decorated() -> Generator[str | None]:
        yield user()
        yield user()

    steps, whole = body(), decorated()
    with tag(user_id="server"):
        assert contextvars.copy_context().run(next, steps) == "u"
        contextvars.copy_context().run(next, steps)
        with pytest.raises(StopIteration):
            contextvars.copy_context().run(next, steps)
        assert [contextvars.copy_context().run(next, whole) for _ in range(2)] == ["d", "d"]
        abandoned = body()
        contextvars.copy_context().run(next, abandoned)
        abandoned.close()
        assert user() == "server", "a block that was entered elsewhere takes nothing away here"
    assert user() is None


def test_set_tags_without_a_request_lasts_for_the_context() -> None:
    """Outside of a request `set_tags` holds for the rest of the context, and for no other one."""

    def job() -> Tags:
        set_tags(user_id="u", feature="x")
        set_tags(plan="pro")
        return current_tags()

    assert contextvars.copy_context().run(job) == Tags(user_id="u", plan="pro", extra={"feature": "x"})
    assert current_tags() == Tags()


def test_an_enclosing_tag_block_wins_over_set_tags() -> None:
    """Inside `with tag(...)`, `set_tags` fills in other keys, and lasts beyond the block."""

    def job() -> None:
        with tag(user_id="block", step="1"), tag(plan="pro"):
            set_tags(user_id="set", plan="free", tenant_id="t", step="2")
            assert current_tags() == Tags(user_id="block", plan="pro", tenant_id="t", extra={"step": "1"})
        assert current_tags() == Tags(user_id="set", plan="free", tenant_id="t", extra={"step": "2"})

    contextvars.copy_context().run(job)


def test_carry_takes_the_tags_into_a_thread() -> None:
    """A thread or an executor sees nothing of the caller, except through `carry`."""
    with ThreadPoolExecutor(1) as pool, tag(user_id="u"):
        assert pool.submit(user).result() is None
        carried = carry(user)
        assert pool.submit(carried).result() == "u"
        assert pool.submit(user).result() is None, "the worker is left as it was"
    assert user() is None
    seen: list[str | None] = []
    thread = threading.Thread(target=carry(lambda: seen.append(user())))
    thread.start()
    thread.join()
    assert seen == [None]
    assert carried() == "u", "the tags of where it was carried from, not of where it runs"


async def test_carry_of_a_coroutine_function_and_a_generator() -> None:
    """Whatever is carried runs under the tags of here: a coroutine, a generator's every step."""

    async def later() -> str | None:
        await asyncio.sleep(0)
        return user()

    def steps() -> Generator[str | None]:
        yield user()

    with tag(user_id="u"):
        task, walk = carry(later), carry(steps)
    assert (await asyncio.gather(task(), later()), list(walk())) == (["u", None], ["u"])


class Callables:
    """What a program passes for a function."""

    def method(self) -> str | None:
        return user()

    async def amethod(self) -> str | None:
        await asyncio.sleep(0)
        return user()

    def __call__(self) -> str | None:
        return user()


class AsyncCallable:
    async def __call__(self) -> str | None:
        await asyncio.sleep(0)
        return user()


class Made:
    def __init__(self) -> None:
        self.user = user()


def test_carry_of_every_callable() -> None:
    """Methods, partials, classes, objects that can be called, built-in functions; a class keeps its name, and its attributes to itself."""
    with tag(user_id="u"):
        carried = [carry(Callables().method), carry(functools.partial(user)), carry(Callables()), carry(lambda: user())]  # noqa: PLW0108
        make, largest = carry(Made), carry(max)
    assert [function() for function in carried] == ["u"] * 4
    made = make()
    assert (made.user, type(made)) == ("u", Made)
    assert make.__name__ == "Made"
    assert not vars(make).keys() & {"__init__", "__dict__"}
    assert largest(3, 5) == 5
    assert list(map(carry(str), [1])) == ["1"]


async def test_carry_of_every_callable_that_is_awaited() -> None:
    """Methods, partials, objects with an asynchronous `__call__`, and functions that only hand a coroutine on."""

    async def later() -> str | None:
        await asyncio.sleep(0)
        return user()

    with tag(user_id="u"):
        carried = [
            carry(Callables().amethod),
            carry(functools.partial(later)),
            carry(AsyncCallable()),
            carry(lambda: later()),  # noqa: PLW0108
            carry(functools.partial(AsyncCallable())),
        ]
    assert [await function() for function in carried] == ["u"] * 5
    assert await asyncio.gather(*(asyncio.create_task(function()) for function in carried)) == ["u"] * 5
    assert user() is None


async def test_carry_of_a_function_that_answers_a_generator() -> None:
    """A generator that a plain function hands on is carried step by step."""
    with tag(user_id="u"):
        sync, asynchronous = carry(lambda: (user() for _ in range(2))), carry(lambda: two())  # noqa: PLW0108
    walk = sync()
    assert (next(walk), user(), next(walk)) == ("u", None, "u")
    assert [item async for item in asynchronous()] == ["u", "u"]


async def test_carry_to_other_places_of_a_loop() -> None:
    """Callbacks from other threads, and executors."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[str | None] = loop.create_future()
    with tag(user_id="u"):
        carried = carry(lambda: found.set_result(user()))
        in_executor = carry(user)
    await asyncio.to_thread(loop.call_soon_threadsafe, carried)
    assert await found == "u"
    assert await loop.run_in_executor(None, in_executor) == "u"


def test_carry_to_a_greenlet() -> None:
    """A greenlet begins with an empty context; carried work has its tags, and the next greenlet none."""
    gevent = pytest.importorskip("gevent")
    with tag(user_id="u"):
        greenlets = [gevent.spawn(carry(user)), gevent.spawn(user)]
    gevent.joinall(greenlets)
    assert [greenlet.value for greenlet in greenlets] == ["u", None]


class Plan(enum.Enum):
    PRO = "pro"
    NUMBER = 7


class Fancy(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("u_7", "u_7"),
        (7, "7"),
        (0, "0"),
        (-1, "-1"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Plan.PRO, "pro"),
        (Plan.NUMBER, "7"),
        (Fancy("f"), "f"),
        (None, None),
        ("", None),
        ("   ", None),
        (" \t\r\n ", None),
        (" " * 10_000, None),
        ("  u \n", "u"),
        ("a\x00b\nc\x7f\x85", "a\\u0000b\\u000ac\\u007f"),
        ("a\ud800b", "a\\ud800b"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("a\u200eb\u061cc", "a\\u200eb\\u061cc"),
        ("a\u2028b", "a\\u2028b"),
        ("\U0001f600 名前", "\U0001f600 名前"),
        ("x" * 256, "x" * 256),
    ],
)
def test_values_are_kept_as_clean_text(value: object, kept: str | None) -> None:
    """Text, whole numbers, UUIDs and enumeration members become text without controls; what is blank is not there."""
    with tag(user_id=value, feature=value):
        assert current_tags() == Tags(user_id=kept, extra={} if kept is None else {"feature": kept})


def test_long_values_stay_distinct() -> None:
    """Ten kilobytes keep their beginning and a hash: one user stays one user, two stay two."""
    kept = set()
    for value in ("x" * 10_000, "x" * 10_001, "x" * 9_999 + "y", "x" * 10_000):
        with tag(user_id=value):
            text = user()
            assert text is not None
            assert len(text) == 256
            kept.add(text)
    assert len(kept) == 3


@given(st.text(max_size=600))
def test_any_text_is_kept_safe_and_cleaning_it_twice_changes_nothing(value: str) -> None:
    """Whatever the text: no exception, at most 256 characters that encode as UTF-8, and a stable result."""
    with tag(user_id=value):
        once = user()
    with tag(user_id=once):
        assert user() == once
    assert once is None or (once == once.strip() and len(once) <= 256 and "\n" not in once and once.encode())


class Hostile(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text for you")


@pytest.mark.parametrize(
    "value", [True, False, object(), b"u_7", 1.5, ["u"], {"a": 1}, Hostile("x"), pytest.param(10**5000, id="huge"), float("nan")]
)
def test_a_value_that_cannot_be_kept_is_left_out_and_logged_once(value: object, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing raises: the key is missing, the others are kept, and the log says so once."""
    key = f"odd_{uuid.uuid4().hex}"
    for _ in range(3):
        with tag(user_id="u", **{key: value}):
            assert current_tags() == Tags(user_id="u")
    told = [record for record in caplog.records if key in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert "u_7" not in told[0].getMessage()


@pytest.mark.parametrize("key", ["", "1a", "a b", "a" * 65, "a\nb", 'a"b', "é", "a\ud800", 5, None, ("t",)])
def test_a_key_that_cannot_be_kept_is_left_out(key: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An unusable key costs that key, not the tags beside it, and the log line is one line."""
    from voight_middleware.records.tags import make_tags

    assert make_tags({"user_id": "u", key: "v", "ok.key-1": "w"}) == Tags(user_id="u", extra={"ok.key-1": "w"})
    assert make_tags({"user_id": "u", "extra": {key: "v", "ok": "w"}}) == Tags(user_id="u", extra={"ok": "w"})
    assert all("\n" not in record.getMessage() for record in caplog.records)
