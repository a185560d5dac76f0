"""Release: the costs that a release has changed, the causes, and the significance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from fractions import Fraction
from heapq import nlargest, nsmallest
from operator import gt
from typing import Literal, TypeAlias

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.base import Costs
from voight_middleware.reports.cost_drivers import Causes, causes
from voight_middleware.reports.release_queries import DAY, Queries, Side, Test, grain_of
from voight_middleware.reports.significance import discoveries
from voight_middleware.reports.spend import per
from voight_middleware.reports.unattributed_share import Unattributed

TESTED = 100
"""
The number of tested users: those who cost most in both releases together. A selection by the
difference itself would yield too many discoveries.
"""


Verdict: TypeAlias = Literal["more", "less", "noise", "untested"]


class NoSuchRelease(ValueError):
    """A release has no calls, or no predecessor; the message lists the releases."""


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
    with ledger.snapshot():
        return _compare(Queries(ledger, where, window, original_prices, zone), name, against, limit)


# Complex: the steps of the report, in order.
def _compare(queries: Queries, name: str, against: str | None, limit: int | None) -> ReleaseReport:
    first = queries.first_calls()
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

    before, users_before = queries.side(against, first)
    after, users_after = queries.side(name, first)
    queries.sides[:] = before, after
    past, now = _per_days(users_before, before), _per_days(users_after, after)
    costs = {user: (past.get(user, 0), now.get(user, 0)) for user in {**past, **now}}
    sums = {user: first + second for user, (first, second) in costs.items()}
    heaviest = nlargest(TESTED, costs, sums.__getitem__)
    if len(costs) > TESTED:  # of several users with the cost of the last one, the first by name
        least = sums[heaviest[-1]]
        heaviest = [user for user, cost in sums.items() if cost >= least]
    heaviest = sorted(heaviest, key=lambda user: (-sums[user], user or ""))[:TESTED]
    grain = grain_of(before.window, after.window, queries.zone or UTC)
    findings = _findings({} if grain is None else queries.tests_of_users(heaviest, grain))

    def moved(user: str | None) -> tuple[int, str]:
        return -abs(costs[user][1] - costs[user][0]), user or ""

    shown = sorted(costs, key=moved) if limit is None else nsmallest(limit, costs, key=moved)
    spends = [queries.users(side).of([(user,) for user in shown]) for side in (before, after)]
    periods = [queries.periods(side, shown) for side in (before, after)]

    def row(user: str | None) -> ReleaseRow:
        past, now = (spend.get((user,), Spend()) for spend in spends)
        split = causes(*(period[user] for period in periods))
        return ReleaseRow(
            user, past, now, *costs[user], split, *findings.get(user, (Finding(), Finding()))
        )

    split = causes(
        *(
            queries.period(side, _priced_users(users))
            for side, users in ((before, users_before), (after, users_after))
        )
    )
    per_day = _per_day(before.spend, before), _per_day(after.spend, after)
    in_all = _findings({} if grain is None else {None: queries.tests(grain)})
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
        more=len(costs) - len(shown),
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


def _findings(
    tests: Mapping[str | None, tuple[Test, Test]],
) -> dict[str | None, tuple[Finding, Finding]]:
    """Return the findings of several users, with a common false discovery rate."""
    p_values = [p for pair in tests.values() for p, _ in pair if p is not None]
    changed = iter(discoveries(p_values))

    def finding(test: Test) -> Finding:
        p, direction = test
        if p is None:
            return Finding()
        if not next(changed):
            return Finding("noise", p)
        return Finding("more" if direction > 0 else "less", p)

    return {user: (finding(pair[0]), finding(pair[1])) for user, pair in tests.items()}


def _per_day(spend: Spend, side: Side) -> int:
    return round(Fraction(spend.cost_femto or 0) / side.days)


def _per_days(users: Costs, side: Side) -> dict[str | None, int]:
    """Return ``_per_day`` of many users, in a tenth of the time."""
    days, length = 2 * DAY, side.length
    halves = [divmod((cost or 0) * days + length, 2 * length) for cost in users.cost_femto]
    # A half goes to the even number.
    rounded = [number if rest else number & -2 for number, rest in halves]
    return dict(zip(users.dimensions[0], rounded, strict=True))


def _priced_users(users: Costs) -> int:
    return sum(map(gt, users.calls, users.unpriced_calls))


def _listed(releases: Mapping[str, int]) -> str:
    names: Iterable[str] = sorted(releases, key=releases.__getitem__, reverse=True)
    listed = [repr(name) for name in names]
    return ", ".join(listed[:10]) + (", …" if len(listed) > 10 else "") if listed else "none"
