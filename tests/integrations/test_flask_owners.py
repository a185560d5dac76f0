"""voight_flask: the owner in every view, stream and callback of a Flask application."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from flask import Flask, g, request
from flask_login import login_user, logout_user

from voight_flask import CostTags
from voight_middleware.diagnostics import counters

from .flask_apps import PLACES, User, owners, places, sign_in_app, signed_in


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert counters["getter_errors"] == 0


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
