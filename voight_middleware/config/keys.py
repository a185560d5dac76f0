"""Secret keys, with their versions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from voight_middleware.config.values import SettingsError


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """A secret that pseudonyms are made with, and the version of it that each of them names."""

    version: str
    secret: str = field(repr=False)


MIN_SECRET = 32
"""The shortest secret of a pseudonym key, in characters. An e-mail address is easily guessed: the secret alone must not be."""
_KEY = re.compile(r"\s*(v[0-9]{1,4}):(.*)", re.DOTALL)


def read_keys(text: str, source: str, what: str = "pseudonym key") -> tuple[PseudonymKey, ...]:
    """
    The keys in ``v2:<secret>,v1:<the secret before>``, or in one plain secret, which is version v1.

    Raises:
        SettingsError: They cannot be used; the message shows none of them.
    """
    parts = [_KEY.fullmatch(part) for part in text.split(",")]
    if not any(parts):
        keys = [PseudonymKey("v1", text.strip())]
    elif not all(parts):
        raise SettingsError(f"{source}: write {what}s as v2:<secret>,v1:<secret before>, without a comma in a secret")
    else:
        keys = [PseudonymKey(match[1], match[2].strip()) for match in parts if match is not None]
    for key in keys:
        if len(key.secret) < MIN_SECRET:
            advice = f"at least {MIN_SECRET} characters, such as those of: openssl rand -hex 32"
            raise SettingsError(f"{source}: the secret of {what} {key.version} has {len(key.secret)} characters; it needs {advice}")
    if len({key.version for key in keys}) < len(keys):
        raise SettingsError(f"{source}: two {what}s have the same version; give the new one the next number")
    return tuple(keys)
