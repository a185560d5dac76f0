"""
The cost of one call: its counts times the unit prices, with a status that says how reliable it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from msgspec.structs import astuple

from voight_middleware.pricing.book import PriceBook, Rates
from voight_middleware.pricing.rules import STANDARD, Terms
from voight_middleware.pricing.terms import billed_by_the_hour
from voight_middleware.records.call import Call
from voight_middleware.records.money import CONTEXT, MAX_FEMTO
from voight_middleware.records.usage import Usage

COUNTS = (
    "input",
    "cache_read",
    "cache_write",
    "cache_write_5m",
    "cache_write_1h",
    "output",
    "audio_in",
    "audio_out",
    "cache_read_audio",
    "cache_read_image",
    "image_in",
    "image_out",
    "images",
    "seconds",
    "characters",
)
"""The billed counts of a usage, each with a unit price of its own."""
_BILLED = frozenset(COUNTS)
_FIELDS = Usage.__struct_fields__
UNREADABLE = "unreadable usage"
"""The beginning of a reason if the tokens of a call are unknown."""
_FREE_TOOLS = frozenset({"web_fetch"})
"""Source: Anthropic, "Web fetch tool", pricing: no charge beyond the tokens."""
FREE = frozenset({"moderations", "count_tokens"})
"""
Endpoints without a price. Sources: OpenAI, "Moderation" (free of charge), "Counting tokens";
Anthropic, "Token counting" (free to use).
"""


def billed(usage: Usage, rates: Rates) -> Iterator[tuple[str, int]]:
    """
    Yield the counts of *usage* as billed under *rates*, with minimums applied. Reasoning is
    separate if it has a price of its own.
    """
    apart = usage.reasoning if "reasoning" in rates.femto else None
    # Not a part of the output, which violates the contract of Usage.
    beside = apart is not None and apart > (usage.output or 0)
    for name, count in zip(_FIELDS, astuple(usage), strict=True):
        if count and name in _BILLED:
            if apart and name == "output":
                yield "reasoning", apart
                yield name, count if beside else count - apart
            else:
                yield name, max(count, rates.minimum[name]) if name in rates.minimum else count
    if usage.tools:
        yield from (
            (tool, count)
            for tool, count in usage.tools.items()
            if count and tool not in _FREE_TOOLS
        )
    if "request" in rates.femto:
        yield "request", 1


def price(
    call: Call, book: PriceBook, terms: Terms = STANDARD, reported: Decimal | None = None
) -> None:
    """
    Set the cost of *call*, its status and its reasons from its components.

    A response with status 400 or above is not billed and costs 0, as does a free endpoint. Without
    usage or price, the cost is None and the status ``unpriced``. If a count, tier or tool has no
    price, the cost is that of the priced parts and the status ``partial``. It is also ``partial``
    after an attempt without a response, which may have been billed.

    Args:
        call: The call to price.
        book: The price book.
        terms: The terms of the call.
        reported: The cost reported by the provider, in US dollars. It wins; ours is stored too.
    """
    call.list_femto = None
    if call.endpoint in FREE:
        call.cost_femto = 0
        call.cost_status = "priced"
        call.cost_reasons = (f"{call.endpoint} is free",)
        return
    if call.possibly_billed:
        tries = "an attempt" if call.possibly_billed == 1 else f"{call.possibly_billed} attempts"
        call.cost_reasons = (*call.cost_reasons, f"{tries} got no answer, and may have been billed")
    asides = call.cost_reasons
    _price_by_list(call, book, terms)
    if reported is not None:
        call.list_femto = call.cost_femto
        call.cost_femto = int(CONTEXT.to_integral_value(CONTEXT.scaleb(reported, 15)))
        call.cost_status = "partial" if call.possibly_billed else "priced"
        # The reported cost settles missing prices, but not what is unknown about the call itself.
        call.cost_reasons = (
            asides
            if call.possibly_billed
            else tuple(reason for reason in asides if reason.startswith(UNREADABLE))
        )


# Complex: one branch for each reason why a cost is partial or unknown.
def _price_by_list(call: Call, book: PriceBook, terms: Terms) -> None:
    if not call.components:
        if call.outcome == "error" and call.http_status is not None and call.http_status >= 400:
            call.cost_femto = 0
            call.cost_status = "priced"
            call.cost_reasons = (f"not billed: HTTP {call.http_status}",)
        else:
            missing = (
                "the provider reported no usage"
                if call.job is None
                else "nobody has read yet what this job used"
            )
            _unpriced(call, [*call.cost_reasons, missing])
        return
    if not any(_says_something(component.usage) for component in call.components):
        _unpriced(
            call, [*call.cost_reasons, "the provider's usage has no count that is known here"]
        )
        return
    total = 0
    fraction = Decimal(0)
    reasons: list[str] = [*call.cost_reasons]
    for component in call.components:
        table = book.rates(call, component.model, terms)
        if table is None:
            name = component.model or call.model or call.requested_model
            if (unit := billed_by_the_hour(call)) is not None:
                reasons.append(f"{unit} of Bedrock is billed by the hour, not by the token")
                name = call.requested_model
            _unpriced(call, [*reasons, f"no price for model {name!r} of {call.provider}"])
            return
        usage = component.usage
        rates = (
            table.rows[0][1] if len(table.rows) == 1 else table.for_input(usage.input_tokens or 0)
        )
        reasons.extend(rates.reasons)
        whole, rest, unknown, counts = _cost(usage, rates)
        reasons.extend(f"no price for {name}" for name in unknown)
        if unknown and len(unknown) == counts:
            _unpriced(call, reasons)
            return
        if "reasoning" in rates.femto and (usage.reasoning or 0) > (usage.output or 0):
            reasons.append("more reasoning than output was reported: each is billed in full")
        for name, doubt in rates.doubts.items():
            if getattr(usage, name):
                reasons.append(doubt)
        total += whole
        if rest:
            fraction = CONTEXT.add(fraction, rest)
        call.price = rates.provenance if call.price is None else f"{call.price}\n{rates.provenance}"
    if fraction:
        total += int(CONTEXT.to_integral_value(fraction))
    if total > MAX_FEMTO:
        _unpriced(call, [*reasons, "the cost is beyond 9,223 USD, more than one call can cost"])
        return
    call.cost_femto = total
    call.cost_status = "partial" if reasons else "priced"
    call.cost_reasons = tuple(dict.fromkeys(reasons)) if reasons else ()


def _unpriced(call: Call, reasons: list[str]) -> None:
    call.cost_femto, call.cost_status, call.price = None, "unpriced", None
    call.cost_reasons = tuple(dict.fromkeys(reasons))


def _says_something(usage: Usage) -> bool:
    if usage.input is not None or usage.output is not None or usage.tools:
        return True
    return any(getattr(usage, name) is not None for name in COUNTS)


def _cost(usage: Usage, rates: Rates) -> tuple[int, Decimal | None, list[str], int]:
    """
    Return whole femto-dollars, the fraction of one, the counts without a price, and the number of
    counts.
    """
    total = counts = 0
    fraction: Decimal | None = None
    unknown: list[str] = []
    femto = rates.femto
    for name, count in billed(usage, rates):
        counts += 1
        unit = femto.get(name)
        if type(unit) is int:
            total += unit * count
        elif unit is None:
            unknown.append(name)
        else:
            part = CONTEXT.multiply(Decimal(unit), Decimal(count))
            fraction = part if fraction is None else CONTEXT.add(fraction, part)
    return total, fraction, unknown, counts
