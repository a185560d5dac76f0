"""Text for a terminal or a spreadsheet: amounts, shares, titles and notes."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING

from voight_middleware.exporters.files.csv_file import text_cell
from voight_middleware.lazy import lazy_pattern
from voight_middleware.ledger import Spend, Where, Window
from voight_middleware.records.money import CONTEXT, from_femto, usd_text
from voight_middleware.reports.timespan import describe
from voight_middleware.reports.unattributed_share import Unattributed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_BAR_WIDTH = 12
_EIGHTHS = " ▏▎▍▌▋▊▉"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_FINEST = Decimal("1e-18")
_WIDTH_OF_A_PIPE = 160
"""Columns of a table that is not printed on a terminal."""
_PSEUDONYM = lazy_pattern(r"[a-z_]+:v[0-9]+:")
"""A value that a filter matches in addition to the address that was typed."""


class UserError(Exception):
    """A mistake that the user can fix; the message says how."""


def need_rich() -> None:
    """
    Check that tables can be printed.

    Raises:
        UserError: rich is not installed.
    """
    if importlib.util.find_spec("rich") is None:
        raise UserError(
            "tables need rich: pip install 'voight-middleware[cli]'; --format json and --format "
            "csv work without it"
        )


def printable(text: str) -> str:
    """Escape control and invisible characters: no value may drive a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def for_terminal(line: bytes) -> str:
    """Return a line of JSON in ASCII, without characters that drive a terminal."""
    return json.dumps(json.loads(line)) + "\n"


def csv_text(
    header: Sequence[str], rows: Iterable[Mapping[str, object]], texts: Collection[str]
) -> str:
    """Return rows as CSV; the columns in *texts* hold text of an application or a provider."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_text_cell, header))
    for row in rows:
        writer.writerow(
            [_text_cell(value) if name in texts else value for name, value in row.items()]
        )
    return buffer.getvalue()


def console_for_tables() -> Console:
    """Return the terminal, or a pipe that is wide enough for a table."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704  rich would exit with 1: `voight top | head` is not a failure

    console = Terminal(highlight=False)
    return console if console.is_terminal else Terminal(highlight=False, width=_WIDTH_OF_A_PIPE)


def title_of(subject: str, window: Window, where: Where, zone: tzinfo = UTC) -> str:
    """Return the title of a table: subject, window and filters."""
    return printable(" · ".join((subject, describe(window, zone), *map(condition, where.items()))))


def aligned(
    amounts: Sequence[Decimal | None], written: Callable[[Decimal], str] | None = None
) -> list[str]:
    """Return US dollars at the same width, aligned at the point; None reads ``unpriced``."""
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
    """Return US dollars for people: cents from one dollar on, otherwise at least three digits."""
    decimals = 2 if usd == 0 or abs(usd) >= 1 else max(4, 2 - usd.adjusted())
    return f"${usd.quantize(Decimal(1).scaleb(-decimals), context=CONTEXT):,f}"


def exact(usd: Decimal) -> str:
    """Return US dollars with cents and all digits, at most 18 decimals (1e-18 USD)."""
    if usd.adjusted() < 9 and usd != (rounded := usd.quantize(_FINEST, context=CONTEXT)):
        usd = rounded
    whole, _, fraction = usd_text(usd).partition(".")
    return f"${int(whole):,}.{fraction.ljust(2, '0')}"


def percent(share: Decimal | None) -> str:
    """Return a share from 0 to 1 as a percentage; a share above 0 never reads as 0."""
    if share is None:
        return "-"
    if 0 < share < Decimal("0.001"):
        return "<0.1%"
    return f"{share * 100:.1f}%"


def dimension(value: str | None) -> Text:
    """Return the cell of a dimension; ``(none)`` for calls without a value."""
    from rich.text import Text

    return Text("(none)", style="dim") if value is None else Text(printable(value))


def bar(share: Decimal | None) -> Text:
    """Return a share from 0 to 1 as a percentage and a bar."""
    from rich.text import Text

    eighths = int((share or Decimal(0)) * _BAR_WIDTH * 8)
    drawn = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return Text.assemble(percent(share).rjust(6), " ", (drawn, "cyan"))


def sparkline(values: Sequence[int | None]) -> str:
    """Return a line of bars, the largest at full height; None is a blank."""
    most = max((value for value in values if value), default=0)
    return "".join(
        " " if value is None else _HEIGHTS[max(0, min(7, value * 8 // most if most else 0))]
        for value in values
    )


def redacted_users(rows: Iterable[Spend]) -> Iterator[str]:
    """Note the rows that hold several users: personal ids that were redacted for lack of a key."""
    users = {str(row.dimensions["user_id"]) for row in rows if row.dimensions.get("user_id")}
    for user in sorted(users):
        if user.startswith("redacted:"):
            yield (
                f"{user} is every user whose id is personal data of that kind, kept without a "
                "key: set VOIGHT_PSEUDONYM_KEY on every host"
            )


def caveats(total: Spend, owners: Unattributed | None) -> list[str]:
    """Return the gaps in a total, each with the command that shows more."""
    notes: list[str] = []
    if total.unpriced_calls:
        notes.append(
            f"{note_of_calls(total.unpriced_calls)} of {total.calls:,} without a price, not in "
            "the cost: "
            "voight spend --by provider,model --where cost_status=unpriced"
        )
    if total.partial_calls:
        notes.append(
            f"{note_of_calls(total.partial_calls)} priced in part, so the cost may be too low or "
            "too high: "
            "voight spend --by provider,model --where cost_status=partial"
        )
    if total.estimated_calls:
        notes.append(
            f"{note_of_calls(total.estimated_calls)} with estimated tokens (streams that were "
            "broken off)"
        )
    if owners is not None and owners.unowned.calls:
        cost = (
            ""
            if owners.unowned.cost_femto is None
            else f", {money(from_femto(owners.unowned.cost_femto))}"
        )
        spend = (
            ""
            if owners.share_of_spend is None
            else f" ({percent(owners.share_of_spend)} of the cost)"
        )
        notes.append(
            f"{note_of_calls(owners.unowned.calls)} "
            f"({percent(owners.share_of_calls)}){cost}{spend} without an owner: "
            "voight spend --by route --where user=-"
        )
    elif owners is not None:
        notes.append("every call has an owner")
    return notes


def note_of_calls(count: int) -> str:
    """Return ``1 call``, ``2 calls``."""
    return f"{count:,} call" if count == 1 else f"{count:,} calls"


def note_of_rest(shown: int, more: int) -> Iterator[str]:
    """Yield the note that a table shows only its first rows, if it does."""
    if more:
        yield f"{more:,} more rows are in the total: --limit {shown + more}"


def condition(item: tuple[str, str | tuple[str | None, ...] | None]) -> str:
    """Return a filter in words, without the pseudonyms of a typed value."""
    name, value = item
    values = value if isinstance(value, tuple) else (value,)
    typed = [text for text in values if text is None or not _PSEUDONYM.match(text)] or values[:1]
    no, plain = name.endswith("!"), name.removesuffix("!")
    if typed == [None]:
        return f"with {plain}" if no else f"without {plain}"
    choices = "|".join("-" if text is None else text for text in typed)
    return f"{plain}{'!=' if no else '='}{choices}"


def _text_cell(value: object) -> str | None:
    return None if value is None else text_cell(str(value))
