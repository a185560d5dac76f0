"""Tables of reports: columns, a total below a line, and notes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from voight_middleware.cli.render import (
    aligned,
    bar,
    console_for_tables,
    dimension,
    money,
    percent,
    printable,
)
from voight_middleware.records.money import from_femto

if TYPE_CHECKING:
    from rich.text import Text

NO_CALLS = (
    "No call matches. `voight spend` shows what there is; `voight doctor` says where calls go."
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, and a cell for each row and for the total."""

    name: str
    cells: Sequence[Any]
    """Text of applications is made safe by ``dimension`` or ``printable``."""
    right: bool = True
    style: str = ""
    wide: bool = False
    """Whether long cells are broken into lines."""
    spare: int = 0
    """The order in which a narrow terminal drops columns: the largest number first, 0 never."""


def texts(name: str, values: Iterable[str | None], footer: Sequence[str] = ("total",)) -> Column:
    """Return a column of text from applications and providers; None reads ``(none)``."""
    from rich.text import Text

    return Column(
        printable(name), [*map(dimension, values), *map(Text, footer)], right=False, wide=True
    )


def whole(name: str, values: Iterable[str | None], spare: int = 0) -> Column:
    """Return a column of texts that are never broken into lines, such as ids and times."""
    return Column(printable(name), [*map(dimension, values)], right=False, spare=spare)


def counts(name: str, values: Iterable[int | None], spare: int = 0) -> Column:
    """Return a column of whole numbers; None reads ``-``."""
    return Column(name, ["-" if value is None else f"{value:,}" for value in values], spare=spare)


def amounts(
    name: str,
    femto: Iterable[int | None],
    *,
    style: str = "",
    written: Callable[[Decimal], str] | None = None,
    absent: str = "unpriced",
    spare: int = 0,
) -> Column:
    """Return a column of US dollars, aligned at the point, from femto-dollars."""
    values = [None if value is None else from_femto(value) for value in femto]
    cells = [cell.replace("unpriced", absent.rjust(8)) for cell in aligned(values, written)]
    # Left-aligned: rich strips the blanks after a number when it aligns text to the right.
    header = name.rjust(len(cells[0])) if cells else name
    return Column(header, cells, right=False, style=style, spare=spare)


def rates(name: str, values: Iterable[Decimal | None], spare: int = 0) -> Column:
    """Return a column of shares from 0 to 1, as percentages."""
    return Column(name, [percent(value) for value in values], spare=spare)


def shares(name: str, values: Iterable[Decimal | None]) -> Column:
    """Return a column of shares from 0 to 1, as percentages and bars; the total has none."""
    from rich.text import Text

    return Column(name, [*map(bar, values), Text("")], right=False)


def signed(usd: Decimal) -> str:
    """Return US dollars with their sign."""
    return f"{'-' if usd < 0 else '+' if usd else ''}{money(abs(usd))}"


def change(value: Decimal | None, absent: str = "-") -> str:
    """Return a change as a signed percentage, and as a factor from tenfold on."""
    if value is None:
        return absent
    if value >= 9:
        return f"x{value + 1:,.0f}"
    if value and abs(value) < Decimal("0.0005"):
        return "<0.1%"
    return f"{value * 100:+.1f}%" if value else "0.0%"


def print_table(columns: Sequence[Column], *, footers: int = 1) -> None:
    """Print rows; the last *footers* of them are totals."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console_for_tables()
    every, columns = columns, _fitting(columns, console.width)
    left_out = ", ".join(column.name.strip() for column in every if column not in columns)
    table = Table(box=box.SIMPLE, pad_edge=False, header_style="dim")
    for column in columns:
        name = Text(column.name)
        if column.wide:
            table.add_column(name, overflow="fold", min_width=5, max_width=44)
        else:
            table.add_column(name, justify="right" if column.right else "left", no_wrap=True)
    rows = list(zip(*(column.cells for column in columns), strict=True))
    for number, row in enumerate(rows):
        total = number >= len(rows) - footers
        if total and number == len(rows) - footers:
            table.add_section()
        cells = [
            _cell(cell, "" if total else column.style)
            for cell, column in zip(row, columns, strict=True)
        ]
        table.add_row(*cells, style="bold" if total else "")
    console.print(table)
    if left_out:
        print_notes(
            [
                (
                    f"not shown in {console.width} columns: {left_out}; widen the terminal, or use "
                    "--format csv"
                )
            ]
        )


def print_title(text: str) -> None:
    """Print the line above a table."""
    from rich.text import Text

    console_for_tables().print(Text(printable(text), style="bold"), soft_wrap=True)


def print_notes(notes: Iterable[str]) -> None:
    """Print lines below a table."""
    from rich.text import Text

    print_texts(Text(printable(note), style="dim") for note in notes)


def print_texts(texts: Iterable[Text]) -> None:
    """Print lines of styled text."""
    console = console_for_tables()
    for text in texts:
        console.print(text, soft_wrap=True)


def _cell(cell: Any, style: str) -> Text:
    from rich.text import Text

    if isinstance(cell, Text):
        return cell
    return Text(str(cell), style=style)


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Drop columns that can be spared until the others fit."""
    kept = list(columns)
    while sum(_width(column) + 3 for column in kept) > width and (
        most := max((column.spare for column in kept), default=0)
    ):
        kept.remove(next(column for column in reversed(kept) if column.spare == most))
    return kept


def _width(column: Column) -> int:
    longest = max((len(str(cell)) for cell in (column.name, *column.cells)), default=0)
    return min(longest, 44) if column.wide else longest
