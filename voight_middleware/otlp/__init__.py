"""Spans in: OpenTelemetry spans of other libraries and languages become calls, deduplicated."""
