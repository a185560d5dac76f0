"""``voight prices show``: the unit prices of a model."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from voight_middleware.cli.arguments import add_format, add_prices
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import UserError, exact, printable
from voight_middleware.records.money import CONTEXT, from_femto, usd_text
from voight_middleware.reports import timespan

if TYPE_CHECKING:
    from voight_middleware.pricing import Terms
    from voight_middleware.pricing.book import RateTable
    from voight_middleware.records.call import Call

_TERMS = {
    "tier": "service tier",
    "speed": "speed",
    "geo": "region of inference",
    "size": "image size",
    "quality": "image quality",
}
"""Terms that a price can depend on, in addition to the batch API."""

_FIRST = ("openai", "anthropic", "google", "mistral", "deepseek", "xai", "cohere", "perplexity")
"""Providers that are asked first if none is given: they sell models of their own."""


EXAMPLES = """\
examples:
  voight prices show gpt-5-nano
  voight prices show gpt-5-nano --tier flex --at 2026-11-01
  voight prices show claude-opus-4-6 --batch --format json
  voight prices show chat-prod --provider azure
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_prices(parser)
    add_format(parser, "table", "json")
    parser.add_argument("model", metavar="MODEL", help="the name of a model or of a deployment")
    parser.add_argument(
        "--provider",
        metavar="NAME",
        help="openai, anthropic, azure, … (default: the first provider with a price for the model)",
    )
    parser.add_argument(
        "--at", metavar="TIME", help="the time of the prices: 2026-11-01, 7d, … (UTC; default: now)"
    )
    parser.add_argument(
        "--host", metavar="HOST", help="the host of the API, such as eu.api.openai.com"
    )
    parser.add_argument("--batch", action="store_true", help="the prices of the batch API")
    for term, text in _TERMS.items():
        parser.add_argument(f"--{term}", metavar="NAME", help=f"the {text} of the price")


def run(context: Context) -> int:
    """Print the unit prices of the first provider that has any."""
    from voight_middleware.pricing import Terms
    from voight_middleware.providers.hosts import PROVIDERS, host_name
    from voight_middleware.records.call import Call

    args, book = context.args, context.open_prices()
    terms = Terms(batch=args.batch, **{name: getattr(args, name) for name in _TERMS})
    everyone = tuple(dict.fromkeys((*_FIRST, *PROVIDERS)))
    providers = everyone if args.provider is None else (args.provider.lower(),)
    for provider in providers:
        call = Call(
            call_id="",
            occurred_at=_moment(args.at),
            provider=provider,
            endpoint="",
            model=args.model,
            host=host_name(args.host),
        )
        table = book.rates(call, None, terms)
        if table is not None:
            if args.format == "json":
                print(json.dumps(_object(call, terms, table), indent=2))
            else:
                print("\n".join(_lines(call, terms, table)))
            return 0
    hint = "" if args.provider else "; a provider of your own needs --provider"
    raise UserError(f"there is no price for {args.model!r} of {', '.join(providers)}{hint}")


def unit_price(name: str, usd: Decimal) -> str:
    """Return a unit price for people: ``$0.05 / 1M tokens``."""
    from voight_middleware.pricing.rules import TOKENS

    if name in TOKENS or name == "characters":
        return f"{exact(CONTEXT.scaleb(usd, 6))} / 1M {'tokens' if name in TOKENS else name}"
    # An hourly price may have no finite decimal per second.
    if name == "seconds" and len(usd_text(usd)) > len("0.") + 18:
        return f"{exact(CONTEXT.multiply(usd, Decimal(3600)))} / hour"
    return f"{exact(usd)} / {_UNITS.get(name, 'call')}"


_UNITS = {"seconds": "second", "images": "picture", "request": "request"}


def _moment(text: str | None) -> int:
    if text is None:
        return time.time_ns() // 1000
    try:
        return timespan.parse_window(text).since or 0
    except ValueError as error:
        raise UserError(str(error)) from error


def _named(terms: Terms) -> dict[str, str]:
    """Return the terms that differ from the standard ones."""
    named = {name: value for name in _TERMS if (value := getattr(terms, name)) is not None}
    return {**named, "batch": "yes"} if terms.batch else named


def _object(call: Call, terms: Terms, table: RateTable) -> dict[str, Any]:
    return {
        "model": call.model,
        "provider": call.provider,
        "host": call.host,
        "at": call.time.isoformat().replace("+00:00", "Z"),
        "terms": _named(terms),
        "rates": [
            {
                "above_input_tokens": above,
                **json.loads(rates.provenance),
                "unit_usd": {name: usd_text(_usd(femto)) for name, femto in rates.femto.items()},
                "reasons": [*rates.reasons, *rates.doubts.values()],
                "minimum": dict(rates.minimum),
            }
            for above, rates in table.rows
        ],
    }


def _lines(call: Call, terms: Terms, table: RateTable) -> Iterator[str]:
    under = "".join(f", {name} {value}" for name, value in _named(terms).items())
    host = "" if call.host is None else f", {call.host}"
    yield printable(f"{call.model} of {call.provider}{host}, {call.time:%Y-%m-%d %H:%M} UTC{under}")
    for index, (above, rates) in enumerate(table.rows):
        if index:
            yield f"more than {above:,} input tokens"
        width = max((len(name) for name in rates.femto), default=0)
        for name, femto in rates.femto.items():
            least = f", at least {rates.minimum[name]:,} {name}" if name in rates.minimum else ""
            yield printable(f"  {name.ljust(width)}  {unit_price(name, _usd(femto))}{least}")
    record = json.loads(table.rows[0][1].provenance)
    yield printable(
        f"from {origin(record.get('source'), record.get('version'), record.get('data'))}, as "
        f"{record.get('model')}"
    )
    for rule in record.get("rules", ()):
        yield printable(f"rule {rule['id']}: {rule['source']}")
    for reason in dict.fromkeys(
        reason for _, rates in table.rows for reason in (*rates.reasons, *rates.doubts.values())
    ):
        yield printable(f"partial: {reason}")


def origin(source: str | None, version: str | None, data: str | None) -> str:
    """Return the source of prices: ``genai-prices 0.2.3 (data 9f2c…)``, or ``rules`` alone."""
    if source is None or source == "rules":
        return "rules" if source else "an unknown source"
    return " ".join([source, *filter(None, [version, data and f"(data {data})"])])


def _usd(femto: int | Decimal) -> Decimal:
    return from_femto(femto) if isinstance(femto, int) else CONTEXT.scaleb(femto, -15)
