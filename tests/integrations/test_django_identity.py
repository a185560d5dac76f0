"""Who the user is that voight_django finds, and that looking for him leaves no trace: queries, headers, cookies and sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils.functional import SimpleLazyObject

import voight_middleware as voight

from .django_project import OURS, SIGN_IN, project, user

QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@pytest.fixture(autouse=True)
def _connections() -> Iterator[None]:
    """No connection of a test's thread is left to the garbage collector."""
    yield
    connections.close_all()


def get(kind: str, cookie: str | None) -> Any:
    """A request of whoever has this session cookie, by Django's handler of WSGI or ASGI."""
    client: Any = Client() if kind == "WSGI" else AsyncClient()
    if cookie is not None:
        client.cookies[settings.SESSION_COOKIE_NAME] = cookie
    if kind == "WSGI":
        return client.get("/")

    async def answer() -> Any:
        response = await client.get("/")
        await sync_to_async(connections.close_all)()
        return response

    return asyncio.run(answer())


def cookie_of(visitor: str) -> str | None:
    """The session cookie of a new visitor."""
    if visitor == "without a cookie":
        return None
    if visitor == "with a cookie of no session":
        return "abcdefghijklmnopqrstuvwxyz012345"
    if visitor == "with a session":
        session = SessionStore()
        session["cart"] = 7
        session.save()
        return str(session.session_key)
    client = Client()
    if visitor == "signed in with an old key":
        with project(SECRET_KEY="old"):
            client.force_login(user("alice"))
    else:
        client.force_login(user("alice"))
    if visitor == "signed in before the password changed":
        session = client.session
        session["_auth_user_hash"] = "0" * 64
        session.save()
    return str(client.cookies[settings.SESSION_COOKIE_NAME].value)


VISITORS = (
    "without a cookie",
    "with a cookie of no session",
    "with a session",
    "signed in",
    "signed in before the password changed",
    "signed in with an old key",
)


READS = ("never", "before", "after", "and writes the session")
VISITS = [(kind, reads, visitor) for kind in ("WSGI", "ASGI") for reads in READS for visitor in VISITORS]
"""Every visitor reads in every way under WSGI; under ASGI it is each with one of the ways, and the rest is of the deep run."""


def seldom(kind: str, reads: str, visitor: str) -> bool:
    return kind == "ASGI" and reads != READS[VISITORS.index(visitor) % len(READS)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reads", "visitor"), [pytest.param(*visit, marks=[pytest.mark.deep] if seldom(*visit) else []) for visit in VISITS]
)
def test_no_trace(kind: str, reads: str, visitor: str, ask: Any, voight_calls: Any) -> None:
    """A call leaves the response, its cookies and the visitor's session as they are without us, whatever the view does with its user."""

    def view(request: Any) -> HttpResponse:
        if reads == "before":
            str(request.user.pk)
        ask()
        if reads == "after":
            str(request.user.pk)
        if reads == "and writes the session":
            request.session["cart"] = request.session.get("cart", 0) + 1
        return HttpResponse("ok")

    def left_by(middleware: Any) -> Any:
        cookie = cookie_of(visitor)
        with project(path("", view), middleware=middleware, SECRET_KEY_FALLBACKS=["old"]):
            response = get(kind, cookie)
        cookies = {name: (morsel.value == cookie, bool(morsel.value), morsel["max-age"]) for name, morsel in response.cookies.items()}
        exists = cookie is not None and SessionStore().exists(cookie)
        data = SessionStore(cookie).load() if exists else None
        return (response.status_code, dict(response.headers), cookies, exists, data, response.content)

    assert left_by((*SIGN_IN, OURS)) == left_by(SIGN_IN)
    signed_in = visitor in ("signed in", "signed in with an old key")
    assert voight_calls[0].tags.user_id == (str(user("alice").pk) if signed_in else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("visitor", "reads", "more"),
    [
        ("signed in", "before", 0),
        ("signed in", "never", 2),  # the session and its user, once for all calls
        ("with a session", "never", 1),
        ("without a cookie", "never", 0),
        ("signed in", "without a call", 0),
    ],
)
def test_queries(visitor: str, reads: str, more: int, ask: Any, voight_calls: Any) -> None:
    """The database is asked only where a call is made and the application has not asked it, and only once."""

    def view(request: Any) -> HttpResponse:
        if reads == "before":
            str(request.user.pk)
        if reads != "without a call":
            ask()
            ask()
        return HttpResponse("ok")

    def queries(middleware: Any) -> list[str]:
        cookie = cookie_of(visitor)
        with project(path("", view), middleware=middleware), CaptureQueriesContext(connection) as captured:
            get("WSGI", cookie)
        return [query["sql"] for query in captured]

    assert len(queries((*SIGN_IN, OURS))) - len(queries(SIGN_IN)) == more


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["cache", "cached_db", "signed_cookies", "file"])
def test_every_kind_of_session(engine: str, ask: Any, voight_calls: Any, tmp_path: Any) -> None:
    """The user is found wherever the project keeps its sessions."""
    engine = f"django.contrib.sessions.backends.{engine}"
    with project(path("", lambda request: HttpResponse(ask())), SESSION_ENGINE=engine, SESSION_FILE_PATH=str(tmp_path)):
        client = Client()
        client.force_login(user("alice"))
        assert "Vary" not in client.get("/").headers
    assert voight_calls.one().tags.user_id == str(user("alice").pk)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["WSGI", "ASGI"])
@pytest.mark.parametrize("call", ["sync view", "async view", "sync call in an async view"])
@pytest.mark.parametrize("lazy", ["reads the database", "does not"])
def test_a_lazy_user_of_the_project(lazy: str, call: str, kind: str, ask: Any, voight_calls: Any, voight_provider: Any) -> None:
    """``request.user`` of a middleware of the project is taken, and not that of the session; where it reads the database, too."""

    async def aview(request: Any) -> HttpResponse:
        if call == "sync call in an async view":
            return HttpResponse(ask())
        async with openai.AsyncOpenAI(api_key="k", base_url=voight_provider.openai_base_url) as client:
            return HttpResponse((await voight.wrap(client).chat.completions.create(**QUESTION)).id)

    bob = user("bob")
    view = (lambda request: HttpResponse(ask())) if call == "sync view" else aview
    cookie = cookie_of("signed in")
    find = (lambda: user("bob")) if lazy == "reads the database" else lambda: bob
    globals()["by_token"] = by_token_of(lambda request: SimpleLazyObject(find))
    with project(path("", view), middleware=(*SIGN_IN, f"{__name__}.by_token", OURS)):
        assert get(kind, cookie).status_code == 200
    assert voight_calls.one().tags.user_id == str(bob.pk)


def by_token_of(find: Callable[[HttpRequest], Any]) -> Any:
    """A middleware that signs in whom *find* answers."""

    def by_token(get_response: Any) -> Any:
        def middleware(request: Any) -> Any:
            request.user = find(request)
            return get_response(request)

        return middleware

    return by_token


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (SimpleNamespace(pk=7, id=8, is_authenticated=True), "7"),
        (SimpleNamespace(pk=("acme", 7)), "('acme', 7)"),
        (SimpleNamespace(id="u_7"), "u_7"),
        (SimpleNamespace(pk=7, is_authenticated=False), None),
        (None, None),
        ("u_7", "u_7"),
    ],
)
def test_users_of_other_kinds(found: Any, kept: str | None, ask: Any, voight_calls: Any) -> None:
    """The id is the primary key, whatever it is called; whoever is not authenticated is nobody."""
    globals()["by_token"] = by_token_of(lambda request: found)
    with project(path("", lambda request: HttpResponse(ask())), middleware=(f"{__name__}.by_token", OURS)):
        get("WSGI", None)
    assert voight_calls.one().tags.user_id == kept


@pytest.mark.slow
def test_without_authentication(ask: Any, voight_calls: Any) -> None:
    """A project without users has calls without an owner, and no error."""
    with project(path("", lambda request: HttpResponse(ask())), middleware=(OURS,)):
        get("WSGI", None)
    call = voight_calls.one()
    assert (call.tags.user_id, call.attribution) == (None, "none")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["WSGI", "ASGI"])
@pytest.mark.parametrize("view", ["sync", "async", "sync call in async"])
@pytest.mark.parametrize("getter", ["sync, of the database", "async", "async, of the database"])
def test_getters_of_the_project(getter: str, view: str, kind: str, ask: Any, voight_calls: Any, voight_provider: Any) -> None:
    """A getter of either kind answers in a view of either kind, and may read the database in all of them."""

    def of_database(request: Any) -> str:
        return f"u_{request.user.username}"

    async def asynchronous(request: Any) -> str:
        await asyncio.sleep(0)
        return "u_alice"

    async def asynchronous_of_database(request: Any) -> str:
        return f"u_{(await request.auser()).username}"

    async def aview(request: Any) -> HttpResponse:
        if view == "sync call in async":
            return HttpResponse(ask())
        async with openai.AsyncOpenAI(api_key="k", base_url=voight_provider.openai_base_url) as client:
            return HttpResponse((await voight.wrap(client).chat.completions.create(**QUESTION)).id)

    getters = {"sync, of the database": of_database, "async": asynchronous, "async, of the database": asynchronous_of_database}
    cookie = cookie_of("signed in")
    urls = path("", (lambda request: HttpResponse(ask())) if view == "sync" else aview)
    with project(urls, voight={"USER_GETTER": getters[getter]}):
        assert get(kind, cookie).status_code == 200
    call = voight_calls.one()
    assert (call.tags.user_id, call.attribution) == ("u_alice", "settled" if view == "sync call in async" else "getter")
