"""voight_flask: the owner in every view, stream and callback of a Flask application, and nothing of its answers changed."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import flask_login
import httpx
import openai
import pytest
from flask import Blueprint, Flask, Response, g, request, session, stream_with_context
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server

import voight_middleware as voight
from voight_flask import CostTags
from voight_middleware.boundary.wsgi import CostTagMiddleware
from voight_middleware.ledger import open_ledger
from voight_middleware.meter import Meter, current_meter, flush, swap_meter
from voight_middleware.settings import Settings
from voight_middleware.tags import current_frame

QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


class User(UserMixin):
    def __init__(self, identity: str) -> None:
        self.id = identity
        self.plan = "pro" if identity == "alice" else "free"


class Loader:
    """``user_loader`` of an application, counting how often it is asked; it needs the request's context, as one with a database does."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, identity: str) -> User:
        assert flask.current_app.config["SECRET_KEY"]
        assert request.path
        self.asked += 1
        return User(identity)


def sign_in_app(loader: Callable[[str], User] | None = None, **values: Any) -> Flask:
    """An application with Flask-Login and a page to sign in at."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY="s", TESTING=False, **values)
    manager = LoginManager(app)
    manager.user_loader(loader or Loader())

    @app.get("/in/<name>")
    def sign_in(name: str) -> str:
        login_user(User(name), remember="remember" in request.args)
        return "in"

    return app


@pytest.fixture
def ask(voight_provider: Any) -> Iterator[Callable[[], str | None]]:
    with openai.OpenAI(api_key="k", base_url=voight_provider.openai_base_url) as client:
        voight.wrap(client)
        yield lambda: client.chat.completions.create(**QUESTION).choices[0].message.content


@pytest.fixture
def aask(voight_provider: Any) -> Callable[[], Any]:
    async def call() -> str | None:
        async with openai.AsyncOpenAI(api_key="k", base_url=voight_provider.openai_base_url) as client:
            return (await voight.wrap(client).chat.completions.create(**QUESTION)).choices[0].message.content

    return call


class Run:
    """Serves WSGI applications as ``flask run`` does, with a thread for each request."""

    def __init__(self) -> None:
        self._servers: list[tuple[Any, threading.Thread]] = []

    def __call__(self, app: Any) -> str:
        """Start *app*; answers its URL."""
        server: Any = make_server("127.0.0.1", 0, app, threaded=True)
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self._servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    def stop(self) -> None:
        """Wait until every request has been closed."""
        while self._servers:
            server, thread = self._servers.pop()
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def run(ask: Any) -> Iterator[Run]:
    """Serves WSGI applications until the test ends."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    running = Run()
    yield running
    running.stop()


def owners(calls: Any) -> list[tuple[str | None, str]]:
    return [(call.tags.user_id, call.attribution) for call in calls]


@contextlib.contextmanager
def signed_in(url: str, name: str = "alice", query: str = "") -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, verify=False) as client:
        assert client.get(f"/in/{name}{query}").text == "in"
        yield client


def places(app: Flask, ask: Callable[[], Any], aask: Callable[[], Any]) -> None:
    """A page for every place in which code of a request can run."""

    @app.get("/view")
    def view() -> str:
        return str(ask())

    @app.get("/async")
    async def async_view() -> str:
        return str(await aask())

    @app.get("/async_sync")
    async def async_view_sync_call() -> str:
        return str(ask())

    @app.get("/generator")
    def generator() -> Response:
        return Response(str(ask()) for _ in range(2))

    @app.get("/with_context")
    def with_context() -> Response:
        return Response(stream_with_context(f"{ask()} {request.path}" for _ in range(2)))

    @app.get("/on_close")
    def on_close() -> Response:
        response = Response("whole")
        response.call_on_close(ask)
        return response

    @app.get("/after")
    def after() -> str:
        @flask.after_this_request
        def then(response: Any) -> Any:
            ask()
            return response

        return "after"

    threads_and_hooks(app, ask)


def threads_and_hooks(app: Flask, ask: Callable[[], Any]) -> None:
    @app.get("/thread")
    def thread() -> str:
        running = threading.Thread(target=voight.carry(ask))
        running.start()
        running.join()
        return "thread"

    @app.get("/later")
    def later() -> Response:
        """A thread whose first call is made when the request has ended."""
        ended = threading.Event()

        def after_the_end() -> None:
            ended.wait(10)
            ask()

        running = threading.Thread(target=voight.carry(after_the_end))
        running.start()
        app.extensions.setdefault("threads", []).append(running)
        response = Response("later")
        response.call_on_close(ended.set)
        return response

    @app.get("/error")
    def error() -> str:
        raise LookupError("not ours")

    @app.errorhandler(LookupError)
    def handler(_error: LookupError) -> tuple[str, int]:
        return str(ask()), 500

    @app.teardown_request
    def teardown(_error: Any) -> None:
        if request.path == "/teardown":
            ask()

    @app.get("/teardown")
    def tear() -> str:
        return "down"

    tagged_stream(app, ask)


def tagged_stream(app: Flask, ask: Callable[[], Any]) -> None:
    @app.get("/tagged")
    def tagged() -> Response:
        def steps() -> Iterator[str]:
            with voight.tag(feature="stream"):
                yield str(ask())
                yield str(ask())

        voight.set_tags(plan="trial")
        return Response(steps())


PLACES = [
    *("view", "async", "async_sync", "generator", "with_context", "on_close", "after", "thread", "later", "error", "teardown", "tagged"),
]


@pytest.mark.parametrize("place", PLACES)
def test_the_user_of_flask_login_in_every_place(place: str, run: Any, ask: Any, aask: Any, voight_calls: Any) -> None:
    """Every call has Flask-Login's user, whether or not the view has asked for it, and the next visitor is nobody."""
    app = sign_in_app()
    places(app, ask, aask)
    CostTags(app)
    url = run(app)
    with signed_in(url) as alice, signed_in(url, "bob") as bob:
        codes = {visitor.get(f"/{place}").status_code for visitor in (alice, bob)} | {httpx.get(f"{url}/{place}").status_code}
    run.stop()
    for thread in app.extensions.get("threads", []):
        thread.join()
    assert codes == {500 if place == "error" else 200}
    calls = voight_calls.all()
    assert {owner for owner in owners(calls) if owner[0] is not None} == {("alice", "getter"), ("bob", "getter")}
    assert [user for user, _ in owners(calls)].count(None) * 3 == len(calls)
    assert {call.tags.route for call in calls} == {f"GET /{place}"}
    if place == "tagged":
        assert {(call.tags.plan, call.tags.extra["feature"]) for call in calls} == {("trial", "stream")}


async def slow_g_user(request: Any) -> Any:
    await asyncio.sleep(0.001)
    return g.get("user")


def g_user(request: Any) -> Any:
    return g.get("user")


@pytest.mark.parametrize("getter", [g_user, slow_g_user])
@pytest.mark.parametrize("place", PLACES)
def test_getters_in_every_place(place: str, getter: Any, run: Any, ask: Any, aask: Any, voight_calls: Any) -> None:
    """A getter, also an asynchronous one, finds what a `before_request` function has left in `g`; a visitor without a user is no error."""
    app = Flask(__name__)

    @app.before_request
    def before() -> None:
        if "x-user" in request.headers:
            g.user = request.headers["x-user"]

    places(app, ask, aask)
    CostTags(app, user_getter=getter, tenant_getter=lambda request: request.headers["host"], plan_getter=lambda request: "pro")
    url = run(app)
    for headers in ({"x-user": "alice"}, {}, {"x-user": "bob"}):
        assert httpx.get(f"{url}/{place}", headers=headers).status_code == (500 if place == "error" else 200)
    run.stop()
    for thread in app.extensions.get("threads", []):
        thread.join()
    calls = voight_calls.all()
    how = "settled" if place == "async_sync" and getter is slow_g_user else "getter"
    assert set(owners(calls)) == {("alice", how), ("bob", how), (None, "none")}
    assert {call.tags.tenant_id for call in calls if call.tags.user_id} == {url.removeprefix("http://")}
    assert current_meter().counters["getter_errors"] == 0


def test_who_signs_in_after_the_call(run: Any, ask: Any, voight_calls: Any) -> None:
    """A call made before the view signs its user in is settled; one after the user has signed out keeps him until the request's end."""
    app = sign_in_app()

    @app.get("/both")
    def both() -> str:
        ask()
        login_user(User("alice"))
        return "in"

    @app.get("/out")
    def out() -> str:
        ask()
        logout_user()
        ask()
        return "out"

    CostTags(app)
    with httpx.Client(base_url=run(app)) as client:
        client.get("/both")
        client.get("/out")
        client.get("/both")
    run.stop()
    assert owners(voight_calls) == [("alice", "settled"), ("alice", "getter"), ("alice", "getter"), ("alice", "settled")]


# -- the answers are as they were --------------------------------------------------------------------------------------------------------


def pages(app: Flask, ask: Callable[[], Any], folder: Path) -> None:
    """Pages whose headers depend on who has looked at the session, or that a server sends in a way of its own."""

    @app.get("/call")
    def call() -> str:
        ask()
        return "call"

    @app.get("/call_then_user")
    def call_then_user() -> str:
        ask()
        return f"{current_user.is_authenticated}"

    @app.get("/user_then_call")
    def user_then_call() -> str:
        name = f"{current_user.is_authenticated}"
        ask()
        return name

    @app.get("/call_then_session")
    def call_then_session() -> str:
        ask()
        return f"{session.get('_user_id')}"

    @app.get("/session_changed")
    def session_changed() -> str:
        session["seen"] = 1
        ask()
        return f"{sorted(session)}"

    @app.get("/stream")
    def stream() -> Response:
        return Response(str(bool(ask())) for _ in range(2))

    @app.get("/stream_with_user")
    def stream_with_user() -> Response:
        return Response(stream_with_context(f"{ask() and current_user.is_authenticated}" for _ in range(2)))

    @app.get("/file")
    def file() -> Response:
        return flask.send_file(folder / "file.txt")

    @app.get("/raises")
    def raises() -> str:
        ask()
        raise LookupError("not ours")

    @app.get("/stream_raises")
    def stream_raises() -> Response:
        def steps() -> Iterator[str]:
            yield "first"
            ask()
            raise LookupError("not ours")

        return Response(steps())

    @app.get("/hello")
    def hello() -> str:
        return "hello"

    @app.get("/redirected")
    def redirected() -> Any:
        ask()
        return flask.redirect("/call")


PAGES = [
    *("call", "call_then_user", "user_then_call", "call_then_session", "session_changed", "stream", "stream_with_user"),
    *("file", "raises", "stream_raises", "hello", "redirected", "nowhere"),
]


def current_id(request: Any) -> str | None:
    """What applications write as their getter."""
    return None if current_user.is_anonymous else current_user.id


@pytest.mark.filterwarnings("ignore:datetime.datetime.utc:DeprecationWarning")  # Flask-Login 0.6.3 on Python 3.12+
@pytest.mark.parametrize("getter", [None, current_id])
@pytest.mark.parametrize("visitor", ["signed in", "remembered", "anonymous", "of a stolen session"])
def test_answers_are_as_they_were(visitor: str, getter: Any, run: Any, ask: Any, tmp_path: Path, voight_calls: Any) -> None:
    """Status, headers and body of every page are the same with and without cost tags: no Vary, no cookie, nothing missing either."""
    (tmp_path / "file.txt").write_text("file")
    seen: list[dict[str, Any]] = []
    for ours in (False, True):
        app = sign_in_app()
        app.login_manager.session_protection = "strong" if visitor == "of a stolen session" else "basic"  # type: ignore[attr-defined]
        app.logger.setLevel(logging.CRITICAL)
        pages(app, ask, tmp_path)
        if ours:
            CostTags(app, user_getter=getter)
        url = run(app)
        answers: dict[str, Any] = {}
        with httpx.Client(base_url=url) if visitor == "anonymous" else signed_in(url, query="?remember") as client:
            cookies = dict(client.cookies)
            if visitor == "remembered":
                del cookies["session"]
            elif visitor == "signed in":
                del cookies["remember_token"]
            agent = {"user-agent": "another"} if visitor == "of a stolen session" else {}
            for page in PAGES:
                with httpx.Client(base_url=url, cookies=cookies, headers=agent, verify=False) as again:
                    try:
                        answer = again.get(f"/{page}")
                    except httpx.RemoteProtocolError as error:
                        answers[page] = str(error)
                        continue
                    headers = [(name, shortened(name, value)) for name, value in answer.headers.multi_items() if name != "date"]
                    answers[page] = (answer.status_code, headers, answer.text)
        seen.append(answers)
    for page in PAGES:
        assert seen[0][page] == seen[1][page], page
    assert dict(seen[1]["call_then_user"][1])["vary"] == "Cookie"
    assert ("set-cookie" in dict(seen[1]["call_then_user"][1])) == (visitor in ("remembered", "of a stolen session"))
    assert "set-cookie" not in dict(seen[1]["call"][1]), "nobody has looked at the remember-me cookie"
    run.stop()
    own = {call.tags.user_id for call in voight_calls if call.tags.route}
    assert own == ({"alice"} if visitor in ("signed in", "remembered") else {None})


def shortened(name: str, value: str) -> str:
    """A cookie's name and attributes: its value has the time in it."""
    return re.sub(r"=[^;]*|Expires=[^;]*", "", value) if name == "set-cookie" else value


def test_the_user_is_loaded_once_for_all_getters_and_not_without_a_call(run: Any, ask: Any, voight_calls: Any) -> None:
    """Three getters that read `current_user` load it once; a request without a call, and a file, load nobody."""
    loader = Loader()
    app = sign_in_app(loader)

    @app.get("/call")
    def call() -> str:
        ask()
        ask()
        return "call"

    @app.get("/hello")
    def hello() -> str:
        return "hello"

    @app.get("/file")
    def file() -> Response:
        return flask.send_file(__file__)

    CostTags(app, plan_getter=lambda request: current_user.plan, tenant_getter=lambda request: current_user.id.upper())
    with signed_in(run(app)) as client:
        loader.asked = 0
        client.get("/hello")
        client.get("/file")
        assert loader.asked == 0
        client.get("/call")
        assert loader.asked == 1
    run.stop()
    assert [(call.tags.user_id, call.tags.plan, call.tags.tenant_id) for call in voight_calls] == [("alice", "pro", "ALICE")] * 2


def test_a_broken_getter_is_not_noticed(run: Any, ask: Any, voight_calls: Any) -> None:
    """A getter that raises, in a view and before a stream, is counted; the page is as ever."""

    def broken(request: Any) -> str:
        raise RuntimeError("no database")

    app = Flask(__name__)
    places(app, ask, lambda: None)
    CostTags(app, user_getter=broken)
    url = run(app)
    assert {httpx.get(f"{url}/{place}").status_code for place in ("view", "generator", "on_close")} == {200}
    run.stop()
    assert set(owners(voight_calls)) == {(None, "error")}


# -- how an application is put together --------------------------------------------------------------------------------------------------


def test_one_object_for_the_applications_of_a_factory(run: Any, ask: Any, voight_calls: Any) -> None:
    """`init_app` answers the application, serves many, and does nothing the second time."""
    tags = CostTags(user_getter=lambda request: request.headers["x-user"])

    def create_app(name: str) -> Flask:
        app = Flask(name)
        app.add_url_rule(f"/{name}", view_func=lambda: str(ask()), endpoint="view")
        assert tags.init_app(app) is app
        wsgi_app = app.wsgi_app
        assert CostTags(user_getter=lambda request: "somebody else").init_app(app) is app
        assert app.wsgi_app is wsgi_app
        return app

    for name in ("one", "two"):
        assert httpx.get(f"{run(create_app(name))}/{name}", headers={"x-user": name}).status_code == 200
    run.stop()
    assert [(call.tags.user_id, call.tags.route) for call in voight_calls] == [("one", "GET /one"), ("two", "GET /two")]


def test_routes_of_blueprints_and_mounted_applications(run: Any, ask: Any, voight_calls: Any) -> None:
    """The route is the rule with the blueprint's prefix, below the place where the application is mounted."""
    blueprint = Blueprint("chats", __name__)

    @blueprint.post("/chats/<int:chat_id>")
    def chat(chat_id: int) -> str:
        return str(ask())

    def create_app(**options: Any) -> Flask:
        app = Flask(__name__)
        app.register_blueprint(blueprint, url_prefix="/v1")
        return CostTags(**options).init_app(app)

    own = create_app(user_getter=lambda request: "mounted")
    outside = DispatcherMiddleware(create_app(user_getter=lambda request: "root"), {"/api": own})
    httpx.post(f"{run(outside)}/v1/chats/5")
    httpx.post(f"{run(outside)}/api/v1/chats/5")

    without = Flask(__name__)
    without.register_blueprint(blueprint, url_prefix="/v2")
    inside = Flask(__name__)
    inside.wsgi_app = DispatcherMiddleware(inside.wsgi_app, {"/old": without.wsgi_app})  # type: ignore[method-assign]
    CostTags(inside, user_getter=lambda request: request.path)
    httpx.post(f"{run(inside)}/old/v2/chats/5")

    bare = Flask(__name__)
    bare.register_blueprint(blueprint)
    httpx.post(f"{run(CostTagMiddleware(bare, lambda request: request.url_rule.endpoint))}/chats/7")

    run.stop()
    assert [(call.tags.user_id, call.tags.route) for call in voight_calls] == [
        ("root", "POST /v1/chats/<int:chat_id>"),
        ("mounted", "POST /api/v1/chats/<int:chat_id>"),
        ("/v2/chats/5", "POST /old/v2/chats/<int:chat_id>"),
        ("chats.chat", "POST /chats/<int:chat_id>"),
    ]


def test_the_default_user_without_flask_login(run: Any, ask: Any, voight_calls: Any) -> None:
    """It is the server's REMOTE_USER; what a client sends of itself is nobody, and with Flask-Login the server's word is not asked."""

    def behind_a_server(app: Any) -> Any:
        return lambda environ, start_response: app({**environ, "REMOTE_USER": "staging"}, start_response)

    plain, with_login = Flask(__name__), sign_in_app()
    for app in (plain, with_login):
        app.add_url_rule("/", view_func=lambda: str(ask()), endpoint="view")
        CostTags(app)
    headers = {"remote-user": "mallory", "authorization": "Basic bWFsbG9yeTpwdw=="}
    httpx.get(run(plain), headers=headers)
    httpx.get(run(behind_a_server(plain)), headers=headers)
    httpx.get(run(behind_a_server(with_login)), headers=headers)
    run.stop()
    assert [user for user, _ in owners(voight_calls)] == [None, "staging", None]


def test_users_that_name_themselves_in_other_ways(run: Any, ask: Any, voight_calls: Any) -> None:
    """The id of a user is its `id`, also where Flask-Login is given a token in its place; `get_id` is for those that have no other."""

    class Token(User):
        def get_id(self) -> str:
            return f"secret token of {self.id}"

    class Nameless(UserMixin):
        def __init__(self, key: str) -> None:
            self.key = key

        def get_id(self) -> str:
            return self.key

    for kind in (Token, Nameless):
        app = Flask(__name__)
        app.config["SECRET_KEY"] = "s"
        LoginManager(app).request_loader(lambda request, kind=kind: kind("alice"))
        app.add_url_rule("/", view_func=lambda: str(ask()), endpoint="view")
        CostTags(app)
        assert httpx.get(run(app)).status_code == 200
    run.stop()
    assert [user for user, _ in owners(voight_calls)] == ["alice", "alice"]


def test_a_request_inside_a_request(run: Any, ask: Any, voight_calls: Any) -> None:
    """A view that asks the application itself, through the test client, has its own user before and after."""
    app = Flask(__name__)

    @app.get("/inner")
    def inner() -> str:
        return str(ask())

    @app.get("/outer")
    def outer() -> str:
        ask()
        app.test_client().get("/inner", headers={"x-user": "bob"})
        ask()
        return "outer"

    CostTags(app, user_getter=lambda request: request.headers.get("x-user"))
    assert httpx.get(run(app) + "/outer", headers={"x-user": "alice"}).text == "outer"
    run.stop()
    assert [user for user, _ in owners(voight_calls)] == ["alice", "bob", "alice"]
    assert current_frame().scope is None


def test_a_tag_that_is_left_open(run: Any, ask: Any, voight_calls: Any) -> None:
    """A `before_request` function may enter a `with tag()` that its teardown leaves: a stream has it, the next request has not."""
    app = sign_in_app()
    open_tag = voight.tag(feature="old")

    @app.before_request
    def before() -> None:
        if request.path == "/stream":
            open_tag.__enter__()

    @app.get("/stream")
    def stream() -> Response:
        return Response(str(ask()) for _ in range(2))

    @app.get("/plain")
    def plain() -> str:
        return str(ask())

    CostTags(app)
    with signed_in(run(app)) as client:
        client.get("/stream")
        client.get("/plain")
    run.stop()
    assert [(call.tags.user_id, call.tags.extra.get("feature")) for call in voight_calls] == [("alice", "old")] * 2 + [("alice", None)]


# -- configuration and commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_meter() -> Iterator[None]:
    """Whatever the application configures ends with the test."""
    before = swap_meter(None)
    yield
    mine = swap_meter(before)
    if mine is not None:
        mine.close()


@pytest.mark.usefixtures("own_meter")
def test_configuration_and_commands(tmp_path: Path, ask: Any) -> None:
    """`app.config` says where the ledger is, and `flask voight …` reads it."""
    ledger = tmp_path / "app" / "ledger.db"
    app = Flask(__name__)
    app.config.update(VOIGHT_LEDGER=str(ledger), VOIGHT_RELEASE="7.1")
    CostTags(app, user_getter=lambda request: "alice")
    app.add_url_rule("/", view_func=lambda: str(ask()))
    assert app.test_client().get("/").status_code == 200
    assert flush(30)
    kept = open_ledger(f"sqlite:///{ledger}")
    assert [(call.tags.user_id, call.tags.release) for call in kept.calls()] == [("alice", "7.1")]
    kept.close()

    runner = app.test_cli_runner()
    top = runner.invoke(args=["voight", "spend", "--by", "user", "--format", "csv"])
    assert (top.exit_code, top.output.splitlines()[1].split(",")[0]) == (0, "alice")
    assert runner.invoke(args=["voight", "spend", "--where", "nonsense"]).exit_code == 1
    assert runner.invoke(args=["voight", "spend", "--nonsense"]).exit_code == 2
    assert "voight top" in runner.invoke(args=["voight", "--help"]).output
    assert "voight" in runner.invoke(args=["--help"]).output


@pytest.mark.usefixtures("own_meter")
def test_without_configuration_nothing_is_configured(tmp_path: Path) -> None:
    """An application that calls `voight.configure()` itself keeps its meter."""
    mine = Meter(Settings.from_environment(ledger=tmp_path / "ledger.db", environ={}))
    swap_meter(mine)
    CostTags(Flask(__name__))
    assert current_meter() is mine


@pytest.mark.usefixtures("own_meter")
def test_a_value_that_cannot_be_used(tmp_path: Path) -> None:
    """It is said when the application is made, and names the value."""
    app = Flask(__name__)
    app.config["VOIGHT_LEDGER"] = ""
    with pytest.raises(voight.SettingsError, match="the ledger needs a file"):
        CostTags(app)


def test_flask_login_is_the_real_one() -> None:
    """The names that the default user is found by are Flask-Login's own."""
    app = sign_in_app()
    with app.test_request_context("/"):
        assert "_login_user" not in g
        assert flask_login.current_user.is_anonymous
        assert "_login_user" in g
        assert app.login_manager is flask.current_app.login_manager  # type: ignore[attr-defined]


# -- applications that break, under gunicorn ---------------------------------------------------------------------------------------------


def exchange(port: int, path: str, user: str, enough: int | None = None) -> bytes:
    """The bytes of an answer until the server closes, or until there are *enough*, when the client leaves."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: x\r\nx-user: {user}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while (enough is None or len(answer) < enough) and (data := connection.recv(65536)):
                answer += data
    return re.sub(rb"Date: .*\r\n", b"", answer)


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_broken_applications(kind: str, tmp_path: Path, make_workers: Any, voight_provider: Any) -> None:
    """
    Views and streams that raise, exit or hang until gunicorn kills the worker, and clients that leave, look as they did without us; each
    call keeps its owner, and whoever comes next is nobody.
    """
    seen = []
    calls: Any = ()
    ending = ["hangs", "stream_hangs", "exits"] if kind == "sync" else []  # the others have no timeout for a request
    for app in ("bare", "ours"):
        (tmp_path / app).mkdir()
        workers = make_workers(tmp_path / app)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = f"gunicorn broken_flask:app -b 127.0.0.1:{port} -k {kind} -t 2 --log-level critical"
        workers.start(*command.split(), PROVIDER_OPENAI=voight_provider.openai_base_url, APP=app)
        workers.wait_until(lambda port=port: answers(port))
        answered = {}
        for page in ("raises", "stream_raises", "endless", *ending):
            answered[page] = exchange(port, page, page, 100_000 if page == "endless" else None)[: 200 if page == "endless" else None]
            if page == "endless":
                workers.wait_until(lambda port=port: exchange(port, "closed", "").endswith(b"closed"))
            if page in ending:
                workers.wait_until(lambda port=port: answers(port))
            answered[f"after {page}"] = exchange(port, "anybody", "")
        answered["a broken getter"] = exchange(port, "anybody", "broken")
        seen.append(answered)
        calls = workers.calls()
    assert seen[0] == seen[1]
    expected = {"raises": 1, "stream_raises": 1, "endless": 2, **dict.fromkeys(ending, 1)}
    owned = [call for call in calls if call.tags.user_id is not None]
    assert collections.Counter(call.tags.user_id for call in owned) == expected
    assert {call.tags.route for call in owned if call.tags.user_id == "endless"} == {"GET /endless"}
    assert collections.Counter(call.attribution for call in calls if call.tags.user_id is None) == {"none": len(expected), "error": 1}


def answers(port: int) -> bool:
    try:
        return exchange(port, "closed", "").startswith(b"HTTP/1.1 200")
    except OSError:
        return False
