"""Release: whose bill a release has changed, why, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from fractions import Fraction
from typing import Literal, TypeAlias

import msgspec

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.reports.cost_drivers import Causes, ModelUse, Period, causes
from voight_middleware.reports.significance import discoveries, welch
from voight_middleware.reports.spend import add_up, per
from voight_middleware.reports.timespan import to_datetime, to_microseconds
from voight_middleware.reports.unattributed_share import Unattributed

TESTED = 100
"""How many users are tested: those who cost most in both releases together. A selection by the difference itself would find too many."""
SAMPLE = 200
"""How many of the first calls of a model are looked at for its unit prices."""
MIN_CALLS = {"day": 3, "hour": 12}
"""How many whole days, or else hours, both releases need for a test."""

_HOUR = 3_600_000_000
_DAY = 24 * _HOUR
_STEPS = {"day": timedelta(days=1), "hour": timedelta(hours=1)}

Verdict: TypeAlias = Literal["more", "less", "noise", "untested"]


class NoSuchRelease(ValueError):
    """There are no calls of a release, or none came before it; the message says which ones there are."""


@dataclass(frozen=True, slots=True)
class Side:
    """A release in its time."""

    release: str
    window: Window
    """From its first call to its last one, or to the first call of the release that came next."""
    spend: Spend
    unowned: Spend
    later: int
    """How many of its calls came behind that time, and are not compared."""

    @property
    def days(self) -> Fraction:
        """The length of its time in days; an hour at least."""
        return Fraction(max((self.window.until or 0) - (self.window.since or 0), _HOUR), _DAY)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a test says of one difference."""

    verdict: Verdict = "untested"
    p_value: float | None = None
    """How often chance alone makes a difference as large; None where that was not tested."""


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """One user, or all, before and after."""

    user_id: str | None
    before: Spend
    after: Spend
    before_per_day: int
    """Femto-dollars per day of the release's time; what is not priced counts as nothing."""
    after_per_day: int
    causes: Causes | None
    """What of the difference per day is due to what."""
    per_day: Finding
    """Whether the cost of a day has changed by more than noise."""
    of_a_call: Finding
    """Whether the cost of a call has."""

    @property
    def difference_per_day(self) -> int:
        """Femto-dollars per day."""
        return self.after_per_day - self.before_per_day

    @property
    def per_call(self) -> tuple[int | None, int | None]:
        """What a priced call costs, before and after."""
        first, second = (per(spend.cost_femto, spend.calls - spend.unpriced_calls) for spend in (self.before, self.after))
        return first, second

    @property
    def status(self) -> str | None:
        """``new`` where there were no calls before, ``gone`` where there are none any more, otherwise None."""
        if self.before.calls and self.after.calls:
            return None
        return "new" if self.after.calls else "gone"


@dataclass(frozen=True, slots=True)
class ReleaseReport:
    """The users whose cost per day has changed most, and the change in all."""

    before: Side
    after: Side
    rows: tuple[ReleaseRow, ...]
    total: ReleaseRow
    more: int
    tested: int
    """How many users were tested."""
    changed: int
    """How many of those cost more or less, in a day or by the call, by more than noise."""
    grain: str | None
    """The test compares the cost of each ``day`` or ``hour``; None where both are too few."""
    owners: Unattributed
    """What of the calls after has no user."""


def release(
    ledger: Ledger,
    name: str,
    against: str | None = None,
    where: Where | None = None,
    window: Window = Window(),
    limit: int | None = 10,
    *,
    original_prices: bool = False,
    zone: tzinfo | None = None,
) -> ReleaseReport:
    """
    A release beside another one, by user and in all, per day and per call.

    Each has its time: from its first call to its last one, or to the first call of the release that came next, as one forgotten
    process may go on for weeks.

    Args:
        ledger: Where the calls are.
        name: The release.
        against: Another one; by default the one whose first call is the last before the first of *name*.
        where: Values that calls must have: ``*`` stands for any text, None for no value.
        window: The time in which both are looked at.
        limit: How many rows to keep.
        original_prices: By the price that each call was given first, whatever has replaced it.
        zone: Where the days begin that are compared; None means UTC.

    Raises:
        ValueError: *where* has a release or a time.
        NoSuchRelease: One of them has no calls, or *against* is not given and there is none before.
        UnknownDimension: A name in *where* is no dimension, and no extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    where = dict(where or {})
    if taken := {"release", "hour", "day", "week", "month"} & {key.removesuffix("!") for key in where}:
        raise ValueError(f"a release has its own time: filter by other things than {min(taken)}, and give the time as a window")
    asking = _Asking(ledger, where, original_prices, zone)
    first = _first_calls(ledger, where, window)
    if name not in first:
        raise NoSuchRelease(f"there are no calls of the release {name!r}; there are {_listed(first)}")
    if against is None:
        earlier = [other for other in first if first[other] < first[name]]
        if not earlier:
            raise NoSuchRelease(f"{name!r} is the first release here; say with --against what to compare it with")
        against = max(earlier, key=first.__getitem__)
    if against not in first or against == name:
        others = {other: at for other, at in first.items() if other != name}
        raise NoSuchRelease(f"{name!r} cannot be compared with {against!r}; there are {_listed(others)}")

    before, users_before = asking.side(against, first, window)
    after, users_after = asking.side(name, first, window)
    asking.sides[:] = before, after
    costs = {
        user: (_per_day(users_before.get(user), before), _per_day(users_after.get(user), after)) for user in {**users_before, **users_after}
    }
    heaviest = sorted(costs, key=lambda user: (-sum(costs[user]), user or ""))[:TESTED]
    grain = _grain(before.window, after.window, zone or UTC)
    tests = {} if grain is None else {user: asking.tests(before, after, _Only(user), grain) for user in heaviest}
    found = _findings(tests)

    def row(user: str | None) -> ReleaseRow:
        past, now = users_before.get(user, Spend()), users_after.get(user, Spend())
        split = causes(*(asking.period(side, _Only(user), 1) for side in (before, after)))
        return ReleaseRow(user, past, now, *costs[user], split, *found.get(user, (Finding(), Finding())))

    movers = sorted(costs, key=lambda user: (-abs(costs[user][1] - costs[user][0]), user or ""))
    shown = movers if limit is None else movers[:limit]
    split = causes(*(asking.period(side, None, _priced_users(users)) for side, users in ((before, users_before), (after, users_after))))
    per_day = _per_day(before.spend, before), _per_day(after.spend, after)
    in_all = _findings({} if grain is None else {None: asking.tests(before, after, None, grain)})
    return ReleaseReport(
        before=before,
        after=after,
        rows=tuple(map(row, shown)),
        total=ReleaseRow(None, before.spend, after.spend, *per_day, split, *in_all.get(None, (Finding(), Finding()))),
        more=len(movers) - len(shown),
        tested=sum(any(finding.p_value is not None for finding in pair) for pair in found.values()),
        changed=sum(any(finding.verdict in ("more", "less") for finding in pair) for pair in found.values()),
        grain=grain,
        owners=Unattributed(after.unowned, after.spend),
    )


@dataclass(frozen=True, slots=True)
class _Only:
    """One user, or the calls without one."""

    user_id: str | None


@dataclass(frozen=True, slots=True)
class _Asking:
    """The ledger, and what all questions to it share."""

    ledger: Ledger
    where: Where
    original_prices: bool
    zone: tzinfo | None
    sides: list[Side] = field(default_factory=list)
    """Both releases, once they are known."""
    rates: dict[tuple[str, str | None], _Terms] = field(default_factory=dict)
    """Unit prices by release and model, once they have been looked for."""
    reported: set[tuple[str, str | None]] = field(default_factory=set)
    """Those whose provider reports the cost itself."""

    def groups(self, release: str, window: Window, by: Sequence[str], only: _Only | None = None) -> list[Spend]:
        """Calls of a release added up. Names are compared as they are: a star in one stands for itself."""
        where: dict[str, str | tuple[str | None, ...] | None] = {**self.where, "release": release}
        exact: dict[str, str | None] = {"release": release} if "*" in release else {}
        if only is not None:
            where["user_id"] = only.user_id
            if only.user_id is not None and "*" in only.user_id:
                exact["user_id"] = only.user_id
        groups = self.ledger.spend((*by, *exact), where, window, original_prices=self.original_prices, zone=self.zone)
        return [group for group in groups if all(group.dimensions[name] == value for name, value in exact.items())]

    def side(self, release: str, first: Mapping[str, int], window: Window) -> tuple[Side, dict[str | None, Spend]]:
        """A release in its time, and its users."""
        next_one = min((at for at in first.values() if at > first[release]), default=None)
        end = self._behind_the_last(release, Window(first[release], window.until if next_one is None else next_one))
        time = Window(first[release], end)
        users = {group.dimensions["user_id"]: group for group in self.groups(release, time, ("user_id",))}
        later = add_up(self.groups(release, Window(end, window.until), ())).calls
        return Side(release, time, add_up([*users.values()]), users.get(None, Spend()), later), users

    def _behind_the_last(self, release: str, window: Window) -> int:
        """The microsecond behind the last call of a release."""
        hours = [str(group.dimensions["hour"]) for group in self._in_utc(release, window)]
        begin = datetime.fromisoformat(max(hours))
        last_hour = Window(max(to_microseconds(begin), window.since or 0), window.until)
        where = {**self.where, "release": release}
        calls = self.ledger.calls(where, last_hour, zone=self.zone)
        return max(call.occurred_at for call in calls if call.tags.release == release) + 1

    def _in_utc(self, release: str, window: Window) -> list[Spend]:
        days = _Asking(self.ledger, self.where, False, None)
        last = max(str(group.dimensions["day"]) for group in days.groups(release, window, ("day",)))
        begin = to_microseconds(datetime.fromisoformat(last).replace(tzinfo=UTC))
        return days.groups(release, Window(max(begin, window.since or 0), window.until), ("hour",))

    def period(self, side: Side, only: _Only | None, users: int) -> Period:
        """The priced calls of a release by model, of one user or of all."""
        parts: dict[str | None, list[Spend]] = {}
        for group in self.groups(side.release, side.window, ("model", "cost_status"), only):
            if group.dimensions["cost_status"] != "unpriced":
                parts.setdefault(group.dimensions["model"], []).append(group)
        models = {model: self._use(side, model, add_up(groups)) for model, groups in parts.items()}
        return Period(side.days, users if models else 0, models)

    def _use(self, side: Side, model: str | None, total: Spend) -> ModelUse:
        read, written = total.cache_read_tokens or 0, total.cache_write_tokens or 0
        tokens = ((total.input_tokens or 0) - read - written, read, written, total.output_tokens or 0)
        rates = self._rates(side, model)
        return ModelUse(total.calls, tokens, total.cost_femto or 0, rates, (side.release, model) in self.reported)

    def _rates(self, side: Side, model: str | None) -> tuple[Fraction, ...] | None:
        """
        The unit prices of a model in a release, under terms that the other one has used too. They differ from those of the other one
        only where they have changed: none of the first calls of one had what the first calls of the other had.
        """
        first, second = (self._terms(one, model) for one in self.sides)
        common = [terms for terms in first if terms in second]
        for terms in common:
            if same := first[terms] & second[terms]:
                return min(same)
        if common:
            return min((first if side is self.sides[0] else second)[common[0]])
        return next((min(prices) for prices in (*first.values(), *second.values())), None)

    def _terms(self, side: Side, model: str | None) -> _Terms:
        """The unit prices of the first calls of a model in a release, by the terms that they were served under."""
        key = side.release, model
        if key not in self.rates:
            self.rates[key] = {}
            where = {**self.where, "release": side.release, "model": model, "cost_status": ("priced", "partial")}
            for call in self.ledger.calls(where, side.window, SAMPLE, original_prices=self.original_prices, zone=self.zone):
                if call.list_femto is not None:
                    self.reported.add(key)
                if call.price is not None and (prices := _unit_prices(call.price)) is not None:
                    self.rates[key].setdefault(f"{call.batch} {call.service_tier}", set()).add(prices)
        return self.rates[key]

    def tests(self, before: Side, after: Side, only: _Only | None, grain: str) -> tuple[_Test, _Test]:
        """Of the cost of a day or hour, and of a call: the p-value, and in which direction it has changed."""
        sides = [self._series(side, only, grain) for side in (before, after)]
        days = [[cost for cost, _ in side] for side in sides]
        calls = [[cost / count for cost, count in side if count] for side in sides]
        return _test(*days), _test(*calls)

    def _series(self, side: Side, only: _Only | None, grain: str) -> list[tuple[float, int]]:
        """What each whole day or hour of a release's time has cost, in US dollars, and its priced calls; those without calls included."""
        costs: dict[str, tuple[float, int]] = {}
        for group in self.groups(side.release, side.window, (grain,), only):
            costs[str(group.dimensions[grain])] = (group.cost_femto or 0) / 1e15, group.calls - group.unpriced_calls
        return [costs.get(name, (0.0, 0)) for name in _whole(side.window, grain, self.zone or UTC)]


_Terms: TypeAlias = dict[str, set[tuple[Fraction, ...]]]
_Test: TypeAlias = tuple[float | None, float]


def _test(before: Sequence[float], after: Sequence[float]) -> _Test:
    if min(len(before), len(after)) < min(MIN_CALLS.values()):
        return None, 0.0
    return welch(before, after), sum(after) / len(after) - sum(before) / len(before)


def _findings(tests: Mapping[str | None, tuple[_Test, _Test]]) -> dict[str | None, tuple[Finding, Finding]]:
    """What the tests of several users say together."""
    p_values = [p for pair in tests.values() for p, _ in pair if p is not None]
    changed = iter(discoveries(p_values))

    def finding(test: _Test) -> Finding:
        p, direction = test
        if p is None:
            return Finding()
        if not next(changed):
            return Finding("noise", p)
        return Finding("more" if direction > 0 else "less", p)

    return {user: (finding(pair[0]), finding(pair[1])) for user, pair in tests.items()}


def _first_calls(ledger: Ledger, where: Where, window: Window) -> dict[str, int]:
    """When each release was called first, to the hour, and where two began in one hour to the microsecond."""
    days: dict[str, str] = {}
    for group in ledger.spend(("release", "day"), where, window):
        name, day = group.dimensions["release"], str(group.dimensions["day"])
        if name is not None:
            days[name] = min(day, days.get(name, day))
    first: dict[str, int] = {}
    for name, day in days.items():
        begin = to_microseconds(datetime.fromisoformat(day).replace(tzinfo=UTC))
        time = Window(max(begin, window.since or 0), window.until)
        calls = ledger.calls({**where, "release": name}, time)
        first[name] = next(call.occurred_at for call in calls if call.tags.release == name)
    return first


def _unit_prices(price: str) -> tuple[Fraction, ...] | None:
    """Of input, cache read, cache write and output; a kind without a price of its own costs what input does."""
    try:
        units = msgspec.json.decode(price.partition("\n")[0])["unit_usd"]
        full = Fraction(units.get("input", 0))
        written = units.get("cache_write_5m", units.get("cache_write", full))
        return full, Fraction(units.get("cache_read", full)), Fraction(written), Fraction(units.get("output", 0))
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _grain(before: Window, after: Window, zone: tzinfo) -> str | None:
    for grain, least in MIN_CALLS.items():
        if min(len(_whole(before, grain, zone)), len(_whole(after, grain, zone))) >= least:
            return grain
    return None


def _whole(window: Window, grain: str, zone: tzinfo) -> list[str]:
    """The days or hours that lie in a window as a whole, named as the ledger names them."""
    since, until = to_datetime(window.since or 0), to_datetime(window.until or 0)
    names: list[str] = []
    if grain == "day":
        day = since.astimezone(zone).date()
        while (begin := datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)) < until:
            day += _STEPS["day"]
            end = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
            if since <= begin and end <= until:
                names.append((day - _STEPS["day"]).isoformat())
        return names
    begin = since.astimezone(zone)
    begin = (begin - timedelta(minutes=begin.minute, seconds=begin.second, microseconds=begin.microsecond)).astimezone(UTC)
    while begin < until:
        if since <= begin and begin + _STEPS["hour"] <= until:
            local = begin.astimezone(zone)
            names.append(local.strftime("%Y-%m-%dT%H:%MZ") if zone is UTC else local.isoformat(timespec="minutes"))
        begin += _STEPS["hour"]
    return names


def _per_day(spend: Spend | None, side: Side) -> int:
    return 0 if spend is None else round(Fraction(spend.cost_femto or 0) / side.days)


def _priced_users(users: Mapping[str | None, Spend]) -> int:
    return sum(spend.calls > spend.unpriced_calls for spend in users.values())


def _listed(releases: Mapping[str, int]) -> str:
    names: Iterable[str] = sorted(releases, key=releases.__getitem__, reverse=True)
    listed = [repr(name) for name in names]
    return ", ".join(listed[:10]) + (", …" if len(listed) > 10 else "") if listed else "none"
