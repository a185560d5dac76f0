"""
Spans in: calls that other libraries and languages report in OpenTelemetry's format become calls of
the ledger, each counted once.

``CostSpanProcessor`` reads the spans of this process. ``voight otlp`` receives those of other
processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voight_middleware.otlp.processor import CostSpanProcessor

__all__ = ("CostSpanProcessor",)


def __getattr__(name: str) -> object:
    if name == "CostSpanProcessor":  # needs the extra `otel`, which a receiver does without
        from voight_middleware.otlp.processor import CostSpanProcessor

        return CostSpanProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
