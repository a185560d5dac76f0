"""The paths of a process: ledgers, journals and folders, by URL and by default."""

import os
import re
import stat
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from voight_middleware.config.ledger_url import ledger_url, shown_url, sqlite_path
from voight_middleware.config.paths import default_journal
from voight_middleware.config.settings import Settings, usable_settings
from voight_middleware.config.values import SettingsError
from voight_middleware.ledger import LedgerError, open_ledger
from voight_middleware.pipeline.journal import Journal

from ..support.factories import make_call

HOME = {"XDG_STATE_HOME": "/state"}
SECRET = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A later `chdir` does not move the ledger or the journal."""
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment(ledger="here/l.db", journal="j", environ=HOME)
    assert settings.ledger == f"sqlite:///{tmp_path}/here/l.db"
    assert settings.journal == tmp_path / "j"
    assert ledger_url("sqlite:///here/l.db") == settings.ledger


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
    """Another engine's URL is left as it is, password included, and the journal is in the state folder then."""
    for url in ("postgresql://u:p@h/d?x=1", "postgres://u:p@h/d", "clickhouse://u:p@h:8123/d", "postgresql:///d?host=/run/postgresql"):
        settings = Settings.from_environment(ledger=url, environ=HOME)
        assert settings.ledger == url
        assert settings.journal.parent == Path("/state/voight")
    assert ledger_url("PostgreSQL://H/D") == "postgresql://H/D"


def test_the_journal_of_a_ledger_on_a_server() -> None:
    """Each ledger has one folder. User and password do not change it; server, database and service do."""

    def journal(url: str, **environ: str) -> str:
        return default_journal(url, {**HOME, **environ}).name

    same = {
        journal("postgresql://writer:a@db.example.com:5432/costs"),
        journal("postgresql://reader:b@db.example.com:5432/costs?sslmode=require"),
        journal("postgres://db.example.com:5432/costs"),
    }
    assert len(same) == 1
    assert re.fullmatch(r"postgresql-[0-9a-f]{8}\.journal", same.pop())
    others = [
        journal("postgresql://db.example.com:5432/costs"),
        journal("postgresql://db.example.com:5432/other"),
        journal("postgresql://db.example.com:5433/costs"),
        journal("clickhouse://db.example.com:5432/costs"),
        journal("postgresql://"),
        journal("postgresql://", PGHOST="db"),
        journal("postgresql://?host=other", PGHOST="db"),
        journal("postgresql://?service=costs"),
        journal("postgresql://db.example.com-5432/costs"),
    ]
    assert len(set(others)) == len(others)
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+\.journal", name) for name in others)
    assert journal("postgresql://?host=db") == journal("postgresql://", PGHOST="db")


def test_a_journal_where_the_state_folder_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only file system the journal of a ledger on a server is with the temporary files, where that folder is safe."""
    (tmp_path / "file").write_text("")
    environ = {"XDG_STATE_HOME": str(tmp_path / "file")}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    url = "postgresql://h/d"
    usual = default_journal(url, environ)
    settings = Settings.from_environment(ledger=url, environ=environ)
    assert settings.journal == tmp_path / "tmp" / f"voight-{os.getuid()}" / usual.name
    assert Settings.from_environment(ledger=url, environ={"XDG_STATE_HOME": str(tmp_path)}).journal.is_relative_to(tmp_path / "voight")
    assert Settings.from_environment(ledger=url, journal="/j", environ=environ).journal == Path("/j")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tmp" / f"voight-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert Settings.from_environment(ledger=url, environ=environ).journal == usual
    (tmp_path / "tmp" / f"voight-{os.getuid()}").unlink()
    (tmp_path / "tmp").rmdir()
    (tmp_path / "tmp").write_text("")
    assert Settings.from_environment(ledger=url, environ=environ).journal == usual


PASSWORD = "hunter2"


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://owner:{PASSWORD}@h/d",
        f"postgresql://h/d?user=owner&password={PASSWORD}",
        f"postgresql://owner:{PASSWORD}?host=db",
        f"postgresql://owner:{PASSWORD}/d",
        f"postgresql://owner:pa/{PASSWORD}@h/d",
        f"postgresql://owner:1?{PASSWORD}@h/d",
        f"clickhouse://owner:{PASSWORD}",
        f"clickhouse://owner:1/{PASSWORD}@h/d",
        f"host=db dbname=costs user=owner password={PASSWORD}",
        f"password='{PASSWORD}' host=db",
        f"sslmode=require host=db password={PASSWORD}",
        f"Server=db;Database=costs;User Id=owner;Password={PASSWORD}",
        f"jdbc:postgresql://owner:{PASSWORD}@db/costs",
        f"sqlite:///postgresql://owner:{PASSWORD}@db/costs",
        f"sqlite://owner:{PASSWORD}@db/costs",
        f"owner:{PASSWORD}@db/costs",
        f"//owner:{PASSWORD}@db/costs",
        f"mysql://owner:{PASSWORD}",
    ],
)
def test_a_password_is_in_no_name_of_a_file_and_in_no_message(url: str) -> None:
    """A URL or a connection string that is not in order is refused, or its folder's name is a digest."""
    try:
        settings = Settings.from_environment(ledger=url, environ=HOME)
    except SettingsError as error:
        said = f"{error!r} {error.__cause__!r}"
        assert "ledger" in said
    else:
        assert "://" in settings.ledger
        assert not settings.ledger.startswith("sqlite")
        said = f"{settings!r} {settings.journal} {shown_url(settings.ledger)}"
        with pytest.raises(LedgerError) as caught:
            open_ledger(url, create=False)
        said += "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in said


@pytest.mark.parametrize("path", ["/var/lib/app/a=b.db", "user.db", "my ledger: alice.db", "/data/a@b.db", "data/x:y@z.db"])
def test_a_path_with_odd_characters_is_a_path(path: str) -> None:
    """Only what no path looks like is refused."""
    assert ledger_url(path).startswith("sqlite:///")


def test_a_release_is_cleaned_as_a_tag_is() -> None:
    """A release is a tag value: no control characters, None where it is blank."""
    assert Settings.from_environment(release="  2026.11.3 ", environ=HOME).release == "2026.11.3"
    assert Settings.from_environment(release="   ", environ=HOME).release is None
    long = Settings.from_environment(release="x" * 10_000, environ=HOME).release
    assert long is not None
    assert len(long) == 256


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that an account without a home has among the temporary files. It is not there yet."""

    def nobody(*_: object) -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"voight-{os.getuid()}"


def test_a_user_without_a_home_has_a_ledger_all_the_same(temporary: Path) -> None:
    """A container that runs as a number without a home gets a usable absolute default instead of an exception."""
    settings = Settings.from_environment(environ={})
    assert settings.journal == temporary / "ledger.db.journal"
    assert settings.ledger == f"sqlite:///{temporary}/ledger.db"
    assert not temporary.exists()
    Journal(settings.journal).append(make_call())
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700


def _link(folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)


def _writable_by_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


MADE_BY_OTHERS = {"a link": _link, "writable by others": _writable_by_others, "a file": Path.touch}


@pytest.mark.parametrize("make", MADE_BY_OTHERS.values(), ids=MADE_BY_OTHERS)
def test_a_temporary_folder_that_another_account_may_have_made_is_not_used(make: Callable[[Path], None], temporary: Path) -> None:
    """Whether it is there before the settings are read, or between that and the first call."""
    before = Settings.from_environment(environ={})
    make(temporary)
    with pytest.raises(SettingsError, match="XDG_STATE_HOME"):
        Settings.from_environment(environ={})
    Journal(before.journal).append(make_call())
    with pytest.raises(LedgerError, match="voight-"):
        open_ledger(before.ledger)
    assert [path for path in temporary.parent.rglob("*") if path.is_file() and path != temporary] == []

    assert Settings.from_environment(ledger="/l.db", environ={}).journal == Path("/l.db.journal")
    settings, errors = usable_settings({"VOIGHT_RELEASE": "r1"})
    assert (settings.enabled, settings.release, len(errors)) == (False, "r1", 1)
    settings, errors = usable_settings({"VOIGHT_LEDGER": "/l.db"})
    assert (settings.enabled, errors) == (True, [])


def test_a_temporary_folder_of_another_account_is_not_used(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However tightly it is closed."""
    other = os.getuid() + 1
    temporary.with_name(f"voight-{other}").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(SettingsError, match="XDG_STATE_HOME"):
        Settings.from_environment(environ={})


def test_a_relative_state_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the specification of XDG says: another working folder would be another ledger."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Settings.from_environment(environ={"XDG_STATE_HOME": "state"}).ledger == "sqlite:////home/somebody/.local/state/voight/ledger.db"


# -- personal data -------------------------------------------------------------------------------------------------------------
