"""
Price rules: our own and the user's corrections of list prices, each with its source and validity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fnmatch import translate
from functools import cache
from typing import NamedTuple, TypeAlias

from voight_middleware.records.money import CONTEXT

HOUR = 3_600_000_000
"""Microseconds. Prices change on the hour and are resolved once an hour."""

TOKENS = (
    *(
        "input",
        "cache_read",
        "cache_read_audio",
        "cache_read_image",
        "cache_write",
        "cache_write_5m",
        "cache_write_1h",
    ),
    *("output", "reasoning", "audio_in", "audio_out", "image_in", "image_out"),
)
"""
The counts billed by the token. A rule's factor applies to them, but not to fees for tools and
requests.
"""

_TOKENS = frozenset(TOKENS)

Units: TypeAlias = Mapping[str, Decimal]
"""US dollars per token, second, character, image or request, by count."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Terms(NamedTuple):
    """The terms of a call, as far as the provider reported them."""

    tier: str | None = None
    batch: bool = False
    speed: str | None = None
    geo: str | None = None
    size: str | None = None
    quality: str | None = None


STANDARD = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Prices or a factor for some models of a provider."""

    id: str
    source: str
    """A link, or the file and line of the rule."""
    provider: str = "*"
    model: str = "*"
    """Shell patterns of the model's name, separated by ``|``."""
    host: str = "*"
    since: int | None = None
    """Microseconds since 1970, UTC, on the hour. *until* is exclusive."""
    until: int | None = None
    weekdays: frozenset[int] | None = None
    """0 is Monday. In UTC."""
    hours: tuple[tuple[int, int], ...] = ()
    """Pairs of first hour and end hour, in UTC."""
    when: Mapping[str, str] = field(default_factory=dict)
    """Terms by name, such as ``{"speed": "fast"}`` or ``{"batch": "true"}``."""
    without: str | None = None
    """A term that must be unknown."""
    usd: Mapping[str, Decimal] = field(default_factory=dict)
    """US dollars per token, second, character, image or request."""
    factor: Decimal | None = None
    factors: Mapping[str, Decimal] = field(default_factory=dict)
    """Factors by count, if they differ."""
    whole: bool = False
    """Whether *usd* is the whole price, which replaces the list price completely."""
    above: int = 0
    """
    Applies to calls with more input tokens, including cached ones. It covers all their tokens.
    """
    minimum: Mapping[str, int] = field(default_factory=dict)
    """The minimum billed counts."""
    doubt: str | None = None
    """Why such a call may cost more than its prices say."""
    own: bool = False
    """Whether it is the user's rule, not one of ours."""

    # Complex: one condition for each field.
    def holds(
        self, provider: str, names: Iterable[str], host: str | None, at: int, terms: Terms
    ) -> bool:
        """Return whether the rule applies to such a call."""
        if not _matches(self.provider, provider) or not any(
            _matches(self.model, name) for name in names
        ):
            return False
        if self.host != "*" and not _matches(self.host, host or ""):
            return False
        if (self.since is not None and at < self.since) or (
            self.until is not None and at >= self.until
        ):
            return False
        if self.without is not None and getattr(terms, self.without) is not None:
            return False
        for name, wanted in self.when.items():
            value = getattr(terms, name)
            if (str(value).lower() if isinstance(value, bool) else value) != wanted:
                return False
        if self.weekdays is None and not self.hours:
            return True
        moment = _EPOCH + timedelta(microseconds=at)
        if self.weekdays is not None and moment.weekday() not in self.weekdays:
            return False
        return not self.hours or any(begin <= moment.hour < end for begin, end in self.hours)


def overlay(listed: Units, rules: Iterable[Rule], standard: Units) -> dict[str, Decimal]:
    """
    Return the unit prices under some rules: first our prices, then our factors, then the user's
    rules in order.

    A user's price without terms is a standard price. The list's factors apply to it: for a tier, a
    batch, a speed, a long input and a region. A ``whole`` price, or one for specific terms or a
    host, is used unchanged.

    Args:
        listed: The list prices under the terms of the call.
        rules: The rules that apply to the call.
        standard: The list prices under standard terms. Empty if no factor is known.
    """
    ours = [rule for rule in rules if not rule.own]
    units = dict(listed)
    for rule in ours:
        units = dict(rule.usd) if rule.whole else {**units, **rule.usd}
    for rule in ours:
        if rule.factor is not None:
            units = _times(units, rule.factor)
        for name in units.keys() & rule.factors.keys():
            units[name] = CONTEXT.multiply(units[name], rule.factors[name])
    factors = dict(units)
    for rule in rules:
        if not rule.own:
            continue
        usd = dict(rule.usd)
        if not rule.whole and not rule.when and rule.host == "*":
            for name in usd.keys() & standard.keys() & factors.keys() & _TOKENS:
                if standard[name] and factors[name] != standard[name]:
                    usd[name] = CONTEXT.divide(
                        CONTEXT.multiply(usd[name], factors[name]), standard[name]
                    )
        units = usd if rule.whole else {**units, **usd}
        if rule.factor is not None:
            units = _times(units, rule.factor)
    return units


def _times(units: Units, factor: Decimal) -> dict[str, Decimal]:
    return {
        name: CONTEXT.multiply(usd, factor) if name in _TOKENS else usd
        for name, usd in units.items()
    }


def moment(text: str) -> int:
    """Return an ISO 8601 date or time in UTC as microseconds since 1970."""
    given = datetime.fromisoformat(text)
    return int((given.replace(tzinfo=given.tzinfo or UTC) - _EPOCH).total_seconds()) * 1_000_000


def _matches(pattern: str, name: str) -> bool:
    return pattern == "*" or _compiled(pattern).match(name.lower()) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("|".join(translate(part.strip().lower()) for part in pattern.split("|")))
