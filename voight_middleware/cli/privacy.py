"""Personal data on the command line: the pseudonyms of a user, in filters and arguments."""

from __future__ import annotations

import sys

from voight_middleware.cli.render import UserError
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import DIMENSIONS, Ledger
from voight_middleware.ledger.base import has_wildcard, literal
from voight_middleware.pipeline.pseudonyms import (
    finding_keys,
    known_as,
    policy_for,
    pseudonym,
    redacted,
)
from voight_middleware.records.pii import find
from voight_middleware.records.tag_values import clean_value
from voight_middleware.records.tags import Tags

_NOT_OF_TAGS = frozenset(DIMENSIONS) - set(Tags.__struct_fields__)


def sought(dimension: str, value: str, settings: Settings) -> str | tuple[str, ...]:
    """
    Return the values that a filter matches: *value*, and its pseudonyms if it is personal data.

    Raises:
        SettingsError: The pseudonym key cannot be read.
    """
    if dimension in _NOT_OF_TAGS or has_wildcard(value):
        return value
    plain = value.replace("**", "*")
    kept = clean_value(plain) or plain  # a line break is stored as \\u000a
    if kept != plain:
        return (literal(plain), literal(kept))
    if "*" in kept:
        return literal(kept)
    names = tuple(known_as(kept, settings))
    if (
        len(names) == 1
        and policy_for(dimension, settings.pii) == "pseudonym"
        and find(value) is not None
    ):
        print(
            f"voight: {no_key(settings)}: the filter finds only calls that were stored under this "
            f"{dimension} itself",
            file=sys.stderr,
        )
    return names if len(names) > 1 else kept


def names(value: str, settings: Settings) -> list[str]:
    """
    Return the names of the user *value* in the ledger, by the newest key first.

    Raises:
        UserError: The value is empty, or there is no key yet.
        SettingsError: The pseudonym key cannot be read.
    """
    text = clean_value(value)
    if text is None:
        raise UserError("an empty value is not a user id")
    data, policy = find(text), policy_for("user_id", settings.pii)
    if data is None or policy == "allow":
        return [text]
    if policy == "redact":
        return [redacted(data)]
    keys = finding_keys(settings)
    if not keys:
        raise UserError(f"{no_key(settings)}, so this {data.kind} has no pseudonym yet")
    return [pseudonym(data, text, key) for key in keys]


def ids_of(ledger: Ledger, value: str, settings: Settings) -> list[str]:
    """
    Return the user ids of *value* in the ledger: itself, its pseudonyms, and those of longer values
    that contain it.

    Raises:
        SettingsError: The pseudonym key cannot be read.
        LedgerError: The ledger cannot be read.
    """
    ids = {value, value.strip(), clean_value(value) or ""}
    if "*" not in value:
        for name in known_as(value, settings):
            if "*" in name:
                ids |= {
                    str(group.dimensions["user_id"])
                    for group in ledger.spend(["user_id"], {"user_id": name})
                }
            else:
                ids.add(name)
    return sorted(ids - {""})


def no_key(settings: Settings) -> str:
    """Return the error message for a missing pseudonym key."""
    beside = (
        f", nor a key beside {settings.ledger}" if settings.ledger.startswith("sqlite:///") else ""
    )
    return f"VOIGHT_PSEUDONYM_KEY is not set here{beside}"
