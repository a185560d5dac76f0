"""Tables of reports: columns, a total below a line, and what the total hides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from voight_middleware.cli.render import aligned, bar, console_for_tables, dimension, money, percent, printable
from voight_middleware.records.money import from_femto

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, and a cell for each row and for the total."""

    name: str
    cells: Sequence[Any]
    """Text that may drive a terminal is a ``dimension`` or has been made ``printable``."""
    right: bool = True
    style: str = ""
    wide: bool = False
    """Whether its cells are broken into lines where they are long."""
    spare: int = 0
    """Left out of a terminal that is too narrow for all: the largest number first, 0 never."""


def texts(name: str, values: Iterable[str | None], footer: Sequence[str] = ("total",)) -> Column:
    """What applications and providers have said; ``(none)`` where they have said nothing."""
    from rich.text import Text

    return Column(printable(name), [*map(dimension, values), *map(Text, footer)], right=False, wide=True)


def whole(name: str, values: Iterable[str | None], spare: int = 0) -> Column:
    """Texts that are never broken into lines, such as ids and times."""
    return Column(printable(name), [*map(dimension, values)], right=False, spare=spare)


def counts(name: str, values: Iterable[int | None]) -> Column:
    """Whole numbers; ``-`` where one is unknown."""
    return Column(name, ["-" if value is None else f"{value:,}" for value in values])


def amounts(
    name: str, femto: Iterable[int | None], *, style: str = "", written: Callable[[Decimal], str] | None = None, absent: str = "unpriced"
) -> Column:
    """US dollars, their points below each other."""
    values = [None if value is None else from_femto(value) for value in femto]
    cells = [cell.replace("unpriced", absent.rjust(8)) for cell in aligned(values, written)]
    # To the left: rich takes the blanks behind a number away where it moves text to the right.
    return Column(name.rjust(len(cells[0])) if cells else name, cells, right=False, style=style)


def rates(name: str, values: Iterable[Decimal | None], spare: int = 0) -> Column:
    """Parts of 1 as percentages."""
    return Column(name, [percent(value) for value in values], spare=spare)


def shares(name: str, values: Iterable[Decimal | None]) -> Column:
    """Parts of a total as percentages and bars; the total itself has none."""
    from rich.text import Text

    return Column(name, [*map(bar, values), Text("")], right=False)


def signed(usd: Decimal) -> str:
    """US dollars with their sign."""
    return f"{'-' if usd < 0 else '+' if usd else ''}{money(abs(usd))}"


def change(value: Decimal | None, absent: str = "-") -> str:
    """A change as a signed percentage; more than tenfold as a factor."""
    if value is None:
        return absent
    if value >= 9:
        return f"x{value + 1:,.0f}"
    if value and abs(value) < Decimal("0.0005"):
        return "<0.1%"
    return f"{value * 100:+.1f}%" if value else "0.0%"


def print_table(columns: Sequence[Column], *, footers: int = 1) -> None:
    """Print rows below each other, and the last *footers* of them as totals."""
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
        cells = [_cell(cell, "" if total else column.style) for cell, column in zip(row, columns, strict=True)]
        table.add_row(*cells, style="bold" if total else "")
    console.print(table)
    if left_out:
        print_notes([f"not shown in {console.width} columns: {left_out}; widen the terminal, or --format csv"])


def print_title(text: str) -> None:
    """Print the line above a table."""
    from rich.text import Text

    console_for_tables().print(Text(printable(text), style="bold"), soft_wrap=True)


def print_notes(notes: Iterable[str]) -> None:
    """Print lines below a table."""
    from rich.text import Text

    console = console_for_tables()
    for note in notes:
        console.print(Text(printable(note), style="dim"), soft_wrap=True)


def _cell(cell: Any, style: str) -> Text:
    from rich.text import Text

    if isinstance(cell, Text):
        return cell
    return Text(str(cell), style=style)


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Without those that can be spared, as far as the rest needs the place."""
    kept = list(columns)
    while sum(_width(column) + 3 for column in kept) > width and (most := max((column.spare for column in kept), default=0)):
        kept.remove(next(column for column in reversed(kept) if column.spare == most))
    return kept


def _width(column: Column) -> int:
    longest = max((len(str(cell)) for cell in (column.name, *column.cells)), default=0)
    return min(longest, 44) if column.wide else longest
