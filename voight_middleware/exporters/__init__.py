"""Calls and figures for other tools: files, OpenTelemetry, Prometheus."""
