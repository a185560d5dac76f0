"""Erasure: remove a person's ids from tags. Used by every engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from voight_middleware.records.tags import Tags

MIN_SEARCHED_LENGTH = 5
"""
Shorter ids are not searched for inside other text or in the bytes of files: they would match
everywhere.
"""
PLACES = ("plan", "tenant_id", "route", "release")
"""Columns that can hold a person's id, besides the user's, the session's and the extra keys."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, str]).decode


def erased_tags(tags: Tags, names: Collection[str], token: str) -> Tags:
    """
    Return *tags* with *token* instead of each of *names*. If the user is one of them, the session
    is removed.
    """
    is_user = tags.user_id in names
    return Tags(
        **{
            name: token if (value := getattr(tags, name)) in names else value
            for name in ("user_id", *PLACES)
        },
        session_id=None if is_user or tags.session_id in names else tags.session_id,
        extra=erased_extra(tags.extra, names, token),
    )


def erased_text(extra: str, names: Collection[str], token: str) -> str:
    """Return the JSON text of extra keys with *token* instead of each of *names*."""
    return _encode(erased_extra(_decode(extra), names, token)).decode()


def erased_extra(extra: Mapping[str, str], names: Collection[str], token: str) -> dict[str, str]:
    """
    Return extra keys with *token* instead of each of *names*. A longer text that contains a name is
    replaced as a whole.
    """
    return {key: token if _mentions(value, names) else value for key, value in extra.items()}


def names_anyone(tags: Tags, names: Collection[str]) -> bool:
    """Return whether a value of *tags* is one of *names*."""
    values = [
        *(getattr(tags, name) for name in ("user_id", "session_id", *PLACES)),
        *tags.extra.values(),
    ]
    return any(value in names for value in values)


def spellings(names: Collection[str]) -> list[str]:
    """
    Return *names*, and their spelling in JSON text if they have a quote, a backslash or a control
    character.
    """
    return list(dict.fromkeys([*names, *(_encode(name).decode()[1:-1] for name in names)]))


def _mentions(value: str, names: Collection[str]) -> bool:
    return any(
        value == name or (len(name) >= MIN_SEARCHED_LENGTH and name in value) for name in names
    )
