"""The lists of models, which cost nothing."""

from __future__ import annotations

from voight_middleware.testing.endpoints.response import Answer, Asked, one_line, page, plain
from voight_middleware.testing.fake_data import SNAPSHOTS, Json

_CREATED = 1735689600


def models(asked: Asked) -> Answer:
    """``GET /v1/models``: OpenAI's all at once; Anthropic's in pages, to whoever names its version as its SDK does."""
    if asked.maker == "anthropic":
        names = [name for name in SNAPSHOTS if name.startswith("claude")]
        claude = {"type": "model", "created_at": "2025-01-01T00:00:00Z", "lifecycle": "active"}
        return one_line(page([{**claude, "id": name, "display_name": name} for name in names], asked.query))
    about: Json = {"object": "model", "created": _CREATED, "owned_by": "openai"}
    return plain({"object": "list", "data": [{"id": name, **about} for name in SNAPSHOTS if name.startswith("gpt")]})
