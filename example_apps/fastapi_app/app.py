"""
A small web application with signed-in users and LLM calls, metered by voight-middleware.

Users sign in with a bearer token (``token-1`` to ``token-20``). The SDKs read the provider from
``OPENAI_API_KEY``, ``OPENAI_BASE_URL``, ``ANTHROPIC_API_KEY`` and ``ANTHROPIC_BASE_URL``.
"""
# No `from __future__ import annotations`: FastAPI resolves the annotations at run time.

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anthropic
import openai
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

import voight_middleware as voight

# -- users -----------------------------------------------------------------------------------------


class User(NamedTuple):
    id: str
    plan: str
    tenant: str


PLANS = ["free", "free", "pro", "free", "team"]
USERS = {
    f"token-{number}": User(f"u_{number}", PLANS[number % 5], f"t_{number % 4 + 1}")
    for number in range(1, 21)
}


def visitor(request: Request) -> User | None:
    """Return the signed-in user; None for a visitor without a token."""
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    request.state.user = user = USERS.get(token)
    if token and user is None:
        raise HTTPException(401, "unknown token")
    return user


def signed_in(user: User | None = Depends(visitor)) -> User:
    if user is None:
        raise HTTPException(401, "sign in: Authorization: Bearer token-1")
    return user


# -- the application -------------------------------------------------------------------------------

app = FastAPI(title="voight-middleware example")

# The one line of middleware. It names the user of a request. The getters run at the first LLM call
# of a request, so after `visitor`.
app.add_middleware(
    voight.CostTagMiddleware,
    user_getter=lambda request: request.state.user and request.state.user.id,
    plan_getter=lambda request: request.state.user and request.state.user.plan,
    tenant_getter=lambda request: request.state.user and request.state.user.tenant,
)

# The one line around each client. It returns the same object.
openai_client = voight.wrap(openai.OpenAI())
async_openai_client = voight.wrap(openai.AsyncOpenAI())
anthropic_client = voight.wrap(anthropic.AsyncAnthropic())


class Text(BaseModel):
    text: str


@app.exception_handler(openai.APIError)
@app.exception_handler(anthropic.APIError)
def provider_failed(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"the model is not available ({type(error).__name__})"}, 502)


@app.get("/healthz")
def healthz() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/chat", dependencies=[Depends(visitor)])
def chat(body: Text) -> dict[str, Any]:
    """Open to visitors without a token, whose calls have no owner."""
    answer = openai_client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": body.text}]
    )
    return {"answer": answer.choices[0].message.content}


@app.post("/chat/stream", dependencies=[Depends(signed_in)])
async def chat_stream(body: Text) -> StreamingResponse:
    """A streamed response: the call ends with the last byte, and keeps its owner until then."""
    stream = await async_openai_client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": body.text}], stream=True
    )

    async def words() -> AsyncIterator[str]:
        async with stream:
            async for chunk in stream:
                yield chunk.choices[0].delta.content or ""

    return StreamingResponse(words(), media_type="text/plain")


@app.post("/summarise", dependencies=[Depends(signed_in)])
async def summarise(body: Text) -> dict[str, Any]:
    message = await anthropic_client.messages.create(
        model="claude-haiku-4-5",
        max_tokens=500,
        messages=[{"role": "user", "content": f"Summarise: {body.text}"}],
    )
    return {"summary": "".join(block.text for block in message.content if block.type == "text")}


@app.post("/summarise/stream", dependencies=[Depends(signed_in)])
async def summarise_stream(body: Text) -> StreamingResponse:
    async def words() -> AsyncIterator[str]:
        async with anthropic_client.messages.stream(
            model="claude-haiku-4-5",
            max_tokens=500,
            messages=[{"role": "user", "content": f"Summarise: {body.text}"}],
        ) as stream:
            async for text in stream.text_stream:
                yield text

    return StreamingResponse(words(), media_type="text/plain")


@app.post("/answer", dependencies=[Depends(signed_in)])
async def answer(body: Text) -> dict[str, Any]:
    """OpenAI's Responses API, with an extra tag in addition to the user."""
    with voight.tag(feature="answers"):
        response = await async_openai_client.responses.create(model="gpt-5-mini", input=body.text)
    return {"answer": response.output_text}


@app.post("/search", dependencies=[Depends(visitor)])
def search(body: Text) -> dict[str, Any]:
    embedding = openai_client.embeddings.create(model="text-embedding-3-small", input=body.text)
    return {"dimensions": len(embedding.data[0].embedding)}


@app.post("/remember", status_code=202)
async def remember(
    body: Text, later: BackgroundTasks, user: User = Depends(signed_in)
) -> dict[str, str]:
    """The call runs after the response was sent, and still has its owner."""
    later.add_task(
        async_openai_client.embeddings.create, model="text-embedding-3-small", input=body.text
    )
    return {"remembered_for": user.id}
