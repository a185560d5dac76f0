"""Tag values as stored: text of bounded length that is safe to print."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec

from voight_middleware.diagnostics import warn_once
from voight_middleware.lazy import lazy_pattern
from voight_middleware.records.pii import find

logger = logging.getLogger(__name__)

MAX_LENGTH = 256
"""
The maximum length of a tag value, in characters. A longer value is cut and gets a hash, so that two
users stay distinct.
"""

MAX_EXTRA = 64
"""The maximum number of extra keys of a call. The first ones are kept."""

_UNSAFE = lazy_pattern(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_KEY = lazy_pattern(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
_COMPOSITE = lazy_pattern(
    r"user_(?P<device>\w+?)_account_(?P<account>[\w-]*?)_session_(?P<session>[\w-]+)"
)


def clean_value(value: object) -> str | None:
    """
    Return a tag value as stored: text without control characters, at most 256 characters. Return
    None for an empty one.

    Raises:
        TypeError: *value* is not text, a whole number, a UUID or an enumeration member of these.
    """
    if type(value) is not str:
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, bool) or not isinstance(value, str | int | uuid.UUID):
            raise TypeError(
                f"a tag value is text, a whole number or a UUID, not {type(value).__name__}"
            )
        try:
            value = str(value)
        except Exception as error:  # a whole number of more than 4300 digits, or a faulty subclass
            raise TypeError(f"this {type(value).__name__} cannot be converted to text") from error
    value = value.strip()
    if not value.isprintable() and _UNSAFE.search(value):
        value = _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", value)
    if len(value) > MAX_LENGTH:
        import hashlib

        begin = value[: MAX_LENGTH - 17]
        # Nothing detects half an e-mail address.
        if (pii := find(value)) is not None and pii.end > len(begin):
            begin = value[pii.end - len(begin) : pii.end]
        value = f"{begin}~{hashlib.sha256(value.encode()).hexdigest()[:16]}"
    return value or None


def keep_value(key: str, value: object) -> str | None:
    """Return a tag value as stored. Log an invalid one once and return None."""
    if type(value) is str and value.isprintable() and len(value) <= MAX_LENGTH:
        return value.strip() or None  # most values, as `clean_value` returns them
    if value is None:
        return None
    try:
        return clean_value(value)
    except TypeError as error:
        warn_once(f"tag {key[:80]!r} is dropped: {error}")
        return None


def user_and_session(named: str) -> tuple[str | None, str | None]:
    """
    Return the user and the session from the text by which a request names its user to the provider.
    Only a composite text has a session.

    Claude Code names account, device and session in ``metadata.user_id``, joined by underscores, or
    as JSON since 2.1.78. The account is the user, or else the device. The whole text would make
    each session a new user.
    """
    parts: Mapping[str, object] = {}
    if (match := _COMPOSITE.fullmatch(named)) is not None:
        parts = {
            "account_uuid": match["account"],
            "device_id": match["device"],
            "session_id": match["session"],
        }
    elif named.startswith("{") and len(named) <= 4 * MAX_LENGTH:
        try:
            parts = msgspec.json.decode(named, type=dict[str, object])
        except (msgspec.DecodeError, RecursionError):
            parts = {}
    texts = {key: value for key, value in parts.items() if isinstance(value, str) and value}
    user = texts.get("account_uuid") or texts.get("device_id")
    if user is None or "session_id" not in texts:
        return clean_value(named), None
    return clean_value(user), clean_value(texts["session_id"])


def keep_extra(values: Mapping[Any, object]) -> dict[str, str]:
    """Return extra keys and values as stored. Invalid ones are dropped and logged once."""
    extra: dict[str, str] = {}
    for key, value in values.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            warn_once(
                f"tag key {str(key)[:80]!r} is dropped: a key has at most 64 letters, digits, "
                "'_', '.' or '-'"
            )
        elif (text := keep_value(key, value)) is not None:
            extra[key] = text
    return first_extra(extra)


def first_extra(extra: dict[str, str]) -> dict[str, str]:
    """Return *extra*, or its first ``MAX_EXTRA`` keys. Log once if any are dropped."""
    if len(extra) <= MAX_EXTRA:
        return extra
    warn_once(f"extra tags are dropped: a call has at most {MAX_EXTRA}")
    return dict(list(extra.items())[:MAX_EXTRA])
