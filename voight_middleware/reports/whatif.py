"""What if: the same usage at the prices of other models. An estimate: another model counts tokens otherwise, and answers otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, date, timedelta, tzinfo

from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.maintenance.repricing import repriced
from voight_middleware.pipeline.ingest import BATCH
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.bills import BILLS
from voight_middleware.records.call import Call
from voight_middleware.reports.spend import add_up
from voight_middleware.reports.timespan import to_datetime
from voight_middleware.reports.unattributed_share import Unattributed, unattributed_beside

_OTHERS = ("openai", "anthropic", "google", "mistral", "deepseek", "xai", "cohere", "perplexity", "groq")
"""Whose price is taken where the provider of a call has none for the other model, in this order."""
_TAGS = ("user_id", "plan", "tenant_id", "route", "release", "session_id")
_OWN = ("provider", "model", "requested_model", "endpoint", "outcome", "attribution", "cost_status")
_TIMES: dict[str, Callable[[str], str]] = {"hour": lambda text: f"{text[:13]}:00{text[19:]}", "day": lambda text: text[:10]}
_TIMES["week"] = lambda text: _monday(date.fromisoformat(text[:10])).isoformat()
_TIMES["month"] = lambda text: text[:7]


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


class NoSuchModel(ValueError):
    """No call is of a model that was to be replaced."""


@dataclass(slots=True)
class WhatIfRow:
    """A group of calls of the replaced models. Money is in femto-dollars (1e-15 USD)."""

    dimensions: Mapping[str, str | None]
    calls: int = 0
    compared: int = 0
    """Calls that have a price, and have one with the other model too."""
    before_femto: int = 0
    """What the compared calls cost."""
    after_femto: int = 0
    """What they would have cost."""
    partial: int = 0
    """Compared calls that are priced in part with the other model."""
    unpriced_before: int = 0
    """Calls that have no price as they are."""
    unpriced_after: int = 0
    """Calls that have one, and none with the other model."""
    left_out_femto: int = 0
    """What those cost."""

    @property
    def difference_femto(self) -> int:
        """How much more the compared calls would have cost."""
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
    """What calls would have cost with other models, the largest difference first."""

    by: tuple[str, ...]
    window: Window
    models: Mapping[str, str]
    """Which model was taken for which."""
    replaced: tuple[str, ...]
    """The models of the calls, as their providers name them, that were replaced."""
    rows: tuple[WhatIfRow, ...]
    total: WhatIfRow
    spend: Spend
    """All calls of the window, those of other models included."""
    owners: Unattributed | None
    more: int

    @property
    def bill_femto(self) -> int | None:
        """What all calls would have cost; None where none of them has a price."""
        return None if self.spend.cost_femto is None else self.spend.cost_femto + self.total.difference_femto


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
    Price calls of some models as if they had been of others, each at its own time and under its own terms.

    Args:
        ledger: Where the calls are.
        book: The prices.
        models: The other model for each, as ``gpt-5-mini`` or ``anthropic/claude-haiku-4-5``. One stands for its dated versions too,
            and ``*`` for any text; the first that a call fits counts.
        by: Names out of ``DIMENSIONS``, or extra keys.
        where: Values that calls must have: ``*`` stands for any text, None for no value.
        window: The time that calls must lie in.
        limit: How many rows to keep.
        zone: Where hours, days and months are cut; None means UTC.

    Raises:
        NoSuchModel: No call is of one of *models*.
        UnknownDimension: A name in *by* or *where* is no dimension, and no extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    where, by = dict(where or {}), tuple(dict.fromkeys(by))
    patterns = {old: _pattern(old) for old in models}
    spend_of = ledger.spend((), where, window, zone=zone)
    ledger.spend(by, where, window, 1, zone=zone)
    pairs: dict[tuple[str | None, str | None], str] = {}
    for group in ledger.spend(("model", "requested_model"), where, window, zone=zone):
        called = group.dimensions["model"], group.dimensions["requested_model"]
        old = next((old for old, pattern in patterns.items() if any(name and pattern.fullmatch(name) for name in called)), None)
        if old is not None:
            pairs[called] = old
    for old in models:
        if old not in pairs.values():
            raise NoSuchModel(f"no call here is of the model {old!r}; voight spend --by model shows the models")
    groups: dict[tuple[str | None, ...], WhatIfRow] = {}
    total = WhatIfRow({})
    other = _Other(book)
    for (model, requested), old in pairs.items():
        for call in _calls(ledger, where, window, model, requested, zone):
            key = tuple(dimension_of(call, name, zone or UTC) for name in by)
            row = groups.get(key)
            if row is None:
                row = groups[key] = WhatIfRow(dict(zip(by, key, strict=True)))
            after = other.price(call, models[old])
            row.add(call, after)
            total.add(call, after)
    rows = sorted(groups.values(), key=lambda row: (-abs(row.difference_femto), -row.calls, str(row.dimensions)))
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
    """The value of a dimension, or of an extra key, of one call."""
    if name in _TAGS or name in _OWN:
        value: str | None = getattr(call.tags if name in _TAGS else call, name)
        return value
    if name in _TIMES:
        text = to_datetime(call.occurred_at).astimezone(zone).replace(microsecond=0).isoformat()
        return _TIMES[name](text.replace("+00:00", "Z") if zone is UTC else text)
    return call.tags.extra.get(name)


class _Other:
    """Prices calls as if they had been of another model."""

    def __init__(self, book: PriceBook) -> None:
        self.book = book
        self.providers: dict[tuple[str, str], tuple[str, str] | None] = {}

    def price(self, call: Call, model: str) -> Call | None:
        """*call* as if it had been of *model*; None where nothing says what to price it by, or nobody has a price for that."""
        found = self._found(call, model)
        if found is None:
            return None
        provider, name = found
        changed = copy(call)
        if provider != call.provider:
            changed.host = None
        changed.raw_usage = _without_models_and_costs(call, name)
        changed.provider, changed.model, changed.requested_model = provider, name, name
        return repriced(changed, self.book)

    def _found(self, call: Call, model: str) -> tuple[str, str] | None:
        """Who has a price for *model*, and under which name: the call's own provider first."""
        key = call.provider, model
        if key not in self.providers:
            provider, slash, name = model.partition("/")
            named = [(provider, name)] if slash else []
            offers = [(call.provider, model), *named, *((other, model) for other in _OTHERS)]
            self.providers[key] = next((offer for offer in offers if self._has_price(call, *offer)), None)
        return self.providers[key]

    def _has_price(self, call: Call, provider: str, model: str) -> bool:
        changed = copy(call)
        changed.provider, changed.model, changed.requested_model = provider, model, model
        if provider != call.provider:
            changed.host = None
        return self.book.rates(changed, None) is not None


def _without_models_and_costs(call: Call, model: str) -> str | None:
    """
    The provider's report without the cost that it says itself, and with the other model where it names the call's own.

    What it did not say is not changed: the tokens of a helper that another model was billed for.
    """
    if call.raw_usage is None or not any(f'"{key}"' in call.raw_usage for key in (*BILLS, "iterations")):
        return call.raw_usage
    raw = json.loads(call.raw_usage)
    for key in BILLS:
        raw.pop(key, None)
    for part in raw.get("iterations") or ():
        if isinstance(part, dict) and part.get("model") in (call.model, call.requested_model):
            part["model"] = model
    return json.dumps(raw)


def _calls(ledger: Ledger, where: Where, window: Window, model: str | None, requested: str | None, zone: tzinfo | None) -> Iterator[Call]:
    """The calls of one model, in pieces. Names are compared as they are: a star in one stands for itself."""
    only = {**where, "model": model, "requested_model": requested}
    last: tuple[int, str] | None = None
    while batch := list(ledger.calls(only, window, BATCH, after=last, zone=zone)):
        last = batch[-1].occurred_at, batch[-1].call_id
        yield from (call for call in batch if (call.model, call.requested_model) == (model, requested))


def _pattern(model: str) -> re.Pattern[str]:
    """A name and its dated versions, ``gpt-5-mini-2025-08-07`` of ``gpt-5-mini``; a star is any text."""
    return re.compile(".*".join(map(re.escape, model.split("*"))) + r"(-[0-9]{4}-?[0-9]{2}-?[0-9]{2})?", re.DOTALL)
