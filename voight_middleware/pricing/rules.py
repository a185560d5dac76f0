"""Price rules: what is laid over the list prices, by us or by the user. Each says where it is from and when it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fnmatch import translate
from functools import cache
from typing import NamedTuple

from voight_middleware.money import CONTEXT

HOUR = 3_600_000_000
"""Microseconds. Prices change on the hour, and are looked up once an hour."""

TOKENS = (
    *("input", "cache_read", "cache_read_audio", "cache_read_image", "cache_write", "cache_write_5m", "cache_write_1h"),
    *("output", "reasoning", "audio_in", "audio_out", "image_in", "image_out"),
)
"""What is billed by the token, and is multiplied where a rule has a factor; fees for tools and requests are not."""

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
    usd: Mapping[str, Decimal] = field(default_factory=dict)
    """US dollars per token, second, character, picture or request."""
    factor: Decimal | None = None
    whole: bool = False
    """Whether *usd* is everything that the model costs: nothing of the list price remains."""
    minimum: Mapping[str, int] = field(default_factory=dict)
    """The least count that is billed."""

    def holds(self, provider: str, names: Iterable[str], host: str | None, at: int, terms: Terms) -> bool:
        """Whether the rule is for such a call."""
        if not _matches(self.provider, provider) or not any(_matches(self.model, name) for name in names):
            return False
        if self.host != "*" and not _matches(self.host, host or ""):
            return False
        if (self.since is not None and at < self.since) or (self.until is not None and at >= self.until):
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

    def lay_over(self, units: Mapping[str, Decimal]) -> dict[str, Decimal]:
        """The unit prices under this rule."""
        changed = dict(self.usd) if self.whole else {**units, **self.usd}
        if self.factor is not None:
            changed = {name: CONTEXT.multiply(usd, self.factor) if name in TOKENS else usd for name, usd in changed.items()}
        return changed


def moment(text: str) -> int:
    """Microseconds since 1970 of an ISO 8601 date or time in UTC."""
    given = datetime.fromisoformat(text)
    return int((given.replace(tzinfo=given.tzinfo or UTC) - _EPOCH).total_seconds()) * 1_000_000


def _matches(pattern: str, name: str) -> bool:
    return pattern == "*" or _compiled(pattern).match(name.lower()) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("|".join(translate(part.strip().lower()) for part in pattern.split("|")))
