"""Price rules: what is laid over the list prices, by us or by the user. Each says where it is from and when it holds."""

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
"""Microseconds. Prices change on the hour, and are looked up once an hour."""

TOKENS = (
    *("input", "cache_read", "cache_read_audio", "cache_read_image", "cache_write", "cache_write_5m", "cache_write_1h"),
    *("output", "reasoning", "audio_in", "audio_out", "image_in", "image_out"),
)
"""What is billed by the token, and is multiplied where a rule has a factor; fees for tools and requests are not."""

_TOKENS = frozenset(TOKENS)

Units: TypeAlias = Mapping[str, Decimal]
"""US dollars per token, second, character, picture or request, by count."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Terms(NamedTuple):
    """Under which terms an answer was given, as far as the provider said so."""

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
    """A link, or the file and line it is from."""
    provider: str = "*"
    model: str = "*"
    """Patterns of the model's name, as of a shell, divided by ``|``."""
    host: str = "*"
    since: int | None = None
    """Microseconds since 1970, UTC, on the hour; as *until*, which is no longer included."""
    until: int | None = None
    weekdays: frozenset[int] | None = None
    """0 is Monday; in UTC."""
    hours: tuple[tuple[int, int], ...] = ()
    """From an hour to another, in UTC."""
    when: Mapping[str, str] = field(default_factory=dict)
    """Terms by name, such as ``{"speed": "fast"}`` or ``{"batch": "true"}``."""
    without: str | None = None
    """A term that must not be known."""
    usd: Mapping[str, Decimal] = field(default_factory=dict)
    """US dollars per token, second, character, picture or request."""
    factor: Decimal | None = None
    factors: Mapping[str, Decimal] = field(default_factory=dict)
    """The same by count, where not all are multiplied alike."""
    whole: bool = False
    """Whether *usd* is everything that the model costs: nothing of the list price remains."""
    above: int = 0
    """For calls with more input tokens than that, cached ones included: all of their tokens."""
    minimum: Mapping[str, int] = field(default_factory=dict)
    """The least count that is billed."""
    doubt: str | None = None
    """Why such a call costs more than its prices say, if it does."""
    own: bool = False
    """Whether it is one of the user's, and not of ours."""

    def holds(self, provider: str, names: Iterable[str], host: str | None, at: int, terms: Terms) -> bool:
        """Whether the rule is for such a call."""
        if not _matches(self.provider, provider) or not any(_matches(self.model, name) for name in names):
            return False
        if self.host != "*" and not _matches(self.host, host or ""):
            return False
        if (self.since is not None and at < self.since) or (self.until is not None and at >= self.until):
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
    Return the unit prices under some rules: first our prices, then our factors, then the user's rules in their order.

    A user's price that names no terms is a standard price. The list's factors apply to it: for a tier, a batch, a speed, a long input and
    a place. A ``whole`` price, and one for these terms or this host, is taken as it is.

    Args:
        listed: The list prices under the terms of the call.
        standard: The list prices under standard terms; empty if no factor is known.
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
                    usd[name] = CONTEXT.divide(CONTEXT.multiply(usd[name], factors[name]), standard[name])
        units = usd if rule.whole else {**units, **usd}
        if rule.factor is not None:
            units = _times(units, rule.factor)
    return units


def _times(units: Units, factor: Decimal) -> dict[str, Decimal]:
    return {name: CONTEXT.multiply(usd, factor) if name in _TOKENS else usd for name, usd in units.items()}


def moment(text: str) -> int:
    """Microseconds since 1970 of an ISO 8601 date or time in UTC."""
    given = datetime.fromisoformat(text)
    return int((given.replace(tzinfo=given.tzinfo or UTC) - _EPOCH).total_seconds()) * 1_000_000


def _matches(pattern: str, name: str) -> bool:
    return pattern == "*" or _compiled(pattern).match(name.lower()) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("|".join(translate(part.strip().lower()) for part in pattern.split("|")))
