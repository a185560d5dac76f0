"""A Flask application whose requests go wrong while they have calls behind them, as ``bare`` and as ``ours``."""

import os
import time
from collections.abc import Iterator

from flask import Flask, Request, Response

OURS = os.environ["APP"] == "ours"
if OURS:
    import openai

    import voight_middleware as voight
    from voight_flask import CostTags

    client = voight.wrap(openai.OpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"]))
    client.chat.completions  # noqa: B018 - imported on first use: here it is once, and not in each worker
app = Flask(__name__)
CLOSED: list[str] = []


def ask() -> str:
    """Make a call, with us; the answer is the same without."""
    if OURS:
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "?"}])
    return "answer"


@app.get("/hangs")
def hangs() -> str:
    ask()
    time.sleep(60)
    return "too late"


@app.get("/stream_hangs")
def stream_hangs() -> Response:
    def steps() -> Iterator[str]:
        ask()
        yield "first"
        time.sleep(60)
        yield "too late"

    return Response(steps())


@app.get("/endless")
def endless() -> Response:
    def steps() -> Iterator[str]:
        try:
            ask()
            while True:
                yield "x" * 10_000
                time.sleep(0.001)
        finally:
            ask()
            CLOSED.append("closed")

    return Response(steps())


@app.get("/closed")
def closed() -> str:
    return ",".join(CLOSED)


@app.get("/raises")
def raises() -> str:
    ask()
    raise LookupError


@app.get("/stream_raises")
def stream_raises() -> Response:
    def steps() -> Iterator[str]:
        yield ask()
        raise LookupError

    return Response(steps())


@app.get("/exits")
def exits() -> str:
    ask()
    raise SystemExit(3)


@app.get("/anybody")
def anybody() -> str:
    return ask()


def user(request: Request) -> str | None:
    name = request.headers.get("x-user")
    if name == "broken":
        raise RuntimeError("no database")
    return name


if OURS:
    CostTags(app, user_getter=user)
