"""The context of a command: its arguments, and the settings, calls and ledger that they name."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, tzinfo
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeAlias

from msgspec.structs import replace

from voight_middleware.cli import filters
from voight_middleware.cli.json_values import plain_value, span
from voight_middleware.cli.render import UserError, csv_text, need_rich
from voight_middleware.cli.report_ledger import ingested_ledger
from voight_middleware.config.paths import default_journal
from voight_middleware.config.settings import Settings
from voight_middleware.ledger import Ledger, Where, Window
from voight_middleware.reports import timespan

if TYPE_CHECKING:
    from voight_middleware.pricing import PriceBook

Value: TypeAlias = object


class Context:
    """
    One run of a command, as a context manager that closes the ledger.

    Args:
        args: The parsed arguments.

    Raises:
        UserError: A filter, time or time zone cannot be read, or a table needs rich.
        SettingsError: A setting cannot be used.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.zone: tzinfo = UTC
        """The time zone of days, weeks and months."""
        self.window = Window()
        self._filters: Where = {}
        self._resources = ExitStack()
        if "where" in args:  # report mistakes before the ledger is opened
            self._filters = filters.read(args.where, self.settings)
            self._read_times()
            if args.format == "table":
                need_rich()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @cached_property
    def settings(self) -> Settings:
        """The settings; ``--ledger`` and ``--prices`` win over the environment."""
        options = {
            name: value
            for name in ("ledger", "prices")
            if (value := getattr(self.args, name, None)) is not None
        }
        settings = Settings.from_environment(**options)
        if "ledger" in options:
            # VOIGHT_JOURNAL belongs to VOIGHT_LEDGER: other ledgers must not ingest it.
            same = settings.ledger == Settings.from_environment().ledger
            settings = replace(
                settings, journal=settings.journal if same else default_journal(settings.ledger)
            )
        return replace(
            settings, sources={**settings.sources, **{name: f"--{name}" for name in options}}
        )

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, opened at the first use, after an ingest of orphaned segments."""
        return self._resources.enter_context(ingested_ledger(self.settings))

    @cached_property
    def where(self) -> Where:
        """The filters; an id that has a ``*`` in it stands for itself."""
        return filters.exact(self.ledger, self._filters)

    @property
    def original_prices(self) -> bool:
        """Whether each call counts with its first price."""
        return bool(self.args.original_prices)

    def open_prices(self) -> PriceBook:
        """
        Return the price book with the user's own prices.

        Raises:
            UserError: The file of prices cannot be used.
        """
        from voight_middleware.pricing import OverridesError, open_book

        try:
            return open_book(self.settings.prices)
        except OverridesError as error:
            raise UserError(f"your prices cannot be used: {error}") from error

    def print_report(
        self,
        rows: Iterable[Mapping[str, Value]],
        texts: Sequence[str],
        about: Mapping[str, Value],
        table: Callable[[], None],
        header: Sequence[str] = (),
    ) -> int:
        """
        Print a report in the chosen format, and return the exit code 0.

        Args:
            rows: The rows, as JSON and CSV have them.
            texts: Columns with text of an application or a provider.
            about: The fields of JSON beside the rows, such as the total.
            table: Prints the report as a table.
            header: The columns of CSV if there are no rows.
        """
        if self.args.format == "table":
            table()
        elif self.args.format == "json":
            document = {**span(self.window, self.zone), **about, "rows": list(rows)}
            print(json.dumps(document, indent=2, default=plain_value))
        else:
            flat = [{name: plain_value(value) for name, value in row.items()} for row in rows]
            sys.stdout.write(csv_text(list(flat[0]) if flat else header, flat, texts))
        return 0

    def _read_times(self) -> None:
        try:
            self.zone = timespan.parse_zone(self.args.tz or self.settings.tz)
            self.window = timespan.parse_window(self.args.since, self.args.until, zone=self.zone)
        except ValueError as error:
            raise UserError(str(error)) from error
