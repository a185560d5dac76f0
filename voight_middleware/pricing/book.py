"""
The price book: unit prices by provider, model, terms and time.

It has three layers, each over the previous one. The list prices are those inside the
``genai-prices`` package, without network access or silent updates. Then come our own dated rules,
then the user's overrides. The result is cached by provider, host, model, terms and hour. So pricing
a call takes a few integer multiplications.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from voight_middleware.pricing.overlay import RULES
from voight_middleware.pricing.overrides import NO_OVERRIDES, Overrides
from voight_middleware.pricing.places import place_doubt
from voight_middleware.pricing.rules import HOUR, STANDARD, TOKENS, Rule, Terms, Units, overlay
from voight_middleware.pricing.terms import billed_by_the_hour
from voight_middleware.records.call import Call
from voight_middleware.records.money import CONTEXT, usd_text

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, Provider

    from voight_middleware.pricing.plain_calls import Plan

_UNITS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "input": (("input_mtok", 1_000_000), ("input_text_mtok", 1_000_000)),
    "cache_read": (("cache_read_mtok", 1_000_000),),
    "cache_read_audio": (("cache_audio_read_mtok", 1_000_000),),
    "cache_read_image": (("cache_image_read_mtok", 1_000_000),),
    "cache_write": (("cache_write_mtok", 1_000_000),),
    "cache_write_5m": (("cache_write_5m_mtok", 1_000_000), ("cache_write_mtok", 1_000_000)),
    "cache_write_1h": (("cache_write_1h_mtok", 1_000_000),),
    "output": (("output_mtok", 1_000_000), ("output_text_mtok", 1_000_000)),
    "reasoning": (("output_reasoning_mtok", 1_000_000),),
    "audio_in": (("input_audio_mtok", 1_000_000),),
    "audio_out": (("output_audio_mtok", 1_000_000),),
    "image_in": (("input_image_mtok", 1_000_000),),
    "image_out": (("output_image_mtok", 1_000_000),),
    "seconds": (("audio_hours", 3_600), ("input_audio_hours", 3_600)),
    "characters": (("input_mchars", 1_000_000),),
    "web_search": (("web_searches_kcount", 1_000),),
    "file_search": (("storage_searches_kcount", 1_000),),
    "code_interpreter": (("code_executions_kcount", 1_000),),
    "request": (("requests_kcount", 1_000),),
}
"""
Our counts, with their keys in genai-prices and the number of units per price. The first key present
counts.
"""

_PROVIDERS = {"xai": "x-ai", "bedrock": "aws", "vertex": "google"}
_STANDARD_TIERS = frozenset({None, "default", "standard", "auto", "on_demand"})
_FEES = frozenset({"request", "web_search"})
_OF_THE_MODEL = frozenset({"model", "served"})
"""Reasons that only a price for that exact name settles, our own or the user's."""
_INSTEAD = (
    ("cache_read", "input"),
    ("cache_read_audio", "audio_in"),
    ("cache_read_image", "image_in"),
    ("cache_write", "input"),
    ("cache_write_5m", "cache_write"),
    ("cache_write_1h", "cache_write_5m"),
)
"""
Counts that may lack a price, and the count whose price replaces it. Such a cost is partial, but
never omits the count.
"""
_STANDARD_PLACES = frozenset({None, "global", "not_available"})
_VERSION_SUFFIX = re.compile(r"(-latest|[-@]\d{4}-?\d{2}-?\d{2}|-\d{3,4}|-v\d+(:\d+)?|:\d+|:free)*")
_TUNED = re.compile(r"^ft:(?P<base>[^:]+)(?::[^:]*){2,4}$")
"""
A fine-tuned OpenAI model: ``ft:<base>:<organization>:<name>:<id>``, perhaps with a checkpoint.

Source: OpenAI API reference, "Fine-tuning", ``fine_tuned_model``; "Checkpoints".
"""
_VENDORS = re.compile(r"^(?:.*/)?(?:[a-z][a-z-]*\.)*")
_ASIDES = re.compile(
    r"-latest|[-_@:]\d{4}-?\d{2}-?\d{2}|-\d{3,4}(?!\w)|-v\d+(?::\d+)?(?!\w)|:\d+|-\d+k(?!\w)"
)
_WORDS = re.compile(r"[-_.@:]")
_PATHS = re.compile(r"^(?:models/|publishers/[^/]+/models/|projects/.*/models/)")
_CACHE_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Rates:
    """
    The unit prices of one model at one time, in femto-dollars (1e-15 USD) per token, second,
    character, image or request.
    """

    femto: Mapping[str, int | Decimal]
    reasons: tuple[str, ...]
    """
    Why the cost may be incomplete: a tier without a price, or a name that matched only in part.
    """
    provenance: str
    """
    Source, version, matched model, rules and unit prices in USD, as JSON. Enough to recompute the
    cost without the library.
    """
    doubts: Mapping[str, str] = field(default_factory=dict)
    """Reasons that concern a single count, such as a cache read without a price in its tier."""
    minimum: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RateTable:
    """The rates of a model by input length. Most models have one row, long-context models two."""

    rows: tuple[tuple[int, Rates], ...]

    def for_input(self, tokens: int) -> Rates:
        """
        Return the rates for this many input tokens, including cached ones. They apply to all
        tokens.
        """
        chosen = self.rows[0][1]
        for above, rates in self.rows[1:]:
            if tokens > above:
                chosen = rates
        return chosen


@dataclass(slots=True)
class _ListPrice:
    """A listed model, with its price under some terms and the doubts about it."""

    model: ModelInfo | None = None
    prices: ModelPrice | None = None
    context: dict[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    """Keys of the list with a separate price under these terms."""
    reasons: dict[str, str] = field(default_factory=dict)
    """By the term that they concern. A rule for that term settles them."""
    by_hour: bool = False


class PriceBook:
    """Resolves and caches rates. Use it from one thread at a time."""

    def __init__(self, overrides: Overrides | None = None) -> None:
        snapshot = _snapshot()
        self._providers: dict[str, Provider] = {
            provider.id: provider for provider in snapshot.providers
        }
        self._all = snapshot.providers
        self._overrides = overrides or NO_OVERRIDES
        self._rules: tuple[Rule, ...] = (
            *RULES,
            *(replace(rule, own=True) for rule in self._overrides.rules),
        )
        self._cache: dict[tuple[object, ...], RateTable | None] = {}
        self.plans: dict[tuple[object, ...], Plan | None] = {}
        """How calls of each kind are priced quickly; None for those that are not plain."""

    @property
    def has_own(self) -> bool:
        """Whether it includes a file of the user's own prices."""
        return self._overrides is not NO_OVERRIDES

    def rates(self, call: Call, model: str | None, terms: Terms = STANDARD) -> RateTable | None:
        """
        Return the rates of *model* at the time of the call. None means the call's own model.

        Returns None if no price is known.
        """
        names: tuple[str | None, ...] = (
            (model,) if model is not None else (call.model, call.requested_model)
        )
        if model is None and billed_by_the_hour(call) is not None:
            # The reported model has no price here, but the user may have priced the requested name.
            names = (call.requested_model,)
        key = (call.provider, call.host, names, terms, call.occurred_at // HOUR)
        try:
            return self._cache[key]
        except KeyError:
            pass
        table, lasting = self._look_up(call, names, terms)
        if lasting:
            if len(self._cache) >= _CACHE_ENTRIES:
                self._cache.clear()
            self._cache[key] = table
        return table

    def _look_up(
        self, call: Call, names: tuple[str | None, ...], terms: Terms
    ) -> tuple[RateTable | None, bool]:
        provider = self._providers.get(_PROVIDERS.get(call.provider, call.provider))
        at = call.occurred_at // HOUR * HOUR
        served: str | None = None
        for name in names:
            ref = _reference(
                self._overrides.model_behind(name),
                call.provider if provider is None else provider.id,
            )
            if not ref:
                continue
            listed = (
                provider.find_model(ref, all_providers=self._all) if provider is not None else None
            )
            called = (ref,) if listed is None else (ref, listed.id)
            rules = [
                rule
                for rule in self._rules
                if rule.holds(call.provider, called, call.host, at, terms)
            ]
            if listed is not None and provider is not None:
                entry = _find(provider, listed, ref, call, terms)
            elif any(rule.usd for rule in rules):
                entry = _ListPrice(reasons=_unlisted(terms))
            else:
                served = served or ref
                continue
            if (
                served is not None
                and _core(served) != _core(ref)
                and not any(rule.own and rule.usd for rule in rules)
            ):
                entry.reasons["served"] = (
                    f"no price for model {served!r}, which answered: priced as {ref!r}, which was "
                    "asked for"
                )
            return self._table(call, provider, ref, entry, rules), not entry.by_hour or any(
                rule.whole for rule in rules
            )
        return None, True

    def _standard(self, call: Call, entry: _ListPrice, rules: Sequence[Rule]) -> Units:
        """
        Return the model's unit prices under standard terms, for a short input and no specific
        region.
        """
        if entry.model is None or not any(rule.own and rule.usd for rule in rules):
            return {}
        at = datetime.fromtimestamp(call.occurred_at // 1_000_000, UTC)
        listed = dict(_unit_prices(entry.model.get_prices(at), entry.model, 1))
        return overlay(
            listed,
            [
                rule
                for rule in rules
                if not rule.own and not rule.when and rule.host == "*" and not rule.above
            ],
            {},
        )

    def _table(
        self,
        call: Call,
        provider: Provider | None,
        ref: str,
        entry: _ListPrice,
        rules: Sequence[Rule],
    ) -> RateTable:
        doubt = None if entry.model is None else place_doubt(call, ref, entry.model.id)
        if doubt is not None and not any(rule.host != "*" for rule in rules):
            entry.reasons["host"] = doubt
        prices = entry.prices
        tiers = (
            (tier.start for price in vars(prices).values() for tier in getattr(price, "tiers", ()))
            if prices
            else ()
        )
        starts = sorted({*tiers, *(rule.above for rule in rules if rule.above)})
        standard = self._standard(call, entry, rules)
        rows = []
        for above in (0, *starts):
            held = [rule for rule in rules if rule.above <= above]
            rows.append(
                (
                    above,
                    _rates_above(
                        above,
                        held,
                        standard,
                        entry,
                        ref,
                        call.provider if provider is None else provider.id,
                    ),
                )
            )
        return RateTable(tuple(rows))


# Complex: list, rules, doubts and their record are put together in one order.
def _rates_above(
    above: int, rules: Sequence[Rule], standard: Units, entry: _ListPrice, ref: str, provider: str
) -> Rates:
    """Return the rates for an input longer than *above*."""
    reasons = dict(entry.reasons)
    for index, rule in enumerate(rules):
        if rule.doubt is not None and not any(
            later.own and (later.whole or later.usd.keys() & _FEES) for later in rules[index:]
        ):
            reasons[rule.id] = rule.doubt
    settled = {name for rule in rules for name in rule.when}
    whole = any(rule.whole for rule in rules)
    kept = tuple(
        reason
        for term, reason in reasons.items()
        if term not in settled and (term in _OF_THE_MODEL or not whole)
    )
    prices = entry.prices
    listed = dict(_unit_prices(prices, entry.model, above + 1)) if prices is not None else {}
    units = overlay(listed, rules, standard)
    doubts = {} if whole else _doubts(entry, rules, listed, settled)
    for name, instead in _INSTEAD:
        if name not in units and instead in units:
            units[name] = units[instead]
            doubts[name] = f"{name} has no price of its own: billed as {instead}"
    minimum = {name: least for rule in rules for name, least in rule.minimum.items()}
    provenance = {
        "source": "genai-prices" if prices is not None and not whole else "rules",
        "version": _source_version(),
        "data": _source_hash(),
        "provider": provider,
        "model": ref if entry.model is None else entry.model.id,
        "context": entry.context,
        "unit_usd": {name: usd_text(amount) for name, amount in units.items()},
        "rules": [{"id": rule.id, "source": rule.source} for rule in rules],
        **({"minimum": minimum} if minimum else {}),
    }
    return Rates(_femto(units), kept, msgspec.json.encode(provenance).decode(), doubts, minimum)


def _unlisted(terms: Terms) -> dict[str, str]:
    """Return why the price of an unlisted model may not apply under these terms."""
    reasons = {
        term: f"{key} {value!r} has no price of its own: your standard price is used"
        for term, key, value in _wanted(terms)
    }
    if terms.geo not in _STANDARD_PLACES:
        reasons["geo"] = (
            f"inference_geo {terms.geo!r} has no price of its own: your standard price is used"
        )
    return reasons


# Complex: names, versions, places and tiers are tried in order.
def _find(provider: Provider, model: ModelInfo, ref: str, call: Call, terms: Terms) -> _ListPrice:
    """Return the list price of a model under some terms, and which terms the list lacks."""
    from genai_prices.types import TimeOfDateConstraint

    at = datetime.fromtimestamp(call.occurred_at // 1_000_000, UTC)
    entry = _ListPrice(model=model, prices=model.get_prices(at))
    conditional = model.prices if isinstance(model.prices, list) else ()
    entry.by_hour = any(isinstance(price.constraint, TimeOfDateConstraint) for price in conditional)
    if not _same_model(ref, model.id):
        entry.reasons["model"] = (
            f"model {ref!r} is priced as {model.id!r}, which its name only begins with"
        )
    if entry.by_hour:  # genai-prices cannot combine an hour with a weekday or a date
        entry.reasons["hour"] = (
            "priced by the hour of the day: weekends and former prices are not in the price data"
        )
    if terms.geo not in _STANDARD_PLACES:
        entry.reasons["geo"] = (
            f"inference_geo {terms.geo!r} has no price of its own: standard prices used"
        )
    # genai-prices has tier prices for a provider's own models only
    if not any(model is listed for listed in provider.models):
        for term, key, value in _wanted(terms):
            entry.reasons[term] = f"{key} {value!r} has no price of its own: standard prices used"
        return entry
    overrides: dict[str, Any] = {}
    for term, key, value in _wanted(terms):
        variants = [
            variant for variant in model.price_variants or () if variant.when == {key: value}
        ]
        if not variants:
            entry.reasons[term] = f"{key} {value!r} has no price of its own: standard prices used"
            continue
        entry.context[key] = value
        for variant in variants:
            start = getattr(variant.constraint, "start_date", None)
            if variant.constraint is not None and not variant.constraint.active(at):
                if start is None or at.date() > start:
                    entry.reasons[term] = (
                        f"{key} {value!r} has no price of its own at that time: standard prices "
                        "used"
                    )
                    continue
                then = datetime.combine(start, time(12), UTC)
                if vars(model.get_prices(then)) != vars(entry.prices):
                    entry.reasons[term] = (
                        f"{key} {value!r} has no price of its own before {start}: standard prices "
                        "used"
                    )
                    continue
                # Most variants start on the day they were added to the price data, not on the day
                # the provider introduced them.
                entry.reasons[term] = (
                    f"the price of {key} {value!r} is known from {start} on, and used for an "
                    "earlier call"
                )
            for name, amount in vars(variant.prices).items():
                if amount is not None:
                    overrides.setdefault(name, amount)
    if overrides:
        from copy import copy

        entry.prices = copy(entry.prices)
        vars(entry.prices).update(overrides)
    entry.own = frozenset(overrides)
    return entry


def _wanted(terms: Terms) -> Iterator[tuple[str, str, str]]:
    """
    Yield the terms that may have separate prices: our name, genai-prices' name, and the value.
    """
    if terms.tier not in _STANDARD_TIERS:
        yield "tier", "service_tier", str(terms.tier)
    if terms.batch:
        yield "batch", "processing", "batch"
    if terms.speed not in _STANDARD_TIERS:
        yield "speed", "speed", str(terms.speed)


def _doubts(
    entry: _ListPrice, rules: Sequence[Rule], listed: Mapping[str, Decimal], settled: set[str]
) -> dict[str, str]:
    """
    Return doubts about counts that have only a standard price while others have one for these
    terms.
    """
    priced = {name for name, keys in _UNITS.items() for key, _ in keys if key in entry.own}
    priced |= {name for rule in rules if rule.when or not rule.own for name in rule.usd}
    if not entry.own and not (settled & {"tier", "batch", "speed"}):
        return {}
    terms = ", ".join(entry.context.values()) or "these terms"
    return {
        name: f"{name} has no price of its own for {terms}: standard price used"
        for name in listed
        if name in TOKENS and name not in priced
    }


def _reference(name: str | None, provider: str) -> str:
    if not name or len(name) > 200:
        return ""
    return _PATHS.sub("", name.lower()).removeprefix(f"{provider}/")


def _core(ref: str) -> list[str]:
    """
    Return the words of a model's name without vendor, place, date, version and context length.
    Bedrock's models report other names.
    """
    return sorted(_WORDS.split(_ASIDES.sub("", _VENDORS.sub("", ref))))


def _same_model(ref: str, model: str) -> bool:
    """
    Return False if only the beginning of the name matched, as for a model newer than the prices.
    """
    if model.endswith(".ft-"):  # Azure: gpt-4o-mini-2024-07-18.ft-0e208cf33a6a466994aff31a08aba678
        return True
    tuned = _TUNED.match(ref)
    if tuned is not None and model.startswith("ft:"):
        ref, model = f"ft:{tuned['base']}", model.rstrip("-")
    return not ref.startswith(model) or _VERSION_SUFFIX.fullmatch(ref[len(model) :]) is not None


def _unit_prices(
    prices: ModelPrice, model: ModelInfo | None, input_tokens: int
) -> Iterator[tuple[str, Decimal]]:
    stored: Mapping[str, Any] = vars(prices)
    units: dict[str, Decimal] = {}
    for name, keys in _UNITS.items():
        for key, per in keys:
            amount = stored.get(key)
            if amount is None:
                continue
            if not isinstance(amount, Decimal):
                amount = next(
                    (tier.price for tier in reversed(amount.tiers) if input_tokens > tier.start),
                    amount.base,
                )
            units[name] = CONTEXT.divide(amount, Decimal(per))
            break
    # These models output images or sound, and the list has their price under the plain name.
    for part, name in (("image", "image_out"), ("tts", "audio_out")):
        if model is not None and part in model.id and name not in units and "output" in units:
            units[name] = units["output"]
    yield from units.items()


def _femto(usd: Mapping[str, Decimal]) -> dict[str, int | Decimal]:
    """
    Return whole numbers for unit prices in whole femto-dollars, such as list prices per million
    tokens.
    """
    scaled = {name: CONTEXT.scaleb(amount, 15) for name, amount in usd.items()}
    return {
        name: int(amount) if amount == amount.to_integral_value(context=CONTEXT) else amount
        for name, amount in scaled.items()
    }


def _snapshot() -> DataSnapshot:
    """Return the data inside the package, even if the application has installed other data."""
    from genai_prices.data import providers
    from genai_prices.data_snapshot import DataSnapshot

    return DataSnapshot(providers=providers, from_auto_update=False)


@cache
def _source_version() -> str:
    import genai_prices

    return genai_prices.__version__


@cache
def _source_hash() -> str:
    """Return the first 16 digits of the SHA-256 of the price data."""
    import hashlib
    from pathlib import Path

    from genai_prices import data

    return hashlib.sha256(Path(data.__file__).read_bytes()).hexdigest()[:16]
