"""The loopback provider's files and batches, of OpenAI and of Anthropic."""

import io
import json
from typing import Any

import anthropic
import openai
import pytest
from openai.types import Batch

from voight_middleware.testing.accounting import Count
from voight_middleware.testing.provider import LoopbackProvider

from .conftest import fits, total, wish

BAD = "[user:u_3] [x-loopback-status: 500]"


def line(number: int, body: dict[str, Any], path: str = "/v1/chat/completions") -> str:
    return json.dumps({"custom_id": f"c_{number}", "method": "POST", "url": path, "body": body})


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}


def batch_of(one: openai.OpenAI, lines: list[str], path: Any = "/v1/chat/completions", **faults: Any) -> Batch:
    """Upload these lines and make a batch of them."""
    file = one.files.create(file=("lines.jsonl", io.BytesIO("\n".join(lines).encode())), purpose="batch")
    return one.batches.create(input_file_id=file.id, endpoint=path, completion_window="24h", extra_headers=wish(**faults))


def written(one: openai.OpenAI, file_id: str | None) -> list[Any]:
    """The lines of a file."""
    assert file_id is not None
    return [json.loads(text) for text in one.files.content(file_id).text.splitlines()]


def params(text: str) -> Any:
    return {"model": "claude-haiku-4-5", "max_tokens": 1000, "messages": [{"role": "user", "content": text}]}


# -- OpenAI --------------------------------------------------------------------------------------------------------------------


def test_files(one: openai.OpenAI) -> None:
    """A file is described, listed page by page, and its content comes back byte by byte, whatever it is."""
    data = b'{"a": 1}\r\n--x\r\n\r\n\x00\xff\r\n'
    made = [fits(one.files.create(file=(f"{number}.bin", data), purpose="user_data")) for number in range(3)]

    assert (made[0].filename, made[0].bytes, made[0].purpose) == ("0.bin", len(data), "user_data")
    assert fits(one.files.retrieve(made[0].id)) == made[0]
    assert one.files.content(made[1].id).read() == data
    assert [file.id for file in one.files.list(limit=2)] == [file.id for file in reversed(made)]


def test_batch(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A batch is completed at its first poll; what its lines cost is counted then, once, for the users in their prompts."""
    lines = [line(1, chat("[user:u_1] Hello")), line(2, chat("[user:u_2] Hello")), line(3, chat(BAD)), line(4, {"model": "m"})]
    created = fits(batch_of(one, lines))
    assert (created.status, created.usage) == ("validating", None)
    assert total(provider).input_tokens == 0

    batch = fits(one.batches.retrieve(created.id))
    good, bad = written(one, batch.output_file_id), written(one, batch.error_file_id)
    assert (batch.status, batch.model) == ("completed", "gpt-4o-mini-2024-07-18")
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 4, "completed": 2, "failed": 2}
    assert [item["custom_id"] for item in good] == ["c_1", "c_2"]
    assert [(item["custom_id"], item["response"]["status_code"]) for item in bad] == [("c_3", 500), ("c_4", 400)]
    assert {"id", "custom_id", "response", "error"} == good[0].keys() == bad[0].keys()

    usages = [item["response"]["body"]["usage"] for item in good]
    count = provider.counts()
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages) == count.total.input_tokens
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages) == count.total.output_tokens
    assert batch.usage.input_tokens_details.cached_tokens == count.total.cached_tokens
    assert [count.by_user[user].input_tokens for user in ("u_1", "u_2", "-")] == [usages[0]["prompt_tokens"], usages[1]["prompt_tokens"], 0]
    assert count.total.calls == count.total.completed == count.by_user["-"].calls == 5
    assert "u_3" not in count.by_user


def test_a_line_is_answered_like_a_request(one: openai.OpenAI) -> None:
    """A line has the usage of the same request without a batch, also of a response; faults in its prompt are its own."""
    ask: Any = {"model": "gpt-5-mini", "input": "[user:u_1] Hello"}
    exact = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    lines = [line(1, ask, "/v1/responses"), line(2, {**ask, "input": f"[x-loopback-usage: {json.dumps(exact)}]"}, "/v1/responses")]
    batch = one.batches.retrieve(batch_of(one, lines, "/v1/responses").id)
    first, second = (item["response"]["body"] for item in written(one, batch.output_file_id))

    usage = one.responses.create(**ask).usage
    assert usage is not None
    assert (first["usage"], second["usage"]) == (usage.to_dict(), exact)
    assert batch.usage is not None
    assert batch.usage.output_tokens_details.reasoning_tokens == usage.output_tokens_details.reasoning_tokens
    assert batch.usage.total_tokens == usage.total_tokens + 12


def test_batch_in_progress(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A batch can take some polls, be listed, and be cancelled, and then costs nothing; without a usage it is as batches once were."""
    slow, plain = batch_of(one, [line(1, chat("a"))], polls=2), batch_of(one, [line(1, chat("b"))], no_usage=1)

    assert [one.batches.retrieve(slow.id).status for _ in range(2)] == ["in_progress"] * 2
    assert fits(one.batches.cancel(slow.id)).status == "cancelling"
    cancelled = fits(one.batches.retrieve(slow.id))
    assert (cancelled.status, cancelled.output_file_id) == ("cancelled", None)
    assert total(provider).input_tokens == 0
    assert one.batches.retrieve(plain.id).usage is None
    assert total(provider).input_tokens > 0
    assert [batch.status for batch in one.batches.list(limit=1)] == ["completed", "cancelled"]


def test_a_batch_that_cannot_be_read_fails(one: openai.OpenAI) -> None:
    """A file with a line that is no request makes a failed batch; one that is not there, or an unknown endpoint, is refused."""
    failed = fits(one.batches.retrieve(batch_of(one, ["{"]).id))
    assert (failed.status, failed.output_file_id) == ("failed", None)
    assert failed.errors is not None
    with pytest.raises(openai.NotFoundError):
        one.batches.create(input_file_id="file-1", endpoint="/v1/embeddings", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="/v1/nothing"):
        batch_of(one, [], "/v1/nothing")


async def test_async(provider: LoopbackProvider) -> None:
    """The asynchronous SDK uploads and reads the same."""
    async with openai.AsyncOpenAI(base_url=provider.openai_base_url, api_key="k") as client:
        file = await client.files.create(file=("lines.jsonl", line(1, chat("Hello")).encode()), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        batch = await client.batches.retrieve(batch.id)
        assert batch.output_file_id is not None
        assert (await client.files.content(batch.output_file_id)).text.count("\n") == 1


# -- Anthropic -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("beta", [False, True])
def test_message_batch(beta: bool, other: anthropic.Anthropic, provider: LoopbackProvider) -> None:
    """A batch has ended at its first poll; its results are one line per request, and are counted when they are read, once."""
    batches: Any = other.beta.messages.batches if beta else other.messages.batches
    texts = ["[user:u_1] Hello", "[user:u_2] Hello", BAD, "[x-loopback-result: expired]", "[x-loopback-result: canceled]"]
    created = fits(batches.create(requests=[{"custom_id": f"c_{n}", "params": params(text)} for n, text in enumerate(texts)]))
    assert (created.processing_status, created.request_counts.processing, created.results_url) == ("in_progress", 5, None)

    batch = fits(batches.retrieve(created.id))
    assert batch.processing_status == "ended"
    assert batch.request_counts.to_dict() == {"processing": 0, "succeeded": 2, "errored": 1, "expired": 1, "canceled": 1}
    assert batch.results_url.startswith(provider.url)
    assert total(provider).input_tokens == 0

    results = [fits(result) for _ in range(2) for result in batches.results(batch.id)]
    assert [line.result.type for line in results] == ["succeeded", "succeeded", "errored", "expired", "canceled"] * 2
    assert [line.custom_id for line in results[:5]] == [f"c_{number}" for number in range(5)]
    assert results[2].result.error.error.type == "api_error"
    usages = [line.result.message.usage for line in results[:2]]
    assert {usage.service_tier for usage in usages} == {"batch"}
    for user, usage in zip(("u_1", "u_2"), usages, strict=True):
        cached, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
        count = Count(input_tokens=usage.input_tokens + cached + written, cached_tokens=cached, output_tokens=usage.output_tokens)
        assert provider.counts().by_user[user] == count
    assert total(provider).calls == total(provider).completed == 6


def test_message_batch_in_progress(other: anthropic.Anthropic) -> None:
    """A batch can take some polls and has no results until then; a cancelled one has only cancelled ones, and they are listed in pages."""
    requests: Any = [{"custom_id": "c", "params": params("Hello")}]
    slow, short = (other.messages.batches.create(requests=requests, extra_headers=wish(polls=polls)) for polls in (2, 0))

    assert other.messages.batches.retrieve(slow.id).processing_status == "in_progress"
    with pytest.raises(anthropic.AnthropicError, match="No `results_url`"):
        other.messages.batches.results(slow.id)
    cancelled = fits(other.messages.batches.cancel(short.id))
    assert (cancelled.processing_status, cancelled.cancel_initiated_at is None) == ("canceling", False)
    assert other.messages.batches.retrieve(short.id).request_counts.canceled == 1
    assert [line.result.type for line in other.messages.batches.results(short.id)] == ["canceled"]
    assert [batch.id for batch in other.messages.batches.list(limit=1)] == [short.id, slow.id]


@pytest.mark.slow
@pytest.mark.parametrize("beta", [False, True])
def test_count_tokens(beta: bool, other: anthropic.Anthropic, provider: LoopbackProvider) -> None:
    """Counting says what the message will take in, cached or not, and costs nothing."""
    messages: Any = other.beta.messages if beta else other.messages
    ask = params("[user:u_1] Hello")
    tokens = fits(messages.count_tokens(model=ask["model"], messages=ask["messages"])).input_tokens

    assert total(provider) == Count(calls=1, completed=1)
    messages.create(**ask)
    assert total(provider).input_tokens == tokens
