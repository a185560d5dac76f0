"""Personal data on the command line: what the ledger calls somebody, and how a filter on her finds her."""

from __future__ import annotations

import sys

from voight_middleware.cli.render import UserError
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import DIMENSIONS, Ledger
from voight_middleware.ledger.base import has_wildcard, literal
from voight_middleware.pipeline.pseudonyms import finding_keys, known_as, policy_for, pseudonym, redacted
from voight_middleware.records.pii import find
from voight_middleware.records.tag_values import clean_value
from voight_middleware.records.tags import Tags

_NOT_OF_TAGS = frozenset(DIMENSIONS) - set(Tags.__struct_fields__)


def sought(dimension: str, value: str, settings: Settings) -> str | tuple[str, ...]:
    """
    What a filter looks for: *value*, and where it is personal data everything that the ledger may have kept in its place.

    Raises:
        SettingsError: The pseudonym key cannot be read.
    """
    if dimension in _NOT_OF_TAGS or has_wildcard(value):
        return value
    plain = value.replace("**", "*")
    kept = clean_value(plain) or plain  # a line break is kept as \\u000a
    if kept != plain:
        return (literal(plain), literal(kept))
    if "*" in kept:
        return literal(kept)
    found = tuple(known_as(kept, settings))
    if len(found) == 1 and policy_for(dimension, settings.pii) == "pseudonym" and find(value) is not None:
        print(f"voight: {no_key(settings)}: only calls that were kept under this {dimension} itself are found", file=sys.stderr)
    return found if len(found) > 1 else kept


def names(value: str, settings: Settings) -> list[str]:
    """
    What the ledger calls the user *value*, by the newest key first.

    Raises:
        UserError: Nobody can say.
        SettingsError: The pseudonym key cannot be read.
    """
    text = clean_value(value)
    if text is None:
        raise UserError("an empty value is nobody's")
    found, policy = find(text), policy_for("user_id", settings.pii)
    if found is None or policy == "allow":
        return [text]
    if policy == "redact":
        return [redacted(found)]
    keys = finding_keys(settings)
    if not keys:
        raise UserError(f"{no_key(settings)}, so this {found.kind} has no pseudonym yet")
    return [pseudonym(found, text, key) for key in keys]


def called(ledger: Ledger, value: str, settings: Settings) -> list[str]:
    """
    Every user id in the ledger that is *value*: itself, its pseudonyms, and those of longer values that it is a part of.

    Raises:
        SettingsError: The pseudonym key cannot be read.
        LedgerError: The ledger cannot be read.
    """
    found = {value, value.strip(), clean_value(value) or ""}
    if "*" not in value:
        for name in known_as(value, settings):
            if "*" in name:
                found |= {str(group.dimensions["user_id"]) for group in ledger.spend(["user_id"], {"user_id": name})}
            else:
                found.add(name)
    return sorted(found - {""})


def no_key(settings: Settings) -> str:
    """Say that there is no key that pseudonyms could be made with."""
    beside = f", nor a key beside {settings.ledger}" if settings.ledger.startswith("sqlite:///") else ""
    return f"VOIGHT_PSEUDONYM_KEY is not set here{beside}"
