"""The setting ``VOIGHT``: what it brings into force, what the system checks say of it, and ``manage.py voight``."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command, execute_from_command_line
from django.db import connections
from django.http import HttpResponse
from django.test import Client
from django.test.utils import override_settings
from django.urls import path

import voight_middleware as voight
from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.configure import flush
from voight_middleware.pipeline.meter import current_meter

from .django_project import OURS, SIGN_IN, project

QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@pytest.fixture(autouse=True)
def _connections() -> Iterator[None]:
    """No connection of a test's thread is left to the garbage collector."""
    yield
    connections.close_all()


def owner(request: Any) -> str:
    return "u_7"


def plan(request: Any) -> str:
    return "pro"


def more(request: Any) -> dict[str, str]:
    return {"region": "eu"}


HEARD: list[voight.Call] = []


# -- what is in force ----------------------------------------------------------------------------------------------------------


def test_values(ask: Any, voight_calls: Any, tmp_path: Path) -> None:
    """Getters are dotted paths or callables; the rest goes to the meter, and is as before when the setting is."""
    HEARD.clear()
    before = current_meter().settings.ledger
    setting = {
        "USER_GETTER": f"{__name__}.owner",
        "PLAN_GETTER": plan,
        "TENANT_GETTER": lambda request: "acme",
        "TAGS_GETTER": f"{__name__}.more",
        "LEDGER": tmp_path / "project.db",
        "RELEASE": "2026.11.3",
        "LISTENERS": [HEARD.append],
    }
    with project(path("", lambda request: HttpResponse(ask())), voight=setting):
        assert Client().get("/").status_code == 200
        assert flush(30)
    assert current_meter().settings.ledger == before
    ledger = open_ledger(f"sqlite:///{tmp_path}/project.db", create=False)
    (call,) = ledger.calls()
    ledger.close()
    tags = call.tags
    assert (tags.user_id, tags.plan, tags.tenant_id, tags.extra, tags.release) == ("u_7", "pro", "acme", {"region": "eu"}, "2026.11.3")
    assert [heard.call_id for heard in HEARD] == [call.call_id]
    assert len(voight_calls) == 0


def test_what_is_configured_elsewhere_stays(voight_calls: Any) -> None:
    """A setting that says nothing of the meter leaves it alone."""
    meter = current_meter()
    with project(path("", lambda request: HttpResponse("ok")), voight={"PLAN_GETTER": plan}):
        assert Client().get("/").status_code == 200
        assert current_meter() is meter
    assert current_meter() is meter


def test_override_settings_inside_a_test(ask: Any, voight_calls: Any) -> None:
    """Getters that a test overrides hold for a client that has made requests before, and no longer than the override."""
    with project(path("", lambda request: HttpResponse(ask())), middleware=[OURS], voight={"USER_GETTER": owner}):
        client = Client()
        client.get("/")
        with override_settings(VOIGHT={"USER_GETTER": lambda request: "u_8"}):
            client.get("/")
        client.get("/")
    assert [call.tags.user_id for call in voight_calls] == ["u_7", "u_8", "u_7"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"USER_GETTER": "nowhere.to_be_found"}, "nowhere"),
        ({"PLAN_GETTER": 7}, "name a callable"),
        ({"LEDGER": "sqlite:nowhere"}, "sqlite:///relative/path"),
        (["LEDGER"], "write a dictionary"),
    ],
    ids=["getter that is nowhere", "getter that is a number", "bad ledger", "no dictionary"],
)
def test_a_setting_that_cannot_be_used(setting: Any, said: str, voight_calls: Any) -> None:
    """The server does not start, and says why; an application that runs already goes on."""
    with project(path("", lambda request: HttpResponse("ok")), middleware=[OURS]):
        running = Client()
        running.get("/")
        with override_settings(VOIGHT=setting):
            with pytest.raises(ImproperlyConfigured, match=said):
                Client().get("/")
            assert running.get("/").content == b"ok"


# -- system checks -------------------------------------------------------------------------------------------------------------


def said(**overridden: Any) -> list[tuple[str, str]]:
    """What the checks say of the project with these settings: the id, and the message with its hint."""
    with override_settings(**({"MIDDLEWARE": [OURS], "VOIGHT": {}} | overridden)):
        return [(str(each.id), f"{each.msg} {each.hint}") for each in run_checks() if str(each.id).startswith("voight_django")]


def test_nothing_to_say() -> None:
    """A project in order is not talked to."""
    assert said(VOIGHT={"USER_GETTER": f"{__name__}.owner", "PLAN_GETTER": plan, "RELEASE": "7", "ENABLED": True}) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overridden", "number", "words"),
    [
        ({"VOIGHT": [1]}, "E001", ["dictionary"]),
        ({"VOIGHT": {"USER_GETER": owner}}, "E002", ["'USER_GETER'", "Did you mean 'USER_GETTER'?"]),
        ({"VOIGHT": {"zzz": 1}}, "E002", ["'zzz'", "LEDGER"]),
        ({"VOIGHT": {"USER_GETTER": "nowhere.at_all"}}, "E003", ["USER_GETTER", "nowhere"]),
        ({"VOIGHT": {"TAGS_GETTER": f"{__name__}.HEARD"}}, "E004", ["TAGS_GETTER", "one argument"]),
        ({"VOIGHT": {"PLAN_GETTER": lambda: "pro"}}, "E004", ["PLAN_GETTER", "one argument"]),
        ({"VOIGHT": {"LISTENERS": ["nowhere.at_all"]}}, "E004", ["LISTENERS"]),
        ({"VOIGHT": {"ENABLED": "perhaps"}}, "E005", ["enabled", "perhaps"]),
        ({"VOIGHT": {"LEDGER": "/"}}, "E006", ["folder", "LEDGER"]),
        ({"VOIGHT": {"LEDGER": f"{__file__}/ledger.db"}}, "E006", ["cannot be written", "not a folder"]),
        ({"VOIGHT": {"JOURNAL": f"{__file__}/journal"}}, "E006", ["journal", "cannot be written"]),
        ({"MIDDLEWARE": []}, "W001", ["'voight_django.CostTagMiddleware'"]),
        ({"MIDDLEWARE": [OURS, "voight_django.middleware.CostTagMiddleware"]}, "W002", ["2 times"]),
    ],
    ids=[
        "no dictionary",
        "misspelled key",
        "unknown key",
        "getter that is nowhere",
        "getter that is a list",
        "getter without an argument",
        "listener that is nowhere",
        "bad switch",
        "ledger is a folder",
        "ledger below a file",
        "journal below a file",
        "no middleware",
        "middleware twice",
    ],
)
def test_what_the_checks_say(overridden: Any, number: str, words: list[str], tmp_path: Path, voight_calls: Any) -> None:
    """Each mistake has one number, and its message says what is wrong and what to do."""
    found = said(**overridden)
    assert {each for each, _ in found} == {f"voight_django.{number}"}
    assert [word for word in words if not any(word in text for _, text in found)] == []


# -- the command ---------------------------------------------------------------------------------------------------------------


def fill(ledger: Path) -> None:
    """Two calls of alice."""
    open_ledger(f"sqlite:///{ledger}").close()
    with override_settings(VOIGHT={"LEDGER": ledger}):
        for _ in range(2):
            voight.record(
                provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 9, "completion_tokens": 1}, tags={"user_id": "alice"}
            )
        assert flush(30)


@pytest.fixture
def manage(tmp_path: Path, voight_calls: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``manage.py`` with these arguments in this process, on a ledger of the test; answers what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        ended: Any = 0
        with override_settings(VOIGHT={"LEDGER": tmp_path / "project.db"}):
            try:
                execute_from_command_line(["manage.py", *arguments])
            except SystemExit as exit_:
                ended = exit_.code or 0
        output = capsys.readouterr()
        assert ended == code, output.err
        return output.out + output.err

    return run


@pytest.mark.slow
def test_the_command(manage: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``manage.py voight …`` reads the ledger of the project, hands all arguments on, and keeps the exit codes."""
    monkeypatch.setattr(sys, "path", sys.path[:])  # which --pythonpath adds to
    assert "there is no ledger" in manage("voight", "top", code=1).lower()
    fill(tmp_path / "project.db")
    rows = json.loads(manage("voight", "spend", "--by", "user", "--format", "json"))["rows"]
    assert [(row["user_id"], row["calls"]) for row in rows] == [("alice", 2)]
    assert "alice" in manage("voight", "top", "--pythonpath", ".", "--since=month")
    assert len(manage("voight", "export", "--format", "jsonl").splitlines()) == 2
    doctor = manage("voight", "doctor")
    assert f"{tmp_path / 'project.db'} (VOIGHT['LEDGER'])" in doctor
    assert "VOIGHT_LEDGER" not in doctor, "it is not set"
    assert "voight_django.CostTagMiddleware in MIDDLEWARE" in doctor
    assert "no such command" in manage("voight", "nonsense", code=2)
    assert "COMMAND" in manage("voight", code=2)


def owner_of_line(custom_id: str) -> str:
    """For ``BATCH_OWNER``, by its dotted path."""
    return f"u_{custom_id}"


def test_the_owner_of_a_batchs_requests(tmp_path: Path, voight_calls: Any) -> None:
    """``BATCH_OWNER`` is a callable or its dotted path, as a getter is. The command line ignores it."""
    for value in (owner_of_line, f"{__name__}.owner_of_line"):
        with override_settings(VOIGHT={"LEDGER": tmp_path / "project.db", "BATCH_OWNER": value}):
            owner = current_meter().owner_of_line("7")
            assert owner is not None
            assert owner.tags.user_id == "u_7"
            assert "voight_django.E005" not in [message.id for message in run_checks()]
            call_command("voight", "doctor", stdout=io.StringIO())


@pytest.mark.slow
def test_the_command_takes_what_the_setting_may_be(tmp_path: Path, voight_calls: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A mapping stays a mapping."""
    setting = {"LEDGER": tmp_path / "project.db", "PII": {"user_id": "allow"}, "TAGS": {"app": "shop"}}
    with override_settings(VOIGHT=setting), pytest.raises(SystemExit) as ended:
        execute_from_command_line(["manage.py", "voight", "doctor"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "user_id=allow, *=pseudonym (VOIGHT['PII'])" in out
    assert "app=shop (VOIGHT['TAGS'])" in out


@pytest.mark.slow
def test_the_help(manage: Callable[..., str]) -> None:
    """The help is that of the command line, by either of Django's ways to ask for it."""
    assert "voight top --since month" in manage("voight", "--help")
    assert "voight top --since month" in manage("help", "voight")
    assert "ten users" in manage("voight", "top", "--help")


@pytest.mark.slow
def test_call_command(tmp_path: Path, voight_calls: Any) -> None:
    """The application can ask too, and gets the output where it wants it."""
    ledger = tmp_path / "project.db"
    fill(ledger)
    with override_settings(VOIGHT={"LEDGER": ledger}):
        output = io.StringIO()
        call_command("voight", "spend", "--by", "user", "--format", "json", stdout=output)
        assert json.loads(output.getvalue())["rows"][0]["user_id"] == "alice"
        with pytest.raises(CommandError) as raised:
            call_command("voight", "spend", "--where", "nonsense", stderr=io.StringIO())
    assert raised.value.returncode == 1


# -- in processes of their own -------------------------------------------------------------------------------------------------

MANAGE = """
import sys

from django.conf import settings
from django.core.management import execute_from_command_line

settings.configure(
    INSTALLED_APPS=["voight_django"],
    MIDDLEWARE=["voight_django.CostTagMiddleware"],
    SECRET_KEY="k",
    VOIGHT={voight},
)
execute_from_command_line(sys.argv)
"""


def run_manage(folder: Path, setting: dict[str, Any], *arguments: str, code: int = 0, then: str = "") -> str:
    """Run ``manage.py`` of a small project with this ``VOIGHT``; answers what it printed."""
    script = folder / "manage.py"
    script.write_text(MANAGE.replace("{voight}", repr(setting)) + then)
    result = subprocess.run(
        [sys.executable, "-W", "error", script, *arguments], capture_output=True, text=True, timeout=110, check=False, cwd=folder
    )
    assert result.returncode == code, result.stderr
    return result.stdout + result.stderr


@pytest.mark.server
def test_a_mistake_stops_every_command_with_its_number(tmp_path: Path, voight_calls: Any) -> None:
    """Django runs the checks before a command; a setting that cannot be used has its number there, and no traceback."""
    output = run_manage(tmp_path, {"LEDGER": "sqlite:nowhere", "USERGETTER": 1}, "check", code=1)
    assert "voight_django.E005" in output
    assert "voight_django.E002" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.server
def test_the_calls_of_a_command_are_metered_and_reported(tmp_path: Path, voight_calls: Any, voight_provider: Any) -> None:
    """The setting is in force in every command of the project, and INSTRUMENT meters clients that nobody wrapped."""
    setting: dict[str, Any] = {"LEDGER": str(tmp_path / "project.db"), "RELEASE": "2026.11.3"}
    run_manage(
        tmp_path,
        {**setting, "INSTRUMENT": True},
        "check",
        then=f"""
import openai, voight_middleware as voight
with openai.OpenAI(api_key="k", base_url={voight_provider.openai_base_url!r}) as client, voight.tag(user_id="alice"):
    client.chat.completions.create(**{QUESTION!r})
""",
    )
    rows = json.loads(run_manage(tmp_path, setting, "voight", "spend", "--by", "user,release", "--format", "json"))["rows"]
    assert [(row["user_id"], row["release"]) for row in rows] == [("alice", "2026.11.3")]


def test_the_middleware_without_the_app(tmp_path: Path, scripts: Any) -> None:
    """Without voight_django in INSTALLED_APPS the setting is in force as soon as the server loads its middleware."""
    output = scripts.run(
        """
        import sys

        from django.conf import settings

        settings.configure(MIDDLEWARE=["voight_django.CostTagMiddleware"], SECRET_KEY="k", VOIGHT={"LEDGER": sys.argv[1]})
        from django.core.wsgi import get_wsgi_application

        get_wsgi_application()
        from voight_middleware.pipeline.meter import current_meter

        print(current_meter().settings.ledger)
        """,
        str(tmp_path / "own.db"),
    )
    assert output.strip() == f"sqlite:///{tmp_path}/own.db"


PERSON = """
import uuid

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models


class Person(AbstractBaseUser):
    key = models.UUIDField(primary_key=True, default=uuid.uuid4)
    id = models.CharField(max_length=9, default="no key")
    name = models.CharField(max_length=9, unique=True)
    USERNAME_FIELD = "name"
    objects = BaseUserManager()
"""


@pytest.mark.slow
def test_a_user_model_of_the_project(tmp_path: Path, scripts: Any, voight_provider: Any) -> None:
    """The id is the primary key of a project's own user model, under any name; a field named id is no key."""
    (tmp_path / "accounts").mkdir()
    (tmp_path / "accounts" / "__init__.py").touch()
    (tmp_path / "accounts" / "models.py").write_text(PERSON)
    output = scripts.run(
        f"""
        import sys

        sys.path.insert(0, {str(tmp_path)!r})
        from django.conf import settings

        settings.configure(
            ALLOWED_HOSTS=["*"],
            AUTH_USER_MODEL="accounts.Person",
            DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
            INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "accounts"],
            MIDDLEWARE={[*SIGN_IN, OURS]!r},
            ROOT_URLCONF=__name__,
            SECRET_KEY="k",
            USE_TZ=True,
        )
        import django

        django.setup()
        import openai
        from accounts.models import Person
        from django.core.management import call_command
        from django.http import HttpResponse
        from django.test import Client
        from django.urls import path

        import voight_middleware as voight

        call_command("migrate", verbosity=0, run_syncdb=True)
        client = voight.wrap(openai.OpenAI(api_key="k", base_url={voight_provider.openai_base_url!r}))
        urlpatterns = [path("", lambda request: HttpResponse(client.chat.completions.create(**{QUESTION!r}).id))]
        person = Person.objects.create(name="alice")
        visitor = Client()
        visitor.force_login(person)
        assert visitor.get("/").status_code == 200
        print(person.key)
        """
    )
    ledger = open_ledger(f"sqlite:///{scripts.ledger}", create=False)
    assert [call.tags.user_id for call in ledger.calls()] == [output.strip()]
    ledger.close()
