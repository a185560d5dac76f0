"""Middleware: binds a request scope to each incoming request."""
