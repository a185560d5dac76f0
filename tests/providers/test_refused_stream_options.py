"""A server that refuses ``stream_options``, and one that only seems to."""

from types import SimpleNamespace
from typing import Any

import openai
import pytest

from voight_middleware import wrap
from voight_middleware.instrumentation import sdk

from ..support.calls import Calls
from ..support.memory_provider import USAGE, Provider, refusal, usual
from .entry_points import CHAT


def stream(client: openai.OpenAI, text: str = "Where?") -> list[Any]:
    """Read a whole stream."""
    return list(client.chat.completions.create(**{**CHAT, "messages": [{"role": "user", "content": text}]}, stream=True))


@pytest.mark.parametrize("message", ["content 'stream_options' is not allowed", "bad request: tell me about stream_options"])
def test_a_refusal_that_quotes_the_caller_leaves_others_streams_exact(message: str, provider: Provider, calls: Calls) -> None:
    """One user's text does not turn everybody's streams into estimates."""

    def answer(path: str, body: dict[str, Any]) -> Any:
        quoted = "stream_options" in body["messages"][0]["content"]
        return refusal(400, message) if quoted else usual(path, body)

    provider.answer = answer
    client = wrap(provider.client("openai"))
    with pytest.raises(openai.BadRequestError):
        stream(client, "stream_options")
    stream(client)
    failed, good = calls.all()
    assert (failed.outcome, failed.http_status) == ("error", 400)
    assert (good.outcome, good.estimated, good.usage) == ("ok", False, USAGE["chat"])


def test_a_refusal_of_another_parameter_is_not_tried_again(provider: Provider, calls: Calls) -> None:
    """The error's own ``param`` says what it is about."""
    status, headers, _ = refusal(400)
    body = b'{"error": {"message": "stream_options quoted", "type": "invalid_request_error", "param": "messages", "code": null}}'
    provider.answer = lambda path, _: (status, headers, [body])
    with pytest.raises(openai.BadRequestError):
        stream(wrap(provider.client("openai")))
    assert len(provider.bodies) == 1
    assert calls.one().outcome == "error"


def test_a_host_that_has_refused_is_asked_again_after_an_hour(provider: Provider, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been upgraded."""
    now = 1000.0
    monkeypatch.setattr(sdk, "time", SimpleNamespace(monotonic=lambda: now))
    provider.answer = lambda path, body: refusal(400, "no stream_options here") if "stream_options" in body else usual(path, body)
    client = wrap(provider.client("openai"))
    stream(client)
    stream(client)
    assert ["stream_options" in body for body in provider.bodies] == [True, False, False]
    now += 3601
    provider.answer = usual
    stream(client)
    assert [call.estimated for call in calls.all()] == [True, True, False]
