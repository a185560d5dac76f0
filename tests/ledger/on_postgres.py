"""Helpers for the tests of what is PostgreSQL's own."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

SECRET = "s3cr/t@:%?#"
"""The password of the roles that tests make."""


def with_address(url: str, **changes: str) -> str:
    """Return *url* with another host, port, user or database."""
    parts = urlsplit(url)
    user = changes.get("user", f"{parts.username}:{parts.password}")
    host, port, database = changes.get("host", parts.hostname), changes.get("port", parts.port), changes.get("database", parts.path[1:])
    return f"postgresql://{user}@{host}:{port}/{database}"


def password_of(url: str) -> str:
    """Return the password that is in *url*."""
    return unquote(urlsplit(url).password or "")
