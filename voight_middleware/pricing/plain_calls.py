"""
A quick way to price plain calls: usages of the common shapes, at prices without conditions.

The first call of each kind is priced as any call. If its usage and its prices are plain, a plan is
kept: where the counts are in the usage, and what each costs. A plan declines a usage that is in
doubt, such as one that contradicts itself. Both ways give the same results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, TypeAlias

import msgspec

from voight_middleware.pricing.book import PriceBook, Rates
from voight_middleware.pricing.rules import HOUR
from voight_middleware.pricing.terms import terms_of
from voight_middleware.providers.usage_formats.shapes import decode, encode, split
from voight_middleware.records.call import Call
from voight_middleware.records.money import MAX_FEMTO
from voight_middleware.records.usage import Component, Usage

_MOST = 4_096
"""How many plans a price book keeps."""
_FIRST = 10**11
"""The number that marks the first place of a shape. The next one marks the second place."""
_UNKNOWN: Any = object()

Counts: TypeAlias = tuple[int, ...]
"""Counts in the order of ``_BILLED``, 0 if unknown."""
_BILLED = (
    "input",
    "cache_read",
    "cache_write",
    "cache_write_5m",
    "cache_write_1h",
    "output",
    "web_search",
)
_OF_INPUT = 5
"""How many of them are input."""
Units: TypeAlias = tuple[int | None, ...]
"""Unit prices in femto-dollars by ``_BILLED``, None if unknown or in doubt."""
_APART = frozenset({"request", "reasoning"})
"""Prices that need more than the counts."""
_TERMS = frozenset({"service_tier", "inference_geo", "speed"})
"""Texts of a usage that say by which prices it is billed. They are a part of its shape."""
Reader: TypeAlias = Callable[[Sequence[int]], tuple[Usage, Counts] | None]
"""Reads the numbers of a shape, with a 0 behind them. Returns None for a usage in doubt."""


class Plan(NamedTuple):
    """How calls of one kind are priced."""

    read: Reader
    rates: tuple[tuple[int, Units | None, str], ...]
    """
    By input length: the shortest that they apply above, unit prices, and provenance. Unit prices
    are None if there is any condition to them. Empty without a price for the model.
    """
    unpriced: tuple[str, ...]
    """Why there is no price."""
    host: str | None
    service_tier: str | None


def price_plainly(call: Call, book: PriceBook, fully: Callable[[Call, PriceBook], None]) -> bool:
    """
    Fill in usage and cost of a plain call. Return False, without a change, for any other.

    Args:
        call: A call from the journal.
        book: The price book. It keeps the plans.
        fully: Prices any call. Used for the first call of a kind.
    """
    text = call.raw_usage
    if (
        text is None
        or call.possibly_billed
        or call.tool_calls
        or call.estimated_input is not None
        or call.estimated_output is not None
    ):
        return False
    if " " in text or "\n" in text:
        try:
            text = encode(decode(text))
        except (msgspec.DecodeError, ValueError, RecursionError):
            return False
    parts = split(text)
    if parts is None:
        return False
    kind = _kind(call, parts[0])
    plan = book.plans.get(kind, _UNKNOWN)
    if plan is _UNKNOWN:
        before = copy(call)
        fully(call, book)
        _keep_plan(before, call, book, kind, *parts)
        return True
    return plan is not None and _follow(plan, call, text, parts[1])


def _follow(plan: Plan, call: Call, text: str, numbers: tuple[int, ...]) -> bool:
    read = plan.read((*numbers, 0))
    if read is None:
        return False
    usage, counts = read
    cost: int | None = None
    provenance = None
    if plan.rates:
        _, units, provenance = plan.rates[0]
        if len(plan.rates) > 1:
            tokens = sum(counts[:_OF_INPUT])
            for above, longer, its in plan.rates[1:]:
                if tokens > above:
                    units, provenance = longer, its
        if units is None:
            return False
        cost = 0
        for count, unit in zip(counts, units):  # noqa: B905 - a keyword takes time
            if count:
                if unit is None:
                    return False
                cost += count * unit
        if cost > MAX_FEMTO:
            return False
    call.raw_usage = text
    call.usage = usage
    call.components = (Component(usage=usage),)
    call.host = plan.host
    call.service_tier = plan.service_tier
    call.cost_femto = cost
    call.list_femto = None
    call.cost_status = "unpriced" if cost is None else "priced"
    call.cost_reasons = plan.unpriced
    call.price = provenance
    return True


def _keep_plan(
    before: Call,
    call: Call,
    book: PriceBook,
    kind: tuple[object, ...],
    shape: str,
    numbers: tuple[int, ...],
) -> None:
    """Keep a plan for calls of this kind, or None if it isn't plain."""
    if len(book.plans) >= _MOST:
        book.plans.clear()
    book.plans[kind] = None
    text = call.raw_usage
    if text is None or text != shape % numbers:
        return  # a key that comes twice, or another spelling of a text
    # a mistake here must not cost the call its price
    with contextlib.suppress(Exception):
        plan = _plan(call, book, shape, numbers)
        if plan is not None and _follow(plan, before, text, numbers) and before == call:
            book.plans[kind] = plan


def _kind(call: Call, shape: str) -> tuple[object, ...]:
    return (
        shape,
        call.endpoint,
        call.provider,
        call.model,
        call.requested_model,
        call.host,
        call.service_tier,
        call.batch,
        call.occurred_at // HOUR,
    )


def _plan(call: Call, book: PriceBook, shape: str, numbers: tuple[int, ...]) -> Plan | None:
    """Return a plan for calls like *call*, which is priced already."""
    reader = _READERS.get(call.endpoint)
    if reader is None:
        return None
    raw = msgspec.json.decode(shape % tuple(range(_FIRST, _FIRST + len(numbers))))
    read = reader(_Places(raw))
    if read is None:
        return None
    table = book.rates(call, None, terms_of(call, raw))
    rates = () if table is None else table.rows
    return Plan(
        read,
        tuple((above, _units(row), row.provenance) for above, row in rates),
        () if table is not None else call.cost_reasons,
        call.host,
        call.service_tier,
    )


def _units(rates: Rates) -> Units | None:
    if rates.reasons or rates.minimum or not _APART.isdisjoint(rates.femto):
        return None
    return tuple(
        unit if type(unit := rates.femto.get(name)) is int and name not in rates.doubts else None
        for name in _BILLED
    )


class _Places:
    """Where the numbers of a usage are: -1 for the 0 behind them, None for a missing count."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._found: dict[str, object] = {}
        self._walk(raw, "")

    def _walk(self, raw: Mapping[str, Any], inside: str) -> None:
        for key, value in raw.items():
            if isinstance(value, dict) and value:
                self._walk(value, f"{inside}{key}.")
            else:
                self._found[f"{inside}{key}"] = value

    def take(self, name: str) -> int | None:
        """Return the place of a count."""
        value = self._found.pop(name, None)
        if type(value) is int:
            return value - _FIRST if value else -1
        if value is not None:
            self._found[name] = value
        return None

    def has(self, part: str) -> bool:
        """Return whether there is anything in a part, such as ``cache_creation.``."""
        return any(name.startswith(part) for name in self._found)

    def is_read(self) -> bool:
        """Return whether nothing is left that a reader looks at."""
        return all(
            value is None or (name in _TERMS and isinstance(value, str))
            for name, value in self._found.items()
        )


def _openai(places: _Places, input_: str, output: str) -> Reader | None:
    details_in, details_out = (f"{name}_tokens_details." for name in (input_, output))
    total_in, total_out = places.take(f"{input_}_tokens"), places.take(f"{output}_tokens")
    total = places.take("total_tokens")
    read = places.take(f"{details_in}cached_tokens")
    written = places.take(f"{details_in}cache_write_tokens")
    reasoning = places.take(f"{details_out}reasoning_tokens")
    audio_in = places.take(f"{details_in}audio_tokens")
    audio_out = places.take(f"{details_out}audio_tokens")
    for name in ("accepted_prediction_tokens", "rejected_prediction_tokens"):
        places.take(f"{details_out}{name}")
    if total_in is None or total_out is None or not places.is_read():
        return None
    if audio_in not in (None, -1) or audio_out not in (None, -1):
        return None
    audio = (None if audio_in is None else 0, None if audio_out is None else 0)

    def counts(numbers: Sequence[int]) -> tuple[Usage, Counts] | None:
        sent, answered = numbers[total_in], numbers[total_out]
        if total is not None and numbers[total] != sent + answered:
            return None
        cached = None if read is None else numbers[read]
        kept = None if written is None else numbers[written]
        thought = None if reasoning is None else numbers[reasoning]
        full = sent - (cached or 0) - (kept or 0)
        if full < 0 or (thought is not None and thought > answered):
            return None
        usage = Usage(
            input=full,
            cache_read=cached,
            cache_write=kept,
            audio_in=audio[0],
            output=answered,
            reasoning=thought,
            audio_out=audio[1],
        )
        return usage, (full, cached or 0, kept or 0, 0, 0, answered, 0)

    return counts


def _chat(places: _Places) -> Reader | None:
    return _openai(places, "prompt", "completion")


def _responses(places: _Places) -> Reader | None:
    return _openai(places, "input", "output")


def _messages(places: _Places) -> Reader | None:
    split_ = places.has("cache_creation.")
    input_, output = places.take("input_tokens"), places.take("output_tokens")
    read = places.take("cache_read_input_tokens")
    written = places.take("cache_creation_input_tokens")
    minutes = places.take("cache_creation.ephemeral_5m_input_tokens")
    hour = places.take("cache_creation.ephemeral_1h_input_tokens")
    thinking = places.take("output_tokens_details.thinking_tokens")
    searches = places.take("server_tool_use.web_search_requests")
    fetches = places.take("server_tool_use.web_fetch_requests")
    if input_ is None or output is None or not places.is_read():
        return None
    tools = (("web_search", searches), ("web_fetch", fetches))
    requests = [(tool, place) for tool, place in tools if place is not None]

    def counts(numbers: Sequence[int]) -> tuple[Usage, Counts] | None:
        sent, answered = numbers[input_], numbers[output]
        cached = None if read is None else numbers[read]
        for_minutes = None if minutes is None else numbers[minutes]
        for_hour = None if hour is None else numbers[hour]
        thought = None if thinking is None else numbers[thinking]
        rest = None
        if written is not None:
            rest = numbers[written] - (for_minutes or 0) - (for_hour or 0)
            if rest < 0:
                return None
            if not rest and split_:
                rest = None
        if thought is not None and thought > answered:
            return None
        usage = Usage(
            input=sent,
            cache_read=cached,
            cache_write=rest,
            cache_write_5m=for_minutes,
            cache_write_1h=for_hour,
            output=answered,
            reasoning=thought,
            tools={name: numbers[place] for name, place in requests} or None,
        )
        return usage, (
            sent,
            cached or 0,
            rest or 0,
            for_minutes or 0,
            for_hour or 0,
            answered,
            0 if searches is None else numbers[searches],
        )

    return counts


def _embeddings(places: _Places) -> Reader | None:
    input_ = places.take("prompt_tokens")
    places.take("total_tokens")
    if input_ is None or input_ == -1 or not places.is_read():
        return None

    def counts(numbers: Sequence[int]) -> tuple[Usage, Counts]:
        sent = numbers[input_]
        return Usage(input=sent), (sent, 0, 0, 0, 0, 0, 0)

    return counts


_READERS: Mapping[str, Callable[[_Places], Reader | None]] = {
    "chat": _chat,
    "embeddings": _embeddings,
    "messages": _messages,
    "responses": _responses,
}
"""
The usages that are read here, as ``providers/usage_formats/`` reads them when nothing in them is
in doubt.
"""
