"""What if: the same usage at the prices of other models, as an estimate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, date, timedelta, tzinfo

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.ledger.groups import add_up
from voight_middleware.maintenance.repricing import repriced
from voight_middleware.pipeline.ingest import BATCH
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.bills import BILLS
from voight_middleware.records.call import Call
from voight_middleware.reports.timespan import to_datetime
from voight_middleware.reports.unattributed_share import Unattributed, unattributed_beside

_OTHERS = (
    "openai",
    "anthropic",
    "google",
    "mistral",
    "deepseek",
    "xai",
    "cohere",
    "perplexity",
    "groq",
)
"""The order of providers if the provider of a call has no price for the other model."""
_TAGS = ("user_id", "plan", "tenant_id", "route", "release", "session_id")
_OWN = ("provider", "model", "requested_model", "endpoint", "outcome", "attribution", "cost_status")
_TIMES: dict[str, Callable[[str], str]] = {
    "hour": lambda text: f"{text[:13]}:00{text[19:]}",
    "day": lambda text: text[:10],
}
_TIMES["week"] = lambda text: _monday(date.fromisoformat(text[:10])).isoformat()
_TIMES["month"] = lambda text: text[:7]


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


class NoSuchModel(ValueError):
    """There are no calls of a model to replace."""


@dataclass(slots=True)
class WhatIfRow:
    """A group of calls of the replaced models. Money is in femto-dollars (1e-15 USD)."""

    dimensions: Mapping[str, str | None]
    calls: int = 0
    compared: int = 0
    """Calls with a price for both models."""
    before_femto: int = 0
    """The cost of the compared calls."""
    after_femto: int = 0
    """Their cost with the other model."""
    partial: int = 0
    """Compared calls that are priced in part with the other model."""
    unpriced_before: int = 0
    """Calls without a price as they are."""
    unpriced_after: int = 0
    """Calls with a price, but without one for the other model."""
    left_out_femto: int = 0
    """The cost of those calls."""

    @property
    def difference_femto(self) -> int:
        """The additional cost of the compared calls with the other model."""
        return self.after_femto - self.before_femto

    def add(self, before: Call, after: Call | None) -> None:
        """Count one call."""
        self.calls += 1
        if before.cost_femto is None:
            self.unpriced_before += 1
        elif after is None or after.cost_femto is None:
            self.unpriced_after += 1
            self.left_out_femto += before.cost_femto
        else:
            self.compared += 1
            self.before_femto += before.cost_femto
            self.after_femto += after.cost_femto
            self.partial += after.cost_status == "partial"


@dataclass(frozen=True, slots=True)
class WhatIfReport:
    """The cost of calls with other models, the largest difference first."""

    by: tuple[str, ...]
    window: Window
    models: Mapping[str, str]
    """The other model for each replaced one."""
    replaced: tuple[str, ...]
    """The replaced models, with their names at the provider."""
    rows: tuple[WhatIfRow, ...]
    total: WhatIfRow
    spend: Spend
    """All calls of the window, including those of other models."""
    owners: Unattributed | None
    more: int

    @property
    def bill_femto(self) -> int | None:
        """The cost of all calls with the other models; None if no call has a price."""
        return (
            None
            if self.spend.cost_femto is None
            else self.spend.cost_femto + self.total.difference_femto
        )


def what_if(
    ledger: Ledger,
    book: PriceBook,
    models: Mapping[str, str],
    by: Sequence[str] = ("model",),
    where: Where | None = None,
    window: Window = Window(),
    *,
    limit: int | None = None,
    zone: tzinfo | None = None,
) -> WhatIfReport:
    """
    Price calls of some models as calls of others, at the same time and under the same terms.

    This is an estimate: another model counts tokens differently, and gives other answers.

    Args:
        ledger: The ledger to read.
        book: The price book.
        models: The other model for each, such as ``gpt-5-mini`` or ``anthropic/claude-haiku-4-5``.
            A name includes its dated versions; ``*`` stands for any text. The first match of a call
            wins.
        by: Names of ``DIMENSIONS``, or extra keys.
        where: Filters: ``*`` stands for any text, None for calls without a value.
        window: The time of the calls.
        limit: The number of rows to return.
        zone: The time zone of hours, days and months; None means UTC.

    Raises:
        NoSuchModel: There are no calls of one of *models*.
        UnknownDimension: A name in *by* or *where* is neither a dimension nor an extra key of any
            call.
        LedgerError: The ledger cannot be read.
    """
    where, by = dict(where or {}), tuple(dict.fromkeys(by))
    patterns = {old: _pattern(old) for old in models}
    spend_of = ledger.spend((), where, window, zone=zone)
    ledger.spend(by, where, window, 1, zone=zone)
    pairs: dict[tuple[str | None, str | None], str] = {}
    for group in ledger.spend(("model", "requested_model"), where, window, zone=zone):
        called = group.dimensions["model"], group.dimensions["requested_model"]
        old = next(
            (
                old
                for old, pattern in patterns.items()
                if any(name and pattern.fullmatch(name) for name in called)
            ),
            None,
        )
        if old is not None:
            pairs[called] = old
    for old in models:
        if old not in pairs.values():
            raise NoSuchModel(
                f"there are no calls of the model {old!r}; voight spend --by model lists the models"
            )
    groups: dict[tuple[str | None, ...], WhatIfRow] = {}
    total = WhatIfRow({})
    other = _OtherPrices(book)
    for (model, requested), old in pairs.items():
        for call in _calls(ledger, where, window, model, requested, zone):
            key = tuple(dimension_of(call, name, zone or UTC) for name in by)
            row = groups.get(key)
            if row is None:
                row = groups[key] = WhatIfRow(dict(zip(by, key, strict=True)))
            after = other.price(call, models[old])
            row.add(call, after)
            total.add(call, after)
    rows = sorted(
        groups.values(),
        key=lambda row: (-abs(row.difference_femto), -row.calls, str(row.dimensions)),
    )
    spend = add_up(spend_of)
    return WhatIfReport(
        by=by,
        window=window,
        models=models,
        replaced=tuple(sorted({str(model or requested) for model, requested in pairs})),
        rows=tuple(rows[:limit]),
        total=total,
        spend=spend,
        owners=unattributed_beside(ledger, spend, (), where, window, zone=zone),
        more=len(rows) - len(rows[:limit]),
    )


def dimension_of(call: Call, name: str, zone: tzinfo = UTC) -> str | None:
    """Return the value of a dimension or extra key of one call."""
    if name in _TAGS or name in _OWN:
        value: str | None = getattr(call.tags if name in _TAGS else call, name)
        return value
    if name in _TIMES:
        text = to_datetime(call.occurred_at).astimezone(zone).replace(microsecond=0).isoformat()
        return _TIMES[name](text.replace("+00:00", "Z") if zone is UTC else text)
    return call.tags.extra.get(name)


class _OtherPrices:
    """Prices calls as calls of another model."""

    def __init__(self, book: PriceBook) -> None:
        self.book = book
        self.providers: dict[tuple[str, str], tuple[str, str] | None] = {}

    def price(self, call: Call, model: str) -> Call | None:
        """Return *call* as a call of *model*; None without usage, or without a price."""
        offer = self._offer(call, model)
        if offer is None:
            return None
        provider, name = offer
        changed = copy(call)
        if provider != call.provider:
            changed.host = None
        changed.raw_usage = _without_models_and_costs(call, name)
        changed.provider, changed.model, changed.requested_model = provider, name, name
        return repriced(changed, self.book)

    def _offer(self, call: Call, model: str) -> tuple[str, str] | None:
        """
        Return a provider with a price for *model*, and the name there; the call's provider first.
        """
        key = call.provider, model
        if key not in self.providers:
            provider, slash, name = model.partition("/")
            named = [(provider, name)] if slash else []
            offers = [(call.provider, model), *named, *((other, model) for other in _OTHERS)]
            self.providers[key] = next(
                (offer for offer in offers if self._has_price(call, *offer)), None
            )
        return self.providers[key]

    def _has_price(self, call: Call, provider: str, model: str) -> bool:
        changed = copy(call)
        changed.provider, changed.model, changed.requested_model = provider, model, model
        if provider != call.provider:
            changed.host = None
        return self.book.rates(changed, None) is not None


def _without_models_and_costs(call: Call, model: str) -> str | None:
    """
    Return the raw usage without the provider's own costs, and with the other model.

    Other models in it stay, such as a helper model that was billed too.
    """
    if call.raw_usage is None or not any(
        f'"{key}"' in call.raw_usage for key in (*BILLS, "iterations")
    ):
        return call.raw_usage
    raw = json.loads(call.raw_usage)
    for key in BILLS:
        raw.pop(key, None)
    for part in raw.get("iterations") or ():
        if isinstance(part, dict) and part.get("model") in (call.model, call.requested_model):
            part["model"] = model
    return json.dumps(raw)


def _calls(
    ledger: Ledger,
    where: Where,
    window: Window,
    model: str | None,
    requested: str | None,
    zone: tzinfo | None,
) -> Iterator[Call]:
    """Return the calls of one model, read in batches. A star in the name stands for itself."""
    only = {**where, "model": model, "requested_model": requested}
    last: tuple[int, str] | None = None
    while batch := list(ledger.calls(only, window, BATCH, after=last, zone=zone)):
        last = batch[-1].occurred_at, batch[-1].call_id
        yield from (
            call for call in batch if (call.model, call.requested_model) == (model, requested)
        )


def _pattern(model: str) -> re.Pattern[str]:
    """Match a name and its dated versions: ``gpt-5-mini-2025-08-07``; a star is any text."""
    return re.compile(
        ".*".join(map(re.escape, model.split("*"))) + r"(-[0-9]{4}-?[0-9]{2}-?[0-9]{2})?", re.DOTALL
    )
