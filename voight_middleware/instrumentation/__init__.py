"""Instrumentation: the SDKs, HTTP clients and WebSockets whose calls are metered."""
