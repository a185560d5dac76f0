"""Settings: where each value comes from, and what cannot be used."""

import socket
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.config.keys import PseudonymKey
from voight_middleware.config.ledger_url import shown_url
from voight_middleware.config.paths import pseudonym_key_file
from voight_middleware.config.release import RELEASE_VARIABLES
from voight_middleware.config.settings import Settings
from voight_middleware.config.values import EventsTarget, SettingsError

HOME = {"XDG_STATE_HOME": "/state"}
SECRET = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"


def test_the_defaults_are_in_the_state_folder() -> None:
    """Nothing said: the ledger is in the state folder, its journal beside it, and metering is on."""
    settings = Settings.from_environment(environ=HOME)
    assert settings.ledger == "sqlite:////state/voight/ledger.db"
    assert settings.journal == Path("/state/voight/ledger.db.journal")
    assert (settings.release, settings.enabled) == (None, True)
    assert settings.request_identity is None
    names = ("ledger", "journal", "release", "enabled", "request_identity", "prices", "tags", "tz", "pii", "pseudonym_key")
    names += ("header_key", "voight_api_key", "voight_agent", "events_url", "events_per_minute")
    assert settings.sources == dict.fromkeys((*names, "ingest", "journal_limit", "exit_timeout", "delivery"), "default")
    assert (settings.pii, settings.pseudonym_keys) == ({}, ())
    assert (settings.ingest, settings.journal_limit, settings.exit_timeout, settings.delivery) == (True, 10**9, 5.0, "background")


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
            "VOIGHT_TAGS": "app=shop, tenant = t_1",
            "VOIGHT_TZ": "Europe/Berlin",
            "VOIGHT_PII": "redact",
            "VOIGHT_PSEUDONYM_KEY": SECRET,
            "VOIGHT_HEADER_KEY": f"v2:{SECRET},v1:{'o' * 32}",
            "VOIGHT_KEY": "vk_1",
            "VOIGHT_AGENT": "api",
            "VOIGHT_EVENTS_URL": "https://events.example/base/",
            "VOIGHT_EVENTS_PER_MINUTE": "600",
            "VOIGHT_INGEST": "no",
            "VOIGHT_JOURNAL_LIMIT": "512MB",
            "VOIGHT_EXIT_TIMEOUT": "2.5",
            "VOIGHT_DELIVERY": "Synchronous",
        }
    )
    assert (settings.ingest, settings.journal_limit, settings.exit_timeout) == (False, 512_000_000, 2.5)
    assert settings.delivery == "synchronous"
    assert (settings.tags, settings.tz) == ({"app": "shop", "tenant_id": "t_1"}, "Europe/Berlin")
    assert settings.request_identity is False
    assert settings.prices == Path("/c/prices.toml")
    assert (settings.ledger, settings.journal, settings.release, settings.enabled) == ("sqlite:////a/l.db", Path("/b/j"), "r1", False)
    assert settings.sources == {
        "ledger": "VOIGHT_LEDGER",
        "journal": "VOIGHT_JOURNAL",
        "release": "VOIGHT_RELEASE",
        "enabled": "VOIGHT_ENABLED",
        "request_identity": "VOIGHT_REQUEST_IDENTITY",
        "prices": "VOIGHT_PRICES",
        "tags": "VOIGHT_TAGS",
        "tz": "VOIGHT_TZ",
        "pii": "VOIGHT_PII",
        "pseudonym_key": "VOIGHT_PSEUDONYM_KEY",
        "header_key": "VOIGHT_HEADER_KEY",
        "voight_api_key": "VOIGHT_KEY",
        "voight_agent": "VOIGHT_AGENT",
        "events_url": "VOIGHT_EVENTS_URL",
        "events_per_minute": "VOIGHT_EVENTS_PER_MINUTE",
        "ingest": "VOIGHT_INGEST",
        "journal_limit": "VOIGHT_JOURNAL_LIMIT",
        "exit_timeout": "VOIGHT_EXIT_TIMEOUT",
        "delivery": "VOIGHT_DELIVERY",
    }
    assert settings.header_keys == (PseudonymKey("v2", SECRET), PseudonymKey("v1", "o" * 32))
    assert settings.events == EventsTarget("https://events.example/base", "vk_1", "api", 600)
    assert "vk_1" not in repr(settings)
    assert settings.pii == {"*": "redact"}
    assert settings.pseudonym_keys == (PseudonymKey("v1", SECRET),)


def test_without_a_key_nothing_is_sent_and_with_one_to_voight() -> None:
    """The key is the switch; the agent is the host's name where nobody gives it one."""
    assert Settings.from_environment(environ={**HOME, "VOIGHT_AGENT": "api"}).events is None
    assert Settings.from_environment(environ={**HOME, "VOIGHT_KEY": "vk_1", "HOSTNAME": "web-1"}).events == EventsTarget(
        "https://api.voight.xyz", "vk_1", "web-1", 60
    )
    named = Settings.from_environment(voight_api_key="vk_1", environ=HOME).events
    assert named is not None
    assert named.agent == socket.gethostname()
    with pytest.raises(SettingsError, match="must start with vk_"):
        Settings.from_environment(voight_api_key="sk-proj-1234", environ=HOME)
    for url in ("http://localhost:8080", "http://127.0.0.1:1", "http://[::1]:8080/"):
        assert Settings.from_environment(voight_api_key="vk_1", events_url=url, environ=HOME).events is not None


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


@pytest.mark.slow
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
        ({}, {"VOIGHT_HEADER_KEY": "short"}, ["VOIGHT_HEADER_KEY", "header key v1", "32 characters"]),
        ({"voight_api_key": "vk 1"}, {}, ["configure()", "must start with vk_"]),
        ({"voight_api_key": "vk_1"}, {"VOIGHT_AGENT": "a" * 121}, ["VOIGHT_AGENT", "120"]),
        ({"voight_api_key": "vk_1", "events_url": "http://events.example"}, {}, ["https://host", "this machine"]),
        ({"voight_api_key": "vk_1", "events_url": "https://user:pw@events.example"}, {}, ["https://host"]),
        ({"voight_api_key": "vk_1", "events_url": "ftp://events.example"}, {}, ["https://host"]),
        ({"voight_api_key": "vk_1", "events_per_minute": 0}, {}, ["whole number", "'0'"]),
        ({"voight_api_key": "vk_1"}, {"VOIGHT_EVENTS_PER_MINUTE": "a few"}, ["VOIGHT_EVENTS_PER_MINUTE", "'a few'"]),
        ({}, {"VOIGHT_PII": "hide"}, ["VOIGHT_PII", "hide", "pseudonym, redact or allow"]),
        ({"pii": {"user": "allow"}}, {}, ["configure()", "'user'", "user_id"]),
        ({"pii": {"user id": "allow"}}, {}, ["user id"]),
        ({"pii": "user_id=allow,user_id=redact"}, {}, ["user_id=redact"]),
        ({"pii": "user_id="}, {}, ["user_id=;"]),
        ({"ledger": "~no-such-user-here/l.db"}, {}, ["~no-such-user-here/l.db"]),
        ({"journal": "~no-such-user-here/j"}, {}, ["~no-such-user-here/j"]),
        ({"ledger": "/tmp/a\0b"}, {}, ["a\\x00b"]),
        ({"journal": "/tmp/a\0b"}, {}, ["a\\x00b"]),
        ({}, {"VOIGHT_INGEST": "sometimes"}, ["VOIGHT_INGEST", "sometimes", "true"]),
        ({}, {"VOIGHT_JOURNAL_LIMIT": "much"}, ["VOIGHT_JOURNAL_LIMIT", "much", "512MB"]),
        ({"journal_limit": 999_999}, {}, ["configure()", "999999", "1MB or more"]),
        ({"journal_limit": "-1GB"}, {}, ["-1GB"]),
        ({"journal_limit": "5 bytes"}, {}, ["5 bytes"]),
        ({"exit_timeout": -1}, {}, ["exit_timeout", "'-1'", "from 0"]),
        ({"exit_timeout": float("nan")}, {}, ["'nan'"]),
        ({}, {"VOIGHT_EXIT_TIMEOUT": "1h"}, ["VOIGHT_EXIT_TIMEOUT", "1h"]),
        ({}, {"VOIGHT_DELIVERY": "express"}, ["VOIGHT_DELIVERY", "express", "background, synchronous"]),
        ({"ledger": "mysql://u:p@h/d"}, {}, ["mysql://u:***@h/d", "postgresql://"]),
        ({"ledger": "clickhouse:u:p@h/d"}, {}, ["clickhouse:***@h/d", "clickhouse://user@host"]),
        ({"ledger": "postgres:secret@h"}, {}, ["postgres:***@h"]),
        ({"ledger": "postgresql+psycopg://u:p@h/d"}, {}, ["postgresql+psycopg://u:***@h/d"]),
        ({}, {"VOIGHT_LEDGER": "https://default:p@h:8443"}, ["https://default:***@h:8443", "clickhouse://"]),
    ],
)
def test_a_value_that_cannot_be_used_is_named(given: dict[str, Any], environ: dict[str, str], named: list[str]) -> None:
    """The one error of the settings shows the value and what would do."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(**given, environ={**HOME, **environ})
    assert all(part in str(caught.value) for part in named), str(caught.value)


@pytest.mark.parametrize(
    ("given", "policies"),
    [
        ("redact", {"*": "redact"}),
        (" Allow ", {"*": "allow"}),
        ("user_id=allow,*=redact", {"user_id": "allow", "*": "redact"}),
        (" user_id = allow , redact,", {"user_id": "allow", "*": "redact"}),
        ({"user_id": "allow", "feature": "redact"}, {"user_id": "allow", "feature": "redact"}),
        ({}, {}),
    ],
)
def test_the_policy_for_personal_data(given: Any, policies: dict[str, str]) -> None:
    """One word for all tags, or one for each key; a mapping, or the same as text."""
    assert Settings.from_environment(pii=given, environ=HOME).pii == policies
    if isinstance(given, str):
        assert Settings.from_environment(environ={**HOME, "VOIGHT_PII": given}).pii == policies
    assert Settings.from_environment(pii=given, environ={**HOME, "VOIGHT_PII": "nonsense"}).sources["pii"] == "configure()"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (SECRET, [("v1", SECRET)]),
        (f" {SECRET}\n", [("v1", SECRET)]),
        (f"v7:{SECRET}", [("v7", SECRET)]),
        (f"v2:{OTHER}, v1:{SECRET}", [("v2", OTHER), ("v1", SECRET)]),
        (f"{SECRET},{OTHER}:", [("v1", f"{SECRET},{OTHER}:")]),
    ],
    ids=["plain", "with white space", "with a version", "two", "plain with a comma"],
)
def test_the_keys_of_pseudonyms(text: str, keys: list[tuple[str, str]]) -> None:
    """A plain secret is version v1; of several, the first is written with."""
    expected = tuple(PseudonymKey(*key) for key in keys)
    assert Settings.from_environment(pseudonym_key=text, environ=HOME).pseudonym_keys == expected
    assert Settings.from_environment(environ={**HOME, "VOIGHT_PSEUDONYM_KEY": text}).pseudonym_keys == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hunter2-hunter2", "has 15 characters; use at least 32"),
        (f"v2:hunter2-hunter2,v1:{SECRET}", "pseudonym key v2 has 15 characters"),
        (f"v2:{SECRET},hunter2-hunter2-hunter2-hunter2-hunter2", "without a comma in a secret"),
        (f"v1:{SECRET},v1:hunter2-hunter2-hunter2-hunter2-hunter2", "same version"),
        ("v1:", "has 0 characters"),
    ],
)
def test_a_key_that_cannot_be_used_is_said_and_not_shown(text: str, said: str) -> None:
    """The error names the variable and what would do, and nothing of the secret."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(environ={**HOME, "VOIGHT_PSEUDONYM_KEY": text})
    assert said in str(caught.value)
    assert "VOIGHT_PSEUDONYM_KEY" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_can_be_logged() -> None:
    """Neither the secret of the pseudonyms nor the ledger's password is in any text of the settings."""
    settings = Settings.from_environment(ledger=f"postgresql://u:{OTHER}@h/d", pseudonym_key=SECRET, environ=HOME)
    for text in (repr(settings), f"{settings}", str([settings])):
        assert SECRET not in text
        assert OTHER not in text
        assert "postgresql://u:***@h/d" in text
        assert "exit_timeout=5.0" in text


# -- what may be printed of a URL ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hunter2@h:5432/d?sslmode=require", "postgresql://u:***@h:5432/d?sslmode=require"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://h:5432/d?user=a@b", "postgresql://h:5432/d?user=a@b"),
        ("postgresql://[::1]:5432/d", "postgresql://[::1]:5432/d"),
        ("postgresql://[::1]/d", "postgresql://[::1]/d"),
        ("postgresql://u:hunter2@h1:5432,h2:5433/d", "postgresql://u:***@h1:5432,h2:5433/d"),
        ("postgresql://", "postgresql://"),
        ("postgresql:///d", "postgresql:///d"),
        ("clickhouse://:hunter2@h/d", "clickhouse://:***@h/d"),
        ("clickhouse://h/d?user=u&password=hunter2&secure=1", "clickhouse://h/d?user=u&password=***&secure=1"),
        ("postgresql://h/d?sslpassword=hunter2&PASSWORD=hunter2", "postgresql://h/d?sslpassword=***&PASSWORD=***"),
        ("postgresql://h/d?pass%77ord=hunter2", "postgresql://h/d?pass%77ord=***"),
        ("clickhouse://h/d?access_token=hunter2", "clickhouse://h/d?access_token=***"),
        ("postgresql://u:hun@ter2@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hun/ter2@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hun?ter2@h/d", "postgresql://u:***"),
        ("postgresql://u:1?hunter2@h/d", "postgresql://u:***"),
        ("postgresql://u:hunter2", "postgresql://u:***"),
        ("postgresql://u:hunter2/d", "postgresql://u:***"),
        ("postgres:hunter2@h/d", "postgres:***@h/d"),
        ("clickhouse:u:hunter2@h", "clickhouse:***@h"),
        ("mysql:/u:hunter2@h", "mysql:***@h"),
        ("sqlite:////var/a:b@c.db", "sqlite:////var/a:b@c.db"),
        ("/var/a:b@c.db", "/var/a:b@c.db"),
        ("ledger.db", "ledger.db"),
        ("", ""),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    """In front of the host, in the query, and in URLs that are not in order; the rest says where the ledger is."""
    assert shown_url(url) == shown
    assert "hunter2" not in shown
    assert shown_url(shown) == shown, "what is shown may be shown again"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GB", 10**9), ("1 gb", 10**9), ("1.5MiB", 3 * 2**19), ("1000000", 10**6), (2_000_000, 2_000_000), (" 2TB ", 2 * 10**12)],
)
def test_sizes_are_read_the_way_people_write_them(text: Any, size: int) -> None:
    """With a unit or in bytes."""
    assert Settings.from_environment(journal_limit=text, environ=HOME).journal_limit == size


@pytest.mark.parametrize(("text", "seconds"), [(0, 0.0), ("30", 30.0), ("2.5s", 2.5), (8.5, 8.5)])
def test_the_time_at_the_end(text: Any, seconds: float) -> None:
    """In seconds; 0 waits for nothing."""
    assert Settings.from_environment(exit_timeout=text, environ=HOME).exit_timeout == seconds


def test_the_key_of_a_local_ledger_is_beside_it() -> None:
    """A ledger on a server has none: each of its hosts would make its own."""
    assert pseudonym_key_file("sqlite:////var/l.db") == Path("/var/l.db.key")
    assert pseudonym_key_file("postgresql://h/d") is None


# -- the release ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("variable", RELEASE_VARIABLES)
def test_the_release_of_a_deployment(variable: str) -> None:
    """What the place of deployment says is the release, and the settings say which variable it was."""
    settings = Settings.from_environment(environ={**HOME, variable: " r9 "})
    assert (settings.release, settings.sources["release"]) == ("r9", variable)


def test_a_release_of_your_own_comes_first() -> None:
    """`configure()`, then `VOIGHT_RELEASE`, then the deployment's variables in their order."""
    environ = {**HOME, **{variable: variable.lower() for variable in RELEASE_VARIABLES}}
    for variable in RELEASE_VARIABLES:
        assert Settings.from_environment(environ=environ).release == environ.pop(variable)
    environ |= {"VOIGHT_RELEASE": "mine", "SENTRY_RELEASE": "theirs"}
    assert Settings.from_environment(environ=environ).release == "mine"
    assert Settings.from_environment(environ=environ, release="given").release == "given"


def test_what_names_no_release_is_passed_over() -> None:
    """An empty variable, and a function of AWS Lambda of which no version is published."""
    environ = {**HOME, "SENTRY_RELEASE": " ", "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST", "GIT_COMMIT": "c0ffee"}
    assert Settings.from_environment(environ=environ).release == "c0ffee"
    del environ["GIT_COMMIT"]
    assert Settings.from_environment(environ=environ).sources["release"] == "default"
