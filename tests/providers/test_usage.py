"""Usage: disjoint counts that add up to the provider's totals."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voight_middleware.providers.usage_formats import read, read_usage, recognise
from voight_middleware.records.usage import Component, Usage, UsageError

COUNT = st.integers(0, 10**9)
MAYBE = st.none() | COUNT
DIALECTS = {
    "chat": ("prompt", "completion"),
    "completions": ("prompt", "completion"),
    "responses": ("input", "output"),
}


def one(dialect: str, raw: dict[str, Any]) -> Usage:
    (component,) = read_usage(dialect, raw)
    assert component.model is None
    return component.usage


@pytest.mark.slow
@given(st.sampled_from(sorted(DIALECTS)), COUNT, MAYBE, MAYBE, MAYBE, COUNT, MAYBE, MAYBE)
def test_openai_buckets_are_disjoint_and_add_up(  # noqa: PLR0917 - one parameter per bucket
    dialect: str,
    text_in: int,
    read: int | None,
    written: int | None,
    audio_in: int | None,
    text_out: int,
    audio_out: int | None,
    reasoning: int | None,
) -> None:
    """OpenAI's totals include cached, written and audio tokens: our buckets take them apart and add up to the same totals."""
    total_in = text_in + sum(part or 0 for part in (read, written, audio_in))
    total_out = text_out + (audio_out or 0)
    prompt, completion = DIALECTS[dialect]
    usage = one(
        dialect,
        {
            f"{prompt}_tokens": total_in,
            f"{completion}_tokens": total_out,
            f"{prompt}_tokens_details": {"cached_tokens": read, "cache_write_tokens": written, "audio_tokens": audio_in},
            f"{completion}_tokens_details": {"audio_tokens": audio_out, "reasoning_tokens": reasoning},
            "total_tokens": total_in + total_out,
        },
    )
    assert (usage.input, usage.cache_read, usage.cache_write, usage.audio_in) == (text_in, read, written, audio_in)
    assert (usage.output, usage.audio_out, usage.reasoning) == (text_out, audio_out, reasoning)
    assert (usage.input_tokens, usage.output_tokens) == (total_in, total_out)
    assert usage.cache_write_tokens == written


@pytest.mark.slow
@given(COUNT, MAYBE, COUNT, COUNT, st.integers(0, 1000), COUNT)
def test_anthropic_buckets_are_disjoint_and_add_up(new: int, read: int | None, five: int, hour: int, unsplit: int, output: int) -> None:
    """Anthropic's input excludes cache reads and writes: our input tokens are the sum of all of them, each counted once."""
    usage = one(
        "messages",
        {
            "input_tokens": new,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": five + hour + unsplit,
            "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
            "output_tokens": output,
        },
    )
    assert (usage.input, usage.cache_read, usage.cache_write_5m, usage.cache_write_1h) == (new, read, five, hour)
    assert usage.cache_write == (unsplit or None)
    assert usage.cache_write_tokens == five + hour + unsplit
    assert usage.input_tokens == new + (read or 0) + five + hour + unsplit
    assert usage.output_tokens == output


def test_a_count_that_was_not_reported_is_none_and_a_reported_nothing_is_zero() -> None:
    """None and 0 are two answers, in every bucket and in the sums."""
    silent = one("chat", {"prompt_tokens": 5})
    assert (silent.input, silent.cache_read, silent.output, silent.output_tokens, silent.cache_write_tokens) == (5, None, None, None, None)
    zero = one("chat", {"prompt_tokens": 0, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0}})
    assert (zero.input, zero.cache_read, zero.input_tokens, zero.output_tokens) == (0, 0, 0, 0)
    assert one("messages", {}) == Usage()
    assert Usage().input_tokens is None
    assert one("messages", {"cache_read_input_tokens": 0}).input_tokens == 0


def test_a_cache_write_without_a_split_is_kept_as_unsplit() -> None:
    """Where Anthropic does not say for how long, the tokens are in `cache_write`, and nowhere else."""
    usage = one("messages", {"input_tokens": 500, "cache_creation_input_tokens": 8000, "cache_read_input_tokens": 0, "output_tokens": 300})
    assert (usage.cache_write, usage.cache_write_5m, usage.cache_write_1h) == (8000, None, None)


def test_a_split_without_its_total_is_believed() -> None:
    """The parts of a cache write count where the total is missing."""
    usage = one("messages", {"input_tokens": 1, "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 9}})
    assert (usage.cache_write, usage.cache_write_5m, usage.cache_write_1h, usage.input_tokens) == (None, 7, 9, 17)


@pytest.mark.parametrize(
    ("dialect", "raw"),
    [
        ("chat", {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 11}}),
        ("chat", {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 5}}),
        ("chat", {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 11, "audio_tokens": 5}}),
        ("chat", {"completion_tokens": 1, "completion_tokens_details": {"audio_tokens": 2}}),
        ("responses", {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 11}}),
        ("messages", {"cache_creation_input_tokens": 10, "cache_creation": {"ephemeral_5m_input_tokens": 11}}),
    ],
    ids=["cached", "cached and written", "cached and audio", "audio out", "cached of responses", "written of messages"],
)
def test_counts_that_contradict_each_other_are_reported(dialect: str, raw: dict[str, Any]) -> None:
    """More parts than the whole is a doubt that names the whole, never a negative bucket."""
    usage = one(dialect, raw)
    assert all(count >= 0 for count in msgspec.structs.astuple(usage) if isinstance(count, int))
    assert any(re.search(r"^usage contradicts itself: .* add up to more than its 10?, so", doubt) for doubt in read(dialect, raw).doubts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "count",
    [-1, 1.0, 1.5, True, False, "12", 2**53, pytest.param(10**400, id="10**400"), [3], {"n": 1}, float("nan")],
)
@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        ("chat", ("prompt_tokens",)),
        ("chat", ("completion_tokens_details", "reasoning_tokens")),
        ("completions", ("completion_tokens",)),
        ("responses", ("input_tokens_details", "cached_tokens")),
        ("embeddings", ("prompt_tokens",)),
        ("messages", ("cache_read_input_tokens",)),
        ("messages", ("server_tool_use", "web_search_requests")),
        ("usage", ("input",)),
        ("usage", ("tools", "web_search")),
    ],
)
def test_what_is_no_count_is_an_error_that_shows_it(dialect: str, path: tuple[str, ...], count: object) -> None:
    """A negative, fractional, boolean or absurd count is refused in every dialect, by name."""
    raw: Any = count
    for key in reversed(path):
        raw = {key: raw}
    with pytest.raises(UsageError, match=path[-1]):
        read_usage(dialect, raw)


@pytest.mark.parametrize("details", [None, [], "x", 5])
def test_details_that_are_no_object_are_passed_over(details: object) -> None:
    """Compatible servers send null details: the totals count all the same."""
    usage = one(
        "chat", {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": details, "completion_tokens_details": details}
    )
    assert (usage.input, usage.output) == (3, 4)


def test_a_compaction_is_billed_beside_the_top_level() -> None:
    """Anthropic leaves a compaction's tokens out of the top level: the iterations are read instead (recorded figures)."""
    components = read_usage(
        "messages",
        {
            "input_tokens": 220,
            "output_tokens": 8,
            "iterations": [
                {"type": "compaction", "input_tokens": 55196, "output_tokens": 125},
                {"type": "message", "input_tokens": 220, "output_tokens": 8},
            ],
        },
    )
    assert [(c.model, c.usage.input_tokens, c.usage.output_tokens) for c in components] == [(None, 55196, 125), (None, 220, 8)]


def test_an_advisor_is_billed_by_its_own_model() -> None:
    """An advisor's tokens are a component with its model; the message iterations are the call's own (recorded figures)."""
    components = read_usage(
        "messages",
        {
            "input_tokens": 2390,
            "output_tokens": 121,
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
            "iterations": [
                {"type": "message", "input_tokens": 1128, "output_tokens": 110},
                {"type": "advisor_message", "model": "claude-opus-4-8", "input_tokens": 2518, "output_tokens": 22},
                {"type": "message", "input_tokens": 1262, "output_tokens": 11},
            ],
        },
    )
    assert [(c.model, c.usage.input, c.usage.output) for c in components] == [
        (None, 1128, 110),
        ("claude-opus-4-8", 2518, 22),
        (None, 1262, 11),
    ]
    assert [c.usage.tools for c in components] == [{"web_search": 2, "web_fetch": 0}, None, None], "a tool's fee is counted once"


@pytest.mark.parametrize("iterations", [[], None, "x", [None], [7, "y"]])
def test_iterations_without_anything_in_them_leave_the_top_level(iterations: object) -> None:
    """Where no iteration can be read, what the top level reports still counts."""
    assert one("messages", {"input_tokens": 3, "output_tokens": 4, "iterations": iterations}) == Usage(input=3, output=4)


@pytest.mark.parametrize("model", [5, ["claude"], {"name": "claude"}, None, True])
def test_a_model_that_is_no_text_is_the_calls_own(model: object) -> None:
    """A component's model is text or None, whatever was sent."""
    (component,) = read_usage("messages", {"iterations": [{"model": model, "input_tokens": 1}]})
    assert component == Component(model=None, usage=Usage(input=1))


def test_server_tools_and_thinking_are_read() -> None:
    """Per-request fees and thinking tokens come out of Anthropic's usage; thinking is not added to the output."""
    usage = one(
        "messages",
        {
            "input_tokens": 10,
            "output_tokens": 500,
            "output_tokens_details": {"thinking_tokens": 400},
            "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": None},
        },
    )
    assert (usage.output, usage.reasoning, usage.output_tokens, usage.tools) == (500, 400, 500, {"web_search": 3})
    assert one("messages", {"server_tool_use": None}).tools is None


def test_embeddings_have_input_only() -> None:
    """An embeddings answer has no output, and that is None."""
    usage = one("embeddings", {"prompt_tokens": 123456, "total_tokens": 123456})
    assert (usage.input, usage.input_tokens, usage.output_tokens) == (123456, 123456, None)


USAGES = st.builds(
    Usage,
    **{name: MAYBE for name in Usage.__struct_fields__ if name != "tools"},
    tools=st.none() | st.dictionaries(st.sampled_from(["web_search", "file_search"]), COUNT, min_size=1),
)


@pytest.mark.slow
@given(USAGES)
def test_a_usage_of_ours_survives_its_json(usage: Usage) -> None:
    """The dialect `usage` reads back exactly what was written, and None stays None."""
    assert one("usage", msgspec.json.decode(msgspec.json.encode(usage))) == usage


@pytest.mark.slow
@given(USAGES)
def test_totals_are_the_sums_of_the_known_buckets(usage: Usage) -> None:
    """A total is the sum of what is known, and None only where nothing is."""
    cached = [usage.cache_read, usage.cache_read_audio, usage.cache_read_image]
    written = [usage.cache_write, usage.cache_write_5m, usage.cache_write_1h]
    parts = [usage.input, *cached, *written, usage.audio_in, usage.image_in]
    known = [part for part in parts if part is not None]
    assert usage.input_tokens == (sum(known) if known else None)
    out = [part for part in (usage.output, usage.audio_out, usage.image_out) if part is not None]
    assert usage.output_tokens == (sum(out) if out else None)


def test_an_unknown_endpoint_is_an_error_that_lists_the_known_ones() -> None:
    """Whoever names a wrong dialect hears which ones there are."""
    with pytest.raises(UsageError, match=r"'telepathy'.*chat.*embeddings.*messages.*responses"):
        read_usage("telepathy", {})


@pytest.mark.parametrize(
    ("raw", "dialect"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, "chat"),
        ({"prompt_tokens": 1, "total_tokens": 1}, "chat"),
        ({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}, "responses"),
        ({"input_tokens": 1, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 2}, "responses"),
        ({"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 3}, "responses"),
        ({"input_tokens": 1, "output_tokens": 2}, "messages"),
        ({"input_tokens": 1, "cache_read_input_tokens": 0, "output_tokens": 2}, "messages"),
        ({"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"thinking_tokens": 2}}, "messages"),
        ({"input_tokens": 1, "output_tokens": 2, "cache_creation": {"ephemeral_5m_input_tokens": 1}}, "messages"),
        ({"tokens": 1}, None),
        ({}, None),
    ],
)
def test_a_dialect_is_recognised_by_its_keys(raw: dict[str, Any], dialect: str | None) -> None:
    """The two conventions are told apart, and what is neither is not guessed."""
    assert recognise(raw) == dialect
