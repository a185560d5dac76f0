"""Attempts without an answer: a provider that was left waiting may have billed all the same, and the call says so."""

import asyncio
from typing import Any

import anthropic
import openai
import pytest

from voight_middleware import wrap
from voight_middleware.testing.provider import LoopbackProvider

from ..support.calls import Calls
from ..support.memory_provider import http_library
from .entry_points import CHAT, MESSAGES, both_kinds

SDKS = pytest.mark.parametrize("sdk", ["openai", "anthropic"])


class Trouble:
    """A transport whose first answers are errors of the network."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def transport(self, library: Any) -> Any:
        def handle(request: Any) -> Any:
            if self.names:
                raise getattr(library, self.names.pop(0))("trouble", request=request)
            kind = "msg_1" if request.url.path.endswith("messages") else "chatcmpl-1"
            usage = {"input_tokens": 3, "output_tokens": 2} if kind == "msg_1" else {"prompt_tokens": 3, "completion_tokens": 2}
            return library.Response(200, json={"id": kind, "model": "m", "usage": usage, "content": [], "choices": []})

        return library.MockTransport(handle)


def client_with(sdk: str, trouble: Trouble, *, asynchronous: bool, retries: int) -> Any:
    module: Any = {"openai": openai, "anthropic": anthropic}[sdk]
    library = http_library(module)
    name = {"openai": "OpenAI", "anthropic": "Anthropic"}[sdk]
    pool = library.AsyncClient if asynchronous else library.Client
    made = getattr(module, f"Async{name}" if asynchronous else name)
    return made(api_key="k", max_retries=retries, http_client=pool(transport=trouble.transport(library)))


async def call_it(sdk: str, client: Any, asynchronous: bool) -> Any:
    made = client.chat.completions.create(**CHAT) if sdk == "openai" else client.messages.create(**MESSAGES)
    return await made if asynchronous else made


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts."""
    for module in (openai, anthropic):
        monkeypatch.setattr(module._base_client.BaseClient, "_calculate_retry_timeout", lambda self, *args, **kwargs: 0)


@pytest.mark.slow
@SDKS
@both_kinds
@pytest.mark.parametrize(
    ("errors", "possibly"),
    [
        (["ReadTimeout"], 1),
        (["ReadTimeout", "ReadTimeout"], 2),
        (["RemoteProtocolError", "ConnectTimeout"], 1),
        (["ReadError"], 1),
        (["ConnectError"], None),
        (["ConnectTimeout", "PoolTimeout"], None),
        (["WriteTimeout"], None),
    ],
)
async def test_an_attempt_that_got_no_answer_is_flagged(
    sdk: str, errors: list[str], possibly: int | None, asynchronous: bool, calls: Calls
) -> None:
    """Retried with success: the answer's counts are exact, and the cost is a partial one if more may have been billed."""
    client = wrap(client_with(sdk, Trouble(*errors), asynchronous=asynchronous, retries=2))
    await call_it(sdk, client, asynchronous)

    call = calls.one()
    assert (call.outcome, call.attempts, call.possibly_billed) == ("ok", 1 + len(errors), possibly)
    assert call.usage is not None
    assert (call.usage.input, call.usage.output) == (3, 2)
    assert any("may have been billed" in reason for reason in call.cost_reasons) == (possibly is not None)


@pytest.mark.slow
@SDKS
@both_kinds
@pytest.mark.parametrize(("error", "possibly"), [("ReadTimeout", 2), ("ConnectError", None)])
async def test_a_request_that_never_got_an_answer_has_an_unknown_cost(
    sdk: str, error: str, possibly: int | None, asynchronous: bool, calls: Calls
) -> None:
    """The SDK gives up: an error whose cost is unknown, with the reason."""
    client = wrap(client_with(sdk, Trouble(error, error), asynchronous=asynchronous, retries=1))
    with pytest.raises(Exception, match=r"(?i)timed out|connection error"):
        await call_it(sdk, client, asynchronous)

    call = calls.one()
    assert (call.outcome, call.http_status, call.attempts, call.possibly_billed) == ("error", None, 2, possibly)
    assert (call.cost_usd, call.cost_status) == (None, "unpriced")


@pytest.mark.slow
@SDKS
async def test_who_cancels_may_have_been_billed(sdk: str, loopback: LoopbackProvider, calls: Calls) -> None:
    """A task that is cancelled while it waits for the answer."""
    client: Any = (
        openai.AsyncOpenAI(api_key="k", base_url=loopback.openai_base_url)
        if sdk == "openai"
        else anthropic.AsyncAnthropic(api_key="k", base_url=loopback.anthropic_base_url)
    )
    async with wrap(client):
        slow = client.with_options(default_headers={"x-loopback-delay-ms": "20000"})
        task = asyncio.create_task(call_it(sdk, slow, asynchronous=True))
        while not loopback.counts().total.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    loopback.reset()

    call = await asyncio.to_thread(calls.one)
    assert (call.outcome, call.possibly_billed, call.cost_usd) == ("cancelled", 1, None)


@pytest.mark.slow
@SDKS
def test_a_real_timeout_is_flagged(sdk: str, loopback: LoopbackProvider, calls: Calls) -> None:
    """Over a real socket: both attempts are given up."""
    options: dict[str, Any] = {"api_key": "k", "timeout": 0.2, "max_retries": 1, "default_headers": {"x-loopback-delay-ms": "1500"}}
    with (
        wrap(openai.OpenAI(base_url=loopback.openai_base_url, **options)) as chat,
        wrap(anthropic.Anthropic(base_url=loopback.anthropic_base_url, **options)) as messages,
    ):
        ask = {"openai": lambda: chat.chat.completions.create(**CHAT), "anthropic": lambda: messages.messages.create(**MESSAGES)}[sdk]
        with pytest.raises(Exception, match=r"(?i)timed out"):
            ask()

    assert calls.one().possibly_billed == 2


@pytest.mark.slow
def test_a_refusal_is_no_missing_answer(loopback: LoopbackProvider, calls: Calls) -> None:
    """429 and 500 are answers, and are not billed."""
    headers = {"x-loopback-status": "429", "x-loopback-status-times": "2", "x-loopback-key": "refused"}
    with wrap(openai.OpenAI(api_key="k", base_url=loopback.openai_base_url)) as client:
        client.chat.completions.create(**CHAT, extra_headers=headers)

    call = calls.one()
    assert (call.outcome, call.attempts, call.possibly_billed, call.cost_status) == ("ok", 3, None, "priced")
