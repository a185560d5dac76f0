"""Spans that the anthropic SDK makes itself: they get what they lack."""

import time
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest
from opentelemetry.trace import StatusCode

import voight_middleware as voight

from .traced import HELLO, SONNET, Traced, attributes


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "streamed", "helper", "closed", "error"])
def test_the_anthropic_sdks_own_span_is_enriched(way: str, traced: Traced, listening: Any, native: Any) -> None:
    """One span per call, the SDK's: with owner and exact cost, ended when the SDK ended it."""
    listened = listening(traced.spans)
    before = time.time_ns()
    with voight.tag(user_id="u_7", plan="pro"):
        if way == "whole":
            native.messages.create(**SONNET)
        elif way == "helper":
            with native.messages.stream(**SONNET) as stream:
                stream.get_final_message()
        elif way == "error":
            with pytest.raises(anthropic.APIStatusError):
                native.messages.create(**SONNET, extra_headers={"x-loopback-status": "500"})
        else:
            with native.messages.create(**SONNET, stream=True) as events:
                for _ in events:
                    if way == "closed":
                        break
    after = time.time_ns()
    time.sleep(0.02)

    (span,) = traced.all()
    (call,) = listened.flush()
    said = attributes(span)
    assert span.name == "anthropic.messages.create"
    assert (said["user.id"], said["voight.plan"], said["voight.call_id"]) == ("u_7", "pro", call.call_id)
    assert said["voight.outcome"] == call.outcome == {"error": "error", "closed": "aborted"}.get(way, "ok")
    assert before <= (span.end_time or 0) <= after
    if way == "error":
        assert span.status.status_code is StatusCode.ERROR
    else:
        assert Decimal(said["voight.cost_usd"]) == call.cost_usd
        assert said["llm.token_count.prompt"] == call.usage.input_tokens
    if way in ("whole", "streamed", "helper"):
        assert said["gen_ai.usage.input_tokens"] == call.usage.input_tokens, "the SDK's own attribute"


def test_where_the_sdk_makes_no_span_ours_is_there(traced: Traced, listening: Any, anthropic_client: Any) -> None:
    """The client's own option switches its spans off, or sends them elsewhere."""
    listening(traced.spans)
    anthropic_client.messages.create(**SONNET)

    assert attributes(traced.one("chat claude-haiku-4-5"))["gen_ai.provider.name"] == "anthropic"


@pytest.mark.slow
def test_a_span_says_why_the_model_stopped(
    traced: Traced, listening: Any, openai_client: openai.OpenAI, anthropic_client: Any, native: Any
) -> None:
    """The provider's word in both vocabularies, on the anthropic SDK's own span too; ``error`` where none came."""
    listening(traced.spans)
    responses: Any = {"model": "gpt-4o", "input": "Where?"}
    openai_client.chat.completions.create(**HELLO)
    openai_client.responses.create(**responses, max_output_tokens=3)
    list(openai_client.responses.create(**responses, stream=True))
    anthropic_client.messages.create(**{**SONNET, "max_tokens": 3})
    native.messages.create(**{**SONNET, "max_tokens": 4000})
    openai_client.embeddings.create(model="text-embedding-3-small", input="Where?")
    with openai_client.chat.completions.create(**HELLO, stream=True) as stream:
        next(stream)

    said = [attributes(span) for span in sorted(traced.all(), key=lambda span: span.start_time or 0)]
    assert [(one.get("gen_ai.response.finish_reasons"), one.get("llm.finish_reason")) for one in said] == [
        (("stop",), "stop"),
        (("max_output_tokens",), "max_output_tokens"),
        (("stop",), "stop"),
        (("max_tokens",), "max_tokens"),
        (("end_turn",), "end_turn"),
        (None, None),
        (("error",), None),
    ]
    assert [one["anthropic.message.stop_reason"] for one in said if "anthropic.message.stop_reason" in one] == ["end_turn"], "its own"
