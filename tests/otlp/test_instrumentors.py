"""Real instrumentors before and after the gate: what the provider has served is in the ledger, each call once, and its user's."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from voight_middleware.ledger import open_ledger
from voight_middleware.records.call import Call
from voight_middleware.testing.provider import LoopbackProvider

from ..support.forks import Forks

pytestmark = pytest.mark.server

SETTING_UP = """
    import asyncio, contextlib, importlib, sys
    import anthropic, openai, voight_middleware as voight
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from voight_middleware.otlp.processor import CostSpanProcessor

    ledger, url, order = sys.argv[1], sys.argv[2], sys.argv[3].split()
    voight.configure(ledger=ledger)
    provider = TracerProvider()
    provider.add_span_processor(CostSpanProcessor())
    trace.set_tracer_provider(provider)  # anthropic's own spans find it
    made = ()

    def clients():
        for_openai, for_anthropic = {"base_url": url + "/v1", "api_key": "any"}, {"base_url": url, "api_key": "any"}
        return (
            openai.OpenAI(**for_openai), openai.AsyncOpenAI(**for_openai),
            anthropic.Anthropic(**for_anthropic), anthropic.AsyncAnthropic(**for_anthropic),
        )

    for step in order:
        if step == "instrument":
            voight.instrument()
        elif step == "clients":
            made = clients()
        elif step == "wrap":
            made = made or clients()
            for one in made:
                voight.wrap(one)
        else:
            for sdk, name in (("openai", "OpenAIInstrumentor"), ("anthropic", "AnthropicInstrumentor")):
                getattr(importlib.import_module(step + "." + sdk), name)().instrument(tracer_provider=provider)
    gpt, agpt, claude, aclaude = made or clients()

    def chat(user, **more):
        usage = '{"prompt_tokens":110,"completion_tokens":50,"prompt_tokens_details":{"cached_tokens":100}}'
        return {"model": "gpt-5-nano", "messages": [{"role": "user", "content": f"[user:{user}] hello"}],
                "extra_headers": {"x-loopback-usage": usage}} | more

    def message(user, **more):
        usage = '{"input_tokens":10,"output_tokens":5,"cache_read_input_tokens":100,"cache_creation_input_tokens":7}'
        return {"model": "claude-opus-4-6", "max_tokens": 10, "messages": [{"role": "user", "content": f"[user:{user}] hello"}],
                "extra_headers": {"x-loopback-usage": usage}} | more

    STREAM = {"stream": True, "stream_options": {"include_usage": True}}
"""
INFERENCE, LLMETRY = "openinference.instrumentation", "opentelemetry.instrumentation"
ORDERS = {
    "OpenInference": INFERENCE,
    "OpenLLMetry": LLMETRY,
    "both": f"{INFERENCE} {LLMETRY}",
    "both, the other way": f"{LLMETRY} {INFERENCE}",
    "the gate, then both": f"instrument {INFERENCE} {LLMETRY}",
    "both, then the gate": f"{INFERENCE} {LLMETRY} instrument",
    "one on each side of the gate": f"{LLMETRY} instrument {INFERENCE}",
    "wrapped, then both": f"wrap {INFERENCE} {LLMETRY}",
    "both, then wrapped": f"clients {LLMETRY} {INFERENCE} wrap",
}


def _calls(forks: Forks, folder: Path, loopback: LoopbackProvider, order: str, doing: str) -> list[Call]:
    """The calls of a process of its own, as instrumentors do not take back all that they patch."""
    loopback.reset()
    source = textwrap.dedent(SETTING_UP) + textwrap.dedent(doing) + "\nassert voight.flush(30)\n"
    forks.run(source, str(folder / "ledger.db"), loopback.url, order)
    ledger = open_ledger(str(folder / "ledger.db"))
    try:
        return list(ledger.calls())
    finally:
        ledger.close()


def _sums(calls: list[Call]) -> dict[str | None, tuple[int, ...]]:
    sums: dict[str | None, tuple[int, ...]] = {}
    for call in calls:
        assert call.usage is not None
        new = (1, call.usage.input_tokens or 0, call.usage.cache_read or 0, call.usage.output_tokens or 0)
        sums[call.tags.user_id] = tuple(map(sum, zip(sums.get(call.tags.user_id, (0, 0, 0, 0)), new, strict=True)))
    return sums


def _served(loopback: LoopbackProvider) -> dict[str | None, tuple[int, ...]]:
    users = loopback.counts().by_user
    return {user: (one.calls, one.input_tokens, one.cached_tokens, one.output_tokens) for user, one in users.items()}


IN_TURN = """
    for user in ("u_1", "u_1", "u_2"):  # alike to the token
        with voight.tag(user_id=user):
            gpt.chat.completions.create(**chat(user))
            list(gpt.chat.completions.create(**chat(user, **STREAM)))
            gpt.embeddings.create(model="text-embedding-3-small", input=f"[user:{user}] hello")
            claude.messages.create(**message(user))
            list(claude.messages.create(**message(user, stream=True)))

    # streams that are open in one place at once, and a call in the midst of one
    with voight.tag(user_id="u_3"):
        one = gpt.chat.completions.create(**chat("u_3", **STREAM))
        another = claude.messages.create(**message("u_3", stream=True))
    with voight.tag(user_id="u_4"):
        two = gpt.chat.completions.create(**chat("u_4", **STREAM))
        for number, _ in enumerate(two):
            if number == 1:
                gpt.chat.completions.create(**chat("u_4"))
                claude.messages.create(**message("u_4"))
    list(one), list(another)
"""
AT_ONCE = """
    async def ask(number):
        user = f"u_{number % 5}"  # each asks in each of the four ways
        with voight.tag(user_id=user):
            if number % 4 == 0:
                await agpt.chat.completions.create(**chat(user))
            elif number % 4 == 1:
                async for _ in await agpt.chat.completions.create(**chat(user, **STREAM)):
                    pass
            elif number % 4 == 2:
                await aclaude.messages.create(**message(user))
            else:
                async for _ in await aclaude.messages.create(**message(user, stream=True)):
                    pass

    async def main():
        for around in (contextlib.nullcontext(), provider.get_tracer("app").start_as_current_span("GET /")):
            with around:
                await asyncio.gather(*(ask(number) for number in range(20)))

    asyncio.run(main())
"""


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_every_call_is_counted_once_for_its_user(forks: Forks, tmp_path: Path, loopback: LoopbackProvider, order: str) -> None:
    """
    Whichever instrumentor comes before or after the gate, or without it: calls in turn, streams open beside each other, many at once,
    and many within one request. anthropic's own spans are there in all of them.
    """
    calls = _calls(forks, tmp_path, loopback, order, textwrap.dedent(IN_TURN) + textwrap.dedent(AT_ONCE))

    assert _sums(calls) == _served(loopback)
    assert {call.cost_status for call in calls} == {"priced"}


def test_instrumentation_that_runs_in_a_copy_of_the_context_tells_of_the_gates_call(
    forks: Forks, tmp_path: Path, loopback: LoopbackProvider
) -> None:
    """
    As LangChain's asynchronous callbacks do: the span has neither a parent nor a child, and no id of the response. One for each call, of
    which many are alike and go on at once; the call of another frame of tags is not taken for one of them.
    """
    doing = """
        from concurrent.futures import ThreadPoolExecutor
        from contextvars import copy_context

        tracer = provider.get_tracer("a.framework")
        executor = ThreadPoolExecutor(4)

        async def ask(number):
            with voight.tag(user_id=f"u_{number % 5}"):
                begin = lambda: tracer.start_span("Model", attributes={"openinference.span.kind": "LLM", "llm.model_name": "gpt-5-nano"})
                span = await asyncio.get_running_loop().run_in_executor(executor, copy_context().run, begin)
                if number == 24:  # the framework has a client of its own here
                    await asyncio.sleep(0.05)
                else:
                    await agpt.chat.completions.create(**chat(f"u_{number % 5}"))
                span.set_attributes({"llm.token_count.prompt": 110, "llm.token_count.completion": 50})
                span.set_attribute("llm.token_count.prompt_details.cache_read", 100)
                span.end()

        async def main():
            await asyncio.gather(*(ask(number) for number in range(25)))

        asyncio.run(main())
    """
    sums = _sums(_calls(forks, tmp_path, loopback, "clients wrap", doing))

    assert loopback.counts().total.calls == 24
    assert sums == {f"u_{number}": (5, 550, 500, 250) for number in range(5)}


def test_a_call_that_failed_is_one_call_though_two_tell_of_it(forks: Forks, tmp_path: Path, loopback: LoopbackProvider) -> None:
    """There are no tokens to compare, nor an id."""
    doing = """
        for user in ("u_1", "u_1", "u_2"):
            with voight.tag(user_id=user), contextlib.suppress(openai.APIError):
                gpt.with_options(max_retries=0).chat.completions.create(**chat(user, extra_headers={"x-loopback-status": "500"}))
    """
    calls = _calls(forks, tmp_path, loopback, f"{LLMETRY} instrument {INFERENCE}", doing)

    assert sorted(call.tags.user_id or "" for call in calls) == ["u_1", "u_1", "u_2"]
    assert {(call.outcome, call.usage) for call in calls} == {("error", None)}


def test_the_prompt_is_on_no_disk(forks: Forks, tmp_path: Path, loopback: LoopbackProvider) -> None:
    """Both instrumentors keep it in their spans."""
    _calls(forks, tmp_path, loopback, f"{INFERENCE} {LLMETRY}", 'gpt.chat.completions.create(**chat("u_1 a-secret-of-mine"))')

    assert b"a-secret-of-mine" in json.dumps(loopback.requests).encode()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"a-secret-of-mine" not in path.read_bytes()
