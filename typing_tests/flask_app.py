"""Read by mypy and pyright, never run: what voight_flask promises to an editor."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type
from wsgiref.types import WSGIApplication

from flask import Flask, Request

from voight_flask import CostTags
from voight_middleware.wsgi import CostTagMiddleware


class Application(Flask):
    """An application's own subclass."""


def user_of(request: Request) -> str | None:
    return request.headers.get("x-user")


async def plan_of(_request: Request) -> str:
    return "pro"


tags = CostTags(
    user_getter=user_of,
    plan_getter=plan_of,
    tenant_getter=lambda _: 7,
    tags_getter=lambda _: {"feature": "x"},
)

# An application comes back as what it was.
assert_type(tags.init_app(Flask("app")), Flask)
assert_type(tags.init_app(Application("app")), Application)
CostTags(Flask("app"))
CostTags(user_of)  # type: ignore[arg-type]
CostTags(Flask("app"), user_of)  # type: ignore[call-arg]

app = Flask("app")
wrapped: WSGIApplication = CostTagMiddleware(app.wsgi_app, user_of)
CostTagMiddleware(app, plan_getter=plan_of)
CostTagMiddleware()  # type: ignore[call-arg]
