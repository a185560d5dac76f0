"""The loopback provider's images, audio and videos."""

import base64
from typing import Any

import openai
import pytest
from openai.types import Video
from openai.types.audio import Transcription, TranscriptionDiarized, TranscriptionVerbose

from voight_middleware.testing.accounting import Count
from voight_middleware.testing.provider import LoopbackProvider

from .conftest import fits, total, wish

pytestmark = [
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),  # openai 3.x: what only DALL·E and Whisper can
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]

PNG = ("sky.png", b"\x89PNG\r\n--", "image/png")
WAV = ("voice.wav", b"RIFF\r\n\x00\xff", "audio/wav")
USER: Any = {"prompt": "[user:u_1] A blue sky"}


def tokens(usage: Any, **others: int) -> Count:
    """The count that this usage is."""
    return Count(calls=1, completed=1, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, **others)


# -- images --------------------------------------------------------------------------------------------------------------------


def test_generate(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A GPT image model reports its tokens, more of them for more images and a better quality."""
    low, high = (fits(one.images.generate(model="gpt-image-1.5", **USER, n=2, quality=quality)) for quality in ("low", "high"))

    assert low.usage is not None
    assert high.usage is not None
    assert low.data is not None
    assert [base64.b64decode(image.b64_json or "")[1:4] for image in low.data] == [b"PNG", b"PNG"]
    assert (low.quality, low.usage.output_tokens, high.usage.output_tokens) == ("low", 2 * 272, 2 * 4160)
    assert low.usage.input_tokens == low.usage.input_tokens_details.text_tokens == high.usage.input_tokens
    count = provider.counts().by_user["u_1"]
    assert (count.images, count.input_tokens) == (4, 2 * low.usage.input_tokens)
    assert count.output_tokens == 2 * (272 + 4160)


def test_edit(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """What is edited counts as input, too: one image, or several."""
    single = fits(one.images.edit(image=PNG, **USER))
    assert single.usage is not None
    assert provider.counts().by_user == {"u_1": tokens(single.usage, images=1)}
    double = fits(one.images.edit(image=[PNG, PNG], **USER, n=3))
    assert double.usage is not None

    assert single.usage.input_tokens_details.image_tokens * 2 == double.usage.input_tokens_details.image_tokens > 0
    assert double.data is not None
    assert len(double.data) == 3
    assert next(body["image"] for body in provider.requests).data == PNG[1]


@pytest.mark.parametrize("kind", ["image_generation", "image_edit"])
def test_streamed_images(kind: str, one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Partial images come before the completed one, which has the usage of the same request without a stream."""
    method: Any = one.images.generate if kind == "image_generation" else one.images.edit
    image: Any = {} if kind == "image_generation" else {"image": PNG}
    events = [fits(event) for event in method(**USER, **image, stream=True, partial_images=2)]

    assert [event.type for event in events] == [f"{kind}.partial_image", f"{kind}.partial_image", f"{kind}.completed"]
    assert total(provider) == tokens(events[-1].usage, images=1)
    assert events[-1].usage.to_dict().items() <= method(**USER, **image).usage.to_dict().items()


def test_svg(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """An SVG has a usage of the model that draws it, beside that of the image model; both are counted."""
    drawn = fits(one.images.generate(**USER, svg={"model": "gpt-6-luna"}, output_format="svg"))

    assert drawn.usage is not None
    assert drawn.svg_usage is not None
    assert drawn.svg_usage.model == "gpt-6-luna"
    assert total(provider).input_tokens == drawn.usage.input_tokens + drawn.svg_usage.input_tokens
    assert total(provider).output_tokens == drawn.usage.output_tokens + drawn.svg_usage.output_tokens
    edited = one.images.edit(image=PNG, **USER, svg={"model": "gpt-6-luna"}, output_format="svg").svg_usage
    assert edited is not None
    assert edited.model == "gpt-6-luna"


def test_dall_e(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """DALL·E reports nothing: what is counted are images."""
    drawn = fits(one.images.generate(model="dall-e-3", **USER, size="1024x1792", response_format="b64_json"))
    varied = fits(one.images.create_variation(image=PNG, n=3))

    assert drawn.usage is varied.usage is None
    assert drawn.data is not None
    assert varied.data is not None
    assert drawn.data[0].b64_json
    assert [image.url is not None for image in varied.data] == [True] * 3
    assert total(provider) == Count(calls=2, completed=2, images=4)


def test_faults_of_images(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """The faults are the same: a wanted usage, none, an error, a stream that is cut, a parameter that is missing."""
    exact = {"input_tokens": 7, "input_tokens_details": {"image_tokens": 0, "text_tokens": 7}, "output_tokens": 5, "total_tokens": 12}
    wanted = one.images.generate(**USER, extra_headers=wish(usage=str(exact).replace("'", '"'))).usage
    assert wanted is not None
    assert wanted.to_dict() == exact
    assert one.images.generate(**USER, extra_headers=wish(no_usage=1)).usage is None
    with pytest.raises(openai.RateLimitError):
        one.images.edit(image=PNG, prompt="[x-loopback-status: 429]")
    with pytest.raises(openai.APIConnectionError):
        list(one.images.generate(**USER, stream=True, partial_images=2, extra_headers=wish(cut_after=2)))
    with pytest.raises(openai.BadRequestError, match="prompt"):
        one.images.generate(prompt="")
    assert total(provider) == Count(calls=5, completed=2, broken=1, errors=2, input_tokens=7, output_tokens=5, images=2)


# -- audio ---------------------------------------------------------------------------------------------------------------------


def test_transcription_in_tokens(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """The transcribing GPT models report tokens, more of them for longer audio."""
    made = fits(one.audio.transcriptions.create(model="gpt-4o-transcribe", file=WAV, **USER))

    assert isinstance(made, Transcription)
    assert made.usage is not None
    assert made.usage.type == "tokens"
    assert provider.counts().by_user == {"u_1": tokens(made.usage)}
    longer: Any = one.audio.transcriptions.create(model="gpt-4o-transcribe", file=("long.wav", b"RIFF"), **USER)
    assert longer.usage.input_token_details.audio_tokens != made.usage.input_token_details.audio_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["json", "verbose_json"])
def test_transcription_in_seconds(form: Any, one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Whisper reports seconds."""
    made: Any = fits(one.audio.transcriptions.create(model="whisper-1", file=WAV, response_format=form))

    assert isinstance(made, TranscriptionVerbose if form == "verbose_json" else Transcription)
    assert made.usage.type == "duration"
    assert form == "json" or made.duration == made.usage.seconds
    assert total(provider) == Count(calls=1, completed=1, seconds=int(made.usage.seconds))


def test_verbose_transcription_without_usage(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A verbose answer says how long it was even where it has no usage."""
    made: Any = one.audio.transcriptions.create(model="whisper-1", file=WAV, response_format="verbose_json", extra_headers=wish(no_usage=1))
    assert made.usage is None
    assert total(provider).seconds == made.duration


def test_transcription_of_speakers(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A diarized one has its speakers, and tokens."""
    made: Any = fits(one.audio.transcriptions.create(model="gpt-4o-transcribe-diarize", file=WAV, response_format="diarized_json"))

    assert isinstance(made, TranscriptionDiarized)
    assert total(provider) == tokens(made.usage)


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
@pytest.mark.parametrize("task", ["transcriptions", "translations"])
def test_texts(task: str, form: Any, one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """As text nothing is reported at all."""
    made: Any = getattr(one.audio, task).create(model="whisper-1", file=WAV, response_format=form)

    assert isinstance(made, str)
    assert form == "text" or "00:00:00" in made
    assert total(provider) == Count(calls=1, completed=1)


def test_streamed_transcription(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """The text comes in pieces, and whole with the usage; Whisper does not stream."""
    events: list[Any] = [fits(event) for event in one.audio.transcriptions.create(model="gpt-4o-transcribe", file=WAV, stream=True)]
    plain = one.audio.transcriptions.create(model="gpt-4o-transcribe", file=WAV)

    assert "".join(event.delta for event in events[:-1]) == events[-1].text == plain.text
    assert plain.usage is not None
    assert events[-1].usage.to_dict() == plain.usage.to_dict()
    assert total(provider).input_tokens == 2 * events[-1].usage.input_tokens
    raw = one.audio.transcriptions.with_raw_response.create(model="whisper-1", file=WAV, stream=True)
    assert raw.http_response.read().startswith(b"{")


def test_translation(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Only a verbose translation says how long it was."""
    assert fits(one.audio.translations.create(model="whisper-1", file=WAV)).text
    assert total(provider) == Count(calls=1, completed=1)
    made: Any = fits(one.audio.translations.create(model="whisper-1", file=WAV, response_format="verbose_json"))
    assert total(provider) == Count(calls=2, completed=2, seconds=int(made.duration))


def test_speech(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Speech is bytes in chunks, of the wanted kind; what is counted are its characters."""
    ask: Any = {"model": "tts-1", "voice": "alloy", "input": "[user:u_1] Grüße"}
    whole = one.audio.speech.create(**ask)
    with one.audio.speech.with_streaming_response.create(**ask, response_format="pcm", extra_headers=wish(chunks=3)) as response:
        pieces = [len(piece) for piece in response.iter_bytes(1024)]

    assert (whole.response.headers["content-type"], len(whole.read())) == ("audio/mpeg", 12 * 1024)
    assert (response.headers["content-type"], pieces) == ("audio/pcm", [1024] * 3)
    assert provider.counts().by_user == {"u_1": Count(calls=2, completed=2, characters=2 * len(ask["input"]))}


def test_speech_that_is_left(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """Speech that breaks off is broken, and nothing of it is counted."""
    with pytest.raises(openai.APIConnectionError):
        one.audio.speech.create(model="tts-1", voice="alloy", input="Hello", extra_headers=wish(cut_after=3)).read()
    assert total(provider) == Count(calls=1, broken=1)


def test_speech_as_events(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """As events, speech ends with its usage."""
    text = one.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="Hello", stream_format="sse").text

    assert text.count("event: speech.audio.delta") == 12
    assert '"type":"speech.audio.done","usage":{"input_tokens":' in text
    assert total(provider).output_tokens > 0
    assert total(provider).characters == 5


# -- videos --------------------------------------------------------------------------------------------------------------------


def test_video(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A video is queued, in progress at the first poll, completed at the second; its seconds are counted once."""
    made = fits(one.videos.create(**USER, seconds="8", size="1280x720", model="sora-2-pro"))
    looks = [fits(one.videos.retrieve(made.id)) for _ in range(3)]

    assert (made.status, made.seconds, made.size, made.model) == ("queued", "8", "1280x720", "sora-2-pro")
    assert [look.status for look in looks] == ["in_progress", "completed", "completed"]
    assert one.videos.download_content(made.id).read()
    assert provider.counts().by_user == {"u_1": Count(calls=5, completed=5, seconds=8)}
    assert [video.id for video in one.videos.list()] == [made.id]


@pytest.mark.slow
def test_videos_from_videos(one: openai.OpenAI, provider: LoopbackProvider) -> None:
    """A remix and an edit are as long as what they are made from; an extension as long as it says; an upload can be edited, too."""
    made = one.videos.create(prompt="A sky", seconds="12", input_reference=PNG)
    remix = fits(one.videos.remix(made.id, prompt="[user:u_2] Red"))
    # openai 3.52: `videos.edit(video={"id": …})` itself raises, as it takes the object for a file
    edited = fits(one.post("/videos/edits", body={"prompt": "Red", "video": {"id": remix.id}}, cast_to=Video))
    extended = fits(one.videos.extend(prompt="Red", seconds="8", video=("sky.mp4", b"\0", "video/mp4")))
    uploaded = fits(one.videos.edit(prompt="Red", video=("sky.mp4", b"\0", "video/mp4")))

    assert remix.remixed_from_video_id == made.id
    assert [video.seconds for video in (made, remix, edited, extended, uploaded)] == ["12", "12", "12", "8", "4"]
    assert {user: count.seconds for user, count in provider.counts().by_user.items()} == {"-": 36, "u_2": 12}
