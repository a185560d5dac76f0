"""A tracer provider that keeps its spans, and what is asked of the SDKs."""

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from voight_middleware.exporters.otel.spans import OTelSpans

HELLO: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "a secret of the user's"}]}
SONNET: Any = {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}


class Traced:
    """A tracer provider, and what it was given."""

    def __init__(self, **more: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **more)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.spans = OTelSpans(self.provider)

    def all(self) -> list[ReadableSpan]:
        """The spans that have ended, after the costs of all calls are there."""
        assert self.spans.flush(30)
        return list(self.exporter.get_finished_spans())

    def one(self, name: str) -> ReadableSpan:
        """The only span of this name."""
        found = [span for span in self.all() if span.name == name]
        assert len(found) == 1, [span.name for span in self.all()]
        return found[0]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


def lasted(span: ReadableSpan) -> int:
    """Nanoseconds."""
    assert span.end_time is not None
    assert span.start_time is not None
    return span.end_time - span.start_time
