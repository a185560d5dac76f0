"""What the comparison of two releases asks the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias

import msgspec

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.base import Costs, Groups, literal
from voight_middleware.ledger.groups import add_up
from voight_middleware.reports.cost_drivers import ModelUse, Period
from voight_middleware.reports.significance import welch
from voight_middleware.reports.timespan import to_datetime, to_microseconds

SAMPLE = 200
"""The number of first calls of a model whose unit prices are read."""
MIN_CALLS = {"day": 3, "hour": 12}
"""The whole days, or else hours, that both releases need for a test."""

_HOUR = 3_600_000_000
DAY = 24 * _HOUR
_LENGTHS = {"day": DAY, "hour": _HOUR}
_STEPS = {"day": timedelta(days=1), "hour": timedelta(hours=1)}

Terms: TypeAlias = dict[str, set[tuple[Fraction, ...]]]
"""The unit prices of calls by their terms."""
Test: TypeAlias = tuple[float | None, float]
"""A p-value, None without a test, and the direction of the change."""


@dataclass(frozen=True, slots=True)
class Side:
    """A release, and its time."""

    release: str
    window: Window
    """From its first call to its last call, or to the first call of the next release."""
    spend: Spend
    unowned: Spend
    later: int
    """The number of its calls after that time, which are not compared."""

    @property
    def length(self) -> int:
        """The length of its time in microseconds, at least one hour."""
        return max((self.window.until or 0) - (self.window.since or 0), _HOUR)

    @property
    def days(self) -> Fraction:
        """The length of its time in days, at least one hour."""
        return Fraction(self.length, DAY)


@dataclass(frozen=True, slots=True)
class Queries:
    """The ledger, and the arguments that all queries share."""

    source: Ledger
    where: Where
    window: Window
    original_prices: bool
    zone: tzinfo | None
    sides: list[Side] = field(default_factory=list)
    """Both releases, after their queries."""
    rates: dict[tuple[str, str | None], Terms] = field(default_factory=dict)
    """A cache of unit prices by release and model."""
    reported: set[tuple[str, str | None]] = field(default_factory=set)
    """The releases and models whose provider reports the cost."""
    days: dict[str, list[int]] = field(default_factory=dict)
    """The days with calls of each release, in UTC, by their first microseconds."""
    known: dict[str, tuple[int, int]] = field(default_factory=dict)
    """A time with all calls of a release, if the window does not cut it."""

    def first_calls(self) -> dict[str, int]:
        """Return the time of the first call of each release, in microseconds since 1970."""
        found = self.source.groups(("release", "day"), self.where, self.window).costs()
        for name, day in zip(*found.dimensions, strict=True):
            if name is not None:
                self.days.setdefault(name, []).append(_begin(day))
        first = {}
        for name, days in self.days.items():
            hour = min(self._hours(name, min(days), None))
            first[name] = self._times(name, hour, None)[0]
        return first

    def side(self, release: str, first: Mapping[str, int]) -> tuple[Side, Costs]:
        """Return a release with its time, and its users."""
        next_one = min((at for at in first.values() if at > first[release]), default=None)
        until = self.window.until if next_one is None else next_one
        begin = first[release]
        if self.window == Window():
            last = max(self._hours(release, max(self.days[release]), None))
            self.known[release] = begin, last + _HOUR - 1
        end = self._last_call(release, until) + 1
        time = Window(begin, end)
        later = self.spend(release, Window(end, self.window.until), ())
        groups = self._groups(release, time, ("user_id",))
        side = Side(
            release,
            time,
            groups.total(),
            groups.of([(None,)]).get((None,), Spend()),
            add_up(later).calls,
        )
        return side, groups.costs()

    def users(self, side: Side) -> Groups:
        """Return the users of a release."""
        return self._groups(side.release, side.window, ("user_id",))

    def spend(
        self,
        release: str,
        window: Window,
        by: Sequence[str],
        users: Sequence[str | None] | None = None,
    ) -> list[Spend]:
        """
        Add up calls of a release, of all users or of each of some. The groups of calls without a
        user lack the dimension ``user_id``.
        """
        where: dict[str, str | tuple[str | None, ...] | None] = self._where(release)
        parts: list[tuple[Sequence[str], Where]] = [] if users is not None else [(by, where)]
        if named := tuple(literal(user) for user in users or () if user is not None):
            parts.append((("user_id", *by), {**where, "user_id": named}))
        if users is not None and None in users:
            parts.append((by, {**where, "user_id": None}))
        return [
            group
            for by, where in parts
            for group in self.source.groups(
                by,
                where,
                window,
                original_prices=self.original_prices,
                zone=self.zone,
                known=self.known.get(release),
            ).foremost(None)
        ]

    def period(self, side: Side, users: int) -> Period:
        """Return the priced calls of a release by model."""
        groups = self.spend(side.release, side.window, ("model", "cost_status"))
        return self._period(side, groups, users)

    def periods(self, side: Side, users: Sequence[str | None]) -> dict[str | None, Period]:
        """Return the priced calls of a release by model, of each of some users."""
        parts: dict[str | None, list[Spend]] = {user: [] for user in users}
        by = ("model", "cost_status")
        for group in self.spend(side.release, side.window, by, users):
            parts[group.dimensions.get("user_id")].append(group)
        return {user: self._period(side, groups, 1) for user, groups in parts.items()}

    def _period(self, side: Side, groups: Iterable[Spend], users: int) -> Period:
        parts: dict[str | None, list[Spend]] = {}
        for group in groups:
            if group.dimensions["cost_status"] != "unpriced":
                parts.setdefault(group.dimensions["model"], []).append(group)
        models = {model: self._use(side, model, add_up(groups)) for model, groups in parts.items()}
        return Period(side.days, users if models else 0, models)

    def _groups(self, release: str, window: Window, by: Sequence[str]) -> Groups:
        # Times are in UTC where a release's first and last call is looked for.
        return self.source.groups(
            by,
            self._where(release),
            window,
            original_prices=self.original_prices,
            zone=None if by[0] in _LENGTHS else self.zone,
            known=self.known.get(release),
        )

    def _where(self, release: str) -> dict[str, str | tuple[str | None, ...] | None]:
        return {**self.where, "release": literal(release)}

    def _last_call(self, release: str, until: int | None) -> int:
        """Return the time of the last call of a release before *until*."""
        for day in sorted(self.days[release], reverse=True):
            if (until is None or day < until) and (hours := self._hours(release, day, until)):
                return self._times(release, max(hours), until)[1]
        raise AssertionError("a release has a first call")

    def _hours(self, release: str, day: int, until: int | None) -> list[int]:
        """Return the first microseconds of the hours with calls of a release in a day."""
        window = self._part(day, DAY, until)
        groups = self._groups(release, window, ("hour",))
        return [_begin(hour) for hour in groups.costs().dimensions[0]]

    def _times(self, release: str, hour: int, until: int | None) -> tuple[int, int]:
        """Return the times of the first and the last call of a release in an hour."""
        found = self.source.time_range(self._where(release), self._part(hour, _HOUR, until))
        assert found is not None
        return found

    def _part(self, begin: int, length: int, until: int | None) -> Window:
        """Return a day or an hour, within the window of the report and before *until*."""
        bounds = [at for at in (begin + length, until, self.window.until) if at is not None]
        return Window(max(begin, self.window.since or begin), min(bounds))

    def _use(self, side: Side, model: str | None, total: Spend) -> ModelUse:
        read, written = total.cache_read_tokens or 0, total.cache_write_tokens or 0
        tokens = (
            (total.input_tokens or 0) - read - written,
            read,
            written,
            total.output_tokens or 0,
        )
        rates = self._rates(side, model)
        return ModelUse(
            total.calls,
            tokens,
            total.cost_femto or 0,
            rates,
            (side.release, model) in self.reported,
        )

    def _rates(self, side: Side, model: str | None) -> tuple[Fraction, ...] | None:
        """
        Return the unit prices of a model in a release, under terms that both releases have used.

        They differ from those of the other release only if they have changed: the first calls of
        both have no prices in common.
        """
        first, second = (self._terms(release, model) for release in self.sides)
        common = [terms for terms in first if terms in second]
        for terms in common:
            if same := first[terms] & second[terms]:
                return min(same)
        if common:
            return min((first if side is self.sides[0] else second)[common[0]])
        return next((min(prices) for prices in (*first.values(), *second.values())), None)

    def _terms(self, side: Side, model: str | None) -> Terms:
        """Return the unit prices of a model's first calls in a release, by their terms."""
        key = side.release, model
        if key not in self.rates:
            self.rates[key] = {}
            where = {
                **self._where(side.release),
                "model": None if model is None else literal(model),
                "cost_status": ("priced", "partial"),
            }
            for call in self.source.calls(
                where, side.window, SAMPLE, original_prices=self.original_prices, zone=self.zone
            ):
                if call.list_femto is not None:
                    self.reported.add(key)
                if call.price is not None and (prices := _unit_prices(call.price)) is not None:
                    self.rates[key].setdefault(f"{call.batch} {call.service_tier}", set()).add(
                        prices
                    )
        return self.rates[key]

    def tests(self, grain: str) -> tuple[Test, Test]:
        """
        Test the cost per day or hour, and per call, of all users together: return p-values and
        directions.
        """
        return _tests([self._series(side, grain, None)[None] for side in self.sides])

    def tests_of_users(
        self, users: Sequence[str | None], grain: str
    ) -> dict[str | None, tuple[Test, Test]]:
        """Test the same of each of some users."""
        sides = [self._series(side, grain, users) for side in self.sides]
        return {user: _tests([side[user] for side in sides]) for user in users}

    def _series(
        self, side: Side, grain: str, users: Sequence[str | None] | None
    ) -> dict[str | None, list[tuple[float, int]]]:
        """
        Return the cost (USD) and the priced calls of each whole day or hour, also without calls, by
        user. Without *users*, those of all of them together.
        """
        whole = _whole(side.window, grain, self.zone or UTC)
        costs: dict[tuple[str | None, str], tuple[float, int]] = {}
        if whole:
            time = Window(whole[0][1], whole[-1][2])
            for group in self.spend(side.release, time, (grain,), users):
                costs[group.dimensions.get("user_id"), str(group.dimensions[grain])] = (
                    (group.cost_femto or 0) / 1e15,
                    group.calls - group.unpriced_calls,
                )
        return {
            user: [costs.get((user, name), (0.0, 0)) for name, *_ in whole]
            for user in ((None,) if users is None else users)
        }


def _tests(sides: Sequence[Sequence[tuple[float, int]]]) -> tuple[Test, Test]:
    days = [[cost for cost, _ in side] for side in sides]
    calls = [[cost / count for cost, count in side if count] for side in sides]
    return _test(*days), _test(*calls)


def _test(before: Sequence[float], after: Sequence[float]) -> Test:
    if min(len(before), len(after)) < min(MIN_CALLS.values()):
        return None, 0.0
    return welch(before, after), sum(after) / len(after) - sum(before) / len(before)


@lru_cache(64)  # the calls of a sample have few different prices
def _unit_prices(price: str) -> tuple[Fraction, ...] | None:
    """
    Return the prices of input, cache read, cache write and output; by default the input price.
    """
    try:
        units = msgspec.json.decode(price.partition("\n")[0])["unit_usd"]
        full = Fraction(units.get("input", 0))
        written = units.get("cache_write_5m", units.get("cache_write", full))
        return (
            full,
            Fraction(units.get("cache_read", full)),
            Fraction(written),
            Fraction(units.get("output", 0)),
        )
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


def grain_of(before: Window, after: Window, zone: tzinfo) -> str | None:
    for grain, least in MIN_CALLS.items():
        if min(len(_whole(before, grain, zone)), len(_whole(after, grain, zone))) >= least:
            return grain
    return None


def _whole(window: Window, grain: str, zone: tzinfo) -> list[tuple[str, int, int]]:
    """
    Return the whole days or hours in a window: their names, as the ledger has them, and their
    beginnings and ends in microseconds since 1970.
    """
    since, until = to_datetime(window.since or 0), to_datetime(window.until or 0)
    found: list[tuple[str, int, int]] = []

    def add(name: str, begin: datetime, end: datetime) -> None:
        if since <= begin and end <= until:
            found.append((name, to_microseconds(begin), to_microseconds(end)))

    if grain == "day":
        day = since.astimezone(zone).date()
        while (
            begin := datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
        ) < until:
            day += _STEPS["day"]
            end = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
            add((day - _STEPS["day"]).isoformat(), begin, end)
        return found
    begin = since.astimezone(zone)
    begin = (
        begin
        - timedelta(minutes=begin.minute, seconds=begin.second, microseconds=begin.microsecond)
    ).astimezone(UTC)
    while begin < until:
        local = begin.astimezone(zone)
        name = (
            local.strftime("%Y-%m-%dT%H:%MZ")
            if zone is UTC
            else local.isoformat(timespec="minutes")
        )
        add(name, begin, begin + _STEPS["hour"])
        begin += _STEPS["hour"]
    return found


def _begin(name: str | None) -> int:
    """Return the first microsecond of a day or an hour in UTC, by its name."""
    return to_microseconds(datetime.fromisoformat(str(name)).replace(tzinfo=UTC))
