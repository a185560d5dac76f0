"""Reports on their way to a terminal, a spreadsheet or another program."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING

from voight_middleware.exporters.files.csv_file import text_cell
from voight_middleware.ledger import Spend, Where, Window
from voight_middleware.records.money import CONTEXT, from_femto, usd_text
from voight_middleware.reports.spend import SpendReport, as_row
from voight_middleware.reports.timespan import describe
from voight_middleware.reports.unattributed_share import Unattributed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_BAR_WIDTH = 12
_EIGHTHS = " ▏▎▍▌▋▊▉"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_TIMES_SHOWN = 80
_LINES_SHOWN = 12
_FINEST = Decimal("1e-18")
_WIDTH_OF_A_PIPE = 160
"""Columns of a table that is not printed on a terminal."""


_PSEUDONYM = re.compile(r"[a-z_]+:v[0-9]+:")
"""What a filter looks for beside the address that was typed."""


class UserError(Exception):
    """Something that the person at the keyboard can put right; the message says how."""


def need_rich() -> None:
    """
    Raises:
        UserError: rich is not installed.
    """
    if importlib.util.find_spec("rich") is None:
        raise UserError("tables need rich: pip install 'voight-middleware[cli]'; --format json and --format csv work without it")


def printable(text: str) -> str:
    """*text* with control characters, line breaks and invisible ones spelled out, so that no value can drive a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def for_terminal(line: bytes) -> str:
    """A line of JSON in ASCII: bytes that drive a terminal are escaped."""
    return json.dumps(json.loads(line)) + "\n"


def as_csv(report: SpendReport) -> str:
    """The rows as CSV with a header. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    return csv_text(list(as_row(Spend(dimensions=dict.fromkeys(report.by)))), map(as_row, report.rows), report.by)


def csv_text(header: Sequence[str], rows: Iterable[Mapping[str, object]], texts: Collection[str]) -> str:
    """Rows as CSV; those of its columns that are *texts* hold what an application or a provider has said."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_text_cell, header))
    for row in rows:
        writer.writerow([_text_cell(value) if name in texts else value for name, value in row.items()])
    return buffer.getvalue()


def print_table(report: SpendReport, where: Where, ownership: Unattributed | None) -> None:
    """Print the rows, a total, and what the total hides."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console_for_tables()
    subject = f"Spend by {', '.join(report.by)}" if report.by else "Spend"
    if report.original_prices:
        subject += ", as first priced"
    console.print(Text(title_of(subject, report.window, where, report.zone or UTC), style="bold"), soft_wrap=True)
    if not report.total.calls:
        console.print(Text("No call matches. `voight spend` shows what there is; `voight doctor` says where calls go."))
        return

    rows = (*report.rows, report.total)
    costs = aligned([None if row.cost_femto is None else from_femto(row.cost_femto) for row in rows])
    table = Table(box=box.SIMPLE, pad_edge=False, header_style="dim")
    for name in report.by:
        table.add_column(Text(printable(name)), overflow="fold", min_width=5, max_width=44)
    if not report.by:
        table.add_column("")
    for name in ("calls", "input", "cached", "output"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(Text("cost".rjust(len(costs[0]))), no_wrap=True)
    table.add_column("share", no_wrap=True)
    for row, cost in zip(report.rows, costs, strict=False):
        if report.by:
            table.add_row(*map(dimension, row.dimensions.values()), *_counts(row), Text(cost, style="bold"), bar(report.share(row)))
    if report.by:
        table.add_section()
    names = ["total", *[""] * (len(report.by) - 1)]
    table.add_row(*names, *_counts(report.total), Text(costs[-1]), Text(""), style="bold")
    console.print(table)
    for line in _lines_of_time(report):
        console.print(line, soft_wrap=True)
    for note in _notes(report, ownership):
        console.print(Text(printable(note), style="dim"), soft_wrap=True)


def console_for_tables() -> Console:
    """The terminal, or a pipe that is wide enough for a table."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704  rich would end the process with 1: `voight top | head` is no failure

    console = Terminal(highlight=False)
    return console if console.is_terminal else Terminal(highlight=False, width=_WIDTH_OF_A_PIPE)


def title_of(subject: str, window: Window, where: Where, zone: tzinfo = UTC) -> str:
    """What a table shows, of which time and which calls."""
    return printable(" · ".join((subject, describe(window, zone), *map(condition, where.items()))))


def aligned(amounts: Sequence[Decimal | None], written: Callable[[Decimal], str] | None = None) -> list[str]:
    """Amounts of US dollars of the same width, their points below each other; None reads ``unpriced``."""
    texts = [None if amount is None else (written or money)(amount) for amount in amounts]
    wholes = [len(text.partition(".")[0]) for text in texts if text is not None]
    fractions = [len(text.partition(".")[2]) for text in texts if text is not None]
    whole, fraction = max(wholes, default=0), max(fractions, default=0)
    lines = []
    for text in texts:
        if text is None:
            lines.append("unpriced".rjust(whole + 1 + fraction))
        else:
            before, _, after = text.partition(".")
            lines.append(f"{before.rjust(whole)}.{after.ljust(fraction)}")
    width = max(map(len, lines), default=0)
    return [line.rjust(width) for line in lines]


def money(usd: Decimal) -> str:
    """US dollars for people: cents from a dollar on, smaller amounts with as many decimals as show three digits of them."""
    decimals = 2 if usd == 0 or abs(usd) >= 1 else max(4, 2 - usd.adjusted())
    return f"${usd.quantize(Decimal(1).scaleb(-decimals), context=CONTEXT):,f}"


def exact(usd: Decimal) -> str:
    """US dollars with cents and to the last digit, or the thousandth part of a femto-dollar where there is no last one."""
    if usd.adjusted() < 9 and usd != (rounded := usd.quantize(_FINEST, context=CONTEXT)):
        usd = rounded
    whole, _, fraction = usd_text(usd).partition(".")
    return f"${int(whole):,}.{fraction.ljust(2, '0')}"


def percent(share: Decimal | None) -> str:
    """A share from 0 to 1 as a percentage; one that is not 0 never reads as 0."""
    if share is None:
        return "-"
    if 0 < share < Decimal("0.001"):
        return "<0.1%"
    return f"{share * 100:.1f}%"


def _counts(row: Spend) -> list[str]:
    counts = (row.calls, row.input_tokens, row.cache_read_tokens, row.output_tokens)
    return ["-" if count is None else f"{count:,}" for count in counts]


def dimension(value: str | None) -> Text:
    """A value of a dimension in a table; ``(none)`` where a call has none."""
    from rich.text import Text

    return Text("(none)", style="dim") if value is None else Text(printable(value))


def bar(share: Decimal | None) -> Text:
    """A share from 0 to 1 as a percentage and a bar."""
    from rich.text import Text

    eighths = int((share or Decimal(0)) * _BAR_WIDTH * 8)
    drawn = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return Text.assemble(percent(share).rjust(6), " ", (drawn, "cyan"))


def _notes(report: SpendReport, ownership: Unattributed | None) -> list[str]:
    """What the total hides, each with the next question to ask."""
    total = report.total
    notes: list[str] = []
    if report.more:
        notes.append(f"{report.more:,} more rows are in the total: --limit {len(report.rows) + report.more}")
    return [*notes, *together(report.rows), *caveats(total, ownership)]


def _lines_of_time(report: SpendReport) -> Iterator[Text]:
    """For each value of the second dimension, a bar for each time with calls; for the first ones, as the others are small."""
    from rich.text import Text

    if not report.over_time or len(report.by) != 2:
        return
    times = list(dict.fromkeys(row.dimensions[report.by[0]] for row in report.rows))[-_TIMES_SHOWN:]
    costs: dict[str | None, dict[str | None, int | None]] = {}
    for row in report.rows:
        costs.setdefault(row.dimensions[report.by[1]], {})[row.dimensions[report.by[0]]] = row.cost_femto
    in_order = sorted(costs, key=lambda value: -sum(cost or 0 for cost in costs[value].values()))[:_LINES_SHOWN]
    names = [dimension(value) for value in in_order]
    width = max(len(name) for name in names)
    for name, value in zip(names, in_order, strict=True):
        name.pad_right(width - len(name))
        amount = money(from_femto(sum(cost or 0 for cost in costs[value].values())))
        yield Text.assemble(name, "  ", (sparkline([costs[value].get(time) for time in times]), "cyan"), f"  {amount}")


def sparkline(values: Sequence[int | None]) -> str:
    """A line of bars, the largest at full height; a blank where there is nothing."""
    most = max((value for value in values if value), default=0)
    return "".join(" " if value is None else _HEIGHTS[max(0, min(7, value * 8 // most if most else 0))] for value in values)


def together(rows: Iterable[Spend]) -> Iterator[str]:
    """Say which users of a table are many: those whose ids are addresses, where there was no key for pseudonyms."""
    users = {str(row.dimensions["user_id"]) for row in rows if row.dimensions.get("user_id")}
    for user in sorted(users):
        if user.startswith("redacted:"):
            yield f"{user} is every user whose id is personal data of that kind, kept without a key: set VOIGHT_PSEUDONYM_KEY on every host"


def caveats(total: Spend, owners: Unattributed | None) -> list[str]:
    """What a total does not say by itself, each with the next question to ask."""
    notes: list[str] = []
    if total.unpriced_calls:
        notes.append(
            f"{note_of_calls(total.unpriced_calls)} of {total.calls:,} without a price, not in the cost: "
            "voight spend --by provider,model --where cost_status=unpriced"
        )
    if total.partial_calls:
        notes.append(
            f"{note_of_calls(total.partial_calls)} priced in part, so the cost may be too low or too high: "
            "voight spend --by provider,model --where cost_status=partial"
        )
    if total.estimated_calls:
        notes.append(f"{note_of_calls(total.estimated_calls)} with estimated tokens (streams that were broken off)")
    if owners is not None and owners.unowned.calls:
        cost = "" if owners.unowned.cost_femto is None else f", {money(from_femto(owners.unowned.cost_femto))}"
        spend = "" if owners.share_of_spend is None else f" ({percent(owners.share_of_spend)} of the cost)"
        notes.append(
            f"{note_of_calls(owners.unowned.calls)} ({percent(owners.share_of_calls)}){cost}{spend} without an owner: "
            "voight spend --by route --where user=-"
        )
    elif owners is not None:
        notes.append("every call has an owner")
    return notes


def note_of_calls(count: int) -> str:
    """``1 call``, ``2 calls``."""
    return f"{count:,} call" if count == 1 else f"{count:,} calls"


def condition(item: tuple[str, str | tuple[str | None, ...] | None]) -> str:
    """A filter in words."""
    name, value = item
    values = value if isinstance(value, tuple) else (value,)
    asked = [one for one in values if one is None or not _PSEUDONYM.match(one)] or values[:1]
    no, plain = name.endswith("!"), name.removesuffix("!")
    if asked == [None]:
        return f"with {plain}" if no else f"without {plain}"
    text = "|".join("-" if one is None else one for one in asked)
    return f"{plain}{'!=' if no else '='}{text}"


def _text_cell(value: object) -> str | None:
    return None if value is None else text_cell(str(value))
