"""Settings: where calls are kept and what they are stamped with, from ``voight.configure()``, the environment and the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from voight_middleware.tag_values import clean_value


class SettingsError(ValueError):
    """A value given to ``configure()`` or found in a ``VOIGHT_*`` variable cannot be used; the message names it."""


class Settings(msgspec.Struct, frozen=True):
    """The settings in force, and where each came from (``configure()``, a variable's name, or ``default``)."""

    ledger: str
    """URL of the ledger: ``sqlite:///path``."""
    journal: Path
    """The folder of this host's journals."""
    release: str | None = None
    enabled: bool = True
    request_identity: bool = True
    """Whether the user that a request names to the provider owns a call that has no other owner."""
    prices: Path | None = None
    """The file of the user's own prices."""
    sources: Mapping[str, str] = {}

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
        environ: Mapping[str, str] = os.environ,
    ) -> Settings:
        """
        The given values, then the environment (``VOIGHT_LEDGER``, ``VOIGHT_JOURNAL``, ``VOIGHT_RELEASE``, ``VOIGHT_ENABLED``,
        ``VOIGHT_REQUEST_IDENTITY``, ``VOIGHT_PRICES``), then the defaults.

        Raises:
            SettingsError: A value cannot be used.
        """
        sources: dict[str, str] = {}

        def first(name: str, given: object, variable: str) -> str | None:
            if given is not None:
                sources[name] = "configure()"
                return str(given)
            if environ.get(variable):
                sources[name] = variable
                return environ[variable]
            sources[name] = "default"
            return None

        def switch(name: str, given: bool | None, variable: str) -> bool:
            word = (first(name, given, variable) or "true").strip().lower()
            if word not in _SWITCH:
                raise SettingsError(f"{sources[name]}: {name} is {word!r}; use one of {', '.join(_SWITCH)}")
            return _SWITCH[word]

        place = first("ledger", ledger, "VOIGHT_LEDGER")
        url = ledger_url(default_ledger(environ) if place is None else place)
        folder = first("journal", journal, "VOIGHT_JOURNAL")
        own_prices = first("prices", prices, "VOIGHT_PRICES")
        return cls(
            ledger=url,
            journal=default_journal(url, environ) if folder is None else _absolute(folder, "the journal"),
            release=clean_value(first("release", release, "VOIGHT_RELEASE") or ""),
            enabled=switch("enabled", enabled, "VOIGHT_ENABLED"),
            request_identity=switch("request_identity", request_identity, "VOIGHT_REQUEST_IDENTITY"),
            prices=None if own_prices is None else _absolute(own_prices, "the file of prices"),
            sources=sources,
        )


_SWITCH = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_STATE_HOME/voight``, by default ``~/.local/state/voight``."""
    base = environ.get("XDG_STATE_HOME")
    if base:
        return Path(base).absolute() / "voight"
    try:
        return Path("~").expanduser() / ".local" / "state" / "voight"
    except RuntimeError:  # a container that runs as a user without a home
        import tempfile

        return Path(tempfile.gettempdir()) / f"voight-{os.getuid()}"


def _absolute(path: str, what: str) -> Path:
    try:
        if path and "\0" not in path:
            return Path(path).expanduser().absolute()
    except RuntimeError:  # ~user, who does not exist
        pass
    raise SettingsError(f"{what} needs a path that can be used, not {path!r}")


def default_ledger(environ: Mapping[str, str] = os.environ) -> str:
    """The ledger that is used when nothing else is said: ``ledger.db`` in the state folder."""
    return str(state_folder(environ) / "ledger.db")


def default_journal(url: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Beside an SQLite ledger: ``ledger.db.journal/``; in the state folder for a ledger on a server."""
    return Path(sqlite_path(url) + ".journal") if url.startswith("sqlite:///") else state_folder(environ) / "journal"


def ledger_url(place: str) -> str:
    """
    *place* as a URL, an SQLite path made absolute.

    Raises:
        SettingsError: *place* is empty, or an SQLite URL without a path.
    """
    if "://" in place and not place.startswith("sqlite:"):
        return place
    path = sqlite_path(place) if place.startswith("sqlite:") else place
    if not path or path == ":memory:":
        raise SettingsError(f"the ledger needs a file, such as sqlite:////var/lib/app/ledger.db, not {place!r}")
    return f"sqlite:///{_absolute(path, 'the ledger')}"


def sqlite_path(url: str) -> str:
    """
    The file of an ``sqlite:///path`` URL: three slashes and a relative path, or four and an absolute one.

    Raises:
        SettingsError: The URL has another form.
    """
    if not url.startswith("sqlite:///"):
        raise SettingsError(f"write an SQLite ledger as sqlite:///relative/path or sqlite:////absolute/path, not {url!r}")
    return url.removeprefix("sqlite:///")
