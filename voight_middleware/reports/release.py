"""Release: the costs that a release has changed, the causes, and the significance."""

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
"""
The number of tested users: those who cost most in both releases together. A selection by the
difference itself would yield too many discoveries.
"""
SAMPLE = 200
"""The number of first calls of a model whose unit prices are read."""
MIN_CALLS = {"day": 3, "hour": 12}
"""The whole days, or else hours, that both releases need for a test."""

_HOUR = 3_600_000_000
_DAY = 24 * _HOUR
_STEPS = {"day": timedelta(days=1), "hour": timedelta(hours=1)}

Verdict: TypeAlias = Literal["more", "less", "noise", "untested"]


class NoSuchRelease(ValueError):
    """A release has no calls, or no predecessor; the message lists the releases."""


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
    def days(self) -> Fraction:
        """The length of its time in days, at least one hour."""
        return Fraction(max((self.window.until or 0) - (self.window.since or 0), _HOUR), _DAY)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a test of one difference."""

    verdict: Verdict = "untested"
    p_value: float | None = None
    """The probability of such a difference by chance; None if it was not tested."""


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """One user, or all of them, before and after."""

    user_id: str | None
    before: Spend
    after: Spend
    before_per_day: int
    """Femto-dollars per day of the release's time; unpriced calls count as 0."""
    after_per_day: int
    causes: Causes | None
    """The parts of the difference per day."""
    per_day: Finding
    """The test of the cost per day."""
    of_a_call: Finding
    """The test of the cost per call."""

    @property
    def difference_per_day(self) -> int:
        """Femto-dollars per day."""
        return self.after_per_day - self.before_per_day

    @property
    def per_call(self) -> tuple[int | None, int | None]:
        """The cost of a priced call, before and after."""
        first, second = (
            per(spend.cost_femto, spend.calls - spend.unpriced_calls)
            for spend in (self.before, self.after)
        )
        return first, second

    @property
    def status(self) -> str | None:
        """``new`` without calls before, ``gone`` without calls after, otherwise None."""
        if self.before.calls and self.after.calls:
            return None
        return "new" if self.after.calls else "gone"


@dataclass(frozen=True, slots=True)
class ReleaseReport:
    """The users whose cost per day has changed most, and the total change."""

    before: Side
    after: Side
    rows: tuple[ReleaseRow, ...]
    total: ReleaseRow
    more: int
    tested: int
    """The number of tested users."""
    changed: int
    """The number of tested users with a significant change, per day or per call."""
    grain: str | None
    """The test compares the cost of each ``day`` or ``hour``; None if there are too few."""
    owners: Unattributed
    """The calls of the later release without a user."""


# Complex: the steps of the report, in order.
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
    Compare a release with another one, by user and in total, per day and per call.

    The time of a release is from its first call to its last call, or to the first call of the next
    release: a forgotten process may continue for weeks.

    Args:
        ledger: The ledger to read.
        name: The release.
        against: The release to compare with. By default the one that began last before *name*.
        where: Filters: ``*`` stands for any text, None for calls without a value.
        window: The time of the calls of both releases.
        limit: The number of rows to return.
        original_prices: Whether each call counts with its first price, before any repricing.
        zone: The time zone of the compared days; None means UTC.

    Raises:
        ValueError: *where* contains a release or a time.
        NoSuchRelease: A release has no calls, or *name* has no predecessor.
        UnknownDimension: A name in *where* is neither a dimension nor an extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    where = dict(where or {})
    if taken := {"release", "hour", "day", "week", "month"} & {
        key.removesuffix("!") for key in where
    }:
        raise ValueError(
            f"a release has its own time: do not filter by {min(taken)}, and give the time as a "
            "window"
        )
    queries = _Queries(ledger, where, original_prices, zone)
    first = _first_calls(ledger, where, window)
    if name not in first:
        raise NoSuchRelease(
            f"there are no calls of the release {name!r}; there are {_listed(first)}"
        )
    if against is None:
        earlier = [other for other in first if first[other] < first[name]]
        if not earlier:
            raise NoSuchRelease(
                f"{name!r} is the first release here; give a release to compare it with by "
                "--against"
            )
        against = max(earlier, key=first.__getitem__)
    if against not in first or against == name:
        others = {other: at for other, at in first.items() if other != name}
        raise NoSuchRelease(
            f"{name!r} cannot be compared with {against!r}; there are {_listed(others)}"
        )

    before, users_before = queries.side(against, first, window)
    after, users_after = queries.side(name, first, window)
    queries.sides[:] = before, after
    costs = {
        user: (_per_day(users_before.get(user), before), _per_day(users_after.get(user), after))
        for user in {**users_before, **users_after}
    }
    heaviest = sorted(costs, key=lambda user: (-sum(costs[user]), user or ""))[:TESTED]
    grain = _grain(before.window, after.window, zone or UTC)
    tests = (
        {}
        if grain is None
        else {user: queries.tests(before, after, _Only(user), grain) for user in heaviest}
    )
    findings = _findings(tests)

    def row(user: str | None) -> ReleaseRow:
        past, now = users_before.get(user, Spend()), users_after.get(user, Spend())
        split = causes(*(queries.period(side, _Only(user), 1) for side in (before, after)))
        return ReleaseRow(
            user, past, now, *costs[user], split, *findings.get(user, (Finding(), Finding()))
        )

    movers = sorted(costs, key=lambda user: (-abs(costs[user][1] - costs[user][0]), user or ""))
    shown = movers if limit is None else movers[:limit]
    split = causes(
        *(
            queries.period(side, None, _priced_users(users))
            for side, users in ((before, users_before), (after, users_after))
        )
    )
    per_day = _per_day(before.spend, before), _per_day(after.spend, after)
    in_all = _findings({} if grain is None else {None: queries.tests(before, after, None, grain)})
    return ReleaseReport(
        before=before,
        after=after,
        rows=tuple(map(row, shown)),
        total=ReleaseRow(
            None,
            before.spend,
            after.spend,
            *per_day,
            split,
            *in_all.get(None, (Finding(), Finding())),
        ),
        more=len(movers) - len(shown),
        tested=sum(
            any(finding.p_value is not None for finding in pair) for pair in findings.values()
        ),
        changed=sum(
            any(finding.verdict in ("more", "less") for finding in pair)
            for pair in findings.values()
        ),
        grain=grain,
        owners=Unattributed(after.unowned, after.spend),
    )


@dataclass(frozen=True, slots=True)
class _Only:
    """One user, or the calls without one."""

    user_id: str | None


@dataclass(frozen=True, slots=True)
class _Queries:
    """The ledger, and the arguments that all queries share."""

    ledger: Ledger
    where: Where
    original_prices: bool
    zone: tzinfo | None
    sides: list[Side] = field(default_factory=list)
    """Both releases, after their queries."""
    rates: dict[tuple[str, str | None], _Terms] = field(default_factory=dict)
    """A cache of unit prices by release and model."""
    reported: set[tuple[str, str | None]] = field(default_factory=set)
    """The releases and models whose provider reports the cost."""

    def groups(
        self, release: str, window: Window, by: Sequence[str], only: _Only | None = None
    ) -> list[Spend]:
        """Add up calls of a release. A star in a release or user id stands for itself."""
        where: dict[str, str | tuple[str | None, ...] | None] = {**self.where, "release": release}
        exact: dict[str, str | None] = {"release": release} if "*" in release else {}
        if only is not None:
            where["user_id"] = only.user_id
            if only.user_id is not None and "*" in only.user_id:
                exact["user_id"] = only.user_id
        groups = self.ledger.spend(
            (*by, *exact), where, window, original_prices=self.original_prices, zone=self.zone
        )
        return [
            group
            for group in groups
            if all(group.dimensions[name] == value for name, value in exact.items())
        ]

    def side(
        self, release: str, first: Mapping[str, int], window: Window
    ) -> tuple[Side, dict[str | None, Spend]]:
        """Return a release with its time, and its users."""
        next_one = min((at for at in first.values() if at > first[release]), default=None)
        end = self._end(
            release, Window(first[release], window.until if next_one is None else next_one)
        )
        time = Window(first[release], end)
        users = {
            group.dimensions["user_id"]: group for group in self.groups(release, time, ("user_id",))
        }
        later = add_up(self.groups(release, Window(end, window.until), ())).calls
        return Side(
            release, time, add_up([*users.values()]), users.get(None, Spend()), later
        ), users

    def _end(self, release: str, window: Window) -> int:
        """Return the microsecond after the last call of a release."""
        hours = [str(group.dimensions["hour"]) for group in self._in_utc(release, window)]
        begin = datetime.fromisoformat(max(hours))
        last_hour = Window(max(to_microseconds(begin), window.since or 0), window.until)
        where = {**self.where, "release": release}
        calls = self.ledger.calls(where, last_hour, zone=self.zone)
        return max(call.occurred_at for call in calls if call.tags.release == release) + 1

    def _in_utc(self, release: str, window: Window) -> list[Spend]:
        days = _Queries(self.ledger, self.where, False, None)
        last = max(str(group.dimensions["day"]) for group in days.groups(release, window, ("day",)))
        begin = to_microseconds(datetime.fromisoformat(last).replace(tzinfo=UTC))
        return days.groups(release, Window(max(begin, window.since or 0), window.until), ("hour",))

    def period(self, side: Side, only: _Only | None, users: int) -> Period:
        """Return the priced calls of a release by model, of one user or of all."""
        parts: dict[str | None, list[Spend]] = {}
        for group in self.groups(side.release, side.window, ("model", "cost_status"), only):
            if group.dimensions["cost_status"] != "unpriced":
                parts.setdefault(group.dimensions["model"], []).append(group)
        models = {model: self._use(side, model, add_up(groups)) for model, groups in parts.items()}
        return Period(side.days, users if models else 0, models)

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

    def _terms(self, side: Side, model: str | None) -> _Terms:
        """Return the unit prices of a model's first calls in a release, by their terms."""
        key = side.release, model
        if key not in self.rates:
            self.rates[key] = {}
            where = {
                **self.where,
                "release": side.release,
                "model": model,
                "cost_status": ("priced", "partial"),
            }
            for call in self.ledger.calls(
                where, side.window, SAMPLE, original_prices=self.original_prices, zone=self.zone
            ):
                if call.list_femto is not None:
                    self.reported.add(key)
                if call.price is not None and (prices := _unit_prices(call.price)) is not None:
                    self.rates[key].setdefault(f"{call.batch} {call.service_tier}", set()).add(
                        prices
                    )
        return self.rates[key]

    def tests(
        self, before: Side, after: Side, only: _Only | None, grain: str
    ) -> tuple[_Test, _Test]:
        """Test the cost per day or hour, and per call: return p-values and directions."""
        sides = [self._series(side, only, grain) for side in (before, after)]
        days = [[cost for cost, _ in side] for side in sides]
        calls = [[cost / count for cost, count in side if count] for side in sides]
        return _test(*days), _test(*calls)

    def _series(self, side: Side, only: _Only | None, grain: str) -> list[tuple[float, int]]:
        """
        Return the cost (USD) and the priced calls of each whole day or hour, also without calls.
        """
        costs: dict[str, tuple[float, int]] = {}
        for group in self.groups(side.release, side.window, (grain,), only):
            costs[str(group.dimensions[grain])] = (
                (group.cost_femto or 0) / 1e15,
                group.calls - group.unpriced_calls,
            )
        return [costs.get(name, (0.0, 0)) for name in _whole(side.window, grain, self.zone or UTC)]


_Terms: TypeAlias = dict[str, set[tuple[Fraction, ...]]]
_Test: TypeAlias = tuple[float | None, float]


def _test(before: Sequence[float], after: Sequence[float]) -> _Test:
    if min(len(before), len(after)) < min(MIN_CALLS.values()):
        return None, 0.0
    return welch(before, after), sum(after) / len(after) - sum(before) / len(before)


def _findings(
    tests: Mapping[str | None, tuple[_Test, _Test]],
) -> dict[str | None, tuple[Finding, Finding]]:
    """Return the findings of several users, with a common false discovery rate."""
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
    """Return the time of the first call of each release, in microseconds since 1970."""
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


def _grain(before: Window, after: Window, zone: tzinfo) -> str | None:
    for grain, least in MIN_CALLS.items():
        if min(len(_whole(before, grain, zone)), len(_whole(after, grain, zone))) >= least:
            return grain
    return None


def _whole(window: Window, grain: str, zone: tzinfo) -> list[str]:
    """Return the names of the whole days or hours in a window, as the ledger has them."""
    since, until = to_datetime(window.since or 0), to_datetime(window.until or 0)
    names: list[str] = []
    if grain == "day":
        day = since.astimezone(zone).date()
        while (
            begin := datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
        ) < until:
            day += _STEPS["day"]
            end = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
            if since <= begin and end <= until:
                names.append((day - _STEPS["day"]).isoformat())
        return names
    begin = since.astimezone(zone)
    begin = (
        begin
        - timedelta(minutes=begin.minute, seconds=begin.second, microseconds=begin.microsecond)
    ).astimezone(UTC)
    while begin < until:
        if since <= begin and begin + _STEPS["hour"] <= until:
            local = begin.astimezone(zone)
            names.append(
                local.strftime("%Y-%m-%dT%H:%MZ")
                if zone is UTC
                else local.isoformat(timespec="minutes")
            )
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
