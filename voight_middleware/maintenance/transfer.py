"""
Transfer: copy the calls of one ledger with all their prices to another one, of any engine.

It reads the source in time order, and each batch is one transaction of the target. Existing calls
are compared, not copied. So another run completes an interrupted one, and later runs copy newer
calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from voight_middleware.ledger import Ledger, LedgerError, PriceVersion, Progress, Window
from voight_middleware.records.call import (
    REATTRIBUTABLE,
    Call,
    LateAttribution,
    Record,
    Submission,
    is_open_job,
    new_call_id,
    with_result,
)
from voight_middleware.records.tags import Tags

BATCH = 5_000
_ROUNDS = 3
"""How often to repeat days that differ, because the source may be written meanwhile."""
_ERASED = "erased:"

History = Sequence[PriceVersion]


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of a day's calls. Money is in femto-dollars (1e-15 USD)."""

    calls: int = 0
    cost_femto: int = 0
    """The cost of the priced calls."""
    unpriced_calls: int = 0
    partial_calls: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A day on which the target's calls differ from the source's."""

    day: str
    """In UTC."""
    source: Sums
    target: Sums
    """The sums of the target's calls that the source has too."""
    rollups: bool = False
    """
    Whether only the target's rollups are wrong, not its calls. *target* has the sums of the rollups
    then.
    """


@dataclass(slots=True)
class Transfer:
    """The result of a transfer."""

    dry_run: bool = False
    calls: int = 0
    """Calls in the source."""
    copied: int = 0
    """Calls that were missing in the target."""
    changed: int = 0
    """Existing calls that got an owner, a usage or a price from the source."""
    left: int = 0
    """Existing calls that differ in the target and stay as they are there."""
    jobs: int = 0
    """Submitted jobs that were missing in the target, or got an owner from the source."""
    refused: dict[str, str] = field(default_factory=dict)
    """The calls that the target cannot store: reasons by id."""
    differences: list[Difference] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the target has everything from the source, unchanged."""
        return not (self.refused or self.differences)


def move(
    source: Ledger,
    target: Ledger | None,
    *,
    dry_run: bool = False,
    done: Callable[[int], None] | None = None,
) -> Transfer:
    """
    Copy all records of *source* to *target*, and compare them.

    Calls are matched by id. *target* may have other calls too.

    Args:
        source: The ledger to read. Others may write to it meanwhile.
        target: The ledger to write. Others may write to it meanwhile. None for a dry run without an
            existing target.
        dry_run: Only count. Nothing is compared at the end.
        done: Called with the number of calls of each batch.

    Raises:
        LedgerError: Both are the same ledger, or one of them cannot be read or written. Completed
            work stays.
    """
    report = Transfer(dry_run)
    if target is None:
        report.calls = report.copied = source.spend()[0].calls
        report.jobs = sum(map(len, _jobs(source)))
        return report
    if not dry_run:
        _refuse_the_same(source, target)
    erased = _bring_jobs(source, target, report)
    days = {row.dimensions["day"] for row in target.spend(["day"])}
    _bring_calls(source, target, Window(), report, erased, done=done, days=days)
    if dry_run:
        return report
    report.differences = _compare(source, target)
    for _ in range(_ROUNDS if report.differences else 0):
        brought = report.copied, report.changed, report.jobs
        counted = report.calls, report.left
        _bring_jobs(source, target, report)
        for difference in report.differences:
            _bring_calls(source, target, _window_of(difference.day), report, erased)
        report.calls, report.left = counted
        if (report.copied, report.changed, report.jobs) == brought:
            break
        report.differences = _compare(source, target)
        if not report.differences:
            break
    return report


def _refuse_the_same(source: Ledger, target: Ledger) -> None:
    """Refuse two URLs of the same ledger: a mark written to one would be visible in the other."""
    mark = f"move:{new_call_id()}"
    target.insert([], Progress(mark, 1))
    try:
        same = source.progress(mark) == 1
    finally:
        target.clear_progress(mark)
    if same:
        raise LedgerError("both are the same ledger: there is nothing to move")


# -- jobs ------------------------------------------------------------------------------------------


def _jobs(source: Ledger) -> Iterator[list[Submission]]:
    after = ""
    while page := source.jobs(after):
        after = page[-1].job
        yield page


def _bring_jobs(source: Ledger, target: Ledger, report: Transfer) -> dict[str, str]:
    """Copy the submissions. Return tokens by id of people who are erased in the source only."""
    erased: dict[str, str] = {}
    for page in _jobs(source):
        known = target.submissions([submission.job for submission in page])
        records: list[Record] = []
        for submission in page:
            existing = known.get(submission.job)
            if existing is None:
                records.append(submission)
            elif (
                existing.attribution in REATTRIBUTABLE
                and submission.attribution not in REATTRIBUTABLE
            ):
                late = LateAttribution(
                    call_ids=(submission.job,),
                    tags=submission.tags,
                    attribution=submission.attribution,
                )
                records.append(late)
            else:
                erased |= _erased_names(submission.tags, existing.tags)
        report.jobs += len(records)
        if not report.dry_run:
            target.insert(records)
    if not report.dry_run:
        _erase(target, erased)
    return erased


# -- calls -----------------------------------------------------------------------------------------


def _bring_calls(
    source: Ledger,
    target: Ledger,
    window: Window,
    report: Transfer,
    erased: dict[str, str],
    *,
    done: Callable[[int], None] | None = None,
    days: Iterable[str | None] | None = None,
) -> None:
    """
    Copy the calls of *window*. *days* are the days that the target has: other days need no lookup.
    """
    known = None if days is None else set(days)
    after: tuple[int, str] | None = None
    while page := list(source.calls({}, window, BATCH, after=after)):
        after = page[-1].occurred_at, page[-1].call_id
        span = Window(page[0].occurred_at, page[-1].occurred_at + 1)
        existing: dict[str, Call] = {}
        if known is None or not known.isdisjoint(_days(span)):
            existing = _same(target, page, span)
        former = source.price_histories([call.call_id for call in page])
        missing = [call for call in page if call.call_id not in existing]
        if report.dry_run:
            report.copied += len(missing)
        elif missing:
            report.copied += _import_calls(target, missing, former, report)
        if existing:
            _bring_changes(
                target,
                [call for call in page if call.call_id in existing],
                existing,
                former,
                report,
                erased,
            )
        report.calls += len(page)
        if done is not None:
            done(len(page))


def _same(target: Ledger, page: Sequence[Call], span: Window) -> dict[str, Call]:
    """Return the target's calls of *page* by id, without holding its other calls in memory."""
    ids = {call.call_id for call in page}
    return {call.call_id: call for call in target.calls(window=span) if call.call_id in ids}


def _bring_changes(
    target: Ledger,
    page: Sequence[Call],
    existing: dict[str, Call],
    former: dict[str, list[PriceVersion]],
    report: Transfer,
    erased: dict[str, str],
) -> None:
    """Copy additional data of calls that exist in the target."""
    fresh: dict[str, str] = {}
    for call in page:
        if (target_call := existing[call.call_id]).attribution not in REATTRIBUTABLE:
            fresh |= _erased_names(call.tags, target_call.tags)
    fresh = {name: token for name, token in fresh.items() if name not in erased}
    erased |= fresh
    # People erased in the source since are erased in the target, in every column.
    if fresh and not report.dry_run:
        _erase(target, fresh)
        existing |= _same(target, page, Window(page[0].occurred_at, page[-1].occurred_at + 1))
    before = target.price_histories([call.call_id for call in page])
    changed: list[Call] = []
    histories: dict[str, History] = {}
    for call in page:
        target_call, target_history = existing[call.call_id], before.get(call.call_id, [])
        source_history = former.get(call.call_id, [])
        merged, history = _merged(call, source_history, target_call, target_history)
        if (merged, history) != (target_call, target_history):
            changed.append(merged)
            histories[call.call_id] = history
        if (merged, history) != (call, source_history):
            report.left += 1
    report.changed += len(changed)
    if changed and not report.dry_run:
        _import_calls(target, changed, histories, report, replace=True)


def _import_calls(
    target: Ledger,
    calls: Sequence[Call],
    former: Mapping[str, History],
    report: Transfer,
    *,
    replace: bool = False,
) -> int:
    """Store calls. A call that the target cannot store does not stop the others."""
    try:
        return target.import_calls(calls, former, replace=replace)
    except ValueError as error:
        if len(calls) == 1:
            report.refused[calls[0].call_id] = str(error)
            return 0
    return sum(_import_calls(target, [call], former, report, replace=replace) for call in calls)


def _merged(
    source: Call, source_history: History, target: Call, target_history: History
) -> tuple[Call, History]:
    """Return a call and its previous prices, merged from source and target."""
    merged, history = target, target_history
    if is_open_job(target) and (
        source.raw_usage is not None or (target.outcome == "ok" != source.outcome)
    ):
        # The source has the result. Time, owner and the rest of the submission are the target's.
        merged, history = with_result(target, source), source_history
    else:
        prices, others = _figures(source, source_history), _figures(target, target_history)
        # Repriced in the source since.
        if len(prices) > len(others) and prices[: len(others)] == others:
            repriced = (
                "usage",
                "components",
                "cost_femto",
                "list_femto",
                "cost_status",
                "cost_reasons",
                "price",
            )
            merged = msgspec.structs.replace(
                target, **{name: getattr(source, name) for name in repriced}
            )
            history = source_history
    has_owner = target.attribution in REATTRIBUTABLE and source.attribution not in REATTRIBUTABLE
    if (has_owner or _is_erased(source.tags)) and not _is_erased(target.tags):
        merged = msgspec.structs.replace(
            merged, tags=source.tags, attribution=source.attribution, response_id=source.response_id
        )
    return merged, history


def _figures(call: Call, history: History) -> list[tuple[object, ...]]:
    """Return all prices of a call, the original first."""
    prices: list[PriceVersion | Call] = [*history, call]
    return [
        (price.cost_femto, price.list_femto, price.cost_status, price.cost_reasons, price.price)
        for price in prices
    ]


# -- erased people ---------------------------------------------------------------------------------


def _is_erased(tags: Tags) -> bool:
    values = (
        tags.user_id,
        tags.plan,
        tags.tenant_id,
        tags.route,
        tags.release,
        tags.session_id,
        *tags.extra.values(),
    )
    return any(value is not None and value.startswith(_ERASED) for value in values)


def _erased_names(erased: Tags, named: Tags) -> dict[str, str]:
    """Return the user id in *named* with the token that replaced it in *erased*."""
    name, token = named.user_id, erased.user_id
    if name is None or token is None or name.startswith(_ERASED) or not token.startswith(_ERASED):
        return {}
    return {name: token}


def _erase(target: Ledger, erased: dict[str, str]) -> None:
    for token in dict.fromkeys(erased.values()):
        target.erase(
            [name for name, token_of_name in erased.items() if token_of_name == token], token
        )


# -- comparing -------------------------------------------------------------------------------------


def _compare(source: Ledger, target: Ledger) -> list[Difference]:
    """
    Return the days on which the target lacks records of the source, by rollups and by the calls
    themselves.
    """
    differences = []
    expected, actual, rolled_up = _by_day(source), _by_day(target), _by_day(target, rollups=True)
    for day in sorted(expected):
        if actual.get(day) == expected[day]:
            if rolled_up.get(day) != actual[day]:
                differences.append(
                    Difference(day, expected[day], rolled_up.get(day, Sums()), rollups=True)
                )
            continue
        window = _window_of(day)
        shared = _added_up(_shared(source.calls(window=window), target.calls(window=window)))
        whole = _added_up(source.calls(window=window))
        if shared != whole:
            differences.append(Difference(day, whole, shared))
        elif rolled_up.get(day) != actual.get(day):
            differences.append(
                Difference(day, actual.get(day, Sums()), rolled_up.get(day, Sums()), rollups=True)
            )
    return differences


def _by_day(ledger: Ledger, *, rollups: bool = False) -> dict[str, Sums]:
    """
    Return the sums of each day in UTC, from the calls or from *rollups*, if the engine has any.
    """
    sums: dict[str, Sums] = {}
    for row in ledger.spend(["day"] if rollups else ["day", "cost_status"]):
        day = str(row.dimensions["day"])
        before = sums.get(day, Sums())
        sums[day] = Sums(
            before.calls + row.calls,
            before.cost_femto + (row.cost_femto or 0),
            before.unpriced_calls + row.unpriced_calls,
            before.partial_calls + row.partial_calls,
        )
    return sums


def _shared(calls: Iterable[Call], others: Iterator[Call]) -> Iterator[Call]:
    """
    Yield those of *others* that are in *calls*, without holding either in memory. Both are sorted
    by time and id.
    """
    other = next(others, None)
    for call in calls:
        while other is not None and (other.occurred_at, other.call_id) < (
            call.occurred_at,
            call.call_id,
        ):
            other = next(others, None)
        if other is not None and other.call_id == call.call_id:
            yield other


def _added_up(calls: Iterable[Call]) -> Sums:
    count = cost = unpriced = partial = 0
    for call in calls:
        count += 1
        cost += call.cost_femto or 0
        unpriced += call.cost_status == "unpriced"
        partial += call.cost_status == "partial"
    return Sums(count, cost, unpriced, partial)


# -- days ------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)


def _window_of(day: str) -> Window:
    begin = datetime.fromisoformat(day).replace(tzinfo=UTC)
    since, until = (
        (moment - _EPOCH) // timedelta(microseconds=1) for moment in (begin, begin + _DAY)
    )
    return Window(since, until)


def _days(window: Window) -> set[str]:
    """Return the days in a bounded window."""
    assert window.since is not None
    assert window.until is not None
    first, last = (
        (_EPOCH + timedelta(microseconds=at)).date() for at in (window.since, window.until - 1)
    )
    return {(first + number * _DAY).isoformat() for number in range((last - first).days + 1)}
