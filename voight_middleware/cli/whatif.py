"""``voight whatif``: an estimate of the cost with other models."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from voight_middleware.cli.arguments import add_prices, add_report_arguments, names, positive
from voight_middleware.cli.context import Context
from voight_middleware.cli.json_values import rate, total_row
from voight_middleware.cli.render import (
    UserError,
    caveats,
    money,
    note_of_calls,
    note_of_rest,
    title_of,
)
from voight_middleware.cli.table import (
    Column,
    amounts,
    change,
    counts,
    print_notes,
    print_table,
    print_title,
    signed,
    texts,
)
from voight_middleware.records.money import from_femto
from voight_middleware.reports.spend import ratio, usd
from voight_middleware.reports.whatif import NoSuchModel, WhatIfReport, WhatIfRow, what_if

EXAMPLES = """\
The estimate is the same tokens at other prices. Another model would count
tokens differently, and give other answers.

examples:
  voight whatif --model gpt-5=gpt-5-mini --since month
  voight whatif --model 'gpt-*=gpt-5-nano' --by plan,route
  voight whatif --model claude-sonnet-4-5=openai/gpt-5-mini,gpt-5=gpt-5-mini --format csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_report_arguments(parser)
    parser.add_argument(
        "--model",
        metavar="A=B,…",
        action="append",
        required=True,
        help="price calls of model A as calls of model B",
    )
    parser.add_argument(
        "--by", metavar="KEY,KEY", default="model", help="the dimensions of a row (default: model)"
    )
    parser.add_argument("--limit", metavar="N", type=positive, help="how many rows (default: all)")
    add_prices(parser)


def run(context: Context) -> int:
    """Print the report."""
    args = context.args
    if context.original_prices:
        raise UserError(
            "--original-prices does not apply here: calls are priced by today's price book"
        )
    by = names(args.by)
    if not by:
        raise UserError("--by needs a dimension, such as user, plan or model")
    book = context.open_prices()
    try:
        models = read_models(args.model)
        report = what_if(
            context.ledger,
            book,
            models,
            by,
            context.where,
            context.window,
            limit=args.limit,
            zone=context.zone,
        )
    except NoSuchModel as error:
        raise UserError(str(error)) from error
    about = {
        "estimate": True,
        "by": report.by,
        "models": dict(report.models),
        "replaced": report.replaced,
        "compared": _figures(report.total),
        "total": {**total_row(report.spend, report.owners), "would_be_usd": usd(report.bill_femto)},
        "more": report.more,
    }
    rows = [{**row.dimensions, **_figures(row)} for row in report.rows]
    header = [*by, *_figures(report.total)]
    return context.print_report(rows, by, about, lambda: _print(report, context), header)


def read_models(texts_: Sequence[str]) -> dict[str, str]:
    """
    Read ``A=B,C=D`` as a mapping.

    Raises:
        UserError: A part cannot be read, or a model is named twice.
    """
    models: dict[str, str] = {}
    for part in ",".join(texts_).split(","):
        old, equals, new = (text.strip() for text in part.partition("="))
        if not equals or not old or not new or "*" in new:
            raise UserError(f"cannot read {part!r}; write --model gpt-5=gpt-5-mini")
        if old in models:
            raise UserError(f"the model {old!r} is replaced twice")
        models[old] = new
    return models


def _figures(row: WhatIfRow) -> dict[str, Any]:
    return {
        "calls": row.calls,
        "compared_calls": row.compared,
        "cost_usd": usd(row.before_femto) if row.compared else None,
        "would_be_usd": usd(row.after_femto) if row.compared else None,
        "difference_usd": usd(row.difference_femto) if row.compared else None,
        "partial_calls": row.partial,
        "unpriced_before": row.unpriced_before,
        "unpriced_after": row.unpriced_after,
        "left_out_usd": usd(row.left_out_femto),
        "change": rate(ratio(row.difference_femto, row.before_femto)),
    }


def _print(report: WhatIfReport, context: Context) -> None:
    replaced = ", ".join(f"{old} as {new}" for old, new in report.models.items())
    print_title(title_of(f"Estimate: {replaced}", report.window, context.where, context.zone))
    rows = (*report.rows, report.total)
    compared = [row if row.compared else None for row in rows]
    columns: list[Column] = [
        texts(name, [row.dimensions[name] for row in report.rows], ("total" if not number else "",))
        for number, name in enumerate(report.by)
    ]
    columns += [
        counts("calls", [row.calls for row in rows]),
        counts("compared", [row.compared for row in rows]),
        amounts(
            "cost", [None if row is None else row.before_femto for row in compared], absent="-"
        ),
        amounts(
            "would be", [None if row is None else row.after_femto for row in compared], absent="-"
        ),
        amounts(
            "difference",
            [None if row is None else row.difference_femto for row in compared],
            written=signed,
            style="bold",
            absent="-",
        ),
        Column("", [change(ratio(row.difference_femto, row.before_femto)) for row in rows]),
    ]
    print_table(columns)
    print_notes(_notes(report))


def _notes(report: WhatIfReport) -> Iterator[str]:
    total = report.total
    yield from note_of_rest(len(report.rows), report.more)
    yield "an estimate: the same tokens at other prices; another model counts tokens differently"
    yield f"models replaced: {', '.join(report.replaced)}"
    if report.spend.cost_femto is not None and report.bill_femto is not None:
        yield (
            f"all calls of this time: {money(from_femto(report.spend.cost_femto))}, would be "
            f"{money(from_femto(report.bill_femto))}"
        )
    if total.unpriced_before:
        yield f"{note_of_calls(total.unpriced_before)} without a price as they are, not compared"
    if total.unpriced_after:
        cost = money(from_femto(total.left_out_femto))
        yield (
            f"{note_of_calls(total.unpriced_after)} ({cost}) without a price as the other model, "
            "not compared"
        )
    if total.partial:
        yield (
            f"{note_of_calls(total.partial)} priced in part as the other model: the estimate may "
            "be too low or too high"
        )
    yield from caveats(report.spend, report.owners)
