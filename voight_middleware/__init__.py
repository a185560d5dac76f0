"""
Which user caused which cost: tags every LLM call of a web application with its user, plan and
tenant, and keeps what it cost.
"""

from voight_middleware.config.values import SettingsError
from voight_middleware.config.version import VERSION as _VERSION
from voight_middleware.context.carry import carry
from voight_middleware.context.tag import current_tags, set_tags, tag
from voight_middleware.instrumentation.http import metered_transport
from voight_middleware.instrumentation.manual import metered_call, record
from voight_middleware.instrumentation.wrap import (
    instrument,
    uninstrument,
    wrap,
    wrap_anthropic,
    wrap_openai,
)
from voight_middleware.middleware.asgi import CostTagMiddleware
from voight_middleware.middleware.getters import user_from_header
from voight_middleware.pipeline.configure import configure, flush
from voight_middleware.propagation.headers import (
    ainject_headers,
    inject_headers,
    tags_from_signed_headers,
)
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

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
    "inject_headers",
    "instrument",
    "metered_call",
    "metered_transport",
    "record",
    "set_tags",
    "tag",
    "tags_from_signed_headers",
    "uninstrument",
    "user_from_header",
    "wrap",
    "wrap_anthropic",
    "wrap_openai",
]

_PUBLIC_MODULES = (
    "cli",
    "diagnostics",
    "ledger",
    "observers",
    "otel",
    "otlp",
    "prometheus",
    "reports",
    "testing",
    "threads",
    "wsgi",
)


def __dir__() -> list[str]:
    return [*__all__, *_PUBLIC_MODULES]
