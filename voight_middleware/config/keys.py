"""Versioned secret keys."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from voight_middleware.config.values import SettingsError
from voight_middleware.lazy import lazy_pattern


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """The secret of pseudonyms, and the version that each of them contains."""

    version: str
    secret: str = field(repr=False)


MIN_SECRET = 32
"""
The minimum length of a pseudonym key's secret, in characters. An e-mail address is easy to guess,
the secret must not be.
"""
_KEY = lazy_pattern(r"\s*(v[0-9]{1,4}):(.*)", re.DOTALL)


def read_keys(text: str, source: str, what: str = "pseudonym key") -> tuple[PseudonymKey, ...]:
    """
    Return the keys in ``v2:<secret>,v1:<the secret before>``. A plain secret is version v1.

    Raises:
        SettingsError: A key cannot be used. The message contains none of them.
    """
    parts = [_KEY.fullmatch(part) for part in text.split(",")]
    if not any(parts):
        keys = [PseudonymKey("v1", text.strip())]
    elif not all(parts):
        raise SettingsError(
            f"{source}: write {what}s as v2:<secret>,v1:<secret before>, without a comma in a "
            "secret"
        )
    else:
        keys = [PseudonymKey(match[1], match[2].strip()) for match in parts if match is not None]
    for key in keys:
        if len(key.secret) < MIN_SECRET:
            advice = f"at least {MIN_SECRET} characters, for example from: openssl rand -hex 32"
            raise SettingsError(
                f"{source}: the secret of {what} {key.version} has {len(key.secret)} characters; "
                f"use {advice}"
            )
    if len({key.version for key in keys}) < len(keys):
        raise SettingsError(
            f"{source}: two {what}s have the same version; give the new one the next number"
        )
    return tuple(keys)
