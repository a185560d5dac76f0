"""
Which user caused which cost: tags every LLM call of a web application with its user, plan and
tenant, and keeps what it cost.

The first use of a name below imports the library. ``voight …`` and the pytest plugin need less.
"""

from typing import TYPE_CHECKING

from voight_middleware.config.version import VERSION as _VERSION

# now, so that a fork knows of it when a thread is the first to use a name
from voight_middleware.lazy import late_imports as _late_imports

if TYPE_CHECKING:
    from voight_middleware.config.values import SettingsError
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

_HOMES = {
    "config.values": ("SettingsError",),
    "context.carry": ("carry",),
    "context.tag": ("current_tags", "set_tags", "tag"),
    "instrumentation.http": ("metered_transport",),
    "instrumentation.manual": ("metered_call", "record"),
    "instrumentation.wrap": (
        "instrument",
        "uninstrument",
        "wrap",
        "wrap_anthropic",
        "wrap_openai",
    ),
    "middleware.asgi": ("CostTagMiddleware",),
    "middleware.getters": ("user_from_header",),
    "pipeline.configure": ("configure", "flush"),
    "propagation.headers": ("ainject_headers", "inject_headers", "tags_from_signed_headers"),
    "records.call": ("Call",),
    "records.tags": ("Tags",),
    "records.usage": ("Usage",),
}
"""The module of each name."""

_OTHER_MODULES = (
    "cli",
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
"""Public modules that nobody gets without importing them."""


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import all names at once, so that no request imports anything later."""
        if name.startswith("_") or name in _OTHER_MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with _late_imports():
            from importlib import import_module

            for module, names in _HOMES.items():
                home = import_module(f"{__name__}.{module}")
                globals().update({each: getattr(home, each) for each in names})
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "diagnostics", *_OTHER_MODULES]
