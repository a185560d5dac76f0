"""The values of tags as they are kept: text of a bounded length that is safe to print."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec

from voight_middleware.diagnostics import warn_once
from voight_middleware.records.pii import find

logger = logging.getLogger(__name__)

MAX_LENGTH = 256
"""The longest tag value, in characters. A longer one keeps its beginning and a hash, so that two users stay two users."""

MAX_EXTRA = 64
"""The most extra keys of one call. The first ones are kept."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
_COMPOSITE = re.compile(r"user_(?P<device>\w+?)_account_(?P<account>[\w-]*?)_session_(?P<session>[\w-]+)")


def clean_value(value: object) -> str | None:
    """
    A tag value as it is kept: text without control characters, at most 256 characters, or None for an empty one.

    Raises:
        TypeError: *value* is neither text nor a whole number, a UUID or an enumeration's member.
    """
    if type(value) is not str:
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, bool) or not isinstance(value, str | int | uuid.UUID):
            raise TypeError(f"a tag value is text, a whole number or a UUID, not {type(value).__name__}")
        try:
            value = str(value)
        except Exception as error:  # a whole number of more than 4300 digits, or a subclass with a mind of its own
            raise TypeError(f"this {type(value).__name__} has no text") from error
    value = value.strip()
    if not value.isprintable() and _UNSAFE.search(value):
        value = _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", value)
    if len(value) > MAX_LENGTH:
        import hashlib

        begin = value[: MAX_LENGTH - 17]
        if (pii := find(value)) is not None and pii.end > len(begin):  # half an e-mail address is one that nothing recognises
            begin = value[pii.end - len(begin) : pii.end]
        value = f"{begin}~{hashlib.sha256(value.encode()).hexdigest()[:16]}"
    return value or None


def keep_value(key: str, value: object) -> str | None:
    """The value of a tag as it is kept; None for one that cannot be, which is logged once."""
    if value is None:
        return None
    try:
        return clean_value(value)
    except TypeError as error:
        warn_once(f"tag {key[:80]!r} is left out: {error}")
        return None


def user_and_session(named: str) -> tuple[str | None, str | None]:
    """
    Return the user and the session that a request names to the provider in one text. Any other text than a composite one has no session.

    Claude Code names account, device and session in ``metadata.user_id``: joined by underscores, or since 2.1.78 as JSON. The account is
    the user, or else the device. With the session in it, the whole text would make a new user of each session.
    """
    parts: Mapping[str, object] = {}
    if (match := _COMPOSITE.fullmatch(named)) is not None:
        parts = {"account_uuid": match["account"], "device_id": match["device"], "session_id": match["session"]}
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
    """Extra keys and values as they are kept; what cannot be is left out and logged once."""
    extra: dict[str, str] = {}
    for key, value in values.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            warn_once(f"tag key {str(key)[:80]!r} is left out: a key has letters, digits, '_', '.' or '-', at most 64")
        elif (text := keep_value(key, value)) is not None:
            extra[key] = text
    return first_extra(extra)


def first_extra(extra: dict[str, str]) -> dict[str, str]:
    """Return *extra*, or its first ``MAX_EXTRA`` keys, which is logged once."""
    if len(extra) <= MAX_EXTRA:
        return extra
    warn_once(f"extra tags are left out: a call has {MAX_EXTRA} at most")
    return dict(list(extra.items())[:MAX_EXTRA])
