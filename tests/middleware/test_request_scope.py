"""Scope: one request's identity, asked for at the first call and settled at the end."""

import asyncio
import json
import logging
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

import voight_middleware as voight
from voight_middleware.config.settings import Settings
from voight_middleware.context.context import current_context, use_scope
from voight_middleware.diagnostics import counters
from voight_middleware.middleware.getters import Getters, user_id_of
from voight_middleware.middleware.request_scope import RequestScope
from voight_middleware.pipeline.meter import Meter, swap_meter
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Owner, Tags

from ..support.depth import times


@pytest.fixture(autouse=True)
def meter(tmp_path: Path) -> Iterator[Meter]:
    """The meter that the calls of this test go to."""
    own = Meter(Settings.from_environment(ledger=tmp_path / "ledger.db", environ={}))
    before = swap_meter(own)
    yield own
    swap_meter(before)
    own.close()


def scope_of(user: Callable[[Any], Any], route: Callable[[], str | None] = lambda: None, **getters: Any) -> RequestScope:
    return RequestScope(lambda: "the request", Getters(user, **getters), route)


def spend(**tags: str) -> str:
    return voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1, "completion_tokens": 1}, tags=tags)


def kept(meter: Meter) -> dict[str, Call]:
    from voight_middleware.ledger import open_ledger

    assert meter.flush()
    ledger = open_ledger(meter.settings.ledger)
    try:
        return {call.call_id: call for call in ledger.calls()}
    finally:
        ledger.close()


def owner(call: Call) -> tuple[str | None, str]:
    return call.tags.user_id, call.attribution


def sync_getter(request: Any) -> str:
    assert request == "the request"
    return "u"


async def async_getter(request: Any) -> str:
    await asyncio.sleep(0)
    return sync_getter(request)


@pytest.fixture(params=[sync_getter, async_getter])
def getter(request: pytest.FixtureRequest) -> Any:
    """A getter that answers "u": a function, and a coroutine function."""
    return request.param


def test_nothing_is_asked_before_a_call_asks() -> None:
    """A request without a call never runs a getter, not at its end either."""
    asked: list[Any] = []
    scope = scope_of(asked.append)
    with use_scope(scope):
        assert current_context().owner() == Owner(Tags(), "none")
    asyncio.run(scope.attribute_late())
    assert asked == []


def test_synchronous_code_off_the_loop(meter: Meter) -> None:
    """A WSGI-like request asks a synchronous getter at its first call, and only once when it has named a user."""
    asked = []

    def once(request: Any) -> str:
        asked.append(request)
        return "u"

    with use_scope(scope_of(once, plan=lambda request: "pro", tenant=lambda request: 7, tags=lambda request: {"feature": "x"})):
        ids = [spend(), spend()]
    calls = kept(meter)
    assert {owner(calls[call_id]) for call_id in ids} == {("u", "getter")}
    assert calls[ids[0]].tags == Tags(user_id="u", plan="pro", tenant_id="7", extra={"feature": "x"})
    assert asked == ["the request"]


async def test_asynchronous_code(getter: Any) -> None:
    """Asynchronous code awaits the getter, whichever kind it is."""
    with use_scope(scope_of(getter)):
        assert await current_context().aresolve() == Owner(Tags(user_id="u"), "getter")


async def test_a_worker_thread_of_anyio(getter: Any, meter: Meter) -> None:
    """A `def` endpoint runs in a worker thread: an asynchronous getter is awaited on the loop, and the call has its owner at once."""
    with use_scope(scope_of(getter)):
        call_id = await anyio.to_thread.run_sync(spend)
    assert owner(kept(meter)[call_id]) == ("u", "getter")


async def test_the_loops_own_thread_is_not_blocked_and_the_call_is_settled(meter: Meter) -> None:
    """A synchronous client in an `async def` endpoint cannot wait for an asynchronous getter: its call gets its owner at the end."""
    scope = scope_of(async_getter, plan=lambda request: "pro")
    with use_scope(scope):
        call_id = spend()
        assert owner(kept(meter)[call_id]) == (None, "none")
        await scope.attribute_late()
    call = kept(meter)[call_id]
    assert (owner(call), call.tags.plan) == (("u", "settled"), "pro")


async def test_a_foreign_thread_cannot_ask_the_loop_and_is_settled(meter: Meter) -> None:
    """A thread of the application's own, which carries the request's tags, leaves an asynchronous getter to the end."""
    scope = scope_of(async_getter)
    ids: list[str] = []
    with use_scope(scope):
        thread = threading.Thread(target=voight.carry(lambda: ids.append(spend())))
        thread.start()
        thread.join()
        await scope.attribute_late()
    assert owner(kept(meter)[ids[0]]) == ("u", "settled")


def test_none_is_asked_again(meter: Meter) -> None:
    """A getter that does not know yet is asked at every call, and the earlier calls are settled."""
    answers = iter([None, None, "u"])
    scope = scope_of(lambda request: next(answers))
    with use_scope(scope):
        ids = [spend() for _ in range(4)]
    asyncio.run(scope.attribute_late())
    calls = kept(meter)
    assert [owner(calls[call_id]) for call_id in ids] == [("u", "settled"), ("u", "settled"), ("u", "getter"), ("u", "getter")]


def test_a_request_of_nobody_stays_nobodys(meter: Meter) -> None:
    """An anonymous request's call has no owner, keeps the plan that is known, and `settle` writes nothing."""
    scope = scope_of(lambda request: None, plan=lambda request: "free")
    with use_scope(scope):
        call_id = spend()
    before = meter.journal.written
    asyncio.run(scope.attribute_late())
    assert meter.journal.written == before
    call = kept(meter)[call_id]
    assert (owner(call), call.tags.plan) == ((None, "none"), "free")


def test_a_getter_that_raises_is_an_error_that_is_counted_and_logged_once(meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    """The call is kept without an owner, as an error; the log names the getter, and never what it said about the user."""

    def broken_user_lookup(request: Any) -> str:
        raise TypeError("no column for alice@example.com")

    with use_scope(scope_of(broken_user_lookup, plan=lambda request: "pro")):
        call_id = spend()
        spend()
    call = kept(meter)[call_id]
    assert (owner(call), call.tags.plan) == ((None, "error"), "pro")
    assert counters["getter_errors"] == 2
    told = [record for record in caplog.records if "broken_user_lookup" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert "alice" not in caplog.text


@pytest.mark.parametrize(("about", "lost"), [("plan", "have no plan"), ("tenant", "have no tenant"), ("tags", "lack its tags")])
def test_the_log_says_what_is_lost_and_where(about: str, lost: str, meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    """The message is true: the calls have an owner. It names the getter, and the file and line of the application's code."""

    def broken_lookup(request: Any) -> str:
        return json.loads("{")

    with use_scope(scope_of(sync_getter, **{about: broken_lookup})):
        call_id = spend()
    assert owner(kept(meter)[call_id]) == ("u", "getter")
    line = broken_lookup.__code__.co_firstlineno + 1
    (said,) = [record.getMessage() for record in caplog.records if "broken_lookup" in record.getMessage()]
    where = f"middleware/test_request_scope.py:{line}"
    assert said == f"{about}_getter broken_lookup raised JSONDecodeError at {where}: calls of such requests {lost}"


@pytest.mark.parametrize("about", ["plan", "tenant"])
def test_a_visitor_whose_plan_cannot_be_read_is_no_error(about: str, meter: Meter) -> None:
    """Nobody is signed in, and the getter of the user has said so."""

    def broken(request: Any) -> str:
        raise AttributeError("AnonymousUser has no plan")

    with use_scope(scope_of(lambda request: None, **{about: broken})):
        call_id = spend()
    assert owner(kept(meter)[call_id]) == (None, "none")


def test_a_getter_that_recovers_is_no_error(meter: Meter) -> None:
    """A failure before the user is known is settled like any other call."""
    answers = iter([KeyError(), "u"])

    def getter(request: Any) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    scope = scope_of(getter)
    with use_scope(scope):
        ids = [spend(), spend()]
    asyncio.run(scope.attribute_late())
    calls = kept(meter)
    assert [owner(calls[call_id]) for call_id in ids] == [("u", "settled"), ("u", "getter")]


def test_one_broken_getter_does_not_cost_the_user(meter: Meter) -> None:
    """A plan or tags getter that raises, or answers no mapping, or a mapping with odd keys, costs only what it was for."""

    def broken(request: Any) -> Any:
        raise RuntimeError

    for tags in (broken, lambda request: ["x"], lambda request: {1: "a", None: "b"}):
        with use_scope(scope_of(sync_getter, plan=broken, tenant=lambda request: "t", tags=tags)):
            call_id = spend()
        call = kept(meter)[call_id]
        assert (owner(call), call.tags) == (("u", "getter"), Tags(user_id="u", tenant_id="t"))


@pytest.mark.parametrize(
    ("answer", "user"),
    [
        (7, "7"),
        (0, "0"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("u", "u"),
        ("", None),
        (" ", None),
        ("a\nb", "a\\u000ab"),
    ],
)
def test_ids_may_be_text_numbers_and_uuids(answer: object, user: str | None) -> None:
    """What a getter may answer, as it is kept."""
    with use_scope(scope_of(lambda request: answer)):
        assert voight.current_tags().user_id == user


@pytest.mark.slow
@pytest.mark.parametrize("answer", [True, b"u", object(), 1.5, ["u"], 10**5000], ids=lambda answer: type(answer).__name__)
def test_an_answer_that_is_no_id_is_an_error(meter: Meter, answer: object) -> None:
    """A whole user object, or bytes, is not taken for an id: the call has no owner, as an error, and nothing raises."""
    with use_scope(scope_of(lambda request: answer, plan=lambda request: "pro")):
        call_id = spend()
    call = kept(meter)[call_id]
    assert (owner(call), call.tags.plan) == ((None, "error"), "pro")
    assert counters["getter_errors"] == 1


def test_an_explicit_tag_beats_the_getter_and_drops_the_other_users_plan(meter: Meter) -> None:
    """On behalf of another user: the signed-in user's plan, tenant and tags are not theirs."""
    scope = scope_of(
        sync_getter, lambda: "GET /x", plan=lambda request: "pro", tenant=lambda request: "t", tags=lambda request: {"team": "a"}
    )
    with use_scope(scope):
        own = spend()
        with voight.tag(user_id="v", feature="x"):
            theirs = spend()
        with voight.tag(user_id="u", feature="x"):
            same = spend()
        with voight.tag(feature="x"):
            more = spend()
        voight.set_tags(user_id="w")
        rest = spend()
    calls = kept(meter)
    whole = Tags(user_id="u", plan="pro", tenant_id="t", route="GET /x", extra={"team": "a"})
    assert (calls[own].tags, calls[own].attribution) == (whole, "getter")
    assert (calls[theirs].tags, calls[theirs].attribution) == (Tags(user_id="v", route="GET /x", extra={"feature": "x"}), "tag")
    assert (calls[same].tags, calls[same].attribution) == (whole.merge(Tags(extra={"feature": "x"})), "tag")
    assert (calls[more].tags, calls[more].attribution) == (whole.merge(Tags(extra={"feature": "x"})), "getter")
    assert (calls[rest].tags, calls[rest].attribution) == (Tags(user_id="w", route="GET /x"), "tag")


def test_a_dependency_that_names_another_user_drops_the_getters_plan(meter: Meter) -> None:
    """`identify` comes instead of the getters: nothing of the user that they named stays with the new one."""
    scope = scope_of(sync_getter, plan=lambda request: "pro", tenant=lambda request: "t")
    with use_scope(scope):
        before = spend()
        scope.set_identity(Tags(user_id="d"), "dependency")
        after = spend()
    calls = kept(meter)
    assert (calls[before].tags, calls[before].attribution) == (Tags(user_id="u", plan="pro", tenant_id="t"), "getter")
    assert (calls[after].tags, calls[after].attribution) == (Tags(user_id="d"), "dependency")


async def test_a_dependency_that_comes_while_a_getter_is_awaited_wins() -> None:
    """A slow getter's answer does not replace the user that a dependency has named in the meantime."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(request: Any) -> str:
        asked.set()
        await answer.wait()
        return "late"

    scope = scope_of(slow)
    with use_scope(scope):
        resolving = asyncio.create_task(current_context().aresolve())
        await asked.wait()
        scope.set_identity(Tags(user_id="d", plan="pro"), "dependency")
        answer.set()
        expected = Owner(Tags(user_id="d", plan="pro"), "dependency")
        assert await resolving == expected
        assert current_context().owner() == expected


async def test_tasks_that_ask_at_the_same_time_get_the_same_answer() -> None:
    """Nothing is locked, nobody sees half an identity."""
    count = 0

    async def getter(request: Any) -> int:
        nonlocal count
        count += 1
        await asyncio.sleep(0)
        return 7

    async def plan(request: Any) -> str:
        await asyncio.sleep(0)
        return "pro"

    with use_scope(scope_of(getter, plan=plan)):
        owners = await asyncio.gather(*(current_context().aresolve() for _ in range(20)))
    assert set(map(str, owners)) == {str(Owner(Tags(user_id="7", plan="pro"), "getter"))}
    assert 1 <= count <= 20


async def test_a_getter_that_makes_a_call_itself_does_not_ask_itself(meter: Meter) -> None:
    """The getter's own call is written without recursion, and settled with the request."""
    ids = []

    async def getter(request: Any) -> str:
        await current_context().aresolve()
        ids.append(spend())
        return "u"

    scope = scope_of(getter)
    with use_scope(scope):
        assert (await current_context().aresolve()).tags.user_id == "u"
        await scope.attribute_late()
    assert len(ids) == 1
    assert owner(kept(meter)[ids[0]]) == ("u", "settled")


def test_a_fresh_scope_sees_nothing_of_an_outer_one() -> None:
    """A request that is handled inside the context of another one does not inherit its user, and gives it back."""
    with use_scope(scope_of(sync_getter)), voight.tag(feature="outer"):
        with use_scope(scope_of(lambda request: None)):
            assert voight.current_tags() == Tags()
        assert voight.current_tags() == Tags(user_id="u", extra={"feature": "outer"})
    assert voight.current_tags() == Tags()


def test_a_settled_scope_has_let_go_of_its_request(meter: Meter) -> None:
    """After the end nobody is asked any more; a late background call has the owner that was known by then."""
    asked: list[Any] = []
    scope = scope_of(lambda request: asked.append(request) or ("u" if len(asked) > 1 else None))
    with use_scope(scope):
        spend()
        asyncio.run(scope.attribute_late())
        late = spend()
    assert len(asked) == 2
    assert owner(kept(meter)[late]) == ("u", "settled")


async def test_a_request_that_is_cancelled_while_it_settles_lets_go_all_the_same() -> None:
    """A getter that never answers does not keep the request alive once the server cancels it."""

    async def never(request: Any) -> str:
        await asyncio.Event().wait()
        return "u"

    class Request:
        pass

    request = Request()
    scope = RequestScope(lambda held=request: held, Getters(never), lambda: None)
    with use_scope(scope):
        spend()
        settling = asyncio.create_task(scope.attribute_late())
        await asyncio.sleep(0)
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        assert await asyncio.wait_for(scope.aresolve(), 5) == Owner(Tags(), "none"), "nobody is asked any more"


@pytest.mark.parametrize("route", ["GET /x/{id}", None])
def test_the_route_is_known_when_the_router_has_matched(meter: Meter, route: str | None) -> None:
    """It is asked for until it is there; one that raises is counted, and costs nothing else."""
    answers = iter([None, route])
    with use_scope(scope_of(sync_getter, lambda: next(answers, route))):
        first, second = spend(), spend()
    calls = kept(meter)
    assert calls[second].tags.route == route
    assert owner(calls[first]) == ("u", "getter")

    def broken() -> str:
        raise RuntimeError

    with use_scope(scope_of(sync_getter, broken)):
        third = spend()
    assert owner(kept(meter)[third]) == ("u", "getter")
    assert counters["internal_errors"] == 1


class User:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


@pytest.mark.parametrize(
    ("user", "found"),
    [
        (None, None),
        ("u", "u"),
        (5, 5),
        (User(id=5), 5),
        (User(id=None, pk=6), 6),
        (User(id=0), 0),
        (User(username="n"), "n"),
        (User(sub="s", username="n"), "s"),
        ({"sub": "s"}, "s"),
        ({}, None),
        (User(id=5, is_authenticated=False), None),
        (User(id=5, is_authenticated=True), 5),
        (User(id=lambda: 5, pk=6), 6),
        (User(), None),
    ],
)
def test_the_id_of_a_user_object(user: Any, found: object) -> None:
    """The usual attribute names are tried in their order; an anonymous user has no id."""
    assert user_id_of(user) == found


async def steps() -> AsyncIterator[str | None]:
    yield voight.current_tags().user_id


async def test_an_async_generator_of_the_request_has_its_scope() -> None:
    """A streamed answer, driven inside the request, sees the request's user."""
    with use_scope(scope_of(sync_getter)):
        assert [user async for user in steps()] == ["u"]


def test_a_local_scope_is_asked_before_it_is_carried_elsewhere() -> None:
    """Where getters answer only in the request's own context (Flask), `carry` asks there; elsewhere it asks nobody."""
    here = threading.get_ident()
    asked: list[bool] = []

    def getter(request: Any) -> str:
        asked.append(threading.get_ident() == here)
        return "u"

    found: list[str | None] = []
    for local in (True, False):
        with use_scope(RequestScope(lambda: "the request", Getters(getter), lambda: None, local=local)):
            thread = threading.Thread(target=voight.carry(lambda: found.append(voight.current_tags().user_id)))
            thread.start()
            thread.join()
    assert found == ["u", "u"]
    assert asked == [True, False]


@pytest.mark.slow
def test_threads_that_ask_at_once_have_the_route() -> None:
    """Threads of one request that ask for its user at the same time all see the route."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as threads:
            for _ in range(times(1_000, 5_000)):
                scope = scope_of(sync_getter, lambda: "GET /")
                asked = [threads.submit(scope.resolve) for _ in range(3)]
                routes = {one.result().tags.route for one in asked} | {scope.known().tags.route}
                assert routes == {"GET /"}
    finally:
        sys.setswitchinterval(before)
