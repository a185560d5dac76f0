"""The settings file: which one is found, what it may say, and what a mistake does."""

import re
from pathlib import Path

import pytest

from voight_middleware.config.settings import VARIABLES, Settings, usable_settings
from voight_middleware.config.settings_file import NAMES, find_settings_file
from voight_middleware.config.values import SettingsError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment of its own. The working directory is a project without a settings file."""
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    monkeypatch.chdir(project)
    return {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}


def write(path: Path, text: str) -> Path:
    """Write a file, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


EVERYTHING = """\
ledger = "data/ledger.db"
journal = "data/journal"
release = "2026.11"
enabled = true
request_identity = false
prices = "mine.toml"
tz = "Europe/Berlin"
voight_agent = "api"
events_url = "https://events.example"
events_per_minute = 600
ingest = false
journal_limit = "512MB"
exit_timeout = 2.5
delivery = "synchronous"

[tags]
app = "shop"

[pii]
user_id = "allow"
"*" = "redact"
"""


def test_every_setting_but_the_secrets(home: dict[str, str]) -> None:
    """Paths are relative to the file. Each source is the file and its line."""
    file = write(Path.cwd() / "voight.toml", EVERYTHING)
    settings = Settings.from_environment(environ=home)
    assert settings.ledger == f"sqlite:///{file.parent}/data/ledger.db"
    assert (settings.journal, settings.prices) == (file.parent / "data" / "journal", file.parent / "mine.toml")
    assert (settings.tags, settings.pii) == ({"app": "shop"}, {"user_id": "allow", "*": "redact"})
    assert (settings.ingest, settings.journal_limit, settings.exit_timeout, settings.tz) == (False, 512_000_000, 2.5, "Europe/Berlin")
    assert (settings.delivery, settings.release, settings.request_identity) == ("synchronous", "2026.11", False)
    assert settings.file == file
    assert settings.sources["ledger"] == f"{file}:1"
    assert settings.sources["tags"] == f"{file}:16"
    assert set(NAMES) == set(VARIABLES) - {"voight_api_key", "pseudonym_key", "header_key"}


def test_arguments_then_variables_then_the_file(home: dict[str, str]) -> None:
    """The file is the weakest but for the defaults."""
    write(Path.cwd() / "voight.toml", 'release = "file"\ntags = { app = "file" }\ntz = "Asia/Tokyo"\n')
    environ = {**home, "VOIGHT_RELEASE": "variable", "VOIGHT_TAGS": "app=variable"}
    settings = Settings.from_environment(environ=environ, tags={"app": "argument"})
    assert (settings.tags, settings.release, settings.tz) == ({"app": "argument"}, "variable", "Asia/Tokyo")
    assert Settings.from_environment(environ=environ).tags == {"app": "variable"}


@pytest.mark.parametrize(
    "place", ["project/voight.toml", "project/sub/voight.toml", "project/pyproject.toml", "state/voight/voight.toml", "named.toml"]
)
def test_where_a_file_is_found(place: str, home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the working directory, in a folder above it, beside the ledger, or where VOIGHT_CONFIG says."""
    header = "[tool.voight]\n" if place.endswith("pyproject.toml") else ""
    file = write(tmp_path / place, f'{header}release = "found"\n')
    (Path.cwd() / "sub").mkdir(exist_ok=True)
    monkeypatch.chdir(Path.cwd() / "sub")
    environ = {**home, "VOIGHT_CONFIG": str(file)} if place == "named.toml" else home
    settings = Settings.from_environment(environ=environ)
    assert (settings.release, settings.file) == ("found", file)
    assert settings.sources["release"] == f"{file}:{2 if header else 1}"
    assert Settings.from_environment(environ={**home, "VOIGHT_CONFIG": "none"}).release is None


def test_the_file_beside_a_ledger_that_is_named(home: dict[str, str], tmp_path: Path) -> None:
    """For `--ledger` and VOIGHT_LEDGER alike."""
    file = write(tmp_path / "data" / "voight.toml", 'prices = "mine.toml"\n')
    for environ, ledger in (({**home, "VOIGHT_LEDGER": str(tmp_path / "data" / "l.db")}, None), (home, tmp_path / "data" / "l.db")):
        assert Settings.from_environment(environ=environ, ledger=ledger).prices == file.parent / "mine.toml"


def test_no_file_above_the_projects_root(home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is above belongs to somebody else; so does all that is above a folder that is no project."""
    write(tmp_path / "voight.toml", 'release = "foreign"\n')
    assert find_settings_file(home).path is None
    (tmp_path / "plain" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "plain" / "sub")
    assert find_settings_file(home).path is None


def test_another_tools_mistake_is_not_ours(home: dict[str, str]) -> None:
    """A pyproject.toml without [tool.voight] says nothing, whatever is in it."""
    for text in ("[project]\nname = 'x'\n", "[project\n", "tool = 3\n"):
        write(Path.cwd() / "pyproject.toml", text)
        assert find_settings_file(home).path is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('release = "1"\nledgre = "x"\n', r"voight\.toml:2: there is no setting 'ledgre': did you mean ledger\?"),
        ('zzz = "x"\n', r"voight\.toml:1: there is no setting 'zzz': use one of ledger, journal"),
        ('\nvoight_api_key = "vk_1"\n', r"voight\.toml:2: a secret does not belong in a shared file: set VOIGHT_KEY"),
        ("ledger = [1]\n", r"voight\.toml:1: ledger must be text, a number, true or false, not \[1\]"),
        ('release = ""\n', r"voight\.toml:1: release must be"),
        ("\n\nenabled = 'perhaps'\n", r"voight\.toml:3: enabled is 'perhaps'; use one of"),
        ("journal_limit = '5 apples'\n", r"voight\.toml:1: journal_limit is '5 apples'; write a size"),
        ("tz = 'Mars/Base'\n", r"voight\.toml:1: tz is 'Mars/Base'; write a time zone"),
        ("ledger = 'mysql://h/d'\n", r"voight\.toml:1: 'mysql://h/d' is not a ledger URL"),
        ("prices = '~nosuchuser/p.toml'\n", r"voight\.toml:1: the file of prices needs a valid path"),
        ("[pii]\nuser_id = 'hide'\n", r"voight\.toml:1: pii cannot be user_id=hide"),
        ("[tags]\nuser_id = 'u_1'\n", r"voight\.toml:1: tags cannot name the user of every call"),
        ("release = \n", r"voight\.toml: .*line 1"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, said: str, home: dict[str, str]) -> None:
    """And the meter of an application without `configure()` goes on, with the other values."""
    write(Path.cwd() / "voight.toml", text)
    with pytest.raises(SettingsError, match=said):
        Settings.from_environment(environ=home)
    settings, errors = usable_settings(home)
    assert any(re.search(said, str(error)) for error in errors)
    assert settings.release == ("1" if 'release = "1"' in text else None)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("enabled = 'perhaps'", "enabled", False),
        ("pii = 'hide'", "pii", {"*": "redact"}),
        ("ingest = 'perhaps'", "ingest", False),
        ("ledger = 'mysql://h/d'", "ingest", False),
        ("exit_timeout = 'soon'", "exit_timeout", 5.0),
        ("tags = { user = 'u_1' }", "tags", {}),
    ],
)
def test_a_bad_value_falls_back_alone_and_to_what_does_less(text: str, name: str, value: object, home: dict[str, str]) -> None:
    """As a variable does; a good variable beside it holds."""
    write(Path.cwd() / "voight.toml", f'{text}\nrelease = "r1"\n')
    settings, errors = usable_settings(home)
    assert (getattr(settings, name), settings.release, len(errors)) == (value, "r1", 1)
    over = {"ledger": "/data/l.db", "ingest": "yes", "pii": "allow", "enabled": "yes", "exit_timeout": "1", "tags": "app=shop"}
    key = text.partition(" ")[0]
    settings, errors = usable_settings({**home, VARIABLES[key]: over[key]})
    assert (settings.release, len(errors)) == ("r1", 1)
    assert settings.sources[key] == VARIABLES[key]
    assert settings.ingest
    assert settings.enabled


@pytest.mark.parametrize("text", ["release = ", None], ids=["no TOML", "missing"])
def test_of_a_file_that_cannot_be_read_nothing_is_known(text: str | None, home: dict[str, str]) -> None:
    """Calls are kept without personal data, and wait: nobody knows where they belong and what they cost."""
    file = Path.cwd() / "named.toml"
    if text is not None:
        file.write_text(text)
    settings, errors = usable_settings({**home, "VOIGHT_CONFIG": str(file)})
    assert (settings.enabled, settings.ingest, settings.pii, settings.broken_file) == (True, False, {"*": "redact"}, file)
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ("shop", "write app=shop"),
        ({"bad key": "x"}, "cannot have bad key=x"),
        ({"app": ""}, "cannot have app="),
        ({"app": 1.5}, "cannot have app=1.5"),
        ({"release": "r"}, "use the setting release"),
        ({"session": "s"}, "the session of every call"),
    ],
)
def test_tags_that_cannot_be_kept(tags: str | dict[str, str], said: str, home: dict[str, str]) -> None:
    """A tag of every call is refused at once, and never dropped."""
    with pytest.raises(SettingsError, match=said):
        Settings.from_environment(
            environ={**home, "VOIGHT_TAGS": tags} if isinstance(tags, str) else home, tags=None if isinstance(tags, str) else tags
        )
