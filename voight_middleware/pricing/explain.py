"""
The cost of a stored call, line by line: its components times the stored unit prices.

It doesn't use the price book: it explains the stored cost, not today's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from voight_middleware.pricing.bills import reported_cost
from voight_middleware.pricing.cost import COUNTS
from voight_middleware.records.call import Call
from voight_middleware.records.money import CONTEXT
from voight_middleware.records.usage import Component, Usage

_decode = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode


@dataclass(frozen=True, slots=True)
class Line:
    """One count times its unit price. Money is in exact US dollars."""

    name: str
    count: int
    unit_usd: Decimal | None = None
    """Per token, second, character, image or request. None if no price is stored."""
    free: bool = False
    """Whether it has no price because nothing is charged."""

    @property
    def amount_usd(self) -> Decimal | None:
        """The count times the unit price. None without a unit price."""
        return (
            None if self.unit_usd is None else CONTEXT.multiply(self.unit_usd, Decimal(self.count))
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A price rule applied over the list price."""

    id: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One component of a call, with the prices it was billed at."""

    model: str | None
    """The priced model. The component's model if no prices are stored."""
    lines: tuple[Line, ...]
    provider: str | None = None
    source: str | None = None
    """The source of the prices: ``genai-prices``, ``rules``, …. None if no prices are stored."""
    version: str | None = None
    data: str | None = None
    """The hash of the price data."""
    context: Mapping[str, str] = field(default_factory=dict)
    """The terms with separate list prices, such as the tier."""
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The arithmetic of one call. Money is in femto-dollars (1e-15 USD)."""

    parts: tuple[Part, ...]
    sum_femto: int | None
    """The sum of all lines, rounded like the cost. None if no price is stored."""
    stored_femto: int | None
    """The expected sum: the cost, or our own price if the provider reported the cost."""
    reported_femto: int | None
    """The cost reported by the provider, if any."""

    @property
    def agrees(self) -> bool:
        """Whether the sum equals the stored cost, to the last femto-dollar."""
        return self.sum_femto == self.stored_femto or (
            self.sum_femto is None and not self.stored_femto
        )


def explain(call: Call) -> Explanation:
    """Explain the cost of a call, recomputed from its components and stored prices."""
    reported = call.list_femto is not None or _reports_a_cost(call)
    records = [] if call.price is None else [_record(text) for text in call.price.split("\n")]
    components = call.components or (() if call.usage is None else (Component(usage=call.usage),))
    parts = tuple(
        _part(
            call,
            component,
            records[index] if index < len(records) else {},
            free=call.cost_status == "priced" and not reported,
        )
        for index, component in enumerate(components)
    )
    return Explanation(
        parts=parts,
        sum_femto=_sum(parts),
        stored_femto=call.list_femto if reported else call.cost_femto,
        reported_femto=call.cost_femto if reported else None,
    )


def _part(call: Call, component: Component, record: Mapping[str, Any], *, free: bool) -> Part:
    units = _units(record)
    minimum = _mapping(record, "minimum")
    lines = tuple(
        Line(name, count, units.get(name), free and name not in units)
        for name, count in _counts(component.usage, units, minimum)
    )
    rules = record.get("rules")
    return Part(
        model=_text(record, "model") or component.model or call.model or call.requested_model,
        lines=lines,
        provider=_text(record, "provider"),
        source=_text(record, "source"),
        version=_text(record, "version"),
        data=_text(record, "data"),
        context={str(name): str(value) for name, value in _mapping(record, "context").items()},
        rules=tuple(
            Rule(str(rule.get("id")), _text(rule, "source"))
            for rule in (rules if isinstance(rules, list) else ())
            if isinstance(rule, dict)
        ),
    )


def _counts(
    usage: Usage, units: Mapping[str, Decimal], minimum: Mapping[str, Any]
) -> Iterator[tuple[str, int]]:
    """
    Yield the counts as billed, with minimums applied. Reasoning is separate if it has a price of
    its own.
    """
    apart = (usage.reasoning or 0) if "reasoning" in units else 0
    for name in COUNTS:
        count: int | None = getattr(usage, name)
        if not count:
            continue
        least = minimum.get(name)
        if isinstance(least, int):
            count = max(count, least)
        if apart and name == "output":
            yield "reasoning", apart
            count -= 0 if apart > count else apart
        yield name, count
    yield from ((tool, count) for tool, count in (usage.tools or {}).items() if count)
    if "request" in units:
        yield "request", 1


def _sum(parts: tuple[Part, ...]) -> int | None:
    """
    Sum up like the cost: whole femto-dollar prices exactly, the others rounded once at the end.
    """
    whole, fraction, known = 0, Decimal(0), False
    for part in parts:
        known = known or part.source is not None
        for line in part.lines:
            if line.unit_usd is None:
                continue
            known = True
            unit = CONTEXT.scaleb(line.unit_usd, 15)
            if unit == unit.to_integral_value(context=CONTEXT):
                whole += int(unit) * line.count
            else:
                fraction = CONTEXT.add(fraction, CONTEXT.multiply(unit, Decimal(line.count)))
    return whole + int(CONTEXT.to_integral_value(fraction)) if known else None


def _reports_a_cost(call: Call) -> bool:
    if call.price is not None or call.cost_femto is None or call.raw_usage is None:
        return False
    try:
        return reported_cost(call, _decode(call.raw_usage)) is not None
    except (msgspec.DecodeError, UnicodeEncodeError):
        return False


def _record(text: str) -> Mapping[str, Any]:
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return {}


def _units(record: Mapping[str, Any]) -> dict[str, Decimal]:
    units: dict[str, Decimal] = {}
    for name, amount in _mapping(record, "unit_usd").items():
        try:
            usd = CONTEXT.create_decimal(amount) if isinstance(amount, str) else None
        except InvalidOperation:
            continue
        if usd is not None and usd.is_finite():
            units[name] = usd
    return units


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _text(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    return value if isinstance(value, str) else None
