"""Usage whose totals and parts do not say the same: which of them is billed, and what is said about it."""

from typing import Any

import pytest

from voight_middleware.instrumentation.manual import _raw_usage
from voight_middleware.providers.usage_formats import read as reading
from voight_middleware.records.usage import Usage


def read(dialect: str, raw: dict[str, Any]) -> Usage:
    """The counts of a usage of one model."""
    (component,) = reading(dialect, raw).components
    return component.usage


def doubts(dialect: str, raw: dict[str, Any]) -> list[str]:
    """Why it cannot be billed with certainty."""
    return list(reading(dialect, raw).doubts)


DIALECTS = {
    "chat": ("prompt_tokens", "completion_tokens", "tokens_details"),
    "completions": ("prompt_tokens", "completion_tokens", "tokens_details"),
    "responses": ("input_tokens", "output_tokens", "tokens_details"),
    "compact": ("input_tokens", "output_tokens", "tokens_details"),
    "runs": ("prompt_tokens", "completion_tokens", "token_details"),
    "realtime": ("input_tokens", "output_tokens", "token_details"),
}


def usage(dialect: str, inputs: int, outputs: int, **more: Any) -> dict[str, Any]:
    """A usage of a dialect; ``details_in`` and ``details_out`` get their own names."""
    input_key, output_key, ending = DIALECTS[dialect]
    raw: dict[str, Any] = {input_key: inputs, output_key: outputs}
    for name, key in (("details_in", input_key), ("details_out", output_key)):
        if name in more:
            raw[key.removesuffix("tokens") + ending] = more.pop(name)
    return {**raw, **more}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_reasoning_beside_the_output_is_output(dialect: str) -> None:
    """If total_tokens says that reasoning is beside the output (xAI), it is added; if not, it is a part of it."""
    thought = {"reasoning_tokens": 2800}
    beside = usage(dialect, 10000, 1500, total_tokens=14300, details_out=thought)
    within = usage(dialect, 10000, 4300, total_tokens=14300, details_out=thought)
    for raw in (beside, within):
        assert (read(dialect, raw).output_tokens, read(dialect, raw).reasoning) == (4300, 2800)
        assert doubts(dialect, raw) == []


def test_reasoning_beside_the_details_is_found_too() -> None:
    """A server may name its reasoning at the top level of the usage."""
    raw = usage("chat", 10, 5, total_tokens=45, reasoning_tokens=30)
    assert (read("chat", raw).output, read("chat", raw).reasoning) == (35, 30)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_thoughts_that_only_the_total_has_are_output(dialect: str) -> None:
    """Gemini's OpenAI endpoint has thoughts in total_tokens only."""
    raw = usage(dialect, 20, 198, total_tokens=623)
    assert (read(dialect, raw).output, read(dialect, raw).input) == (603, 20)
    assert doubts(dialect, raw) == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_cache_beside_the_input_is_input(dialect: str) -> None:
    """A gateway in front of Anthropic may count cached tokens beside the prompt, as its total says."""
    raw = usage(dialect, 100, 10, total_tokens=1410, details_in={"cached_tokens": 1000, "cache_write_tokens": 300})
    found = read(dialect, raw)
    assert (found.input, found.cache_read, found.cache_write, found.output) == (100, 1000, 300, 10)
    assert doubts(dialect, raw) == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_total_that_nothing_explains_is_a_doubt(dialect: str) -> None:
    """Tokens that are neither reasoning nor cached are not billed, and reported."""
    raw = usage(dialect, 100, 50, total_tokens=190, details_out={"reasoning_tokens": 7})
    assert read(dialect, raw).output == 50
    assert doubts(dialect, raw) == ["usage contradicts itself: total_tokens = 190 is 40 more than input and output"]


@pytest.mark.parametrize("total", [0, -5, 1.5, True, "15", None, 2**60])
def test_an_odd_total_changes_nothing(total: object) -> None:
    """The total only confirms other counts: if it is odd, they stay as they are."""
    found = read("chat", usage("chat", 10, 5, total_tokens=total))
    assert (found.input, found.output) == (10, 5)


def test_more_reasoning_than_output_is_never_within_it() -> None:
    """Without a total, reasoning that exceeds the output must be beside it: it is billed, with a doubt."""
    raw = usage("chat", 10, 5, details_out={"reasoning_tokens": 30})
    assert (read("chat", raw).output, len(doubts("chat", raw))) == (35, 1)
    raw = usage("chat", 10, 5, total_tokens=15, details_out={"reasoning_tokens": 30})
    assert (read("chat", raw).output, len(doubts("chat", raw))) == (5, 1)


def test_gemini_thoughts_that_only_the_total_has_are_output() -> None:
    """The same of Gemini's own dialect; the results of tools are input."""
    raw = {"promptTokenCount": 20, "candidatesTokenCount": 198, "toolUsePromptTokenCount": 7, "totalTokenCount": 630}
    assert (read("generate_content", raw).input, read("generate_content", raw).output) == (27, 603)
    assert read("generate_content", {**raw, "thoughtsTokenCount": 405}).output == 603
    (doubt,) = doubts("generate_content", {**raw, "thoughtsTokenCount": 5})
    assert doubt == "usage contradicts itself: totalTokenCount = 630 is 400 more than input and output"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_parts_that_exceed_their_total_leave_the_total(dialect: str) -> None:
    """OpenRouter has reported 2161 tokens as read and as written, of 2168: the totals are kept, and the doubt is reported."""
    raw = usage(dialect, 2168, 40, total_tokens=2208, details_in={"cached_tokens": 2161, "cache_write_tokens": 2161})
    found = read(dialect, raw)
    assert (found.input_tokens, found.output_tokens, found.cache_read, found.cache_write) == (2168, 40, None, None)
    (doubt,) = doubts(dialect, raw)
    assert doubt.endswith("add up to more than its 2168, so they are left out")


@pytest.mark.parametrize(
    ("dialect", "raw", "totals"),
    [
        ("chat", {"prompt_tokens": 9, "completion_tokens": 1, "completion_tokens_details": {"audio_tokens": 2}}, (9, 1)),
        ("images", {"input_tokens": 5, "input_tokens_details": {"image_tokens": 7}, "output_tokens": 3}, (5, 3)),
        ("images", {"input_tokens": 5, "output_tokens": 3, "output_tokens_details": {"text_tokens": 4}}, (5, 3)),
        ("transcriptions", {"input_tokens": 5, "input_token_details": {"audio_tokens": 7}, "output_tokens": 3}, (5, 3)),
        ("generate_content", {"promptTokenCount": 5, "cachedContentTokenCount": 6, "candidatesTokenCount": 3}, (5, 3)),
        ("messages", {"input_tokens": 5, "cache_creation_input_tokens": 2, "cache_creation": {"ephemeral_5m_input_tokens": 3}}, (8, None)),
        ("converse", {"inputTokens": 5, "cacheWriteInputTokens": 2, "cacheDetails": [{"ttl": "1h", "inputTokens": 3}]}, (8, None)),
    ],
)
def test_contradictions_of_any_dialect_leave_what_can_be_read(
    dialect: str, raw: dict[str, Any], totals: tuple[int | None, int | None]
) -> None:
    """Totals hold; a cache write's parts are more precise than their total, which stands beside the input."""
    found = read(dialect, raw)
    assert (found.input_tokens, found.output_tokens) == totals
    assert len(doubts(dialect, raw)) == 1


AUDIO = {"text_tokens": 400, "audio_tokens": 600, "cached_tokens": 512}


@pytest.mark.parametrize("dialect", ["chat", "realtime"])
def test_cached_audio_is_apart_from_audio(dialect: str) -> None:
    """Cached audio is a part of the audio and of the cached tokens."""
    details = {**AUDIO, "cached_tokens_details": {"text_tokens": 256, "audio_tokens": 256}}
    found = read(dialect, usage(dialect, 1000, 300, details_in=details, details_out={"text_tokens": 100, "audio_tokens": 200}))
    assert (found.input, found.cache_read, found.audio_in, found.cache_read_audio) == (144, 256, 344, 256)
    assert (found.output, found.audio_out) == (100, 200)


@pytest.mark.parametrize("dialect", ["chat", "realtime"])
def test_cached_tokens_of_an_unknown_kind_are_a_doubt(dialect: str) -> None:
    """If the details are missing, all tokens are kept; if all input is audio, so is what was cached."""
    mixed = usage(dialect, 1000, 300, details_in=AUDIO)
    found = read(dialect, mixed)
    assert (found.input_tokens, found.cache_read_tokens) == (1000, 512)
    assert doubts(dialect, mixed) == ["usage does not say whether its 512 cached tokens are text, audio or images"]
    heard = usage(dialect, 600, 300, details_in={"audio_tokens": 600, "cached_tokens": 512})
    assert (read(dialect, heard).audio_in, read(dialect, heard).cache_read_audio, read(dialect, heard).input) == (88, 512, 0)
    assert doubts(dialect, heard) == []


def test_gemini_cached_tokens_of_an_unknown_kind_are_a_doubt() -> None:
    """The same of Gemini, whose kinds may come as numbers from Vertex."""
    audio = [{"modality": 4, "tokenCount": 600}, {"modality": 1, "tokenCount": 400}]
    raw = {"promptTokenCount": 1000, "promptTokensDetails": audio, "cachedContentTokenCount": 512}
    found = read("generate_content", raw)
    assert (found.input_tokens, found.cache_read_tokens, found.audio_in) == (1000, 512, 488)
    assert len(doubts("generate_content", raw)) == 1


@pytest.mark.parametrize("raw", [{"total_tokens": 1000}, {"prompt_tokens": 0, "total_tokens": 1000}, {"input_tokens": 1000}])
def test_embeddings_may_have_a_total_only(raw: dict[str, Any]) -> None:
    """An embedding has no output: the total is its input (Voyage)."""
    assert read("embeddings", raw).input == 1000


def test_record_takes_a_usage_that_contradicts_itself() -> None:
    """What a provider has reported is kept, even if it contradicts itself; only what is not a count is refused."""
    raw = {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}}
    assert _raw_usage(raw, None)[1] == "chat"
    with pytest.raises(ValueError, match="prompt_tokens is -5"):
        _raw_usage({"prompt_tokens": -5}, None)
