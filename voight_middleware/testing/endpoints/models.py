"""The lists of models. They are free."""

from __future__ import annotations

from voight_middleware.testing.endpoints.response import (
    EndpointRequest,
    EndpointResponse,
    one_line,
    page,
    plain,
)
from voight_middleware.testing.fake_data import SNAPSHOTS, Json

_CREATED = 1735689600


def models(request: EndpointRequest) -> EndpointResponse:
    """
    ``GET /v1/models``: OpenAI's list is whole. Anthropic's has pages, for requests with its version
    header.
    """
    if request.maker == "anthropic":
        names = [name for name in SNAPSHOTS if name.startswith("claude")]
        claude = {"type": "model", "created_at": "2025-01-01T00:00:00Z", "lifecycle": "active"}
        return one_line(
            page([{**claude, "id": name, "display_name": name} for name in names], request.query)
        )
    about: Json = {"object": "model", "created": _CREATED, "owned_by": "openai"}
    return plain(
        {
            "object": "list",
            "data": [{"id": name, **about} for name in SNAPSHOTS if name.startswith("gpt")],
        }
    )
