"""
OpenTelemetry out: spans and metrics of calls, and tags on the spans of others. Needs the extra
``otel``.
"""

from voight_middleware.exporters.otel.metrics import OTelMetrics
from voight_middleware.exporters.otel.span_tags import CostTagSpanProcessor
from voight_middleware.exporters.otel.spans import OTelSpans

__all__ = ("CostTagSpanProcessor", "OTelMetrics", "OTelSpans")
