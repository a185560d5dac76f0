"""
What metering adds to a call of the real SDKs, in CPU time, against the bare SDK in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai

import voight_middleware as voight

CHUNKS = 200
WORDS = (
    "The replica lagged behind its leader while the controller held a stale lease and every write "
    "was retried " * 20
).split()[:CHUNKS]
OPENAI_USAGE = {
    "prompt_tokens": 1873,
    "completion_tokens": 241,
    "total_tokens": 2114,
    "prompt_tokens_details": {"cached_tokens": 1408, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0},
}
ANTHROPIC_USAGE = {
    "input_tokens": 421,
    "cache_creation_input_tokens": 44,
    "cache_read_input_tokens": 1408,
    "cache_creation": {"ephemeral_5m_input_tokens": 44, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 241,
    "service_tier": "standard",
}


def openai_answer() -> bytes:
    message = {"role": "assistant", "content": " ".join(WORDS), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
    }
    return json.dumps({**answer, "choices": [choice], "usage": OPENAI_USAGE}, indent=2).encode()


def openai_events() -> Iterator[dict[str, Any]]:
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
    }
    for word in WORDS:
        yield {
            **chunk,
            "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
            "usage": None,
        }
    yield {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None}
    yield {**chunk, "choices": [], "usage": OPENAI_USAGE}


def anthropic_message(content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "stop_reason": "end_turn",
    }
    return {**message, "stop_sequence": None, "content": content, "usage": usage}


def anthropic_events() -> Iterator[dict[str, Any]]:
    yield {
        "type": "message_start",
        "message": anthropic_message([], {**ANTHROPIC_USAGE, "output_tokens": 1}),
    }
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for word in WORDS:
        yield {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": word},
        }
    yield {"type": "content_block_stop", "index": 0}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 241},
    }
    yield {"type": "message_stop"}


OPENAI_JSON = openai_answer()
OPENAI_SSE = (
    b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in openai_events())
    + b"data: [DONE]\n\n"
)
ANTHROPIC_JSON = json.dumps(
    anthropic_message([{"type": "text", "text": " ".join(WORDS)}], ANTHROPIC_USAGE)
).encode()
ANTHROPIC_SSE = b"".join(
    f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
    for event in anthropic_events()
)


def transport(sdk: Any) -> Any:
    """
    An HTTP client of whichever library this version of the SDK is built on, that answers from
    memory.
    """
    base = sys.modules[f"{sdk.__name__}._base_client"]
    http: Any = getattr(base, "httpx2", None) or base.httpx  # type: ignore[attr-defined]
    plain, streamed = (
        (OPENAI_JSON, OPENAI_SSE) if sdk is openai else (ANTHROPIC_JSON, ANTHROPIC_SSE)
    )

    def answer(request: Any) -> Any:
        if b'"stream":true' in request.content.replace(b" ", b""):
            return http.Response(
                200, content=streamed, headers={"content-type": "text/event-stream"}
            )
        return http.Response(200, content=plain, headers={"content-type": "application/json"})

    return http.Client(transport=http.MockTransport(answer))


def caller(sdk: Any, stream: bool, metered: bool) -> Callable[[], None]:
    """One call, as an application makes it; the metered one under a tag that names its user."""
    client = (openai.OpenAI if sdk is openai else anthropic.Anthropic)(
        api_key="k", http_client=transport(sdk)
    )
    messages = [
        {"role": "user", "content": "Here are the last twenty log lines. What broke? " * 12}
    ]
    if sdk is openai:
        create, arguments = (
            client.chat.completions.create,
            {"model": "gpt-4o-mini", "messages": messages, "stream": stream},
        )
    else:
        create, arguments = (
            client.messages.create,
            {
                "model": "claude-haiku-4-5",
                "messages": messages,
                "stream": stream,
                "max_tokens": 500,
            },
        )

    def call() -> None:
        answer = create(**arguments)
        if stream:
            for _ in answer:
                pass

    def tagged() -> None:
        with voight.tag(user_id="u_1"):
            call()

    if metered:
        voight.wrap(client)
        return tagged
    return call


def measure(call: Callable[[], None], count: int) -> tuple[float, float]:
    """
    Microseconds per call: CPU of this thread over the calls, and CPU of the process over the calls
    and a flush.
    """
    voight.flush()
    gc.collect(1)
    process, thread = time.process_time(), time.thread_time()
    for _ in range(count):
        call()
    thread = time.thread_time() - thread
    voight.flush()
    return thread / count * 1e6, (time.process_time() - process) / count * 1e6


def compare(sdk: Any, stream: bool, rounds: int, count: int) -> None:
    calls = {
        "bare": caller(sdk, stream, False),
        "control": caller(sdk, stream, False),
        "metered": caller(sdk, stream, True),
    }
    for call in calls.values():
        measure(call, max(2, count // 10))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls) if turn % 2 else list(reversed(calls)):
            taken[name].append(measure(calls[name], count))

    def added(name: str, what: int) -> float:
        return statistics.median(
            one[what] - bare[what] for one, bare in zip(taken[name], taken["bare"], strict=True)
        )

    bare = statistics.median(one[0] for one in taken["bare"])
    per_chunk = f"{added('metered', 0) / (CHUNKS + 2):+9.2f}" if stream else " " * 9
    print(
        f"{sdk.__name__:<10} {'stream' if stream else 'plain':<7} {bare:9.1f} "
        f"{added('metered', 0):+9.1f} {added('metered', 1):+9.1f}"
        f" {per_chunk} {added('metered', 0) / bare:+8.1%} {added('control', 0):+9.1f} "
        f"{added('control', 1):+9.1f}"
    )


def import_time() -> float:
    """
    Milliseconds that ``import voight_middleware`` takes in a fresh interpreter, the median of
    seven.
    """
    script = (
        "import time; t = time.perf_counter(); import voight_middleware; "
        "print((time.perf_counter() - t) * 1e3)"
    )
    return statistics.median(
        float(
            subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
        )
        for _ in range(7)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--calls", type=int, default=100, help="plain calls in a round; a tenth of it streamed"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        voight.configure(ledger=f"{folder}/ledger.db")
        print(
            f"Python {sys.version.split()[0]}, openai {openai.__version__}, anthropic "
            f"{anthropic.__version__}; CPU microseconds per call\n"
        )
        headings = ("bare SDK", "+ caller", "+ in all", "+ /chunk", "ratio", "noise", "noise all")
        print(" " * 18, *(f"{heading:>{8 if heading == 'ratio' else 9}}" for heading in headings))
        for sdk in (openai, anthropic):
            compare(sdk, False, options.rounds, options.calls)
            compare(sdk, True, options.rounds, max(2, options.calls // 10))
        voight.configure(ledger=f"{folder}/closed.db")
    print(
        f"\nimport voight_middleware: {import_time():.0f} ms, no provider SDK and no web "
        "framework imported"
    )


if __name__ == "__main__":
    main()
