"""
The chunks that our ``include_usage`` adds to a chat stream, and their removal.

Sources: OpenAI API reference, "Create chat completion", ``stream_options``: a last chunk without
choices carries the usage, and every other chunk carries ``usage: null``. OpenRouter, "Usage
accounting": usage is always sent, whatever ``stream_options`` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.providers.openai.streams import get

ALWAYS_SENT = frozenset({"openrouter"})
"""Providers whose streams always have usage."""

_HEAD = frozenset(
    {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "service_tier",
        "system_fingerprint",
        "obfuscation",
    }
)
_MEASURED = frozenset({"timings", "time_info", "stats", "x_groq", "latency_checkpoint"})
"""Measurements in a server's last chunk. A chunk with only these and usage is still ours."""


class UsageChunks:
    """Removes from one stream what it has only because we asked for usage."""

    __slots__ = ("_before", "_sends_null")

    def __init__(self) -> None:
        self._before: Any = None
        self._sends_null = False
        """Whether the server sends ``usage: null``, as OpenAI does if usage is asked for."""

    def take_out(self, event: Any) -> bool:
        """Remove ``usage: null`` from *event*. Return whether it is all ours. Never raises."""
        before, self._before = self._before, event
        try:
            if event.usage is None:
                sent, extra = event.__pydantic_fields_set__, event.__pydantic_extra__
                if "usage" in sent:
                    sent.discard("usage")
                    self._sends_null = True
                if extra and "usage" in extra:  # a model that does not know the field
                    del extra["usage"]
                    self._sends_null = True
                return False
        except AttributeError:  # a dictionary, a model without the field, or one of pydantic 1
            pass
        try:
            if get(event, "usage") is None:
                self._sends_null |= _drop_null(event)
                return False
            return not get(event, "choices") and self._is_added(event, before)
        except Exception as error:
            report_internal_error(error)
            return False

    def _is_added(self, event: Any, before: Any) -> bool:
        """Return whether a chunk with usage has nothing else, or repeats the chunk before it."""
        repeated = _keys(before) if before is not None else frozenset()
        for key in _keys(event) - _HEAD - _MEASURED:
            value = get(event, key)
            if (value is not None or not self._sends_null) and (
                key not in repeated or value != get(before, key)
            ):
                return False
        return True


def _keys(event: Any) -> AbstractSet[str]:
    """Return the keys that were sent."""
    if isinstance(event, Mapping):
        return event.keys()
    sent: set[str] | None = getattr(event, "__pydantic_fields_set__", None)
    if sent is None:
        return set(event.__fields_set__)  # pydantic 1
    return sent | (event.__pydantic_extra__ or {}).keys()


def _drop_null(event: Any) -> bool:
    """Remove ``usage: null``. Return whether it was there."""
    if type(event) is dict:
        return event.pop("usage", event) is None
    if hasattr(event, "__pydantic_fields_set__"):
        return False  # a model without the field
    sent: set[str] = event.__fields_set__  # pydantic 1
    was_sent = "usage" in sent
    sent.discard("usage")
    return was_sent
