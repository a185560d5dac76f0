"""
The price book: unit prices by provider, model, tier and date.

The source is the data that ships inside the ``genai-prices`` package: no network, no update behind the user's back. Prices of a
served model are resolved once per (provider, model, tier, day) and kept, so that pricing a warm call is a handful of integer
multiplications.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from voight_middleware.call import Call
from voight_middleware.money import CONTEXT, usd_text

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

_UNITS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "input": (("input_mtok", 1_000_000), ("input_text_mtok", 1_000_000)),
    "cache_read": (("cache_read_mtok", 1_000_000),),
    "cache_write": (("cache_write_mtok", 1_000_000),),
    "cache_write_5m": (("cache_write_5m_mtok", 1_000_000), ("cache_write_mtok", 1_000_000)),
    "cache_write_1h": (("cache_write_1h_mtok", 1_000_000),),
    "output": (("output_mtok", 1_000_000), ("output_text_mtok", 1_000_000)),
    "audio_in": (("input_audio_mtok", 1_000_000),),
    "audio_out": (("output_audio_mtok", 1_000_000),),
    "seconds": (("audio_hours", 3_600), ("input_audio_hours", 3_600)),
    "characters": (("input_mchars", 1_000_000),),
    "web_search": (("web_searches_kcount", 1_000),),
    "file_search": (("storage_searches_kcount", 1_000),),
    "code_interpreter": (("code_executions_kcount", 1_000),),
    "request": (("requests_kcount", 1_000),),
}
"""Our counts, and the keys of genai-prices that price them, with the number of units that a price is for; the first one found is used."""

_PROVIDERS = {"xai": "x-ai", "bedrock": "aws", "vertex": "google"}
_STANDARD_TIERS = frozenset({None, "default", "standard", "auto"})
_VERSION_SUFFIX = re.compile(r"(-latest|[-@]\d{4}-?\d{2}-?\d{2}|-\d{4}|-v\d+(:\d+)?|:\d+|:free)*")
_REGIONAL = re.compile(r"[\w-]+\.api\.(openai\.com|x\.ai)")
"""Hosts with a premium over the list price. Sources: OpenAI, "Data residency"; xAI, "Regional endpoints"."""
_CACHE_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Rates:
    """Unit prices of one model on one day, in femto-dollars (1e-15 USD) per token, second, character or request."""

    femto: Mapping[str, int | Decimal]
    reasons: tuple[str, ...]
    """Why these may not be the whole truth: a tier without a price of its own, a name matched by its beginning only."""
    provenance: str
    """Source, version, matched model and unit prices in USD, as JSON: enough to compute the cost again without the library."""


@dataclass(frozen=True, slots=True)
class RateTable:
    """The rates of a model by length of its input: most have one row, long-context models have two."""

    rows: tuple[tuple[int, Rates], ...]

    def for_input(self, tokens: int) -> Rates:
        """The row for that many input tokens, cached ones included: it applies to all of them."""
        chosen = self.rows[0][1]
        for above, rates in self.rows[1:]:
            if tokens > above:
                chosen = rates
        return chosen


class PriceBook:
    """Resolves and remembers rates. Used from one thread at a time."""

    def __init__(self) -> None:
        from genai_prices.data_snapshot import DataSnapshot, get_snapshot

        snapshot: DataSnapshot = get_snapshot()
        self._providers: dict[str, Provider] = {provider.id: provider for provider in snapshot.providers}
        self._all = snapshot.providers
        self._cache: dict[tuple[object, ...], RateTable | None] = {}

    def rates(self, call: Call, model: str | None, speed: str | None = None) -> RateTable | None:
        """
        The rates for a call's *model* (its own, where None) at the time of the call; None where no price is known.

        Args:
            speed: Anthropic's ``usage.speed``.
        """
        names = (model,) if model is not None else (call.model, call.requested_model)
        key = (call.provider, call.host, names, call.service_tier, speed, call.batch, call.occurred_at // 86_400_000_000)
        try:
            return self._cache[key]
        except KeyError:
            pass
        table, lasting = self._look_up(call, names, speed)
        if lasting:
            if len(self._cache) >= _CACHE_ENTRIES:
                self._cache.clear()
            self._cache[key] = table
        return table

    def _look_up(self, call: Call, names: tuple[str | None, ...], speed: str | None) -> tuple[RateTable | None, bool]:
        from genai_prices.types import TimeOfDateConstraint

        provider = self._providers.get(_PROVIDERS.get(call.provider, call.provider))
        if provider is None:
            return None, True
        for name in names:
            ref = _reference(name, provider.id)
            found = provider.find_model(ref, all_providers=self._all) if ref else None
            if found is not None:
                prices = found.prices if isinstance(found.prices, list) else ()
                by_hour = any(isinstance(one.constraint, TimeOfDateConstraint) for one in prices)
                return self._table(call, provider, found, ref, speed, by_hour), not by_hour
        return None, True

    def _table(self, call: Call, provider: Provider, model: ModelInfo, ref: str, speed: str | None, by_hour: bool) -> RateTable:
        at = datetime.fromtimestamp(call.occurred_at // 1_000_000, UTC)
        own = any(model is one for one in provider.models)
        context, reasons = _context(call, model, speed, own)
        prices = model.get_prices(at, context if own else None)
        if not _same_model(ref, model.id):
            reasons.append(f"model {ref!r} is priced as {model.id!r}, which its name only begins with")
        if by_hour:  # genai-prices cannot combine an hour with a weekday or a date
            reasons.append("priced by the hour of the day: weekends and former prices are not in the price data")
        if _REGIONAL.search(call.host or ""):
            reasons.append("a regional host: its premium is not in the price data")
        starts = sorted({tier.start for price in vars(prices).values() for tier in getattr(price, "tiers", ())})
        rows = []
        for above in (0, *starts):
            usd = dict(_unit_prices(prices, above + 1))
            provenance = {
                "source": "genai-prices",
                "version": _source_version(),
                "provider": provider.id,
                "model": model.id,
                "context": context,
                "unit_usd": {name: usd_text(amount) for name, amount in usd.items()},
            }
            rows.append((above, Rates(_femto(usd), tuple(reasons), msgspec.json.encode(provenance).decode())))
        return RateTable(tuple(rows))


def _reference(name: str | None, provider: str) -> str:
    if not name or len(name) > 200:
        return ""
    return name.lower().removeprefix("models/").removeprefix(f"{provider}/")


def _same_model(ref: str, model: str) -> bool:
    """False for a name that some rule matched by its beginning alone, such as a model that is newer than the prices."""
    return not ref.startswith(model) or _VERSION_SUFFIX.fullmatch(ref[len(model) :]) is not None


def _context(call: Call, model: ModelInfo, speed: str | None, own: bool) -> tuple[dict[str, str], list[str]]:
    wanted: dict[str, str] = {}
    if call.service_tier is not None:
        wanted["service_tier"] = call.service_tier
    if call.batch:
        wanted["processing"] = "batch"
    if speed is not None:
        wanted["speed"] = speed
    known = {item for variant in model.price_variants or () for item in variant.when.items()} if own else set()
    reasons = [
        f"{key} {value!r} has no price of its own: standard prices used"
        for key, value in wanted.items()
        if (key, value) not in known and value not in _STANDARD_TIERS
    ]
    return {key: value for key, value in wanted.items() if (key, value) in known}, reasons


def _unit_prices(prices: ModelPrice, input_tokens: int) -> Iterator[tuple[str, Decimal]]:
    stored: Mapping[str, Any] = vars(prices)
    for name, keys in _UNITS.items():
        for key, per in keys:
            amount = stored.get(key)
            if amount is None:
                continue
            if not isinstance(amount, Decimal):
                amount = next((tier.price for tier in reversed(amount.tiers) if input_tokens > tier.start), amount.base)
            yield name, CONTEXT.divide(amount, Decimal(per))
            break


def _femto(usd: Mapping[str, Decimal]) -> dict[str, int | Decimal]:
    """Whole numbers where a unit price is a whole number of femto-dollars, as list prices per million tokens are."""
    scaled = {name: CONTEXT.scaleb(amount, 15) for name, amount in usd.items()}
    return {name: int(amount) if amount == amount.to_integral_value(context=CONTEXT) else amount for name, amount in scaled.items()}


def _source_version() -> str:
    import genai_prices

    return genai_prices.__version__
