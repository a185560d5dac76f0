"""Every other endpoint that is billed, or could be: each way into it is one call, with what the provider reported."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from voight_middleware import Usage, wrap
from voight_middleware.records.usage import Component

from ..support.calls import Calls
from ..support.memory_provider import JSON, PIECES, SSE, TEXT_USAGE, Answer, Provider, completion, sse
from .entry_points import both_kinds

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

IMAGE_USAGE = {
    "input_tokens": 60,
    "input_tokens_details": {"text_tokens": 20, "image_tokens": 40},
    "output_tokens": 1000,
    "total_tokens": 1060,
}
IMAGE_COUNTS = Usage(input=20, image_in=40, image_out=1000)
SVG_USAGE = {"model": "gpt-5.6-sol", "input_tokens": 300, "output_tokens": 900, "reasoning_tokens": 100, "total_tokens": 1200}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PICTURES = {"created": 1, "data": [{"b64_json": PIXEL}, {"b64_json": PIXEL}]}
SPOKEN = {"type": "tokens", "input_tokens": 30, "input_token_details": {"text_tokens": 4, "audio_tokens": 26}, "output_tokens": 9}
RESPONSES_USAGE = {
    "input_tokens": 300,
    "input_tokens_details": {"cached_tokens": 100},
    "output_tokens": 40,
    "output_tokens_details": {"reasoning_tokens": 8},
    "total_tokens": 340,
}
RESPONSES_COUNTS = Usage(input=200, cache_read=100, output=40, reasoning=8)
FILE = ("speech.wav", b"RIFF....WAVE", "audio/wav")
PICTURE = ("picture.png", b"\x89PNG....", "image/png")


def completion_events(*, usage: bool) -> list[bytes]:
    null = {"usage": None} if usage else {}
    texts = [completion(choices=[{"index": 0, "text": piece, "finish_reason": None, "logprobs": None}], **null) for piece in PIECES]
    end = completion(choices=[{"index": 0, "text": "", "finish_reason": "stop", "logprobs": None}], **null)
    last = [completion(usage=TEXT_USAGE)] if usage else []
    return sse(*texts, end, *last, "[DONE]")


def picture_events() -> list[bytes]:
    said = {"b64_json": PIXEL, "created_at": 1, "size": "1024x1024", "quality": "low", "background": "opaque", "output_format": "png"}
    partial = {"type": "image_generation.partial_image", "partial_image_index": 0, **said}
    done = {"type": "image_generation.completed", "usage": IMAGE_USAGE, **said}
    return sse(partial, partial, done, done)


def spoken_events() -> list[bytes]:
    deltas = [{"type": "transcript.text.delta", "delta": piece} for piece in PIECES]
    return sse(*deltas, {"type": "transcript.text.done", "text": "".join(PIECES), "usage": SPOKEN})


@dataclass(frozen=True)
class Case:
    """One endpoint: the SDK's method, what it is given, what the provider answers, and the call that must come of it."""

    name: str
    resource: str
    method: str
    arguments: dict[str, Any]
    body: Any
    endpoint: str
    usage: Usage | None
    model: str | None = None
    streamed: bool = False
    components: tuple[Component, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.name

    def answer(self, _path: str, body: dict[str, Any]) -> Answer:
        if self.streamed:
            made = self.body
            return 200, SSE, made(usage="include_usage" in (body.get("stream_options") or {})) if self.endpoint == "completions" else made()
        if isinstance(self.body, bytes):
            return 200, {"content-type": "audio/mpeg"}, [self.body]
        if isinstance(self.body, str):
            return 200, {"content-type": "text/plain"}, [self.body.encode()]
        return 200, JSON, [json.dumps(self.body).encode()]

    def on(self, client: Any) -> Any:
        for name in self.resource.split("."):
            client = getattr(client, name)
        return client


SPEECH: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "Where is the café?"}
TRANSCRIBE: dict[str, Any] = {"model": "gpt-4o-transcribe", "file": FILE}
DRAW: dict[str, Any] = {"model": "gpt-image-1", "prompt": "a fjord"}

CASES = [
    Case(
        "completions",
        "completions",
        "create",
        {"model": "gpt-3.5-turbo-instruct", "prompt": "Where?"},
        completion(usage=TEXT_USAGE, choices=[{"index": 0, "text": "Oslo", "finish_reason": "stop", "logprobs": None}]),
        "completions",
        Usage(input=12, output=5),
        "gpt-3.5-turbo-instruct:20230824-v2",
    ),
    Case(
        "completions(stream)",
        "completions",
        "create",
        {"model": "gpt-3.5-turbo-instruct", "prompt": "Where?", "stream": True},
        completion_events,
        "completions",
        Usage(input=12, output=5),
        "gpt-3.5-turbo-instruct:20230824-v2",
        streamed=True,
    ),
    Case("images", "images", "generate", DRAW, {**PICTURES, "usage": IMAGE_USAGE}, "images", IMAGE_COUNTS),
    Case(
        "images with svg",
        "images",
        "generate",
        DRAW,
        {**PICTURES, "usage": IMAGE_USAGE, "svg_usage": SVG_USAGE},
        "images",
        Usage(input=320, image_in=40, image_out=1000, output=900, reasoning=100),
        components=(Component(usage=IMAGE_COUNTS), Component(model="gpt-5.6-sol", usage=Usage(input=300, output=900, reasoning=100))),
    ),
    Case(
        "images(stream)",
        "images",
        "generate",
        {**DRAW, "stream": True},
        picture_events,
        "images",
        Usage(input=40, image_in=80, image_out=2000),
        streamed=True,
    ),
    Case("images.edit", "images", "edit", {**DRAW, "image": PICTURE}, {**PICTURES, "usage": IMAGE_USAGE}, "images", IMAGE_COUNTS),
    Case("dall-e", "images", "generate", {**DRAW, "model": "dall-e-3", "size": "1792x1024"}, PICTURES, "images", Usage(images=2)),
    Case("dall-e variation", "images", "create_variation", {"image": PICTURE, "model": "dall-e-2"}, PICTURES, "images", Usage(images=2)),
    Case(
        "transcription by token",
        "audio.transcriptions",
        "create",
        TRANSCRIBE,
        {"text": "Oslo", "usage": {**SPOKEN, "total_tokens": 39}},
        "transcriptions",
        Usage(input=4, audio_in=26, output=9),
    ),
    Case(
        "transcription(stream)",
        "audio.transcriptions",
        "create",
        {**TRANSCRIBE, "stream": True},
        spoken_events,
        "transcriptions",
        Usage(input=4, audio_in=26, output=9),
        streamed=True,
    ),
    Case(
        "transcription by duration",
        "audio.transcriptions",
        "create",
        {**TRANSCRIBE, "model": "whisper-1"},
        {"text": "Oslo", "usage": {"type": "duration", "seconds": 9}},
        "transcriptions",
        Usage(seconds=9),
    ),
    Case(
        "transcription with words",
        "audio.transcriptions",
        "create",
        {**TRANSCRIBE, "model": "whisper-1", "response_format": "verbose_json"},
        {"text": "Oslo", "language": "en", "duration": 8.470000267028809},
        "transcriptions",
        Usage(seconds=9),
    ),
    Case(
        "transcription as text",
        "audio.transcriptions",
        "create",
        {**TRANSCRIBE, "model": "whisper-1", "response_format": "text"},
        "Oslo\n",
        "transcriptions",
        None,
    ),
    Case(
        "translation",
        "audio.translations",
        "create",
        {"model": "whisper-1", "file": FILE, "response_format": "verbose_json"},
        {"text": "Oslo", "language": "en", "duration": 3.0},
        "translations",
        Usage(seconds=3),
    ),
    Case("speech", "audio.speech", "create", SPEECH, b"ID3....", "speech", Usage(characters=18)),
    Case("speech without text", "audio.speech", "create", {**SPEECH, "input": ""}, b"ID3....", "speech", Usage(characters=0)),
    Case(
        "speech as events",
        "audio.speech",
        "create",
        {**SPEECH, "model": "gpt-4o-mini-tts"},
        b'data: {"type": "speech.audio.delta", "audio": "AAAA"}\n\n'
        b'data: {"type":"speech.audio.done","usage":{"input_tokens":14,"output_tokens":101,"total_tokens":115}}\n\n',
        "speech",
        Usage(input=14, audio_out=101),
    ),
    Case(
        "moderations",
        "moderations",
        "create",
        {"input": "Where?", "model": "omni-moderation-latest"},
        {"id": "modr-1", "model": "omni-moderation-2024-09-26", "results": []},
        "moderations",
        None,
        "omni-moderation-2024-09-26",
    ),
    Case(
        "responses.compact",
        "responses",
        "compact",
        {"model": "gpt-5.6-sol", "input": "Where?"},
        {"id": "resp_1", "object": "response.compaction", "created_at": 1, "output": [], "usage": RESPONSES_USAGE},
        "compact",
        RESPONSES_COUNTS,
    ),
    Case(
        "responses.input_tokens",
        "responses.input_tokens",
        "count",
        {"model": "gpt-5.6-sol", "input": "Where?"},
        {"input_tokens": 11, "object": "response.input_tokens"},
        "count_tokens",
        None,
    ),
]


def possible(case: Case) -> bool:
    """Whether the installed SDK has it."""
    client = openai.OpenAI(api_key="k")
    try:
        return hasattr(case.on(client), case.method)
    except AttributeError:
        return False


PRESENT = [case for case in CASES if possible(case)]


def read(thing: Any) -> Any:
    if hasattr(thing, "__stream__"):
        return [event.to_dict() for event in thing]
    return thing.content if hasattr(thing, "content") else thing.to_dict() if hasattr(thing, "to_dict") else thing


async def aread(thing: Any) -> Any:
    return [event.to_dict() async for event in thing] if hasattr(thing, "__stream__") else read(thing)


async def plain(case: Case, client: Any, asynchronous: bool) -> Any:
    made = getattr(case.on(client), case.method)(**case.arguments)
    return await aread(await made) if asynchronous else read(made)


async def raw(case: Case, client: Any, asynchronous: bool) -> Any:
    made = getattr(case.on(client).with_raw_response, case.method)(**case.arguments)
    if asynchronous:
        return await aread((await made).parse())
    return read(made.parse())


async def opened(case: Case, client: Any, asynchronous: bool) -> Any:
    manager = getattr(case.on(client).with_streaming_response, case.method)(**case.arguments)
    if asynchronous:
        async with manager as response:
            return [part async for part in response.iter_bytes()]
    with manager as response:
        return list(response.iter_bytes())


WAYS: dict[str, Callable[[Case, Any, bool], Any]] = {"plain": plain, "raw": raw, "opened": opened}


@pytest.mark.slow
@pytest.mark.parametrize("case", PRESENT, ids=str)
@pytest.mark.parametrize("way", WAYS)
@both_kinds
async def test_every_way_into_an_endpoint_is_one_call(case: Case, way: str, asynchronous: bool, provider: Provider, calls: Calls) -> None:
    """The caller sees what the SDK alone shows, and there is one call with the provider's own counts."""
    provider.answer = case.answer
    bare = await WAYS[way](case, provider.client("openai", asynchronous=asynchronous), asynchronous)

    assert await WAYS[way](case, wrap(provider.client("openai", asynchronous=asynchronous)), asynchronous) == bare

    call = calls.one()
    assert (call.endpoint, call.outcome, call.http_status, call.streamed) == (case.endpoint, "ok", 200, case.streamed)
    assert (call.requested_model, call.model) == (case.arguments.get("model"), case.model)
    if case.endpoint == "completions" and case.streamed and way == "opened":
        assert call.estimated  # nothing was asked for, as it would show in the body
    else:
        assert (call.usage, call.estimated) == (case.usage, False)
        assert call.components == (case.components or (() if case.usage is None else (Component(usage=case.usage),)))


@pytest.mark.parametrize("case", [case for case in PRESENT if case.endpoint in ("moderations", "count_tokens")], ids=str)
async def test_what_is_free_costs_nothing(case: Case, provider: Provider, calls: Calls) -> None:
    """A free call is there, and costs 0: known, and not missing."""
    provider.answer = case.answer
    await plain(case, wrap(provider.client("openai")), asynchronous=False)

    assert (calls.one().cost_usd, calls.one().cost_status) == (0, "priced")


def test_counting_the_tokens_of_messages_is_free(provider: Provider, calls: Calls) -> None:
    """Anthropic's, too."""
    client = wrap(provider.client("anthropic"))
    provider.answer = lambda path, body: (200, JSON, [b'{"input_tokens": 14}'])
    counted = client.messages.count_tokens(model="claude-opus-4-8", messages=[{"role": "user", "content": "Where?"}])

    assert counted.input_tokens == 14
    call = calls.one()
    assert (call.endpoint, call.usage, call.cost_usd) == ("count_tokens", None, 0)


def test_a_picture_that_is_billed_by_its_size_keeps_it(provider: Provider, calls: Calls) -> None:
    """What dall-e's price depends on is in the call: number, size and quality."""
    provider.answer = lambda path, body: (200, JSON, [json.dumps(PICTURES).encode()])
    wrap(provider.client("openai")).images.generate(model="dall-e-3", prompt="a fjord", size="1792x1024", quality="hd", n=2)

    assert json.loads(calls.one().raw_usage or "") == {"images": 2, "size": "1792x1024", "quality": "hd"}


def test_speech_that_is_left_was_spoken_all_the_same(provider: Provider, calls: Calls) -> None:
    """The characters are billed by what was sent; that the caller left is known."""
    provider.answer = lambda path, body: (200, {"content-type": "audio/mpeg"}, [b"ID3", b"....", b"...."])
    with wrap(provider.client("openai")).audio.speech.with_streaming_response.create(**SPEECH) as response:
        next(response.iter_bytes(1))

    assert (calls.one().outcome, calls.one().usage) == ("aborted", Usage(characters=18))


def test_a_picture_that_was_cut_off_has_no_usage(provider: Provider, calls: Calls) -> None:
    """Nothing is estimated of a picture: its cost is unknown."""
    provider.answer = lambda path, body: (200, SSE, picture_events())
    stream = wrap(provider.client("openai")).images.generate(**DRAW, stream=True)
    next(iter(stream))
    stream.close()

    call = calls.one()
    assert (call.outcome, call.usage, call.cost_usd, call.cost_status) == ("aborted", None, None, "unpriced")


# -- hosted tools of a response ------------------------------------------------------------------------------------------------------


def tools_answer(tool_usage: Any, *kinds: str) -> Callable[[str, dict[str, Any]], Answer]:
    output = [{"id": f"it_{number}", "type": kind, "status": "completed"} for number, kind in enumerate(kinds)]
    body = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "gpt-5.6-sol",
        "output": output,
        "tools": [{"type": "web_search"}, {"type": "image_generation", "model": "gpt-image-1"}],
        "usage": RESPONSES_USAGE,
        **({} if tool_usage is None else {"tool_usage": tool_usage}),
    }

    def answer(_path: str, sent: dict[str, Any]) -> Answer:
        if sent.get("stream"):
            return 200, SSE, sse({"type": "response.completed", "response": body, "sequence_number": 1})
        return 200, JSON, [json.dumps(body).encode()]

    return answer


NOTHING = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": {"text_tokens": 0, "image_tokens": 0}}
DRAWN = {**IMAGE_USAGE, "output_tokens_details": {"text_tokens": 0, "image_tokens": 1000}}


TOOLS = [
    (None, ["web_search_call", "web_search_call", "file_search_call"], {"web_search": 2, "file_search": 1}),
    ({"web_search": {"num_requests": 1}, "image_gen": NOTHING}, ["web_search_call", "web_search_call"], {"web_search": 1}),
    ({"web_search": {"num_requests": 0}, "image_gen": NOTHING}, ["web_search_call", "file_search_call"], {"file_search": 1}),
]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("tool_usage", "kinds", "tools"), TOOLS, ids=["counted", "reported", "opened pages only"])
def test_hosted_tools_are_billed_as_they_are_reported(
    tool_usage: Any, kinds: list[str], tools: Any, stream: bool, provider: Provider, calls: Calls
) -> None:
    """``tool_usage`` counts what is billed; where it is missing the calls in the output are counted."""
    provider.answer = tools_answer(tool_usage, *kinds)
    made = wrap(provider.client("openai")).responses.create(model="gpt-5.6-sol", input="Where?", stream=stream)
    if stream:
        list(made)

    (only,) = calls.one().components
    assert (only.usage.tools, only.usage.input, only.usage.output) == (tools, 200, 40)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_what_a_response_draws_is_billed_by_the_model_that_draws(stream: bool, provider: Provider, calls: Calls) -> None:
    """The tokens of pictures are not in ``usage``, and their model is another one."""
    provider.answer = tools_answer({"web_search": {"num_requests": 0}, "image_gen": DRAWN}, "image_generation_call")
    made = wrap(provider.client("openai")).responses.create(model="gpt-5.6-sol", input="Where?", stream=stream)
    if stream:
        list(made)

    assert calls.one().components == (
        Component(usage=RESPONSES_COUNTS),
        Component(model="gpt-image-1", usage=Usage(input=20, image_in=40, output=0, image_out=1000)),
    )
