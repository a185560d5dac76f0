"""
The settings file: ``voight.toml``, or ``[tool.voight]`` in ``pyproject.toml``.

An application and the command line find the same file, so that both use the same ledger and prices.
Don't put secrets into it. Its relative paths are relative to its folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "voight.toml"
PROJECT = "pyproject.toml"
CONFIG = "VOIGHT_CONFIG"
"""The variable with the path of the file. ``none`` disables it."""
NAMES = (
    *("ledger", "journal", "release", "enabled", "request_identity", "prices", "pii", "tags", "tz"),
    *(
        "voight_agent",
        "events_url",
        "events_per_minute",
        "ingest",
        "journal_limit",
        "exit_timeout",
        "delivery",
    ),
)
_SECRETS = {
    "voight_api_key": "VOIGHT_KEY",
    "pseudonym_key": "VOIGHT_PSEUDONYM_KEY",
    "header_key": "VOIGHT_HEADER_KEY",
}
_PATHS = ("ledger", "journal", "prices")
_TABLES = ("pii", "tags")
_ROOTS = ((".git", ".hg"), (PROJECT, "setup.py", "manage.py"))
"""
The marks of a project's root, the better ones first. Files above the root belong to something else
and are ignored.
"""


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """The content of a settings file and its mistakes."""

    path: Path | None = None
    """The file that was read, or None if none was found."""
    values: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """One line per mistake, with file and line."""
    unreadable: bool = False
    """Whether the file cannot be parsed at all."""

    def source(self, name: str) -> str:
        """Return the location of a value: ``/srv/app/voight.toml:3``."""
        line = self.lines.get(name)
        return f"{self.path}:{line}" if line else str(self.path)


NO_FILE = SettingsFile()


def find_settings_file(
    environ: Mapping[str, str] = os.environ, beside: Path | None = None
) -> SettingsFile:
    """
    Return the first settings file found.

    The order: the file in ``VOIGHT_CONFIG``, the working directory and its parents up to the
    project's root, then *beside*, the ledger's folder.
    """
    named = environ.get(CONFIG, "").strip()
    if named.lower() == "none":
        return NO_FILE
    if named:
        try:
            path = Path(named).expanduser().absolute()
        except RuntimeError:  # ~user does not exist
            path = Path(named).absolute()
        return read_settings_file(path)
    for folder in _folders():
        if _is_file(folder / NAME):
            return read_settings_file(folder / NAME)
        if (
            _is_file(folder / PROJECT)
            and (file := read_settings_file(folder / PROJECT)).path is not None
        ):
            return file
    if beside is not None and _is_file(beside / NAME):
        return read_settings_file(beside / NAME)
    return NO_FILE


def read_settings_file(path: Path) -> SettingsFile:
    """Read a file. Never raises. A ``pyproject.toml`` without ``[tool.voight]`` has no settings."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        return (
            NO_FILE
            if path.name == PROJECT
            else SettingsFile(path, problems=(f"{path}: cannot be read: {why}",), unreadable=True)
        )
    if path.name == PROJECT and "voight" not in text:
        return NO_FILE  # regardless of its other mistakes
    import tomllib

    try:
        content: Any = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if path.name == PROJECT and "tool.voight" not in text:
            return NO_FILE  # another tool's mistake
        return SettingsFile(path, problems=(f"{path}: {error}",), unreadable=True)
    begin = 0
    if path.name == PROJECT:
        tools = content.get("tool")
        content = tools.get("voight") if isinstance(tools, dict) else None
        if not isinstance(content, dict):
            return NO_FILE
        begin = next(
            (
                number
                for number, line in enumerate(text.splitlines(), 1)
                if re.match(r"\s*\[\s*tool\.voight\b", line)
            ),
            0,
        )
    return _read(path, content, text.splitlines(), begin)


def _read(path: Path, content: Mapping[str, Any], lines: list[str], begin: int) -> SettingsFile:
    values: dict[str, str | Mapping[str, str]] = {}
    places: dict[str, int] = {}
    problems: list[str] = []
    for name, given in content.items():
        line = _line_of(name, lines, begin)
        if line:
            places[name] = line
        where = f"{path}:{line}" if line else f"{path}"
        if name in _SECRETS:
            problems.append(
                f"{where}: a secret does not belong in a shared file: set {_SECRETS[name]} instead"
            )
        elif name not in NAMES:
            problems.append(f"{where}: there is no setting {name!r}{nearest(name, NAMES)}")
        elif (value := _value(name, given)) is None:
            form = "text or a table" if name in _TABLES else "text, a number, true or false"
            problems.append(f"{where}: {name} must be {form}, not {given!r}")
        else:
            values[name] = (
                _placed(value, path.parent) if name in _PATHS and isinstance(value, str) else value
            )
    return SettingsFile(path, values, places, tuple(problems))


def _value(name: str, given: object) -> str | Mapping[str, str] | None:
    if isinstance(given, dict) and name in _TABLES:
        return {
            str(key): value if isinstance(value, str) else str(value)
            for key, value in given.items()
        }
    if isinstance(given, bool):
        return "true" if given else "false"
    return (str(given).strip() or None) if isinstance(given, str | int | float) else None


def _placed(place: str, folder: Path) -> str:
    """Return a path relative to the file's folder as absolute. A server URL stays unchanged."""
    path = place.removeprefix("sqlite:///")
    if (
        "://" in path
        or path.startswith(("/", "~"))
        or (path == place and re.match(r"[A-Za-z]+:", place))
    ):
        return place
    return str(folder / path)


def _line_of(name: str, lines: list[str], begin: int) -> int | None:
    key = rf'["\']?{re.escape(name)}["\']?'
    pattern = re.compile(rf"\s*(?:{key}\s*[=.]|\[\s*(?:tool\s*\.\s*voight\s*\.\s*)?{key}\s*[\].])")
    return next(
        (number for number, line in enumerate(lines, 1) if number > begin and pattern.match(line)),
        None,
    )


def _folders() -> Iterator[Path]:
    """Yield the working directory and its parents up to the project's root."""
    try:
        here = Path.cwd()
    except OSError:  # it was deleted
        return
    chain = [here, *here.parents]
    for marks in _ROOTS:
        for index, folder in enumerate(chain):
            if any(os.path.lexists(folder / mark) for mark in marks):
                yield from chain[: index + 1]
                return
    yield here


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be looked into
        return False


def nearest(name: str, names: tuple[str, ...]) -> str:
    """Return ``: did you mean …?``, or all names if none is close."""
    import difflib

    near = difflib.get_close_matches(name.lower(), [known.lower() for known in names], n=1)
    if not near:
        return f": use one of {', '.join(names)}"
    return f": did you mean {next(known for known in names if known.lower() == near[0])}?"
