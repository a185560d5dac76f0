"""Settings from ``voight.configure()``, the environment, a settings file and the defaults."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from voight_middleware.config.keys import PseudonymKey, read_keys
from voight_middleware.config.ledger_url import ledger_url, shown_url, sqlite_path
from voight_middleware.config.paths import (
    can_be_made,
    default_journal,
    default_ledger,
    pseudonym_key_file,
    state_folder,
    usable_journal,
)
from voight_middleware.config.release import RELEASE_VARIABLES, deployed_release
from voight_middleware.config.settings_file import NO_FILE, SettingsFile, find_settings_file
from voight_middleware.config.values import (
    EVENTS_PER_MINUTE,
    EVENTS_URL,
    PII_POLICIES,
    SWITCH,
    EventsTarget,
    SettingsError,
    absolute,
    read_bytes,
    read_delivery,
    read_events,
    read_policies,
    read_seconds,
    read_tags,
    read_zone,
)
from voight_middleware.records.tag_values import clean_value

__all__ = (
    "EXIT_SECONDS",
    "JOURNAL_LIMIT",
    "PII_POLICIES",
    "RELEASE_VARIABLES",
    "VARIABLES",
    "EventsTarget",
    "PseudonymKey",
    "Settings",
    "SettingsError",
    "can_be_made",
    "default_journal",
    "default_ledger",
    "ledger_url",
    "project_settings",
    "pseudonym_key_file",
    "read_keys",
    "shown_url",
    "sqlite_path",
    "state_folder",
    "usable_journal",
    "usable_settings",
)

_Value = TypeVar("_Value")
JOURNAL_LIMIT = 1_000_000_000
"""
The maximum size in bytes of all journals of a folder. Beyond it, calls wait in memory.

A call takes 240 to 500 bytes. Without a ledger, this lasts two to five days at ten calls a second,
and at least forty minutes at a thousand. It is small enough for a container's disk.
"""
EXIT_SECONDS = 5.0
"""
How long the end of the process may wait for the ledger. Docker sends SIGKILL ten seconds after
SIGTERM.
"""


class Settings(msgspec.Struct, frozen=True):
    """
    The settings in force and their sources: ``configure()``, a variable's name, a file and line, or
    ``default``.
    """

    ledger: str
    """
    The URL of the ledger: ``sqlite:///path``, ``postgresql://…``, ``clickhouse://…``. It may
    contain a password, so print ``shown_url``.
    """
    journal: Path
    """The folder of this host's journals."""
    release: str | None = None
    enabled: bool = True
    request_identity: bool | None = None
    """
    Whether a call without an owner belongs to the user that its request names to the provider.

    None means only outside of web requests and jobs, whose bodies may come from their client.
    """
    prices: Path | None = None
    """The file of the user's own prices."""
    tags: Mapping[str, str] = {}
    """The tags of every call of this process, below all other tags."""
    tz: str = "UTC"
    """The time zone of days, weeks and months in reports."""
    pii: Mapping[str, str] = {}
    """
    The handling of personal data in tags, by tag key: one of ``PII_POLICIES``. ``*`` stands for the
    other keys.
    """
    pseudonym_keys: tuple[PseudonymKey, ...] = ()
    """
    The first key makes pseudonyms, and all keys find them. Without any, a local ledger has a key in
    a file next to it.
    """
    header_keys: tuple[PseudonymKey, ...] = ()
    """
    The keys that sign tags for another service of ours. The first one signs, and all of them
    verify.
    """
    events: EventsTarget | None = None
    """None without a key: no events are sent."""
    ingest: bool = True
    """Whether this process may ingest journals. If not, run ``voight ingest`` next to it."""
    journal_limit: int = JOURNAL_LIMIT
    """
    The maximum size in bytes of all journals of the folder, without the segments being written.
    """
    exit_timeout: float = EXIT_SECONDS
    """How many seconds the end of the process may wait for the ledger."""
    delivery: str = "background"
    """One of ``DELIVERIES``: whether a call may wait until it is in the ledger."""
    sources: Mapping[str, str] = {}
    file: Path | None = None
    """The settings file that was read."""
    broken_file: Path | None = None
    """A settings file that cannot be read at all. The prices of calls are unknown then."""

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in self.__struct_fields__} | {
            "ledger": shown_url(self.ledger)
        }
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @classmethod
    def from_environment(
        cls,
        *,
        ledger: str | Path | None = None,
        journal: str | Path | None = None,
        release: str | None = None,
        enabled: bool | None = None,
        request_identity: bool | None = None,
        prices: str | Path | None = None,
        tags: Mapping[str, str] | None = None,
        tz: str | None = None,
        pii: str | Mapping[str, str] | None = None,
        pseudonym_key: str | None = None,
        header_key: str | None = None,
        voight_api_key: str | None = None,
        voight_agent: str | None = None,
        events_url: str | None = None,
        events_per_minute: int | str | None = None,
        ingest: bool | None = None,
        journal_limit: int | str | None = None,
        exit_timeout: float | str | None = None,
        delivery: str | None = None,
        environ: Mapping[str, str] = os.environ,
        file: SettingsFile | None = None,
    ) -> Settings:
        """
        Read the settings: arguments, then the environment (``VARIABLES``), then the settings file,
        then the defaults.

        The release is also taken from the variables of common deployment platforms. The other
        arguments are those of ``voight.configure()``.

        Args:
            environ: The environment.
            file: The settings file to use instead of the one found.

        Raises:
            SettingsError: A value cannot be used, or the file contains a mistake.
        """
        used_file = settings_file(environ, ledger) if file is None else file
        if used_file.problems:
            raise SettingsError("; ".join(used_file.problems))
        given = _Given(environ, used_file)
        first, sources = given.first, given.sources
        url = given.ledger(ledger)
        folder = given.path("journal", journal, "the journal")
        release_name = first("release", release)
        if release_name is None:
            release_name, sources["release"] = deployed_release(environ) or (None, "default")
        policies, all_tags = given.table("pii", pii), given.table("tags", tags)
        keys = first("pseudonym_key", pseudonym_key)
        signing = first("header_key", header_key)
        bearer = first("voight_api_key", voight_api_key)
        name = first("voight_agent", voight_agent) or environ.get("HOSTNAME") or os.uname().nodename
        base = first("events_url", events_url) or EVENTS_URL
        rate = first("events_per_minute", events_per_minute)
        return cls(
            ledger=url,
            journal=usable_journal(url, environ) if folder is None else folder,
            release=clean_value(release_name or ""),
            enabled=given.switch("enabled", enabled),
            request_identity=given.maybe("request_identity", request_identity),
            prices=given.path("prices", prices, "the file of prices"),
            tags=read_tags(all_tags, sources["tags"]),
            tz=given.read("tz", tz, read_zone, "UTC"),
            pii=read_policies(policies, sources["pii"]),
            pseudonym_keys=() if keys is None else read_keys(keys, sources["pseudonym_key"]),
            header_keys=()
            if signing is None
            else read_keys(signing, sources["header_key"], "header key"),
            events=None
            if bearer is None
            else read_events(bearer, name, base, rate or str(EVENTS_PER_MINUTE), sources),
            ingest=given.switch("ingest", ingest),
            journal_limit=given.read("journal_limit", journal_limit, read_bytes, JOURNAL_LIMIT),
            exit_timeout=given.read("exit_timeout", exit_timeout, read_seconds, EXIT_SECONDS),
            delivery=given.read("delivery", delivery, read_delivery, "background"),
            sources=sources,
            file=used_file.path,
        )


_project: tuple[Mapping[str, Any], Callable[[str], str]] = ({}, str)
"""The settings of the project that the command line runs for, and their source."""


@contextlib.contextmanager
def project_settings(values: Mapping[str, Any], source: Callable[[str], str]) -> Generator[None]:
    """
    Apply the settings of a project, below arguments and above the environment.

    Args:
        values: Values by the names of ``configure()``.
        source: Returns the source of a name's value, for people.
    """
    global _project
    before, _project = _project, (values, source)
    try:
        yield
    finally:
        _project = before


class _Given:
    """
    Looks up values in the arguments, the environment and the settings file. ``sources`` has the
    source of each.
    """

    def __init__(self, environ: Mapping[str, str], file: SettingsFile) -> None:
        self.sources: dict[str, str] = {}
        self._environ = environ
        self._file = file
        self._project, self._source = _project if environ is os.environ else ({}, str)

    def first(self, name: str, given: object) -> str | None:
        if given is not None:
            self.sources[name] = "configure()"
            return str(given)
        if (value := self._project.get(name)) is not None:
            self.sources[name] = self._source(name)
            return str(value)
        if value := self._environ.get(VARIABLES[name]):
            self.sources[name] = VARIABLES[name]
            return value
        if name in self._file.values:
            self.sources[name] = self._file.source(name)
            return str(self._file.values[name])
        self.sources[name] = "default"
        return None

    def table(self, name: str, given: str | Mapping[str, str] | None) -> str | Mapping[str, str]:
        text = self.first(name, None if given is None else "") or ""
        if given is not None:
            return given
        if (value := self._project.get(name)) is not None:
            return value if isinstance(value, Mapping) else text
        return self._file.values[name] if self._is_of_file(name) else text

    def switch(self, name: str, given: bool | None) -> bool:
        word = (self.first(name, given) or "true").strip().lower()
        if word not in SWITCH:
            raise SettingsError(
                f"{self.sources[name]}: {name} is {word!r}; use one of {', '.join(SWITCH)}"
            )
        return SWITCH[word]

    def maybe(self, name: str, given: bool | None) -> bool | None:
        return None if self.first(name, given) is None else self.switch(name, given)

    def read(
        self, name: str, given: object, reader: Callable[[str], _Value], default: _Value
    ) -> _Value:
        text = self.first(name, given)
        try:
            return default if text is None else reader(text)
        except ValueError as error:
            raise SettingsError(f"{self.sources[name]}: {name} is {text!r}; {error}") from error

    def path(self, name: str, given: object, what: str) -> Path | None:
        text = self.first(name, given)
        return None if text is None else absolute(text, f"{self._where(name)}{what}")

    def ledger(self, given: object) -> str:
        place = self.first("ledger", given)
        try:
            return ledger_url(default_ledger(self._environ) if place is None else place)
        except SettingsError as error:
            raise SettingsError(f"{self._where('ledger')}{error}") from error

    def _where(self, name: str) -> str:
        return f"{self.sources[name]}: " if self._is_of_file(name) else ""

    def _is_of_file(self, name: str) -> bool:
        return name in self._file.values and self.sources[name] == self._file.source(name)


VARIABLES = {
    name: f"VOIGHT_{name.upper()}"
    for name in (
        *(
            "ledger",
            "journal",
            "release",
            "enabled",
            "request_identity",
            "prices",
            "tags",
            "tz",
            "pii",
            "pseudonym_key",
            "header_key",
        ),
        *("events_url", "events_per_minute", "ingest", "journal_limit", "exit_timeout", "delivery"),
    )
} | {"voight_api_key": "VOIGHT_KEY", "voight_agent": "VOIGHT_AGENT"}
"""The variable of each setting."""


def settings_file(
    environ: Mapping[str, str] = os.environ, ledger: str | Path | None = None
) -> SettingsFile:
    """Return the settings file in force for the ledger named so far."""
    project = _project[0].get("ledger") if environ is os.environ else None
    try:
        url = ledger_url(
            str(ledger or project or environ.get("VOIGHT_LEDGER") or default_ledger(environ))
        )
        beside = Path(sqlite_path(url)).parent if url.startswith("sqlite:///") else None
    except SettingsError:  # reported when the ledger setting is read
        beside = None
    return find_settings_file(environ, beside)


STRICTER = {
    "enabled": "false",
    "request_identity": "false",
    "pii": "redact",
    "ingest": "false",
}
"""The replacements of invalid values. Other invalid values are replaced by their defaults."""


def usable_settings(
    environ: Mapping[str, str] = os.environ,
) -> tuple[Settings, list[SettingsError]]:
    """
    Return the settings of the environment and the settings file, and their errors.

    An invalid value does not affect other settings. It is replaced by a value that does less.
    """
    file = settings_file(environ)
    errors = [SettingsError(problem) for problem in file.problems]
    others = {name: value for name, value in environ.items() if not name.startswith("VOIGHT_")}
    ours = {name: text for name, variable in VARIABLES.items() if (text := environ.get(variable))}
    values = dict(file.values)
    alone = others
    try:
        state_folder(others)
    except SettingsError:  # reported below, unless one of our values fixes it
        alone = {**others, "XDG_STATE_HOME": "/"}
    forced: dict[str, str] = (
        {"pii": STRICTER["pii"], "request_identity": "false", "ingest": "false"}
        if file.unreadable
        else {}
    )
    for name, value in file.values.items():
        try:
            Settings.from_environment(
                environ=alone, file=replace(file, values={name: value}, problems=())
            )
        except SettingsError as error:
            errors.append(error)
            del values[name]
            if name not in ours:
                forced |= _instead(name, value)
    for name, text in list(ours.items()):
        try:
            Settings.from_environment(environ={**alone, VARIABLES[name]: text}, file=NO_FILE)
        except SettingsError as error:
            errors.append(
                error
                if VARIABLES[name] in str(error)
                else SettingsError(f"{VARIABLES[name]}: {error}")
            )
            del ours[name]
            values.pop(name, None)
            forced |= _instead(name, text)
    used = {VARIABLES[name]: value for name, value in (ours | forced).items()}
    try:
        settings = Settings.from_environment(
            environ={**others, **used}, file=replace(file, values=values, problems=())
        )
    # The settings for events are checked only with a key; or no folder is writable.
    except SettingsError as error:
        errors.append(error)
        used.pop(VARIABLES["voight_api_key"], None)
        if alone is not others:
            used |= {VARIABLES[name]: value for name, value in STRICTER.items()}
        settings = Settings.from_environment(
            environ={**alone, **used}, file=replace(file, values=values, problems=())
        )
    sources = {**settings.sources, **dict.fromkeys(forced, "replacing an invalid value")}
    broken = file.path if file.unreadable else None
    return msgspec.structs.replace(settings, sources=sources, broken_file=broken), errors


def _instead(name: str, bad: object) -> dict[str, str]:
    """Return the replacement of an invalid value."""
    if name in STRICTER:
        return {name: STRICTER[name]}
    if name == "ledger":  # no default can replace it: calls wait in the journal
        return {"ingest": "false"}
    # No default here either, for any ingester: a missing file makes calls wait.
    if name == "prices":
        return {"ingest": "false", "prices": f"/{bad}"}
    return {"pii": STRICTER["pii"]} if name == "pseudonym_key" else {}
