"""Which user caused which cost: tags every LLM call of a web application with its user, plan and tenant, and keeps what it cost."""

from voight_middleware import export as _export  # noqa: F401  # pyright: ignore[reportUnusedImport]  where a key is set, events are sent
from voight_middleware.boundary.asgi import CostTagMiddleware
from voight_middleware.boundary.headers import ainject_headers, inject_headers, signed_headers
from voight_middleware.boundary.identity import header
from voight_middleware.call import Call
from voight_middleware.config.version import VERSION as _VERSION
from voight_middleware.meter import configure, flush
from voight_middleware.providers.gate import instrument, uninstrument, wrap, wrap_anthropic, wrap_openai
from voight_middleware.providers.http import metered_transport
from voight_middleware.providers.manual import metered_call, record
from voight_middleware.settings import SettingsError
from voight_middleware.tags import Tags, carry, current_tags, set_tags, tag
from voight_middleware.usage import Usage

__version__ = _VERSION

__all__ = [
    "Call",
    "CostTagMiddleware",
    "SettingsError",
    "Tags",
    "Usage",
    "__version__",
    "ainject_headers",
    "carry",
    "configure",
    "current_tags",
    "flush",
    "header",
    "inject_headers",
    "instrument",
    "metered_call",
    "metered_transport",
    "record",
    "set_tags",
    "signed_headers",
    "tag",
    "uninstrument",
    "wrap",
    "wrap_anthropic",
    "wrap_openai",
]
