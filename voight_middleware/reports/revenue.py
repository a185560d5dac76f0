"""Revenue of customers, from a CSV file."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

AMOUNT_COLUMNS = ("revenue", "amount")

_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,15})?", re.ASCII)
_WITH_COMMA = re.compile(r"[0-9]{1,12},[0-9]{1,2}", re.ASCII)
_CURRENCY = re.compile(r"[A-Za-z]{3}", re.ASCII)


class RevenueError(ValueError):
    """Revenue cannot be used; ``problems`` has every mistake, with its line if there is one."""

    def __init__(self, source: str, problems: Collection[str]) -> None:
        self.problems = tuple(problems)
        shown = "; ".join(self.problems[:20])
        more = len(self.problems) - 20
        super().__init__(f"{source}: {shown}" + (f"; and {more:,} more" if more > 0 else ""))


@dataclass(frozen=True, slots=True)
class Revenue:
    """The revenue of each customer, in one currency."""

    source: str
    by_id: Mapping[str, Decimal]
    currency: str = "USD"
    notes: tuple[str, ...] = ()
    """Sentences about the content and the gaps of the source."""

    def in_usd(self, rate: Decimal | None) -> dict[str, int]:
        """
        Return femto-dollars (1e-15 USD) by customer.

        Args:
            rate: The US dollars for one unit of the revenue's currency.

        Raises:
            RevenueError: A foreign currency has no rate, or US dollars have one.
        """
        if (self.currency == "USD") == (rate is not None) and self.by_id:
            if rate is None:
                problem = (
                    f"revenue is in {self.currency}, and calls cost US dollars: give --rate, the "
                    f"US dollars for one {self.currency}"
                )
            else:
                problem = "revenue is in US dollars, which need no --rate"
            raise RevenueError(self.source, [problem])
        return {
            id_: round(Fraction(amount) * Fraction(rate or 1) * 10**15)
            for id_, amount in self.by_id.items()
        }


# Complex: each mistake of a file has a message of its own.
def read_csv(path: Path, column: str = "user_id") -> Revenue:
    """
    Read revenue from a CSV file.

    Its columns are ``id`` (or *column*), ``revenue`` (or ``amount``), and optionally ``currency``.
    They are separated by commas or semicolons. With semicolons, cents may follow a comma.

    Raises:
        RevenueError: The file cannot be read, or has mistakes; the message has the line of each.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RevenueError(str(path), [f"line {line}: not UTF-8: save it as CSV UTF-8"]) from error
    except (OSError, ValueError) as error:
        raise RevenueError(
            str(path), [f"cannot be read: {getattr(error, 'strerror', None) or error}"]
        ) from error
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = ";" if header.count(";") > header.count(",") else ","
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    rows = _rows(reader)
    problems: list[str] = []
    try:
        _, names = next(rows, (1, []))
        places = _columns(names, column)
        by_id: dict[str, Decimal] = {}
        seen: dict[str, int] = {}
        currencies: dict[str, int] = {}
        for line, row in rows:
            if len(row) != len(names):
                problems.append(
                    f"line {line}: {len(row)} {'column' if len(row) == 1 else 'columns'} instead "
                    f"of {len(names)}"
                )
                continue
            cells = {name: row[place].strip() for name, place in places.items()}
            problems += [f"line {line}: {problem}" for problem in _mistakes(cells, separator)]
            id_ = cells["id"]
            if id_ in seen:
                problems.append(f"line {line}: {id_!r} is already on line {seen[id_]}")
            elif id_:
                seen[id_] = line
                currencies.setdefault(cells.get("currency", "USD").upper(), line)
                amount = (
                    cells["revenue"].replace(",", ".") if separator == ";" else cells["revenue"]
                )
                by_id[id_] = Decimal(amount) if _AMOUNT.fullmatch(amount) else Decimal(0)
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")
        raise RevenueError(str(path), problems) from error
    except RevenueError as error:
        raise RevenueError(str(path), error.problems) from None
    if len(currencies) > 1 and not problems:
        listed = ", ".join(f"{currency} (line {line})" for currency, line in currencies.items())
        problems.append(
            f"several currencies: {listed}; they cannot be added up: use one file for each"
        )
    if problems:
        raise RevenueError(str(path), problems)
    return Revenue(str(path), by_id, next(iter(currencies), "USD"))


def _rows(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Return the rows that are not empty, each with the line that it ends on."""
    for row in reader:
        if any(cell.strip() for cell in row):
            yield getattr(reader, "line_num", 0), row


def _columns(names: list[str], column: str) -> dict[str, int]:
    known = [name.strip().lower() for name in names]
    places: dict[str, int] = {}
    for name, spellings in (
        ("id", ("id", column)),
        ("revenue", AMOUNT_COLUMNS),
        ("currency", ("currency",)),
    ):
        indexes = [index for index, known_name in enumerate(known) if known_name in spellings]
        if len(indexes) > 1:
            raise RevenueError("", [f"line 1: the column {name} occurs {len(indexes)} times"])
        if indexes:
            places[name] = indexes[0]
        elif name != "currency":
            raise RevenueError(
                "",
                [
                    (
                        f"line 1: there is no column {' or '.join(dict.fromkeys(spellings))}; the "
                        "first line names the columns"
                    )
                ],
            )
    return places


def _mistakes(cells: Mapping[str, str], separator: str) -> Iterator[str]:
    if not cells["id"]:
        yield "there is no id"
    amount = cells["revenue"]
    if amount.startswith("-") and _AMOUNT.fullmatch(amount[1:].replace(",", ".")):
        yield f"the revenue {amount} is negative: give the rest after refunds, at least 0"
    elif not (_AMOUNT.fullmatch(amount) or (separator == ";" and _WITH_COMMA.fullmatch(amount))):
        yield f"the revenue {amount!r} is not an amount such as 1234.50"
    if "currency" in cells and not _CURRENCY.fullmatch(cells["currency"]):
        yield f"the currency {cells['currency']!r} is not a code of three letters such as USD"
