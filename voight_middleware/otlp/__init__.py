"""Spans in: what other libraries and languages tell of their calls in OpenTelemetry's format becomes calls of the ledger, each once."""
