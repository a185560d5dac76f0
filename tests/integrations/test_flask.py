"""voight_flask: how an application is put together, who its users are, its configuration and its commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import flask_login
import httpx
import pytest
from flask import Blueprint, Flask, Response, g, request
from flask_login import LoginManager, UserMixin
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import voight_middleware as voight
from voight_flask import CostTags
from voight_middleware.config.settings import Settings
from voight_middleware.context.context import current_context
from voight_middleware.ledger import open_ledger
from voight_middleware.middleware.wsgi import CostTagMiddleware
from voight_middleware.pipeline.configure import flush
from voight_middleware.pipeline.meter import Meter, current_meter, swap_meter

from .flask_apps import User, owners, sign_in_app, signed_in


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
    assert current_context().scope is None


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


@pytest.mark.slow
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
