"""
Whether anything of a call stays behind: memory and live objects over many calls of the real SDKs,
over an in-process transport.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai

import voight_middleware as voight

CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Where?"}]}
MESSAGES: dict[str, Any] = {
    "model": "claude-haiku-4-5",
    "max_tokens": 9,
    "messages": CHAT["messages"],
}
WATCHED = (
    "voight_middleware",
    "openai._streaming",
    "anthropic._streaming",
    "openai._client",
    "anthropic._client",
    "_response",
)
"""Modules whose objects must not pile up."""


def answer(request: Any) -> tuple[int, dict[str, str], bytes]:
    """Both providers, plain and streamed; every tenth request is refused."""
    body = json.loads(request.content)
    if body.get("user") == "refused":
        return 400, {"content-type": "application/json"}, b'{"error": {"message": "no"}}'
    claude = request.url.path.endswith("/messages")
    if not body.get("stream"):
        usage = (
            {"input_tokens": 9, "output_tokens": 4}
            if claude
            else {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
        )
        whole = {
            "id": "1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [],
            "choices": [],
            "usage": usage,
        }
        return 200, {"content-type": "application/json"}, json.dumps(whole).encode()
    return (
        200,
        {"content-type": "text/event-stream"},
        b"".join(claude_events() if claude else openai_events()),
    )


def openai_events() -> Iterator[bytes]:
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    for word in "abcd":
        yield (
            b"data: %s\n\n"
            % json.dumps(
                {
                    **head,
                    "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
                }
            ).encode()
        )
    yield (
        b"data: %s\n\n"
        % json.dumps(
            {**head, "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
        ).encode()
    )
    yield b"data: [DONE]\n\n"


def claude_events() -> Iterator[bytes]:
    message = {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "usage": {"input_tokens": 9, "output_tokens": 1},
    }
    yield (
        b"event: message_start\ndata: %s\n\n"
        % json.dumps({"type": "message_start", "message": message}).encode()
    )
    for _ in range(4):
        yield b'event: ping\ndata: {"type": "ping"}\n\n'
    yield b'event: message_delta\ndata: {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}\n\n'  # noqa: E501
    yield b'event: message_stop\ndata: {"type": "message_stop"}\n\n'


def pools(sdk: Any) -> tuple[Any, Any]:
    """A synchronous and an asynchronous HTTP client of the SDK's own library."""
    library: Any = sys.modules[sdk.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]

    def respond(request: Any) -> Any:
        status, headers, body = answer(request)
        return library.Response(status, headers=headers, content=body)

    transport = library.MockTransport(respond)
    return library.Client(transport=transport), library.AsyncClient(transport=transport)


def ways() -> list[Callable[[], Any]]:
    """A round: every way in which a call can begin and end. Coroutines are run to their end."""
    (http, ahttp), (claude_http, claude_ahttp) = pools(openai), pools(anthropic)

    def client() -> Any:
        return voight.wrap(openai.OpenAI(api_key="k", max_retries=0, http_client=http))

    def claude() -> Any:
        return voight.wrap(anthropic.Anthropic(api_key="k", max_retries=0, http_client=claude_http))

    kept, akept = (
        client(),
        voight.wrap(openai.AsyncOpenAI(api_key="k", max_retries=0, http_client=ahttp)),
    )
    claude_kept, claude_akept = (
        claude(),
        voight.wrap(anthropic.AsyncAnthropic(api_key="k", max_retries=0, http_client=claude_ahttp)),
    )

    def left_behind() -> None:
        next(iter(kept.chat.completions.create(**CHAT, stream=True)))

    def never_read() -> None:
        claude_kept.messages.create(**MESSAGES, stream=True)

    def closed() -> None:
        with claude_kept.messages.create(**MESSAGES, stream=True) as stream:
            next(stream)

    def refused() -> None:
        with contextlib.suppress(openai.BadRequestError):
            kept.chat.completions.create(**CHAT, user="refused")

    def by_hand() -> None:
        with kept.chat.completions.with_streaming_response.create(**CHAT) as response:
            response.read()

    async def drained() -> None:
        async for _ in await akept.chat.completions.create(**CHAT, stream=True):
            pass

    async def aleft() -> None:
        stream = await claude_akept.messages.create(**MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.close()

    return [
        lambda: kept.chat.completions.create(**CHAT),
        lambda: list(kept.chat.completions.create(**CHAT, stream=True)),
        lambda: claude().messages.create(**MESSAGES),
        lambda: list(claude_kept.messages.create(**MESSAGES, stream=True)),
        lambda: client().with_options(timeout=3).chat.completions.create(**CHAT),
        lambda: list(kept.chat.completions.with_raw_response.create(**CHAT, stream=True).parse()),
        lambda: akept.chat.completions.create(**CHAT),
        left_behind,
        never_read,
        closed,
        refused,
        by_hand,
        drained,
        aleft,
    ]


def live() -> Counter[str]:
    """How many objects of each watched class there are."""
    gc.collect()
    counted: Counter[str] = Counter()
    for thing in gc.get_objects():
        cls = type(thing)
        module = cls.__module__
        if (
            type(module) is str
            and any(part in module for part in WATCHED)
            and not isinstance(thing, type)
        ):
            counted[f"{module}.{cls.__qualname__}"] += 1
    return counted


def resident() -> float:
    """Megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def run(calls: int, steps: int, report: Callable[[int, float, Counter[str]], None]) -> Counter[str]:
    """
    Make *calls* calls, report at each of the *steps*, and answer what there is more of at the end
    than after the first one.
    """
    made = ways()
    rounds = max(1, calls // steps // len(made))
    first: Counter[str] | None = None
    with asyncio.Runner() as runner:
        for step in range(steps):
            for _ in range(rounds):
                for way in made:
                    with voight.tag(user_id=f"u_{step}"):
                        result = way()
                        if asyncio.iscoroutine(result):
                            runner.run(result)
            del result
            voight.flush(60)
            now = live()
            report((step + 1) * rounds * len(made), resident(), now)
            first = now if first is None else first
    assert first is not None
    return Counter(
        {name: count - first[name] for name, count in now.items() if count > first[name]}
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        voight.configure(ledger=f"{folder}/ledger.db")
        more = run(
            arguments.calls,
            arguments.steps,
            lambda calls, size, now: print(
                f"{calls:>8} calls  {size:7.1f} MB  {now.total():>5} objects"
            ),
        )
        voight.configure(ledger=f"{folder}/other.db")
    print("more at the end than after the first step:", dict(more) or "nothing")
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(main())
