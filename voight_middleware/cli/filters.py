"""The filters of ``--where``: ``plan!=free,user=a*``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from voight_middleware.cli import privacy
from voight_middleware.cli.arguments import SHORT
from voight_middleware.cli.render import UserError, printable
from voight_middleware.config.settings import Settings
from voight_middleware.lazy import lazy_pattern
from voight_middleware.ledger import Ledger, Where
from voight_middleware.ledger.base import has_wildcard, literal

_CONDITION = lazy_pattern(r"\s*(?P<name>[^=!]*[^=!\s])\s*(?P<no>!?)=(?P<value>.*)", re.DOTALL)
_NONE = ("-", "none")


def read(
    texts: Sequence[str], settings: Settings
) -> dict[str, str | tuple[str | None, ...] | None]:
    """
    Read the texts of ``--where``.

    A name with several values matches any of them, and with ``!=`` none of them.

    Raises:
        UserError: A condition cannot be read.
        SettingsError: The pseudonym key cannot be read.
    """
    conditions: dict[str, list[str | None]] = {}
    for text in texts:
        for condition in re.split(r"(?<!\\),", text):
            match = _CONDITION.fullmatch(condition)
            if match is None:
                raise UserError(
                    f"cannot read the filter {condition!r}; write --where key=value,key=value, or "
                    "key!=value; \\, is a comma"
                )
            name = SHORT.get(match["name"], match["name"])
            value = match["value"].replace("\\,", ",")
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"the filter on {name} is not text in the encoding of this terminal"
                ) from error
            values = conditions.setdefault(f"{name}{match['no']}", [])
            if value in _NONE:
                values.append(None)
            else:
                sought = privacy.sought(
                    name,
                    value[1:] if value.startswith("\\") and value[1:] in _NONE else value,
                    settings,
                )
                values += sought if isinstance(sought, tuple) else [sought]
    return {
        name: values[0] if len(values) == 1 else tuple(values)
        for name, values in conditions.items()
    }


def exact(ledger: Ledger, where: Where) -> Where:
    """
    Return *where*, with the ``*`` escaped in values that the ledger has: ids may have a star.

    Raises:
        UnknownDimension: A name is neither a dimension nor an extra key of any call.
        LedgerError: The ledger cannot be read.
    """
    filters: dict[str, str | tuple[str | None, ...] | None] = {}
    for name, value in where.items():
        texts = value if isinstance(value, tuple) else (value,)
        values = tuple(_exact(ledger, name.removesuffix("!"), text) for text in texts)
        filters[name] = values if isinstance(value, tuple) else values[0]
    return filters


def _exact(ledger: Ledger, name: str, value: str | None) -> str | None:
    if (
        value is None
        or not has_wildcard(value)
        or not any(group.calls for group in ledger.spend((), {name: literal(value)}))
    ):
        return value
    print(
        f"voight: {printable(value)} is a {name} in this ledger, so it matches only that {name}",
        file=sys.stderr,
    )
    return literal(value)
