"""Helpers for the tests of what is PostgreSQL's own."""

from __future__ import annotations

from typing import Any
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


class Superuser:
    """A session of the superuser in a database; a new one where a test has stopped or killed the server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: Any = None

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Run *statement*; return its rows."""
        import psycopg

        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.url, autocommit=True)
        cursor = self._connection.execute(statement)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """End the session."""
        if self._connection is not None:
            self._connection.close()
