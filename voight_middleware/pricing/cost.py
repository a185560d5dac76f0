"""The cost of one call: its counts times the unit prices, with a status that says how far to trust it."""

from __future__ import annotations

from decimal import Decimal

from voight_middleware.call import Call
from voight_middleware.money import CONTEXT, MAX_FEMTO
from voight_middleware.pricing.book import PriceBook, Rates
from voight_middleware.usage import Usage

_COUNTS = (
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
_FREE_TOOLS = frozenset({"web_fetch"})
"""Source: Anthropic, "Web fetch tool", pricing: no charge beyond the tokens."""


FREE = frozenset({"moderations", "count_tokens"})
"""
Endpoints without a price. Sources: OpenAI, "Moderation" (free of charge), "Counting tokens"; Anthropic, "Token counting" (free to use).
"""


def price(call: Call, book: PriceBook, speed: str | None = None) -> None:
    """
    Set the cost of *call*, its status and its reasons, from its components.

    An answer of status 400 or above is not billed, and costs 0, as does an endpoint that is free. A call without usage or without a
    price costs None: ``unpriced``. A call with a count, tier or tool that has no price of its own costs what its priced parts cost:
    ``partial``, as is one that was tried before without an answer, and may have been billed for that too.
    """
    if call.endpoint in FREE:
        call.cost_femto, call.cost_status, call.cost_reasons = 0, "priced", (f"{call.endpoint} is free",)
        return
    if call.possibly_billed:
        tries = "an attempt" if call.possibly_billed == 1 else f"{call.possibly_billed} attempts"
        call.cost_reasons = (*call.cost_reasons, f"{tries} got no answer, and may have been billed")
    if not call.components:
        if call.outcome == "error" and call.http_status is not None and call.http_status >= 400:
            call.cost_femto, call.cost_status, call.cost_reasons = 0, "priced", (f"not billed: HTTP {call.http_status}",)
        else:
            call.cost_femto, call.cost_status = None, "unpriced"
            missing = "the provider reported no usage" if call.job is None else "nobody has read yet what this job used"
            call.cost_reasons = (*call.cost_reasons, missing)
        return
    if not any(_says_something(component.usage) for component in call.components):
        call.cost_femto, call.cost_status = None, "unpriced"
        call.cost_reasons = (*call.cost_reasons, "the provider's usage has no count that is known here")
        return
    total = 0
    fraction = Decimal(0)
    reasons: list[str] = [*call.cost_reasons]
    for component in call.components:
        table = book.rates(call, component.model, speed)
        if table is None:
            name = component.model or call.model or call.requested_model
            call.cost_femto, call.cost_status = None, "unpriced"
            call.cost_reasons = (*reasons, f"no price for model {name!r} of {call.provider}")
            return
        usage = component.usage
        rates = table.rows[0][1] if len(table.rows) == 1 else table.for_input(usage.input_tokens or 0)
        reasons.extend(rates.reasons)
        known = len(reasons)
        whole, rest, counts = _cost(usage, rates, reasons)
        if counts and len(reasons) - known == counts:
            call.cost_femto, call.cost_status, call.cost_reasons = None, "unpriced", tuple(dict.fromkeys(reasons))
            return
        total += whole
        if rest:
            fraction = CONTEXT.add(fraction, rest)
        call.price = rates.provenance if call.price is None else f"{call.price}\n{rates.provenance}"
    if fraction:
        total += int(CONTEXT.to_integral_value(fraction))
    if total > MAX_FEMTO:
        call.cost_femto, call.cost_status = None, "unpriced"
        call.cost_reasons = (*reasons, "the cost is beyond 9,223 USD, more than one call can cost")
        return
    call.cost_femto = total
    call.cost_status = "partial" if reasons else "priced"
    call.cost_reasons = tuple(dict.fromkeys(reasons)) if reasons else ()


def _says_something(usage: Usage) -> bool:
    if usage.input is not None or usage.output is not None or usage.tools:
        return True
    return any(getattr(usage, name) is not None for name in _COUNTS)


def _cost(usage: Usage, rates: Rates, reasons: list[str]) -> tuple[int, Decimal | None, int]:
    """Whole femto-dollars, the fraction of one, and how many counts there are; each that has no price adds a reason."""
    total = 0
    fraction: Decimal | None = None
    femto = rates.femto
    counts = [(name, count) for name in _COUNTS if (count := getattr(usage, name))]
    if usage.tools:
        counts.extend((tool, count) for tool, count in usage.tools.items() if count and tool not in _FREE_TOOLS)
    if "request" in femto:
        counts.append(("request", 1))
    for name, count in counts:
        unit = femto.get(name)
        if unit is None:
            reasons.append(f"no price for {name}")
        elif type(unit) is int:
            total += unit * count
        else:
            part = CONTEXT.multiply(Decimal(unit), Decimal(count))
            fraction = part if fraction is None else CONTEXT.add(fraction, part)
    return total, fraction, len(counts)
