"""The loopback provider's responses: in the background, kept, cancelled, compacted, with the tools that OpenAI bills."""

from typing import Any

import openai
import pytest
from openai.types import Decision
from openai.types.responses import CompactedResponse, Response, ResponseFunctionWebSearch
from openai.types.responses.response_output_item import ImageGenerationCall

from voight_middleware.testing.accounting import Count
from voight_middleware.testing.provider import LoopbackProvider

from ..support.patching import Patch
from .conftest import fits, total, wish

ASK: dict[str, Any] = {"model": "gpt-5-mini", "input": "[user:u_1] Why is the sky blue?"}


def counted(answer: Any, **others: int) -> Count:
    """The count that this answer's usage is."""
    usage = answer.usage
    cached = usage.input_tokens_details.cached_tokens
    return Count(input_tokens=usage.input_tokens, cached_tokens=cached, output_tokens=usage.output_tokens, **others)


def test_background(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A response in the background is queued, then in progress, then completed with the usage of one that was not; it is counted once."""
    queued = fits(one.responses.create(**ASK, background=True))
    looks = [fits(one.responses.retrieve(queued.id)) for _ in range(4)]

    assert (queued.status, queued.usage, queued.output, queued.background) == ("queued", None, [], True)
    assert [look.status for look in looks] == ["in_progress", "completed", "completed", "completed"]
    assert (looks[0].usage, looks[0].background) == (None, True)
    assert looks[1] == looks[2]
    assert (looks[1].id, looks[1].background) == (queued.id, True)
    assert provider.counts().by_user == {"u_1": counted(looks[1], calls=5, completed=5)}
    assert one.responses.create(**ASK).usage == looks[1].usage


@pytest.mark.parametrize("polls", [0, 3])
def test_polls(polls: int, one: openai.OpenAI) -> None:
    """How many polls see it unfinished can be chosen when it is created."""
    queued = one.responses.create(**ASK, background=True, extra_headers=wish(polls=polls))
    statuses = [one.responses.retrieve(queued.id).status for _ in range(polls + 1)]

    assert statuses == ["in_progress"] * polls + ["completed"]


def test_a_background_response_can_be_streamed_afterwards(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Its events go from created, queued and in progress to completed; a stream can start after an event that is known."""
    queued = one.responses.create(**ASK, background=True)
    stream = [fits(event) for event in one.responses.retrieve(queued.id, stream=True)]
    rest = list(one.responses.retrieve(queued.id, stream=True, starting_after=stream[-3].sequence_number))

    assert [event.type for event in stream[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert rest == stream[-2:]
    assert stream[-1].type == "response.completed"
    assert stream[-1].response.background
    assert total(provider) == counted(stream[-1].response, calls=3, completed=3)


def test_a_background_stream_that_is_left_is_billed_when_it_is_seen(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A stream in the background that breaks off costs nothing yet; its response is there, and its usage is counted when it is shown."""
    with one.responses.create(**ASK, background=True, stream=True, extra_headers=wish(end_after=3)) as stream:
        events = list(stream)
    assert total(provider) == Count(calls=1, broken=1)
    assert events[-1].type == "response.in_progress"

    answers = [one.responses.retrieve(events[-1].response.id) for _ in range(2)]
    assert total(provider) == counted(answers[1], calls=3, completed=2, broken=1)


def test_a_stored_response_is_retrieved_whole(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A response is kept unless ``store`` is false, and has the same usage; it is billed once."""
    made = one.responses.create(**ASK)
    streamed: Any = list(one.responses.create(**ASK, stream=True))[-1]
    unstored = one.responses.create(**ASK, store=False)

    assert fits(one.responses.retrieve(made.id)) == made
    assert one.responses.retrieve(streamed.response.id) == streamed.response
    with pytest.raises(openai.NotFoundError):
        one.responses.retrieve(unstored.id)
    once = counted(made)
    assert total(provider).input_tokens == 3 * once.input_tokens
    assert (total(provider).completed, total(provider).errors) == (5, 1)


def test_cancel(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A cancelled response has no usage and costs nothing; one that was seen completed stays; one of the foreground cannot be cancelled."""
    cancelled, finished = (one.responses.create(**ASK, background=True) for _ in range(2))
    one.responses.retrieve(cancelled.id)
    answers = [fits(one.responses.cancel(cancelled.id)), one.responses.retrieve(cancelled.id)]
    assert [(answer.status, answer.usage) for answer in answers] == [("cancelled", None)] * 2
    assert total(provider) == Count(calls=5, completed=5)

    [one.responses.retrieve(finished.id) for _ in range(2)]
    assert one.responses.cancel(finished.id).status == "completed"
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        one.responses.cancel(one.responses.create(**ASK).id)


def test_what_is_reset_is_forgotten(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A reset forgets what was kept."""
    made = one.responses.create(**ASK)
    provider.reset()
    with pytest.raises(openai.NotFoundError):
        one.responses.retrieve(made.id)


def test_the_oldest_is_forgotten(one: openai.OpenAI, patch: Patch) -> None:
    """So much is kept and no more."""
    patch("MAX_OBJECTS", 2)
    first, second, third = (one.responses.create(**ASK).id for _ in range(3))

    assert [one.responses.retrieve(kept).id for kept in (second, third)] == [second, third]
    with pytest.raises(openai.NotFoundError):
        one.responses.retrieve(first)


@pytest.mark.slow
def test_beta_responses(one: openai.OpenAI) -> None:
    """The beta resource answers, too."""
    made: Any = one.beta.responses.create(**ASK, background=True)
    assert [one.beta.responses.retrieve(made.id).status for _ in range(2)] == ["in_progress", "completed"]


def test_compact(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A compaction has its own object, and usage."""
    compacted = fits(one.responses.compact(**ASK))

    assert isinstance(compacted, CompactedResponse)
    assert (compacted.object, compacted.output[-1].type) == ("response.compaction", "compaction")
    assert total(provider) == counted(compacted, calls=1, completed=1)


def test_input_tokens(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Counting says what the response will take in, and costs nothing."""
    tokens = fits(one.responses.input_tokens.count(**ASK)).input_tokens
    assert total(provider) == Count(calls=1, completed=1)
    usage = one.responses.create(**ASK).usage
    assert usage is not None
    assert tokens == usage.input_tokens


def test_decisions(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Each question gets an answer of its kind, and the usage is that of all."""
    questions: Any = [
        {"type": "predicate", "instructions": "Is it polite?"},
        {"type": "choice", "instructions": "Which?", "name": "colour", "choices": [{"value": "blue"}, {"value": "red"}]},
        {"type": "score", "instructions": "How much?", "levels": [{"label": "little"}, {"label": "much"}]},
    ]
    decision = fits(one.decisions.create(model="gpt-6-luna", input="[user:u_1] Hello", questions=questions))

    assert isinstance(decision, Decision)
    assert [answer.type for answer in decision.answers] == ["predicate", "choice", "score"]
    assert provider.counts().by_user == {"u_1": counted(decision, calls=1, completed=1)}


def test_tools(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """The tools that OpenAI runs have their calls in the output, and what they used beside the usage, streamed and not."""
    svg = {"type": "image_generation", "output_format": "svg", "svg": {"model": "gpt-6-luna"}}
    tools: Any = [{"type": "web_search"}, {"type": "function", "name": "f", "parameters": {}, "strict": True}, svg]
    made = fits(one.responses.create(**ASK, tools=tools))
    count = total(provider)
    stream = [fits(event) for event in one.responses.create(**ASK, tools=tools, stream=True)]

    searches = [item for item in made.output if isinstance(item, ResponseFunctionWebSearch)]
    (drawing,) = [item for item in made.output if isinstance(item, ImageGenerationCall)]
    assert made.tool_usage is not None
    assert drawing.svg_usage is not None
    assert made.tool_usage.web_search.num_requests == len(searches) > 0
    image_gen, alone = made.tool_usage.image_gen, counted(made)
    assert (count.images, count.web_searches) == (1, len(searches))
    assert count.input_tokens == alone.input_tokens + image_gen.input_tokens + drawing.svg_usage.input_tokens
    assert count.output_tokens == alone.output_tokens + image_gen.output_tokens + drawing.svg_usage.output_tokens
    last = stream[-1]
    assert last.type == "response.completed"
    assert last.response.tool_usage == made.tool_usage
    kinds = [event.type.removeprefix("response.") for event in stream]
    assert kinds.count("web_search_call.completed") == len(searches)
    assert kinds.count("image_generation_call.generating") == 1
    assert kinds.index("web_search_call.searching") < kinds.index("output_text.delta")


def test_one_tool(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A search alone leaves the other tool's numbers at zero; a response without tools has none of both."""
    made: Response = one.responses.create(**ASK, tools=[{"type": "web_search_preview"}])

    assert made.tool_usage is not None
    assert made.tool_usage.image_gen.total_tokens == 0
    assert total(provider) == counted(made, calls=1, completed=1, web_searches=made.tool_usage.web_search.num_requests)
    assert one.responses.create(**ASK).tool_usage is None
