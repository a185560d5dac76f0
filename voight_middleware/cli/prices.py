"""``voight prices``: which unit prices hold, and whether the file of one's own prices can be used."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from voight_middleware.cli.render import UserError, exact, printable
from voight_middleware.config.settings import Settings
from voight_middleware.records.money import CONTEXT, from_femto, usd_text
from voight_middleware.reports import timespan

if TYPE_CHECKING:
    from voight_middleware.pricing import PriceBook, Terms
    from voight_middleware.pricing.book import RateTable
    from voight_middleware.records.call import Call

TERMS = ("tier", "speed", "geo", "size", "quality")
"""What a price can depend on besides the batch, as options."""

_PROVIDERS = (
    *("openai", "anthropic", "google", "mistral", "deepseek", "xai", "cohere", "perplexity", "groq"),
    *("azure", "bedrock", "vertex", "together", "fireworks", "openrouter"),
)
"""Who is asked for a model, in this order, where no provider is named."""


def open_prices(settings: Settings) -> PriceBook:
    """
    The price book with the user's own prices.

    Raises:
        UserError: The file of prices cannot be used.
    """
    from voight_middleware.pricing import OverridesError, open_book

    try:
        return open_book(settings.prices)
    except OverridesError as error:
        raise UserError(f"your prices cannot be used: {error}") from error


def check(settings: Settings) -> int:
    """Say whether the file of prices can be used: 0, or 1 with a line for every mistake."""
    from voight_middleware.pricing import OverridesError, read_overrides

    source = settings.sources.get("prices", "default")
    if settings.prices is None:
        print("no prices of your own: set VOIGHT_PRICES to the path of a TOML file, or give --prices FILE")
        return 0
    where = f"{printable(str(settings.prices))} ({source})"
    try:
        overrides = read_overrides(settings.prices)
    except OverridesError as error:
        for problem in error.problems:
            print(printable(problem), file=sys.stderr)
        count = len(error.problems)
        print(f"{where}: {count} {'mistake' if count == 1 else 'mistakes'}, so nothing of it is used", file=sys.stderr)
        return 1
    rules, names = len(overrides.rules), len(overrides.deployments)
    print(f"{where}: {rules} {'price' if rules == 1 else 'prices'}, {names} {'deployment' if names == 1 else 'deployments'}")
    return 0


def show(settings: Settings, args: Any) -> int:
    """
    Print the unit prices of a model.

    Raises:
        UserError: No provider has a price for it, or the file of prices cannot be used.
    """
    from voight_middleware.pricing import Terms
    from voight_middleware.providers.hosts import host_name
    from voight_middleware.records.call import Call

    book = open_prices(settings)
    terms = Terms(batch=args.batch, **{name: getattr(args, name) for name in TERMS})
    providers = _PROVIDERS if args.provider is None else (args.provider.lower(),)
    for provider in providers:
        call = Call(call_id="", occurred_at=_moment(args.at), provider=provider, endpoint="", model=args.model, host=host_name(args.host))
        table = book.rates(call, None, terms)
        if table is not None:
            print(json.dumps(_object(call, terms, table), indent=2) if args.format == "json" else "\n".join(_lines(call, terms, table)))
            return 0
    hint = "" if args.provider else "; a provider of your own needs --provider"
    raise UserError(f"there is no price for {args.model!r} of {', '.join(providers)}{hint}")


def unit_price(name: str, usd: Decimal) -> str:
    """A unit price for people: ``$0.05 / 1M tokens``."""
    from voight_middleware.pricing.rules import TOKENS

    if name in TOKENS or name == "characters":
        return f"{exact(CONTEXT.scaleb(usd, 6))} / 1M {'tokens' if name in TOKENS else name}"
    if name == "seconds" and len(usd_text(usd)) > len("0.") + 18:  # a price by the hour that a second's is no decimal number of
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
    """The terms that are not the usual ones."""
    named = {name: value for name in TERMS if (value := getattr(terms, name)) is not None}
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
    yield printable(f"from {origin(record.get('source'), record.get('version'), record.get('data'))}, as {record.get('model')}")
    for rule in record.get("rules", ()):
        yield printable(f"rule {rule['id']}: {rule['source']}")
    for reason in dict.fromkeys(reason for _, rates in table.rows for reason in (*rates.reasons, *rates.doubts.values())):
        yield printable(f"partial: {reason}")


def origin(source: str | None, version: str | None, data: str | None) -> str:
    """Where prices come from: ``genai-prices 0.2.3 (data 9f2c…)``; where it is rules alone, they are named beside it."""
    if source is None or source == "rules":
        return "rules" if source else "an unknown source"
    return f"{source}{'' if version is None else f' {version}'}{'' if data is None else f' (data {data})'}"


def _usd(femto: int | Decimal) -> Decimal:
    return from_femto(femto) if isinstance(femto, int) else CONTEXT.scaleb(femto, -15)
