"""Two spans of one call are one call, whatever their order; two calls that look alike stay two."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from voight_middleware.otlp.deduplicator import MAX_DEPTH, CountedCall, SpanDeduplicator, models
from voight_middleware.otlp.kinds import Role
from voight_middleware.otlp.spans import Key

from ..apps.otlp_spans import CHAT, Receiving, request, span

Start = Callable[..., Receiving]
WITH_ID = {**CHAT, "gen_ai.response.id": "chatcmpl-1"}
INFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "gpt-5-nano-2025-08-07",
    "llm.token_count.prompt": 110,
    "llm.token_count.completion": 50,
    "user.id": "u_1",
}
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.request.model": "gpt-5-nano", "gen_ai.usage.input_tokens": 220}
TOOL = {"gen_ai.operation.name": "execute_tool"}


def _sent(one: Receiving, *requests: dict[str, Any]) -> int:
    for each in requests:
        assert one.send(each).json == {}
    return len(one.calls())


INNER = request(span(2, 1, offset=0.1, seconds=0.5, attributes=WITH_ID), scope="the.sdk")
AROUND = {
    "with the response's id": request(span(1, attributes=WITH_ID), scope="another"),
    "without an id": request(span(1, attributes=INFERENCE), scope="another"),
    "of the same library, with its tokens": request(span(1, attributes=CHAT), scope="the.sdk"),
}
NO_TOKENS = {name: value for name, value in CHAT.items() if "usage" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("outer_first", [False, True], ids=["the inner one first", "the outer one first"])
def test_a_span_around_anothers_is_the_same_call(receiving: Start, around: dict[str, Any], outer_first: bool) -> None:
    """In one request or two, the inner one first or last."""
    both = (around, INNER) if outer_first else (INNER, around)
    assert _sent(receiving(), *both, *both) == 1
    assert _sent(receiving(), {"resourceSpans": [*both[0]["resourceSpans"], *both[1]["resourceSpans"]]}) == 1


@pytest.mark.slow
def test_whatever_is_between_two_spans_of_one_call_changes_nothing(receiving: Start) -> None:
    """A retry, a request of HTTP: whether it is heard of before or after."""
    between = request(span(3, 1, offset=0.05, seconds=0.8, attributes={"http.route": "/"}))
    inner = request(span(2, 3, offset=0.1, seconds=0.5, attributes=WITH_ID), scope="the.sdk")
    around = request(span(1, attributes=INFERENCE), scope="another")
    for order in itertools.permutations((between, inner)):
        assert _sent(receiving(), *order, around) == 1


def test_a_call_in_a_tool_of_another_call_is_its_own(receiving: Start) -> None:
    """A chat that runs a tool that asks a model: two calls, though one is inside the other."""
    one = receiving()
    outer = span(1, attributes=INFERENCE, seconds=5)
    tool = span(2, 1, attributes=TOOL, offset=0.1, seconds=4)
    inner = span(3, 2, attributes=CHAT, offset=0.2)
    assert _sent(one, {"resourceSpans": [*request(inner, tool)["resourceSpans"], *request(outer, scope="another")["resourceSpans"]]}) == 2


@pytest.mark.slow
def test_an_agent_repeats_its_calls(receiving: Start) -> None:
    """Its two calls are counted, its sum is not, whoever comes first."""
    calls = request(span(2, 1, attributes=CHAT), span(3, 1, attributes=CHAT, offset=2))
    agent = request(span(1, attributes=AGENT, seconds=5))
    assert _sent(receiving(), agent, calls) == 2
    assert _sent(receiving(), calls, agent) == 2


@pytest.mark.slow
def test_a_sum_that_does_not_call_itself_one_is_found_out(receiving: Start) -> None:
    """As of a library that calls the whole of an embedding of many by the name of its parts."""
    part = {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 10}
    parts = [span(number, 1, attributes=part, offset=number, seconds=1) for number in (2, 3, 4)]
    whole = span(1, attributes={**part, "gen_ai.usage.input_tokens": 30}, seconds=9)
    assert _sent(receiving(), request(*parts), request(whole)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["the.sdk", "another"])
def test_a_span_without_tokens_repeats_the_calls_inside_of_it(receiving: Start, scope: str) -> None:
    """As `embedMany` of the Vercel AI SDK 7. Where it comes first, it is kept without usage; the cost is the inner one's in any order."""
    around = request(span(1, attributes=NO_TOKENS), scope=scope)
    assert _sent(receiving(), INNER, around) == 1
    one = receiving()
    assert _sent(one, around, INNER) == 2
    assert sorted(call.cost_status for call in one.calls()) == ["priced", "unpriced"]


@pytest.mark.slow
def test_two_instrumentors_beside_each_other_are_one_call_by_the_responses_id(receiving: Start) -> None:
    """OpenLLMetry makes its span in a trace of its own where there is none around it."""
    inner = request(span(1, trace=1, offset=0.1, seconds=0.5, attributes=WITH_ID), scope="the.sdk")
    beside = request(span(1, trace=2, attributes=WITH_ID), scope="another")
    assert _sent(receiving(), inner, beside) == 1
    assert _sent(receiving(), beside, inner) == 1


@pytest.mark.slow
def test_a_server_that_gives_every_response_the_same_id_has_many_calls(receiving: Start) -> None:
    """One after the other or at once, from one library; and, one after the other, from two."""
    at_once = request(*(span(number, trace=1, attributes=WITH_ID) for number in range(1, 6)))
    later = request(*(span(number, trace=2, attributes=WITH_ID, offset=number * 3) for number in range(1, 6)))
    another = request(*(span(number, trace=3, attributes=WITH_ID, offset=number * 3 + 1.5) for number in range(1, 6)), scope="another")
    assert _sent(receiving(), at_once, later, another) == 15


@pytest.mark.slow
def test_twins_are_two_calls(receiving: Start) -> None:
    """The same question twice, at the same time, in the same place."""
    assert _sent(receiving(), request(span(2, 1), span(3, 1), span(4, 1))) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "apart",
    [
        {"attributes": {**INFERENCE, "user.id": "u_2"}, "offset": 0.1, "seconds": 0.5},
        {"attributes": INFERENCE, "offset": 1.001, "seconds": 0.002},
    ],
    ids=["of another user", "right after"],
)
def test_calls_of_two_libraries_that_are_alike_are_two(receiving: Start, apart: dict[str, Any]) -> None:
    """The same model and tokens in one place: at once for two users, or for one user, the second a quick one when the first has ended."""
    assert _sent(receiving(), request(span(2, 1)), request(span(3, 1, **apart), scope="another")) == 2
    assert _sent(receiving(), request(span(2, 1)), request(span(3, 1, attributes=INFERENCE, offset=0.1, seconds=0.5), scope="another")) == 1


@pytest.mark.slow
def test_a_library_tells_of_a_call_once(receiving: Start) -> None:
    """Of two calls that are alike and go on at once, one library has seen one, and the other one both; sent again, they are two still."""
    one = receiving()
    seen = request(span(2, 1))
    both = request(*(span(number, 1, attributes=INFERENCE, offset=0.1, seconds=0.5) for number in (3, 4)), scope="another")
    assert _sent(one, seen, both) == 2
    assert _sent(one, both, seen, both) == 2


@pytest.mark.slow
def test_the_owner_is_whoevers_span_says_it(receiving: Start) -> None:
    """The SDK's own span is inside, and counted; the user is in the attributes of what is around it, or beside it."""
    anonymous = {name: value for name, value in WITH_ID.items() if name != "user.id"}
    inner = request(span(2, 1, offset=0.1, seconds=0.5, attributes=anonymous), scope="the.sdk")
    for around in AROUND.values():
        one = receiving()
        assert _sent(one, inner, around, around) == 1
        (call,) = one.calls()
        assert (call.tags.user_id, call.attribution) == ("u_1", "tag")


@pytest.mark.slow
def test_a_call_of_ours_is_not_counted_and_neither_is_what_is_around_it(receiving: Start) -> None:
    """The gate has metered it elsewhere; its span says so, those of others around it need not."""
    ours = request(span(2, 1, offset=0.1, seconds=0.5, attributes={**WITH_ID, "voight.call_id": "019a"}), scope="voight_middleware")
    assert _sent(receiving(), ours) == 0
    for around in AROUND.values():
        assert _sent(receiving(), ours, around) == 0


def test_nesting_without_end_ends() -> None:
    """A chain of thirty thousand spans, and a span that is its own parent."""
    deduplicator = SpanDeduplicator()
    keys = [Key("1" * 32, f"{number:016x}") for number in range(30_000)]
    for key, parent in itertools.pairwise(keys):
        deduplicator.add(key, parent, "other")
    call = CountedCall(scope="a", started=1, ended=2, input=5, output=5)
    deduplicator.count(keys[0], call)
    assert len(list(deduplicator.around(keys[-10]))) <= MAX_DEPTH

    deduplicator.add(keys[5], keys[5], "call")
    deduplicator.count(keys[5], call)
    assert deduplicator.same_as(keys[5], call) is not None


@pytest.mark.slow
def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    """Ten times as many spans as are kept, each with an id and a place of its own."""
    deduplicator = SpanDeduplicator(spans=1000, responses=500)
    role: Role = "call"
    for number in range(10_000):
        key, parent = Key("1" * 32, f"{number:016x}"), Key("2" * 32, f"{number:016x}")
        deduplicator.add(key, parent, role)
        deduplicator.count(key, CountedCall(scope="a", started=number, ended=number + 1, response_id=str(number), models=models("m")))
    assert len(deduplicator) <= 1000
    assert len(deduplicator._responses) <= 500
    assert len(deduplicator._siblings) <= 500
    assert deduplicator.is_resent(Key("1" * 32, f"{9_999:016x}"))
    assert not deduplicator.is_resent(Key("1" * 32, f"{0:016x}"))


def test_models_are_the_same_with_or_without_a_date_or_a_router() -> None:
    """As they are asked for, and as they answer."""
    assert models("openai/gpt-4o", None, "GPT-4o") == {"gpt-4o"}
