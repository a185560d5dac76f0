"""``voight reprice``: what calls cost by the prices of today, beside what they have cost so far."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from voight_middleware.cli.render import aligned, csv_text, dimension, money, note_of_calls, printable, title_of
from voight_middleware.ledger import Where
from voight_middleware.maintenance.repricing import Difference, Repricing
from voight_middleware.records.money import from_femto, usd_text


def as_json(report: Repricing) -> str:
    """The totals, and the users and models whose cost changes, as one JSON object, in ASCII."""
    value = {
        "dry_run": report.dry_run,
        "written": report.written,
        "passed_over": report.passed_over,
        "priced_by_own": report.priced_by_own,
        "total": _counts(report.total),
        "rows": list(map(_row, report.rows)),
    }
    return json.dumps(value, indent=2)


def as_csv(report: Repricing) -> str:
    """The users and models whose cost changes, as CSV with a header."""
    return csv_text(list(_row(Difference())), map(_row, report.rows), ("user_id", "model"))


def print_table(report: Repricing, where: Where) -> None:
    """Print the difference by user and model, the totals, and what was done."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from voight_middleware.cli.render import console_for_tables

    console = console_for_tables()
    subject = "Repricing, dry run" if report.dry_run else "Repricing"
    console.print(Text(title_of(subject, report.window, where), style="bold"), soft_wrap=True)
    rows, total = report.rows, report.total
    if rows:
        table = Table(box=box.SIMPLE, pad_edge=False, header_style="dim")
        for name in ("user_id", "model"):
            table.add_column(name, overflow="fold", min_width=5, max_width=44)
        for name in ("calls", "changed"):
            table.add_column(name, justify="right", no_wrap=True)
        columns = [
            aligned([_usd(row.before_femto) for row in (*rows, total)]),
            aligned([_usd(row.after_femto) for row in (*rows, total)]),
            aligned([from_femto(row.difference_femto) for row in (*rows, total)], _signed),
        ]
        for name, column in zip(("before", "after", "difference"), columns, strict=True):
            table.add_column(Text(name.rjust(len(column[0]))), no_wrap=True)
        amounts = list(zip(*columns, strict=True))
        for row, (before, after, difference) in zip(rows, amounts, strict=False):
            names = dimension(row.user_id), dimension(row.model)
            table.add_row(*names, f"{row.calls:,}", f"{row.changed:,}", before, after, Text(difference, style="bold"))
        table.add_section()
        table.add_row("total", "", f"{total.calls:,}", f"{total.changed:,}", *amounts[-1], style="bold")
        console.print(table)
    for note in _notes(report):
        console.print(Text(printable(note), style="dim"), soft_wrap=True)


def _notes(report: Repricing) -> Iterator[str]:
    total = report.total
    if not total.calls:
        yield "No call matches. `voight spend` shows what there is."
        return
    if not total.changed:
        yield f"{note_of_calls(total.calls)} looked at: no price has changed"
    elif report.dry_run:
        yield f"{note_of_calls(total.changed)} would get a new price; nothing was written: run it without --dry-run"
    else:
        yield f"{note_of_calls(report.written)} got a new price; --original-prices shows what was there before, as does voight explain CALL_ID"
    if not report.dry_run and report.written < total.changed:
        yield f"{note_of_calls(total.changed - report.written)} changed in another process meanwhile: run it again"
    for name, before, after in (
        ("without a price", total.unpriced_before, total.unpriced_after),
        ("priced in part", total.partial_before, total.partial_after),
    ):
        if before or after:
            yield f"{name}: {note_of_calls(before)} before, {after:,} after"
    if report.priced_by_own:
        yield priced_by_own(report)
    if report.passed_over:
        yield f"{note_of_calls(report.passed_over)} left as they are: there is no report of the provider to price them by"


def priced_by_own(report: Repricing) -> str:
    """Say which calls keep the price that the user's own file has given them."""
    count = note_of_calls(report.priced_by_own)
    return f"{count} left as they are: they have prices of your own, and none are named here: --prices FILE (an empty one drops them)"


def _row(difference: Difference) -> dict[str, Any]:
    return {"user_id": difference.user_id, "model": difference.model, **_counts(difference)}


def _counts(difference: Difference) -> dict[str, Any]:
    return {
        "calls": difference.calls,
        "changed": difference.changed,
        "before_usd": _text(difference.before_femto),
        "after_usd": _text(difference.after_femto),
        "difference_usd": _text(difference.difference_femto),
        "unpriced_before": difference.unpriced_before,
        "unpriced_after": difference.unpriced_after,
        "partial_before": difference.partial_before,
        "partial_after": difference.partial_after,
    }


def _signed(usd: Decimal) -> str:
    return f"{'-' if usd < 0 else '+' if usd else ''}{money(abs(usd))}"


def _usd(femto: int | None) -> Decimal | None:
    return None if femto is None else from_femto(femto)


def _text(femto: int | None) -> str | None:
    return None if femto is None else usd_text(from_femto(femto))
