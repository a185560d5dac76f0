"""
A small wrong change of the library, which a test of the default run must notice.

It is a piece of a file's text and what stands in its place. The tests are those that should notice it first.
"""

from __future__ import annotations

from dataclasses import dataclass

CORE = "voight_middleware"


@dataclass(frozen=True)
class Mutation:
    """One wrong change."""

    name: str
    """What is wrong, in words of the one it hurts."""
    file: str
    old: str
    """Occurs once in the file."""
    new: str
    tests: tuple[str, ...]
    """Folders and files of the tests that must notice it."""


def at(file: str, *changes: tuple[str, str, str], tests: str) -> list[Mutation]:
    path = file if file.startswith("voight_") and "/" in file and not file.startswith("voight_middleware") else f"{CORE}/{file}"
    path = path if path.startswith(CORE) else f"integrations/{path}"
    return [Mutation(name, path, old, new, tuple(tests.split())) for name, old, new in changes]
