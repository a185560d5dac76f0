"""Parametrize tests by what somebody types."""

from collections.abc import Sequence

import pytest


def as_typed(arguments: Sequence[str]) -> str:
    """Return the name of a case: the arguments as they are typed."""
    return " ".join(arguments) or "nothing"


def for_mistakes(cases: Sequence[tuple[list[str], str]]) -> pytest.MarkDecorator:
    """Run the test with the *arguments* and the *message* of each case."""
    return pytest.mark.parametrize(("arguments", "message"), cases, ids=[as_typed(arguments) for arguments, _ in cases])
