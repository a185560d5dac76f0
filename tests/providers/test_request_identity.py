"""The owner of last resort: the user that a request names to the provider."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from voight_middleware import CostTagMiddleware, tag, wrap
from voight_middleware.config.settings import Settings
from voight_middleware.pipeline.meter import Meter, swap_meter
from voight_middleware.propagation.messages import bound_to_message

from ..support.calls import Calls
from ..support.memory_provider import Provider
from .entry_points import CHAT, MESSAGES, RESPONSES


def chat(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(**CHAT, **more)


@pytest.mark.parametrize(
    ("named", "owner"),
    [
        ({"user": "u_7"}, "u_7"),
        ({"extra_body": {"safety_identifier": "u_8"}}, None),
        ({"metadata": {"user_id": "u_9"}}, "u_9"),
        ({"metadata": {"team": "red"}}, None),
        ({"user": "  "}, None),
        ({"user": "u_7", "metadata": {"user_id": "u_9"}}, "u_7"),
    ],
)
def test_the_user_of_the_request_owns_what_nobody_else_does(named: Any, owner: str | None, provider: Provider, calls: Calls) -> None:
    """``user`` and ``metadata.user_id`` of OpenAI; what is blank names nobody."""
    chat(wrap(provider.client("openai")), **named)

    call = calls.one()
    assert (call.tags.user_id, call.attribution) == (owner, "none" if owner is None else "request")


def test_every_provider_has_its_own_name_for_it(provider: Provider, calls: Calls) -> None:
    """``safety_identifier``, ``metadata.user_id`` of a message, ``user_profile_id`` of a beta message."""
    wrap(provider.client("openai")).post("/responses", cast_to=object, body={**RESPONSES, "safety_identifier": "u_1"})
    client = wrap(provider.client("anthropic"))
    client.messages.create(**MESSAGES, metadata={"user_id": "u_2"})
    client.post("/v1/messages?beta=true", cast_to=object, body={**MESSAGES, "user_profile_id": "u_3"})

    assert [(call.tags.user_id, call.attribution) for call in calls.all()] == [("u_1", "request"), ("u_2", "request"), ("u_3", "request")]


ACCOUNT, DEVICE, SESSION = "0b0c8d5e-0000-4000-8000-000000000001", "ab" * 32, "5e550000-0000-4000-8000-00000000000a"


@pytest.mark.parametrize(
    ("named", "user", "session"),
    [
        (f"user_{DEVICE}_account_{ACCOUNT}_session_{SESSION}", ACCOUNT, SESSION),
        (f"user_{DEVICE}_account__session_{SESSION}", DEVICE, SESSION),
        (f'{{"device_id": "{DEVICE}", "account_uuid": "{ACCOUNT}", "session_id": "{SESSION}"}}', ACCOUNT, SESSION),
        (f'{{"device_id": "{DEVICE}", "account_uuid": "", "session_id": "{SESSION}"}}', DEVICE, SESSION),
        ('{"session_id": "s"}', '{"session_id": "s"}', None),
        ('{"account_uuid": 7, "session_id": ["s"]}', '{"account_uuid": 7, "session_id": ["s"]}', None),
        ("{not JSON", "{not JSON", None),
        ("user_7_account_manager", "user_7_account_manager", None),
    ],
)
def test_account_and_session_in_one_text(named: str, user: str, session: str | None, provider: Provider, calls: Calls) -> None:
    """Claude Code names account, device and session at once: its sessions are one user's. Any other text is a user as it is."""
    wrap(provider.client("anthropic")).messages.create(**MESSAGES, metadata={"user_id": named})

    call = calls.one()
    assert (call.tags.user_id, call.tags.session_id) == (user, session)


def test_a_session_of_the_application_is_above_it(provider: Provider, calls: Calls) -> None:
    """What the application tags stays in force."""
    with tag(session_id="mine"):
        wrap(provider.client("anthropic")).messages.create(
            **MESSAGES, metadata={"user_id": f"user_{DEVICE}_account_{ACCOUNT}_session_{SESSION}"}
        )

    call = calls.one()
    assert (call.tags.user_id, call.tags.session_id) == (ACCOUNT, "mine")


def test_an_explicit_tag_is_above_it(provider: Provider, calls: Calls) -> None:
    """The application knows better; what it says beside the user stays in force."""
    client = wrap(provider.client("openai"))
    with tag(user_id="u_1"):
        chat(client, user="u_7")
    with tag(plan="pro"):
        chat(client, user="u_7")

    first, second = calls.all()
    assert (first.tags.user_id, first.attribution) == ("u_1", "tag")
    assert (second.tags.user_id, second.tags.plan, second.attribution) == ("u_7", "pro", "request")


@pytest.mark.parametrize("user", ["u_1", None])
async def test_in_a_web_request_only_the_getter_names_the_user(user: str | None, provider: Provider, calls: Calls) -> None:
    """An anonymous client charges nobody by what it sends, which an application may pass on."""
    client = wrap(provider.client("openai", asynchronous=True))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await chat(client, user="u_7")

    await CostTagMiddleware(app, user_getter=lambda request: user)({"type": "http", "headers": [], "path": "/"}, _nothing, _nothing)

    call = await asyncio.to_thread(calls.one)
    assert (call.tags.user_id, call.attribution) == ((user, "getter") if user else (None, "none"))


async def test_it_can_be_trusted_in_web_requests_too(provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """By choice, where the application makes the body itself."""
    monkeypatch.setattr(calls.meter, "settings", msgspec.structs.replace(calls.meter.settings, request_identity=True))
    client = wrap(provider.client("openai", asynchronous=True))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await chat(client, user="u_7")

    await CostTagMiddleware(app, user_getter=lambda request: None)({"type": "http", "headers": [], "path": "/"}, _nothing, _nothing)

    call = await asyncio.to_thread(calls.one)
    assert (call.tags.user_id, call.attribution) == ("u_7", "request")


def test_a_job_names_nobody_by_what_it_sends(provider: Provider, calls: Calls) -> None:
    """Its arguments may be a client's too."""
    with bound_to_message(None, "summarize"):
        chat(wrap(provider.client("openai")), user="u_7")
    assert calls.one().tags.user_id is None


async def test_a_getter_that_fails_names_nobody(provider: Provider, calls: Calls) -> None:
    """The call is an ``error``, and not of whom its body names."""
    client = wrap(provider.client("openai", asynchronous=True))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await chat(client, user="u_7")

    await CostTagMiddleware(app, user_getter=lambda request: 1 / 0)({"type": "http", "headers": [], "path": "/"}, _nothing, _nothing)

    call = await asyncio.to_thread(calls.one)
    assert (call.tags.user_id, call.attribution) == (None, "error")


async def test_a_user_who_signs_in_later_is_above_it(provider: Provider, own_calls: Calls) -> None:
    """A call before the authentication is settled when the request ends, though the request named somebody."""
    client = wrap(provider.client("openai", asynchronous=True))
    signed_in: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await chat(client, user="anonymous-session")
        signed_in.append("u_1")

    middleware = CostTagMiddleware(app, user_getter=lambda request: signed_in[0] if signed_in else None)
    await middleware({"type": "http", "headers": [], "path": "/"}, _nothing, _nothing)

    (call,) = await asyncio.to_thread(_kept, own_calls)
    assert (call.tags.user_id, call.attribution) == ("u_1", "settled")


def test_it_can_be_switched_off(provider: Provider, own_calls: Calls, tmp_path: Path) -> None:
    """Where ``user`` is no user of yours, such as a pool of keys."""
    settings = Settings.from_environment(ledger=own_calls.meter.settings.ledger, journal=tmp_path / "j", request_identity=False, environ={})
    meter = Meter(settings)
    outer = swap_meter(meter)
    try:
        chat(wrap(provider.client("openai")), user="u_7")
        assert meter.flush(30)
    finally:
        swap_meter(outer)
        meter.close()

    (call,) = _kept(own_calls)
    assert (call.tags.user_id, call.attribution) == (None, "none")


def _kept(calls: Calls) -> list[Any]:
    from voight_middleware.ledger import open_ledger

    assert calls.meter.flush(30)
    ledger = open_ledger(calls.meter.settings.ledger)
    try:
        return list(ledger.calls())
    finally:
        ledger.close()


async def _nothing(*args: Any) -> Any:
    return {}
