"""
The user's own prices from one TOML file: negotiated rates, custom and self-hosted models, Azure
deployments.

A mistake rejects the whole file: skipping an intended price would yield wrong costs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

from voight_middleware.pricing.rules import TOKENS, Rule
from voight_middleware.records.money import CONTEXT

_PER = {
    **{name: Decimal(1_000_000) for name in TOKENS},
    "characters": Decimal(1_000_000),
    "minutes": Decimal(60),
    "seconds": Decimal(1),
    "images": Decimal(1),
    "request": Decimal(1),
    **{name: Decimal(1000) for name in ("web_search", "file_search", "code_interpreter")},
}
"""
The unit of each price: a million tokens or characters, a minute, a second, an image, a request, a
thousand tool calls.
"""

_TEXTS = ("provider", "model", "host", "note")
_TERMS = ("tier", "speed", "geo", "size", "quality")
_TIMES = ("since", "until")
_KEYS = frozenset((*_TEXTS, *_TERMS, *_TIMES, *_PER, "batch", "discount", "free", "whole"))


class OverridesError(ValueError):
    """
    A file of prices cannot be used. ``problems`` has one line per mistake, with file and line.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Overrides:
    """The content of a file of prices."""

    rules: tuple[Rule, ...] = ()
    deployments: Mapping[str, str] = field(default_factory=dict)

    def model_behind(self, name: str | None) -> str | None:
        """Return the model of a deployment. Other names are returned unchanged."""
        return name if name is None else self.deployments.get(name.lower(), name)


NO_OVERRIDES = Overrides(deployments=MappingProxyType({}))


def read_overrides(path: Path) -> Overrides:
    """
    Read a file of prices.

    Raises:
        OverridesError: The file cannot be read, is not TOML, or contains a mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OverridesError(
            [f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"]
        ) from error
    return parse_overrides(text, path)


def parse_overrides(text: str, path: Path) -> Overrides:
    """
    Parse the content of a file of prices.

    Raises:
        OverridesError: It is not TOML, or it contains a mistake.
    """
    try:
        content = tomllib.loads(text, parse_float=Decimal)
    except RecursionError as error:
        raise OverridesError([f"{path}: lists or tables are nested too deeply"]) from error
    except ValueError as error:  # not TOML, or a number of thousands of digits
        raise OverridesError([f"{path}: {error}"]) from error
    reader = _Reader(path, text)
    rules = reader.rules(content.pop("price", []))
    deployments = reader.deployments(content.pop("deployments", {}))
    for name in content:
        reader.complain(
            reader.line_of(f"[{name}]", name),
            f"unknown key {name!r}: write prices as [[price]] and deployments as [deployments]",
        )
    if reader.problems:
        raise OverridesError(reader.problems)
    return Overrides(rules, deployments)


class _Reader:
    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()
        self._headers = [
            number
            for number, line in enumerate(self._lines, 1)
            if re.match(r"\s*\[\[\s*price\s*\]\]", line)
        ]
        self.problems: list[str] = []

    def complain(self, line: int | None, problem: str) -> None:
        self.problems.append(
            f"{self._path}:{line}: {problem}" if line else f"{self._path}: {problem}"
        )

    def line_of(self, *starts: str, after: int = 1, before: int | None = None) -> int | None:
        """Return the first line of a part of the file that begins with one of *starts*."""
        for number in range(after, (before or len(self._lines) + 1)):
            line = self._lines[number - 1].strip()
            if any(
                line.startswith(start)
                and (start[0] == "[" or re.match(r"[\s=.]", line[len(start) :]))
                for start in starts
            ):
                return number
        return None

    def rules(self, tables: Any) -> tuple[Rule, ...]:
        if not isinstance(tables, list):
            self.complain(
                self.line_of("[price]", "price"),
                "each price is a table of its own: write [[price]]",
            )
            return ()
        made = []
        for index, table in enumerate(tables):
            begin = self._headers[index] if index < len(self._headers) else None
            end = self._headers[index + 1] if index + 1 < len(self._headers) else None
            known = len(self.problems)
            rule = self._rule(table, begin, end)
            if len(self.problems) == known and rule is not None:
                made.append(rule)
        return tuple(made)

    # Complex: each key of a price has a check and a message of its own.
    def _rule(self, table: Any, begin: int | None, end: int | None) -> Rule | None:
        def at(key: str) -> int | None:
            return (
                self.line_of(key, f'"{key}"', after=begin + 1, before=end) if begin else None
            ) or begin

        if not isinstance(table, dict):
            self.complain(begin, "each price is a table of its own: write [[price]]")
            return None
        for key in table.keys() - _KEYS:
            hint = (
                "every price is in US dollars; another currency is not supported"
                if key == "currency"
                else f"use {', '.join(sorted(_KEYS))}"
            )
            self.complain(at(key), f"there is no key {key!r}: {hint}")
        if "model" not in table:
            self.complain(
                begin, 'a price needs a model, such as model = "gpt-4o*"; "*" matches any'
            )
        for key in (*_TEXTS, *_TERMS):
            if key in table and (not isinstance(table[key], str) or not table[key].strip()):
                self.complain(at(key), f"{key} must be text, not {table[key]!r}")
        if isinstance(table.get("host"), str) and re.search(r"[/@]", table["host"]):
            self.complain(
                at("host"),
                "host must be a host name such as api.openai.com, not a URL: calls keep their "
                "host name only",
            )
        for key in ("batch", "free", "whole"):
            if key in table and not isinstance(table[key], bool):
                self.complain(at(key), f"{key} must be true or false, not {table[key]!r}")
        times = {key: self._time(table[key], key, at(key)) for key in _TIMES if key in table}
        since, until = times.get("since"), times.get("until")
        if since is not None and until is not None and since >= until:
            self.complain(at("until"), "until must be later than since")
        usd = {key: self._amount(table[key], key, at(key)) for key in _PER if key in table}
        factor = self._discount(table["discount"], at("discount")) if "discount" in table else None
        if table.get("free") is True and (usd or factor is not None):
            self.complain(at("free"), "a free model cannot have another price")
        if not usd and factor is None and table.get("free") is not True:
            self.complain(
                begin,
                "a price needs at least one amount (input, output, …), a discount, or free = true",
            )
        if self.problems:
            return None
        prices = {
            ("seconds" if key == "minutes" else key): CONTEXT.divide(amount, _PER[key])
            for key, amount in usd.items()
        }
        free = table.get("free") is True
        return Rule(
            id=f"override-{self._path.name}:{begin}",
            source=f"{self._path}:{begin}",
            provider=table.get("provider", "*").lower(),
            model=table["model"],
            host=table.get("host", "*"),
            since=times.get("since"),
            until=times.get("until"),
            when={
                **{key: table[key] for key in _TERMS if key in table},
                **({"batch": "true"} if table.get("batch") else {}),
            },
            usd=dict.fromkeys(_PER, Decimal(0)) if free else prices,
            factor=factor,
            whole=free or bool(table.get("whole", False)),
        )

    def _amount(self, value: Any, key: str, line: int | None) -> Decimal:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | Decimal)
            or not Decimal(value).is_finite()
            or value < 0
        ):
            self.complain(line, f"{key} must be US dollars, 0 or more, not {value!r}")
            return Decimal(0)
        if value > 1_000_000:
            self.complain(
                line,
                f"{key} = {value} is more than any price: the unit is US dollars for {_unit(key)}",
            )
        return Decimal(value)

    def _discount(self, value: Any, line: int | None) -> Decimal | None:
        match = (
            re.fullmatch(r"(\d{1,2}(?:\.\d+)?|100)\s*%", value) if isinstance(value, str) else None
        )
        if match is None:
            self.complain(
                line, f'discount must be a percentage from "0%" to "100%" in quotes, not {value!r}'
            )
            return None
        return 1 - Decimal(match[1]).scaleb(-2)

    def _time(self, value: Any, key: str, line: int | None) -> int | None:
        if isinstance(value, datetime):
            moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        elif isinstance(value, date):
            moment = datetime(value.year, value.month, value.day, tzinfo=UTC)
        else:
            self.complain(
                line,
                f"{key} must be a date or a time without quotes, such as 2026-11-01, not {value!r}",
            )
            return None
        if moment.minute or moment.second or moment.microsecond:
            self.complain(line, f"{key} must be on the hour, not {value}")
        return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 1_000_000

    def deployments(self, table: Any) -> Mapping[str, str]:
        begin = self.line_of("[deployments]")
        if not isinstance(table, dict):
            self.complain(begin, '[deployments] maps names to models: "chat-prod" = "gpt-4o"')
            return {}
        for name, model in table.items():
            if not isinstance(model, str) or not model.strip():
                line = self.line_of(name, f'"{name}"', after=(begin or 0) + 1)
                self.complain(line or begin, f"the model of {name!r} must be text, not {model!r}")
        return {name.lower(): model for name, model in table.items() if isinstance(model, str)}


def _unit(key: str) -> str:
    return {
        Decimal(1_000_000): f"a million {'characters' if key == 'characters' else 'tokens'}",
        Decimal(1000): "a thousand calls",
    }.get(_PER[key], f"one of {key}")
