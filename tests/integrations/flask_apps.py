"""Flask applications of the tests, and who visits them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import flask
import httpx
from flask import Flask, Response, request, stream_with_context
from flask_login import LoginManager, UserMixin, login_user

import voight_middleware as voight


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
