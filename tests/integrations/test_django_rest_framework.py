"""Django REST framework: the user is known only inside the view, where its authentication runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from django.db import connections
from django.http import HttpRequest
from django.test import Client
from django.urls import include, path

import voight_middleware as voight

from .django_project import OURS, SIGN_IN, project, user

# After `django_project`: Django REST framework reads the settings when it is imported.
from rest_framework.authentication import BaseAuthentication, SessionAuthentication, TokenAuthentication  # isort: skip
from rest_framework.authtoken.models import Token  # isort: skip
from rest_framework.decorators import api_view, authentication_classes, permission_classes, throttle_classes  # isort: skip
from rest_framework.permissions import BasePermission, IsAuthenticated  # isort: skip
from rest_framework.response import Response  # isort: skip
from rest_framework.routers import DefaultRouter  # isort: skip
from rest_framework.throttling import BaseThrottle  # isort: skip
from rest_framework.views import APIView  # isort: skip
from rest_framework.viewsets import ViewSet  # isort: skip

QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@pytest.fixture(autouse=True)
def _connections() -> Iterator[None]:
    """No connection of a test's thread is left to the garbage collector."""
    yield
    connections.close_all()


@pytest.fixture
def ask(voight_provider: Any) -> Iterator[Callable[[], str]]:
    with openai.OpenAI(api_key="k", base_url=voight_provider.openai_base_url) as client:
        voight.wrap(client)
        yield lambda: str(client.chat.completions.create(**QUESTION).id)


def token(name: str) -> dict[str, str]:
    return {"authorization": f"Token {Token.objects.get_or_create(user=user(name))[0].key}"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["APIView", "api_view", "viewset"])
def test_owner(kind: str, ask: Any, voight_calls: Any) -> None:
    """A call inside a view has the user of the token, with the route; who has no token is turned away as ever."""

    class Chats(APIView):
        authentication_classes = (TokenAuthentication,)
        permission_classes = (IsAuthenticated,)

        def get(self, request: Any, pk: str) -> Response:
            return Response(ask())

    @api_view(["GET"])
    @authentication_classes([TokenAuthentication])
    @permission_classes([IsAuthenticated])
    def chats(request: Any, pk: str) -> Response:
        return Response(ask())

    class ChatSet(ViewSet):
        authentication_classes = (TokenAuthentication,)
        permission_classes = (IsAuthenticated,)

        def retrieve(self, request: Any, pk: str) -> Response:
            return Response(ask())

    router = DefaultRouter()
    router.register("chats", ChatSet, basename="chats")
    urls = {
        "APIView": path("chats/<pk>/", Chats.as_view()),
        "api_view": path("chats/<pk>/", chats),
        "viewset": path("", include(router.urls)),
    }
    with project(urls[kind]):
        client = Client()
        assert client.get("/chats/7/", headers=token("alice")).status_code == 200
        assert client.get("/chats/7/", headers=token("bob")).status_code == 200
        assert client.get("/chats/7/").status_code == 401
    assert [(call.tags.user_id, call.attribution) for call in voight_calls] == [
        (str(user("alice").pk), "getter"),
        (str(user("bob").pk), "getter"),
    ]
    assert {call.tags.route for call in voight_calls} == {"GET /chats/<pk>/"}


@pytest.mark.parametrize("place", ["permission", "throttle"])
def test_a_call_before_the_view(place: str, ask: Any, voight_calls: Any) -> None:
    """Permissions and throttles run when the user is known."""

    class Asking(BasePermission, BaseThrottle):  # type: ignore[misc]
        def has_permission(self, request: Any, view: Any) -> bool:
            return bool(ask())

        def allow_request(self, request: Any, view: Any) -> bool:
            return bool(ask())

    @api_view(["GET"])
    @authentication_classes([TokenAuthentication])
    @permission_classes([Asking] if place == "permission" else [])
    @throttle_classes([Asking] if place == "throttle" else [])
    def view(request: Any) -> Response:
        return Response("ok")

    with project(path("", view)):
        assert Client().get("/", headers=token("alice")).status_code == 200
    call = voight_calls.one()
    assert (call.tags.user_id, call.attribution) == (str(user("alice").pk), "getter")


def test_a_call_of_the_authentication_itself(ask: Any, voight_calls: Any) -> None:
    """A call that is made to find out who the user is belongs to him when the request ends."""

    class Asking(BaseAuthentication):
        def authenticate(self, request: Any) -> Any:
            ask()
            return user("alice"), None

    @api_view(["GET"])
    @authentication_classes([Asking])
    def view(request: Any) -> Response:
        return Response(str(request.user))

    with project(path("", view)):
        assert Client().get("/").json() == "alice"
    call = voight_calls.one()
    assert (call.tags.user_id, call.attribution) == (str(user("alice").pk), "settled")


@pytest.mark.slow
def test_a_token_above_a_session(ask: Any, voight_calls: Any) -> None:
    """Whoever brings a session and the token of another is whom the view takes him for."""

    @api_view(["GET"])
    @authentication_classes([TokenAuthentication, SessionAuthentication])
    def view(request: Any) -> Response:
        ask()
        return Response(request.user.username)

    with project(path("", view)):
        client = Client()
        client.force_login(user("bob"))
        assert client.get("/", headers=token("alice")).json() == "alice"
        assert client.get("/").json() == "bob"
    assert [call.tags.user_id for call in voight_calls] == [str(user("alice").pk), str(user("bob").pk)]


@pytest.mark.slow
def test_nobody(ask: Any, voight_calls: Any) -> None:
    """A view that is open to all has calls without an owner; a session that it does not take is none."""

    @api_view(["GET"])
    @authentication_classes([TokenAuthentication])
    def view(request: Any) -> Response:
        return Response(ask())

    with project(path("", view)):
        client = Client()
        client.force_login(user("bob"))
        assert client.get("/").status_code == 200
    call = voight_calls.one()
    assert (call.tags.user_id, call.attribution) == (None, "none")


@pytest.mark.slow
def test_the_getters_see_djangos_request(ask: Any, voight_calls: Any) -> None:
    """A getter of the project gets the HttpRequest, with the user that the authentication has found."""

    def plan(request: Any) -> str:
        assert type(request).__module__.startswith("django.")
        return f"plan of {request.user.username}"

    @api_view(["GET"])
    @authentication_classes([TokenAuthentication])
    def view(request: HttpRequest) -> Response:
        return Response(ask())

    with project(path("", view), middleware=(OURS, *SIGN_IN), voight={"PLAN_GETTER": plan}):
        Client().get("/", headers=token("alice"))
    assert voight_calls.one().tags.plan == "plan of alice"
