"""What every report is asked with: the ledger, the filters, the window and the time zone; and the answer in each format."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from decimal import Decimal
from typing import Any, TypeAlias

from voight_middleware.cli.render import UserError, csv_text
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import Ledger, Spend, Where, Window
from voight_middleware.records.money import usd_text
from voight_middleware.reports import timespan
from voight_middleware.reports.spend import as_row, usd
from voight_middleware.reports.unattributed_share import Unattributed

Value: TypeAlias = object

SHORT = {"user": "user_id", "tenant": "tenant_id", "session": "session_id", "requested": "requested_model", "status": "cost_status"}


@dataclass(frozen=True, slots=True)
class ReportContext:
    """A question as it came from the command line, with the ledger open."""

    args: Any
    ledger: Ledger
    where: Where
    window: Window
    zone: tzinfo
    settings: Settings

    @property
    def original_prices(self) -> bool:
        """Whether costs are those that calls were given first."""
        return bool(getattr(self.args, "original_prices", False))

    def answer(
        self,
        rows: Iterable[Mapping[str, Value]],
        texts: Sequence[str],
        about: Mapping[str, Value],
        table: Callable[[], None],
        header: Sequence[str] = (),
    ) -> int:
        """
        Print a report in the format that was asked for.

        Args:
            rows: The rows, as they leave the house.
            texts: Columns that hold what an application or a provider has said.
            about: What JSON says beside the rows: the total, and how it was come by.
            table: Prints the report as a table.
            header: The columns of CSV without rows.
        """
        if self.args.format == "table":
            table()
        elif self.args.format == "json":
            print(json.dumps({**span(self.window, self.zone), **about, "rows": list(rows)}, indent=2, default=plain_value))
        else:
            flat = [{name: plain_value(value) for name, value in row.items()} for row in rows]
            sys.stdout.write(csv_text(list(flat[0]) if flat else header, flat, texts))
        return 0


def span(window: Window, zone: tzinfo) -> dict[str, str | None]:
    """A window as JSON has it: ``since``, ``until`` and the zone that days are cut in."""
    return {"since": moment(window.since, zone), "until": moment(window.until, zone), "tz": timespan.zone_name(zone)}


def moment(microseconds: int | None, zone: tzinfo = UTC) -> str | None:
    """A time in ISO 8601, with the offset of *zone*."""
    return None if microseconds is None else timespan.to_datetime(microseconds).astimezone(zone).isoformat()


def plain_value(value: object) -> object:
    """Decimals as strings that read as numbers, nested values as JSON."""
    if isinstance(value, Decimal):
        return usd_text(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=plain_value)
    return value


def zone_of(args: Any) -> tzinfo:
    """
    The time zone of ``--tz``, then of the settings.

    Raises:
        UserError: There is no such zone.
    """
    try:
        return timespan.parse_zone(getattr(args, "tz", None) or Settings.from_environment(ledger=getattr(args, "ledger", None)).tz)
    except ValueError as error:
        raise UserError(str(error)) from error


def names(text: str) -> list[str]:
    """``user,model`` as names of dimensions."""
    return [SHORT.get(name, name) for name in map(str.strip, text.split(",")) if name]


def amount(text: str, what: str) -> Decimal:
    """
    US dollars as people type them: ``20``, ``$0.05``.

    Raises:
        UserError: It is no such amount.
    """
    plain = text.strip().removeprefix("$")
    whole, _, fraction = plain.partition(".")
    if plain.isascii() and (whole + fraction).isdigit() and len(whole) <= 12 and len(fraction) <= 15:
        return Decimal(plain)
    raise UserError(f"{what} is {text!r}, not an amount of US dollars such as 20 or 0.05")


def rate(value: Decimal | None) -> float | None:
    """A share, ratio or change as a JSON number."""
    return None if value is None else round(float(value), 6)


def total_row(total: Spend, owners: Unattributed | None) -> dict[str, object]:
    """A total as it leaves the house, with what of it has no owner: null where certain users were asked for."""
    return {
        **as_row(total),
        "unowned_calls": None if owners is None else owners.unowned.calls,
        "unowned_cost_usd": None if owners is None else usd(owners.unowned.sum_femto),
    }
