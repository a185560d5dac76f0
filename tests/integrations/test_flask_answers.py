"""voight_flask: nothing of an application's answers is changed, and its user is loaded no more often than it must be."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import httpx
import pytest
from flask import Flask, Response, session, stream_with_context
from flask_login import current_user

from voight_flask import CostTags

from .flask_apps import Loader, owners, places, sign_in_app, signed_in


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


@pytest.mark.slow
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
