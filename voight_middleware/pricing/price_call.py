"""Price one call: parse its usage and compute its cost."""

from __future__ import annotations

from typing import Any

import msgspec

from voight_middleware.pricing import STANDARD, PriceBook, price
from voight_middleware.pricing.bills import reported_cost
from voight_middleware.pricing.cost import UNREADABLE
from voight_middleware.pricing.plain_calls import price_plainly
from voight_middleware.pricing.terms import terms_of
from voight_middleware.providers.hosts import host_name
from voight_middleware.providers.usage_formats import read
from voight_middleware.providers.usage_formats.shapes import decode, encode
from voight_middleware.records.call import Call
from voight_middleware.records.usage import Component, Usage, UsageError


def price_call(call: Call, book: PriceBook) -> None:
    """
    Fill in usage and cost of a call from the journal. Unreadable data becomes a reason, never an
    exception.
    """
    if not price_plainly(call, book, price_fully):
        price_fully(call, book)


def price_fully(call: Call, book: PriceBook) -> None:
    """Price a call of any kind. ``price_call`` gives the same results, faster for plain calls."""
    call.components = ()
    call.usage = None
    call.price = None
    call.list_femto = None
    call.cost_reasons = ()
    call.host = host_name(call.host)  # journals of older versions contain whole URLs
    try:
        _complete(call, book)
    except Exception as error:  # one unexpected call must not stop the others
        call.components, call.usage, call.price = (), None, None
        call.cost_femto = None
        call.cost_status = "unpriced"
        call.cost_reasons = (f"cannot be priced: {type(error).__name__}: {error}",)


def _complete(call: Call, book: PriceBook) -> None:
    terms, reported = STANDARD, None
    if call.raw_usage is not None:
        try:
            raw = decode(call.raw_usage)
            call.raw_usage = encode(raw)
            terms, reported = terms_of(call, raw), reported_cost(call, raw)
            call.components, call.cost_reasons = read(call.endpoint, raw)
        except (UsageError, msgspec.DecodeError) as error:
            call.cost_reasons = (f"{UNREADABLE}: {error}",)
    elif call.service_tier is not None or call.batch:
        terms = terms_of(call, {})
    if call.tool_calls or call.estimated:
        call.components = _added(call)
    call.usage = _total(call.components)
    price(call, book, terms, reported)


def _added(call: Call) -> tuple[Component, ...]:
    """
    Return the components with counted tool calls and estimates added. An estimate never replaces a
    reported count.
    """
    first = call.components[0] if call.components else Component(usage=Usage())
    usage = first.usage
    changes: dict[str, Any] = {}
    if call.tool_calls:
        changes["tools"] = {**(usage.tools or {}), **call.tool_calls}
    if call.estimated_input is not None and usage.input_tokens is None:
        changes["input"] = call.estimated_input
    if call.estimated_output is not None:
        changes["output"] = call.estimated_output
    usage = msgspec.structs.replace(usage, **changes)
    return (msgspec.structs.replace(first, usage=usage), *call.components[1:])


def _total(components: tuple[Component, ...]) -> Usage | None:
    if len(components) <= 1:
        return components[0].usage if components else None
    total: dict[str, Any] = {}
    for component in components:
        for name in Usage.__struct_fields__:
            value = getattr(component.usage, name)
            if value is None:
                continue
            if name == "tools":
                sums = total.setdefault("tools", {})
                for tool, count in value.items():
                    sums[tool] = sums.get(tool, 0) + count
            else:
                total[name] = total.get(name, 0) + value
    return Usage(**total)
