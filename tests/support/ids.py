"""Names of parametrized cases that a person can read and that are the same in every process."""

import re
from typing import Any

MAX_LENGTH = 40


def readable_id(value: Any) -> str | None:
    """Return a short and stable name of *value*; None leaves it to pytest."""
    if isinstance(value, str) and len(value) <= MAX_LENGTH:
        return None
    if isinstance(value, bool | int | float | type(None)) or hasattr(value, "__name__"):
        return None
    if type(value).__repr__ is object.__repr__ or "0x" in (
        text := str(value) if type(value).__str__ is not object.__str__ else repr(value)
    ):
        return type(value).__name__
    text = re.sub(r"\s+", " ", text).encode("unicode_escape").decode()
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 1]}~"
