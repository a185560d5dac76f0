"""``voight explain``: the cost of one call, line by line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from voight_middleware.cli.arguments import add_format, add_ledger
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import utc
from voight_middleware.cli.prices_show import origin, unit_price
from voight_middleware.cli.render import UserError, aligned, exact, printable
from voight_middleware.exporters.files import jsonl
from voight_middleware.ledger import PriceVersion
from voight_middleware.pipeline.pseudonyms import kept_call_id
from voight_middleware.pricing.explain import Explanation, Line, Part, explain
from voight_middleware.records.call import Call
from voight_middleware.records.money import from_femto, usd_text
from voight_middleware.reports.spend import usd
from voight_middleware.reports.timespan import to_datetime

EXAMPLES = """\
The first 8 characters of a call's id are enough; voight export shows the ids.

examples:
  voight explain 019a8f3b52c77d41
  voight explain 019a8f3b52c77d41 --format json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_ledger(parser)
    add_format(parser, "table", "json")
    parser.add_argument(
        "call_id", metavar="CALL_ID", help="the id of a call, or its first characters, at least 8"
    )


def run(context: Context) -> int:
    """Print the call, its arithmetic and its former prices."""
    args, ledger = context.args, context.ledger
    call = ledger.call(args.call_id) or ledger.call(
        kept_call_id(args.call_id, context.settings.pii)
    )
    if call is None:
        raise UserError(
            f"there is no call {args.call_id!r} in this ledger; voight export shows their ids"
        )
    history = ledger.price_history(call.call_id)
    print(as_json(call, history) if args.format == "json" else as_text(call, history))
    return 0


def as_json(call: Call, history: Sequence[PriceVersion]) -> str:
    """Return the call and its arithmetic as a JSON object in ASCII; money is in US dollars."""
    explanation = explain(call)
    value = {
        **jsonl.as_object(call),
        "host": call.host,
        "service_tier": call.service_tier,
        "batch": call.batch,
        "components": list(map(_part, explanation.parts)),
        "sum_usd": usd(explanation.sum_femto),
        "sum_agrees": explanation.agrees,
        "list_usd": usd(call.list_femto),
        "reported_usd": usd(explanation.reported_femto),
        "former": [
            {
                "version": price.version,
                "cost_usd": usd(price.cost_femto),
                "list_usd": usd(price.list_femto),
                "cost_status": price.cost_status,
                "cost_reasons": price.cost_reasons,
                "replaced_at": utc(price.replaced_at),
            }
            for price in history
        ],
    }
    return json.dumps(value, indent=2)


def as_text(call: Call, history: Sequence[PriceVersion]) -> str:
    """Return the call and its arithmetic for a terminal."""
    explanation = explain(call)
    lines = [
        f"call {call.call_id}",
        *_facts(call),
        "",
        *_arithmetic(explanation),
        *_result(call, explanation),
    ]
    if history:
        lines += ["", "earlier prices"]
    for price in history:
        figure = f"{_shown(price.cost_femto)}, {price.cost_status}"
        reasons = f" ({'; '.join(price.cost_reasons)})" if price.cost_reasons else ""
        lines.append(
            f"  version {price.version}, until {to_datetime(price.replaced_at):%Y-%m-%d %H:%M} "
            f"UTC: {figure}{reasons}"
        )
    return "\n".join(map(printable, lines))


def _facts(call: Call) -> Iterator[str]:
    tags = call.tags
    groups = [
        f"{name} {value}"
        for name, value in (("plan", tags.plan), ("tenant", tags.tenant_id))
        if value is not None
    ]
    tier = [call.service_tier or "standard", *(["batch"] if call.batch else [])]
    model = call.model or call.requested_model or "unknown"
    requested = (
        "" if call.requested_model in (None, model) else f" (requested: {call.requested_model})"
    )
    facts = {
        "user": ", ".join([tags.user_id or "(none)", *groups]),
        "model": f"{model}{requested} of {', '.join(filter(None, (call.provider, call.host)))}",
        "time": f"{call.time:%Y-%m-%d %H:%M:%S.%f} UTC",
        "endpoint": call.endpoint,
        "tier": ", ".join(tier),
        "outcome": call.outcome if call.error is None else f"{call.outcome} ({call.error})",
    }
    if call.estimated:
        facts["tokens"] = "estimated: the stream was broken off before the provider reported them"
    yield from (f"  {name.ljust(9)} {value}" for name, value in facts.items())


def _arithmetic(explanation: Explanation) -> Iterator[str]:
    every = [line for part in explanation.parts for line in part.lines]
    total = None if explanation.sum_femto is None else from_femto(explanation.sum_femto)
    known = [line.amount_usd for line in every if line.amount_usd is not None]
    amounts = iter(aligned([*known, total], exact))
    names = max((len(line.name) for line in every), default=0)
    counts = max((len(f"{line.count:,}") for line in every), default=0)
    prices = max((len(_price(line)) for line in every), default=0)
    for part in explanation.parts:
        of = "" if part.provider is None else f" of {part.provider}"
        yield (
            f"{part.model}, without a price"
            if part.source is None
            else f"{part.model}{of}, {_origin(part)}"
        )
        for rule in part.rules:
            yield f"  rule {rule.id}{'' if rule.source is None else f': {rule.source}'}"
        for line in part.lines:
            text = (
                f"  {line.name.ljust(names)}  {f'{line.count:,}'.rjust(counts)} x "
                f"{_price(line).ljust(prices)}"
            )
            yield (text if line.amount_usd is None else f"{text} = {next(amounts)}").rstrip()
    if total is not None:
        yield f"{'  sum'.ljust(names + counts + prices + 7)} = {next(amounts)}".rstrip()


def _result(call: Call, explanation: Explanation) -> Iterator[str]:
    yield f"cost {_shown(call.cost_femto)}, {call.cost_status}"
    yield from (f"  {reason}" for reason in call.cost_reasons)
    if explanation.reported_femto is not None:
        ours = (
            "no price of ours"
            if call.list_femto is None
            else f"ours comes to {_shown(call.list_femto)}"
        )
        yield f"  as {call.provider} reported it; {ours}"
    if explanation.agrees:
        return
    stored = _shown(explanation.stored_femto)
    if explanation.sum_femto is None:
        yield (
            f"! no unit prices are stored with this call: its cost of {stored} cannot be computed "
            "again"
        )
    else:
        yield f"! the sum, {_shown(explanation.sum_femto)}, is not the stored cost, {stored}"


def _part(part: Part) -> dict[str, Any]:
    return {
        "model": part.model,
        "provider": part.provider,
        "source": part.source,
        "version": part.version,
        "data": part.data,
        "context": dict(part.context),
        "rules": [{"id": rule.id, "source": rule.source} for rule in part.rules],
        "lines": [
            {
                "name": line.name,
                "count": line.count,
                "unit_usd": _decimal(line.unit_usd),
                "amount_usd": _decimal(line.amount_usd),
            }
            for line in part.lines
        ],
    }


def _price(line: Line) -> str:
    if line.unit_usd is not None:
        return unit_price(line.name, line.unit_usd)
    return "free of charge" if line.free else "no price"


def _origin(part: Part) -> str:
    terms = "".join(f", {name}={value}" for name, value in part.context.items())
    return origin(part.source, part.version, part.data) + terms


def _shown(femto: int | None) -> str:
    return "unknown" if femto is None else exact(from_femto(femto))


def _decimal(usd: Decimal | None) -> str | None:
    return None if usd is None else usd_text(usd)
