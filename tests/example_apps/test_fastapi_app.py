"""The FastAPI example under a real uvicorn, with its SDKs answered by the loopback provider."""

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support.waiting import wait_until

FOLDER = Path(__file__).parents[2] / "example_apps" / "fastapi_app"
ROUTES = {
    "/chat": ("gpt-4o-mini-2024-07-18", "chat"),
    "/chat/stream": ("gpt-4o-mini-2024-07-18", "chat"),
    "/summarise": ("claude-haiku-4-5-20251001", "messages"),
    "/summarise/stream": ("claude-haiku-4-5-20251001", "messages"),
    "/answer": ("gpt-5-mini-2025-08-07", "responses"),
    "/search": ("text-embedding-3-small", "embeddings"),
    "/remember": ("text-embedding-3-small", "embeddings"),
}


@pytest.fixture
def module(voight_provider: Any, voight_calls: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example; its clients read the environment as they do in a deployment."""
    voight_provider.reset()
    for sdk, base_url in (("OPENAI", voight_provider.openai_base_url), ("ANTHROPIC", voight_provider.anthropic_base_url)):
        monkeypatch.setenv(f"{sdk}_BASE_URL", base_url)
        monkeypatch.setenv(f"{sdk}_API_KEY", "any")
    spec = importlib.util.spec_from_file_location("fastapi_example", FOLDER / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def url(module: Any, serve: Any) -> Any:
    """The example, served; its clients are closed when the server ends, as the end of a process would."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def close_first(message: Any) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                module.openai_client.close()
                await module.async_openai_client.close()
                await module.anthropic_client.close()
            await send(message)

        await module.app(scope, receive, close_first)

    return serve(app)


def post(url: str, path: str, token: str | None = None, text: str = "Why is the sky blue?") -> httpx.Response:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.post(url + path, json={"text": text}, headers=headers, timeout=30)


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_every_route_has_its_owner(path: str, url: str, voight_calls: Any, voight_provider: Any) -> None:
    """The call of each route has the signed-in user, plan and tenant, the route, and exactly the usage that the provider reported."""
    response = post(url, path, "token-2", "[user:u_2] Why is the sky blue?")
    assert response.is_success
    assert response.text
    wait_until(lambda: len(voight_calls) == 1, every=0.02)  # the background task may still be running

    call = voight_calls.one()
    assert (call.tags.user_id, call.tags.plan, call.tags.tenant_id, call.attribution) == ("u_2", "pro", "t_3", "getter")
    assert call.tags.route == f"POST {path}"
    assert (call.model, call.endpoint) == ROUTES[path]
    assert (call.outcome, call.cost_status) == ("ok", "priced")
    counted = voight_provider.counts().by_user["u_2"]
    assert (call.usage.input_tokens, call.usage.output_tokens or 0) == (counted.input_tokens, counted.output_tokens)


@pytest.mark.slow
def test_own_tags(url: str, voight_calls: Any) -> None:
    """The tag around a call is kept beside the user."""
    post(url, "/answer", "token-7")
    assert voight_calls.one().tags.extra == {"feature": "answers"}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/chat", "/search"])
def test_visitors_have_no_owner(path: str, url: str, voight_calls: Any) -> None:
    """What is open to visitors is metered without a user, and without an error of the getter."""
    assert post(url, path).is_success
    call = voight_calls.one()
    assert (call.tags.user_id, call.tags.plan, call.attribution) == (None, None, "none")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "token"), [("/answer", None), ("/chat", "token-99"), ("/summarise/stream", "nonsense")])
def test_strangers_are_turned_away(path: str, token: str | None, url: str, voight_calls: Any) -> None:
    """Without a known token no call is made."""
    assert post(url, path, token).status_code == 401
    assert len(voight_calls) == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/chat", "/chat/stream", "/summarise", "/answer"])
def test_errors_of_the_provider(path: str, url: str, voight_calls: Any) -> None:
    """An error of the provider is the application's 502; the call is kept with its owner, and costs nothing."""
    assert post(url, path, "token-4", "[x-loopback-status: 429]").status_code == 502
    call = voight_calls.one()
    assert (call.tags.user_id, call.outcome, call.http_status, call.attempts) == ("u_4", "error", 429, 3)
    assert call.usage is None


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/chat/stream", "/summarise/stream"])
def test_a_client_that_leaves(path: str, url: str, voight_calls: Any, voight_provider: Any) -> None:
    """A stream whose reader goes away is broken off at the provider; the call keeps its owner, and its output is estimated."""
    text = "[user:u_4] Hello [x-loopback-chunks: 500] [x-loopback-chunk-delay-ms: 20]"
    headers = {"authorization": "Bearer token-4"}
    with httpx.stream("POST", url + path, json={"text": text}, headers=headers, timeout=30) as response:
        next(response.iter_bytes())
    wait_until(lambda: voight_provider.counts().total.broken == len(voight_calls) == 1, every=0.02)

    call = voight_calls.one()
    assert call.tags.user_id == "u_4"
    assert call.outcome in ("aborted", "cancelled")
    assert call.estimated
    assert voight_provider.counts().total.broken == 1


@pytest.mark.slow
def test_many_users_at_once(url: str, voight_calls: Any, voight_provider: Any) -> None:
    """A hundred requests of twenty users, all at once: everybody's tokens are what the provider counted for him."""

    async def drive() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            requests = []
            for number in range(100):
                user = number % 20 + 1
                path = list(ROUTES)[number % len(ROUTES)]
                headers = {"authorization": f"Bearer token-{user}"}
                requests.append(client.post(path, json={"text": f"[user:u_{user}] question {number}"}, headers=headers))
            return await asyncio.gather(*requests)

    assert all(response.is_success for response in asyncio.run(drive()))
    wait_until(lambda: len(voight_calls) == 100, every=0.05)
    ours: dict[str, tuple[int, int, int]] = {}
    for call in voight_calls.all():
        calls, read, written = ours.get(call.tags.user_id, (0, 0, 0))
        ours[call.tags.user_id] = (calls + 1, read + call.usage.input_tokens, written + (call.usage.output_tokens or 0))
    counted = voight_provider.counts().by_user
    assert ours == {user: (row.completed, row.input_tokens, row.output_tokens) for user, row in counted.items()}
    assert len(ours) == 20


@pytest.mark.slow
def test_health(url: str, voight_calls: Any) -> None:
    """The health check is there, and costs nothing."""
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert len(voight_calls) == 0


def test_users(module: Any) -> None:
    """The users are as many, on as many plans and in as many tenants, as the README of the example says."""
    users = module.USERS.values()

    assert "twenty signed-in users on three plans and in four tenants" in (FOLDER / "README.md").read_text()
    assert (len(users), len({user.plan for user in users}), len({user.tenant for user in users})) == (20, 3, 4)
