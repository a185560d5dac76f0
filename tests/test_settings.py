"""Settings: where each value comes from, and what cannot be used."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.settings import Settings, SettingsError, default_journal, ledger_url, sqlite_path

HOME = {"XDG_STATE_HOME": "/state"}


def test_the_defaults_are_in_the_state_folder() -> None:
    """Nothing said: the ledger is in the state folder, its journal beside it, and metering is on."""
    settings = Settings.from_environment(environ=HOME)
    assert settings.ledger == "sqlite:////state/voight/ledger.db"
    assert settings.journal == Path("/state/voight/ledger.db.journal")
    assert (settings.release, settings.enabled) == (None, True)
    assert settings.request_identity
    assert settings.sources == dict.fromkeys(("ledger", "journal", "release", "enabled", "request_identity", "prices"), "default")


def test_without_a_state_folder_it_is_under_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of the XDG specification is used."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Settings.from_environment(environ={}).ledger == "sqlite:////home/somebody/.local/state/voight/ledger.db"


def test_every_variable_is_read() -> None:
    """Each setting has its variable, and says so."""
    settings = Settings.from_environment(
        environ={
            "VOIGHT_LEDGER": "/a/l.db",
            "VOIGHT_JOURNAL": "/b/j",
            "VOIGHT_RELEASE": "r1",
            "VOIGHT_ENABLED": "off",
            "VOIGHT_REQUEST_IDENTITY": "no",
            "VOIGHT_PRICES": "/c/prices.toml",
        }
    )
    assert not settings.request_identity
    assert settings.prices == Path("/c/prices.toml")
    assert (settings.ledger, settings.journal, settings.release, settings.enabled) == ("sqlite:////a/l.db", Path("/b/j"), "r1", False)
    assert settings.sources == {
        "ledger": "VOIGHT_LEDGER",
        "journal": "VOIGHT_JOURNAL",
        "release": "VOIGHT_RELEASE",
        "enabled": "VOIGHT_ENABLED",
        "request_identity": "VOIGHT_REQUEST_IDENTITY",
        "prices": "VOIGHT_PRICES",
    }


def test_what_is_given_wins_over_the_environment() -> None:
    """`configure()` has the last word, False included, each value by itself."""
    environ = {"VOIGHT_LEDGER": "/a/l.db", "VOIGHT_JOURNAL": "/b/j", "VOIGHT_RELEASE": "r1", "VOIGHT_ENABLED": "yes"}
    settings = Settings.from_environment(ledger=Path("/c/m.db"), release="r2", enabled=False, environ=environ)
    assert (settings.ledger, settings.journal, settings.release, settings.enabled) == ("sqlite:////c/m.db", Path("/b/j"), "r2", False)
    assert settings.sources["ledger"] == settings.sources["enabled"] == "configure()"
    assert settings.sources["journal"] == "VOIGHT_JOURNAL"


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    """`VOIGHT_LEDGER=` means the default, as in a compose file."""
    empty = dict.fromkeys(("VOIGHT_LEDGER", "VOIGHT_JOURNAL", "VOIGHT_RELEASE", "VOIGHT_ENABLED"), "")
    assert Settings.from_environment(environ={**HOME, **empty}) == Settings.from_environment(environ=HOME)


@pytest.mark.parametrize(("text", "enabled"), [("1", True), ("TRUE", True), (" on ", True), ("0", False), ("False", False), ("No", False)])
def test_switches_are_read_the_way_people_write_them(text: str, enabled: bool) -> None:
    """Case and spaces do not matter."""
    assert Settings.from_environment(environ={**HOME, "VOIGHT_ENABLED": text}).enabled is enabled


@pytest.mark.parametrize(
    ("given", "environ", "named"),
    [
        ({}, {"VOIGHT_ENABLED": "maybe"}, ["VOIGHT_ENABLED", "maybe", "true"]),
        ({}, {"VOIGHT_REQUEST_IDENTITY": "perhaps"}, ["VOIGHT_REQUEST_IDENTITY", "perhaps", "true"]),
        ({"ledger": ":memory:"}, {}, [":memory:", "sqlite:////"]),
        ({"ledger": ""}, {}, ["''"]),
        ({"journal": ""}, {}, ["journal"]),
        ({"ledger": "sqlite://ledger.db"}, {}, ["sqlite://ledger.db", "sqlite:////absolute/path"]),
        ({"ledger": "sqlite:ledger.db"}, {}, ["sqlite:ledger.db"]),
        ({}, {"VOIGHT_LEDGER": "sqlite:///"}, ["sqlite:///"]),
        ({"ledger": "~no-such-user-here/l.db"}, {}, ["~no-such-user-here/l.db"]),
        ({"journal": "~no-such-user-here/j"}, {}, ["~no-such-user-here/j"]),
        ({"ledger": "/tmp/a\0b"}, {}, ["a\\x00b"]),
        ({"journal": "/tmp/a\0b"}, {}, ["a\\x00b"]),
    ],
)
def test_a_value_that_cannot_be_used_is_named(given: dict[str, Any], environ: dict[str, str], named: list[str]) -> None:
    """The one error of the settings shows the value and what would do."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(**given, environ={**HOME, **environ})
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A later `chdir` does not move the ledger or the journal."""
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment(ledger="here/l.db", journal="j", environ=HOME)
    assert settings.ledger == f"sqlite:///{tmp_path}/here/l.db"
    assert settings.journal == tmp_path / "j"
    assert ledger_url("sqlite:///here/l.db") == settings.ledger
    assert default_journal("postgresql://h/d", {"XDG_STATE_HOME": "state"}) == tmp_path / "state/voight/journal"


def test_the_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home in paths and in SQLite URLs."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert ledger_url("~/l.db") == ledger_url("sqlite:///~/l.db") == "sqlite:////home/somebody/l.db"
    assert Settings.from_environment(journal="~/j", environ=HOME).journal == Path("/home/somebody/j")


@pytest.mark.parametrize("place", ["/var/l.db", "sqlite:////var/l.db"])
def test_an_absolute_path_has_two_spellings(place: str) -> None:
    """A bare path and a URL with four slashes are the same ledger."""
    assert ledger_url(place) == "sqlite:////var/l.db"
    assert sqlite_path(ledger_url(place)) == "/var/l.db"


def test_a_ledger_on_a_server_keeps_its_url() -> None:
    """Another engine's URL is left as it is, and the journal is in the state folder then."""
    settings = Settings.from_environment(ledger="postgresql://u:p@h/d?x=1", environ=HOME)
    assert settings.ledger == "postgresql://u:p@h/d?x=1"
    assert settings.journal == Path("/state/voight/journal")


def test_a_release_is_cleaned_as_a_tag_is() -> None:
    """A release is a tag value: no control characters, None where it is blank."""
    assert Settings.from_environment(release="  2026.11.3 ", environ=HOME).release == "2026.11.3"
    assert Settings.from_environment(release="   ", environ=HOME).release is None
    long = Settings.from_environment(release="x" * 10_000, environ=HOME).release
    assert long is not None
    assert len(long) == 256


def test_a_user_without_a_home_has_a_ledger_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that runs as a number without a home gets a usable absolute default instead of an exception."""

    def nobody(*_: object) -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    settings = Settings.from_environment(environ={})
    assert Path(tempfile.gettempdir()) in settings.journal.parents
    assert settings.ledger == f"sqlite:///{settings.journal}".removesuffix(".journal")
