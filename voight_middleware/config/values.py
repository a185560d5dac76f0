"""
Parsers for the values of settings. Each returns the value, or raises an error that says what to
write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from voight_middleware.lazy import lazy_pattern
from voight_middleware.records.tag_values import clean_value


def absolute(path: str, what: str) -> Path:
    """
    Return an absolute path, with ``~`` expanded.

    Raises:
        SettingsError: *path* is not a valid path. The message begins with *what*.
    """
    try:
        if path and "\0" not in path:
            return Path(path).expanduser().absolute()
    except RuntimeError:  # ~user does not exist
        pass
    raise SettingsError(f"{what} needs a valid path, not {path!r}")


DELIVERIES = ("background", "synchronous")


class SettingsError(ValueError):
    """
    A value of ``configure()`` or a ``VOIGHT_*`` variable cannot be used. The message names it.
    """


@dataclass(frozen=True, slots=True)
class EventsTarget:
    """The destination of Voight's events, with the sender's name and the rate limit."""

    url: str
    """The URL of the server, without ``/v1/events``."""
    key: str = field(repr=False)
    agent: str
    per_minute: int


_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = lazy_pattern(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
MIN_JOURNAL = 1_000_000
MAX_JOURNAL = 10**18
MAX_EXIT = 3600.0


def read_bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    unit = None if match is None else _UNITS.get(match[2].upper())
    if (
        match is None
        or unit is None
        or not MIN_JOURNAL <= (size := int(Decimal(match[1]) * unit)) <= MAX_JOURNAL
    ):
        raise ValueError("write a size of 1MB or more, such as 512MB or 1GB (or 1GiB)")
    return size


def read_seconds(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*s?\s*", text)
    if match is None or (seconds := float(match[1])) > MAX_EXIT:
        raise ValueError(f"write seconds from 0 to {MAX_EXIT:.0f}, such as 5 or 2.5")
    return seconds


def read_delivery(text: str) -> str:
    if (word := text.strip().lower()) not in DELIVERIES:
        raise ValueError(f"use one of {', '.join(DELIVERIES)}")
    return word


def read_zone(text: str) -> str:
    """Return the name of a time zone, such as ``Europe/Berlin``."""
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(name := text.strip())
    except (KeyError, ValueError, OSError) as error:
        raise ValueError("write a time zone such as Europe/Berlin or UTC") from error
    return name


_OF_A_CALL = {
    "user_id": "user",
    "user": "user",
    "session_id": "session",
    "session": "session",
    "route": "route",
}


def read_tags(given: str | Mapping[str, str], source: str) -> dict[str, str]:
    """
    Parse the tags of every call of a process: ``app=shop,region=eu``.

    Raises:
        SettingsError: A key or value is invalid, or the key is reserved for single calls.
    """
    if isinstance(given, Mapping):
        pairs = [(str(key), value) for key, value in given.items()]
    else:
        parts = [part.partition("=") for part in given.split(",") if part.strip()]
        if any(not equals for _, equals, _ in parts):
            raise SettingsError(f"{source}: tags are {given!r}; write app=shop,region=eu")
        pairs = [(key, value) for key, _, value in parts]
    tags: dict[str, str] = {}
    for key, value in ((key.strip(), value) for key, value in pairs):
        if key in _OF_A_CALL:
            raise SettingsError(
                f"{source}: tags cannot name the {_OF_A_CALL[key]} of every call; write "
                f"voight.tag({key}=…) around the work"
            )
        if key == "release":
            raise SettingsError(f"{source}: tags cannot name the release; use the setting release")
        name = _SHORT_FOR.get(key, key)
        try:
            text = clean_value(value)
        except TypeError:
            text = None
        if text is None or not TAG_KEY.fullmatch(name) or name in tags:
            form = "a key has letters, digits, '_', '.' or '-'; a value is text"
            raise SettingsError(f"{source}: tags cannot have {key}={value!s:.80}; {form}")
        tags[name] = text
    return tags


SWITCH = {
    "true": True,
    "1": True,
    "on": True,
    "yes": True,
    "false": False,
    "0": False,
    "off": False,
    "no": False,
}


PII_POLICIES = ("pseudonym", "redact", "allow")
_POLICY_FORMS = (
    "write pseudonym, redact or allow, or one for each key of a tag: user_id=allow,*=redact"
)
_TAG_KEY = lazy_pattern(r"\*|[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
TAG_KEY = lazy_pattern(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
_SHORT_FOR = {"user": "user_id", "tenant": "tenant_id", "session": "session_id"}


def read_policies(given: str | Mapping[str, str], source: str) -> dict[str, str]:
    if isinstance(given, Mapping):
        pairs = [(str(key), str(policy)) for key, policy in given.items()]
    else:
        parts = [part.partition("=") for part in given.split(",") if part.strip()]
        pairs = [(key, policy) if equals else ("*", key) for key, equals, policy in parts]
    policies: dict[str, str] = {}
    for key, policy in ((key.strip(), policy.strip().lower()) for key, policy in pairs):
        if key in _SHORT_FOR:
            raise SettingsError(f"{source}: pii has no tag {key!r}; write {_SHORT_FOR[key]}")
        if policy not in PII_POLICIES or not _TAG_KEY.fullmatch(key) or key in policies:
            raise SettingsError(f"{source}: pii cannot be {key}={policy}; {_POLICY_FORMS}")
        policies[key] = policy
    return policies


EVENTS_URL = "https://api.voight.xyz"
EVENTS_PER_MINUTE = 60
"""
The limit of Voight's free plan. The Pro plan has 600. Source: Voight's documentation, "Events API",
limits.
"""
_BEARER = lazy_pattern(r"vk_[!-~]{1,512}")
_BASE = lazy_pattern(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?"
)
_LOOPBACK = lazy_pattern(r"localhost|127(\.[0-9]{1,3}){3}|\[::1\]")


def read_events(
    key: str, agent: str, base: str, rate: str, sources: Mapping[str, str]
) -> EventsTarget:
    if not _BEARER.fullmatch(key.strip()):
        raise SettingsError(
            f"{sources['voight_api_key']}: a Voight key must start with vk_; never use the key of "
            "another service here"
        )
    name = clean_value(agent)
    if name is None or len(name) > 120:
        raise SettingsError(
            f"{sources['voight_agent']}: an agent name must have 1 to 120 characters"
        )
    match = _BASE.fullmatch(base.strip())
    if match is None or (match["scheme"] == "http" and not _LOOPBACK.fullmatch(match["host"])):
        advice = (
            "write https://host, without a user, a query or /v1/events; http only for this "
            "machine, because the key is sent"
        )
        raise SettingsError(f"{sources['events_url']}: this URL cannot receive events; {advice}")
    if (
        not re.fullmatch(r"[0-9]{1,6}", rate.strip())
        or not 1 <= (per_minute := int(rate)) <= 100_000
    ):
        raise SettingsError(
            f"{sources['events_per_minute']}: events per minute must be a whole number from 1 to "
            f"100000, not {rate!r}"
        )
    return EventsTarget(base.strip().rstrip("/"), key.strip(), name, per_minute)
