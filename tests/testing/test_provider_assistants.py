"""The loopback provider's assistants: threads, messages and runs."""

from typing import Any

import openai
import pytest
from openai.types.beta.threads import Run

from voight_middleware.testing.accounting import Count
from voight_middleware.testing.provider import LoopbackProvider

from .conftest import fits, total, wish

pytestmark = pytest.mark.filterwarnings("ignore:(deprecated|The Assistants API):DeprecationWarning")
MESSAGE: Any = {"role": "user", "content": "[user:u_1] Why is the sky blue?"}


@pytest.fixture
def assistant(one: openai.OpenAI) -> str:
    """The id of an assistant."""
    return fits(one.beta.assistants.create(model="gpt-4o-mini", name="Weather", instructions="Be brief.")).id


def counted(usage: Any, **others: int) -> Count:
    """The count that a run's usage is."""
    cached = usage.to_dict()["prompt_token_details"]["cached_tokens"]
    return Count(input_tokens=usage.prompt_tokens, cached_tokens=cached, output_tokens=usage.completion_tokens, **others)


def text_of(message: Any) -> str:
    return "".join(part.text.value for part in message.content)


def test_run(assistant: str, one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A run is queued, in progress at the first poll, then completed with a usage that is counted once, for the thread's user."""
    thread = fits(one.beta.threads.create())
    fits(one.beta.threads.messages.create(thread.id, **MESSAGE))
    run = fits(one.beta.threads.runs.create(thread.id, assistant_id=assistant))
    unfinished = len(one.beta.threads.messages.list(thread.id).data)
    looks: list[Run] = [fits(one.beta.threads.runs.retrieve(run.id, thread_id=thread.id)) for _ in range(3)]
    messages = one.beta.threads.messages.list(thread.id).data

    assert (run.status, run.usage, run.model, run.instructions) == ("queued", None, "gpt-4o-mini", "Be brief.")
    assert [look.status for look in looks] == ["in_progress", "completed", "completed"]
    assert looks[0].usage is None
    assert provider.counts().by_user["u_1"] == counted(looks[1].usage, calls=7, completed=7)
    assert unfinished == 1
    assert [fits(message).role for message in messages] == ["assistant", "user"]
    assert messages[0].run_id == run.id
    assert [message.role for message in one.beta.threads.messages.list(thread.id, order="asc", limit=1)] == ["user", "assistant"]


def test_streamed_run(assistant: str, one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """The step and the run report the same usage, which is counted once; the deltas are the message's text."""
    thread = one.beta.threads.create(messages=[MESSAGE])
    stream: list[Any] = list(one.beta.threads.runs.create(thread.id, assistant_id=assistant, stream=True))
    events = [fits(event) for event in stream]
    named = {event.event: event.data for event in events}

    assert [event.event for event in events][:3] == ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
    assert [event.event for event in events][-2:] == ["thread.run.step.completed", "thread.run.completed"]
    assert named["thread.run.step.completed"].usage.to_dict() == named["thread.run.completed"].usage.to_dict()
    assert provider.counts().by_user["u_1"] == counted(named["thread.run.completed"].usage, calls=2, completed=2)
    deltas = "".join(event.data.delta.content[0].text.value for event in events if event.event == "thread.message.delta")
    assert deltas == text_of(named["thread.message.completed"]) == text_of(one.beta.threads.messages.list(thread.id).data[0])


def test_the_same_thread_costs_the_same(assistant: str, one: openai.OpenAI) -> None:
    """Usage follows from what was said, not from ids or times."""
    threads = [one.beta.threads.create(messages=[MESSAGE]).id for _ in range(2)]
    runs = [one.beta.threads.runs.create_and_poll(thread_id=thread, assistant_id=assistant, poll_interval_ms=1) for thread in threads]
    assert runs[0].usage == runs[1].usage


def test_thread_and_run(assistant: str, one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A thread can be made with its run, streamed or not, and the SDK's helpers poll it and collect it."""
    run = one.beta.threads.create_and_run_poll(assistant_id=assistant, thread={"messages": [MESSAGE]}, poll_interval_ms=1)
    with one.beta.threads.create_and_run_stream(assistant_id=assistant, thread={"messages": [MESSAGE]}) as stream:
        names = [event.event for event in stream]

    assert run.status == "completed"
    assert names[0] == "thread.created"
    assert run.usage is not None
    assert total(provider).input_tokens > run.usage.prompt_tokens
    assert provider.counts().by_user["u_1"].errors == 0


def test_a_longer_thread_costs_more(assistant: str, one: openai.OpenAI) -> None:
    """What a run takes in are the thread's messages and its own."""
    thread = one.beta.threads.create(messages=[MESSAGE])
    extra: Any = [{"role": "user", "content": [{"type": "text", "text": "long " * 8000}]}]
    run = one.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant, additional_messages=extra, poll_interval_ms=1)
    assert run.usage is not None
    assert run.usage.prompt_tokens > 10_000


def test_unfinished_runs(assistant: str, one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A run can be cancelled, be cut short by its limit, and break off as a stream: then its usage comes with the next poll."""
    thread = one.beta.threads.create(messages=[MESSAGE])
    run = one.beta.threads.runs.create(thread.id, assistant_id=assistant, extra_headers=wish(polls=5))
    assert fits(one.beta.threads.runs.cancel(run.id, thread_id=thread.id)).status == "cancelling"
    cancelled = fits(one.beta.threads.runs.retrieve(run.id, thread_id=thread.id))
    assert (cancelled.status, cancelled.usage) == ("cancelled", None)
    assert len(one.beta.threads.messages.list(thread.id).data) == 1
    assert total(provider).input_tokens == 0

    broken: Any = one.beta.threads.runs.create(thread.id, assistant_id=assistant, stream=True, extra_headers=wish(end_after=3))
    last = list(broken)[-1].data
    assert (total(provider).broken, total(provider).input_tokens) == (1, 0)
    assert one.beta.threads.runs.retrieve(last.id, thread_id=thread.id).usage is not None
    assert total(provider).input_tokens > 0

    short = one.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant, max_completion_tokens=5, poll_interval_ms=1)
    assert short.status == "incomplete"
    with pytest.raises(openai.NotFoundError):
        one.beta.threads.runs.create(thread.id, assistant_id="asst_1")
