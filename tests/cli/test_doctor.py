"""`voight doctor`, as a user sees it."""

import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.cli import main
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.records.call import new_call_id

from ..support.patching import Patch
from .kept_calls import SECRET, USD, Captured, keep, make_call


def findings(capsys: Captured, *arguments: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Return the exit code of `voight doctor`, and its findings by section and name."""
    code = main(["doctor", "--format", "json", *arguments])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (code == 0)
    return code, {(finding["section"], finding["name"]): finding for finding in report["findings"]}


def test_doctor_of_a_machine_without_calls(ledger: Path, capsys: Captured) -> None:
    """On a new machine nothing is wrong: the doctor names the places and makes nothing."""
    code, found = findings(capsys)
    assert code == 0
    assert found["settings", "ledger"]["value"] == f"sqlite:///{ledger} (VOIGHT_LEDGER)"
    assert found["settings", "journal"]["value"] == f"{ledger}.journal (default)"
    assert found["ledger", "calls"]["value"].startswith("no ledger yet")
    assert "covered by wrap() and instrument()" in found["installed", "openai"]["value"]
    assert list(ledger.parent.iterdir()) == []


def test_doctor_of_the_default_place(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any setting the ledger is in the state folder, and the doctor says that this is the default."""
    monkeypatch.delenv("VOIGHT_LEDGER")
    _, found = findings(capsys)
    assert found["settings", "ledger"]["value"] == f"sqlite:///{tmp_path}/state/voight/ledger.db (default)"
    _, found = findings(capsys, "--ledger", str(tmp_path / "x.db"))
    assert found["settings", "ledger"]["value"] == f"sqlite:///{tmp_path}/x.db (--ledger)"


def test_doctor_of_a_ledger_in_use(ledger: Path, capsys: Captured) -> None:
    """With calls the doctor counts them, and says how many have no price and no owner, and what to ask next."""
    keep(ledger, make_call(), make_call(None), make_call(user=None), make_call(USD, occurred_at=1_793_534_400_000_000))
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"✓ calls +4\n", text)
    assert re.search(r"✓ oldest, newest +2026-11-01 12:00 UTC, 20", text)
    assert re.search(r"! without a price +1 calls\n +→ voight spend --by provider,model", text)
    assert re.search(r"! without an owner +1 calls \(.*of the cost\)\n +→ voight spend --by route", text)
    assert "calls are stored; 0 to fix, 2 to look at" in text


def test_doctor_of_a_journal(ledger: Path, capsys: Captured) -> None:
    """Waiting segments are listed with their bytes and whether their process lives; rejected lines are counted."""
    folder = Path(f"{ledger}.journal")
    living, dead = Journal(folder), Journal(folder)
    living.append(make_call())
    dead.append(make_call())
    dead.rotate()
    (folder / "rejected.jsonl").write_text("{torn\n{torn\n")
    code, found = findings(capsys)
    values = [finding["value"] for (section, name), finding in found.items() if section == "journal" and name.endswith(".jsonl")]
    assert code == 0
    assert sorted(value.partition("waiting, ")[2][:15] for value in values) == ["of a dead proce", "of a live proce"]
    assert all(re.match(r"[1-9][0-9]+ bytes", value) for value in values)
    assert found["journal", "rejected lines"]["value"] == "2"
    assert "rejected.jsonl" in found["journal", "rejected lines"]["advice"]
    living.rotate()


def test_doctor_when_nothing_can_be_kept(tmp_path: Path, capsys: Captured) -> None:
    """A ledger and a journal in a place that cannot be written are named, with what to do, and the exit code is 1."""
    (tmp_path / "file").write_text("")
    code, found = findings(capsys, "--ledger", str(tmp_path / "file" / "ledger.db"))
    assert code == 1
    assert found["ledger", "writable"]["fatal"]
    assert found["journal", "writable"]["fatal"]
    assert f"make {tmp_path / 'file'} writable, or choose another place" in found["ledger", "writable"]["advice"]
    assert main(["doctor", "--ledger", str(tmp_path / "file" / "ledger.db")]) == 1
    assert "calls are lost or not stored; 2 to fix" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("content", ["Dear diary, " * 100, None], ids=["a foreign file", "a folder"])
def test_doctor_of_a_ledger_that_is_none(ledger: Path, capsys: Captured, content: str | None) -> None:
    """A foreign file or a folder in the ledger's place is a problem with exit code 1, and the rest is still examined."""
    if content is None:
        ledger.mkdir()
    else:
        ledger.write_text(content)
    code, found = findings(capsys)
    assert code == 1
    assert found["ledger", "state"]["fatal"]
    assert ("journal", "rejected lines") in found


def test_doctor_when_switched_off(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """VOIGHT_ENABLED=false is a problem that names the variable."""
    monkeypatch.setenv("VOIGHT_ENABLED", "false")
    code, found = findings(capsys)
    assert code == 1
    assert "unset VOIGHT_ENABLED" in found["settings", "enabled"]["advice"]


def test_doctor_of_prices(prices: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of one's own prices is counted; with a mistake in it calls wait, and the doctor says what shows the mistakes."""
    _, found = findings(capsys)
    assert found["settings", "prices"]["value"] == "none of your own (default)"
    monkeypatch.setenv("VOIGHT_PRICES", str(prices))
    code, found = findings(capsys)
    assert (code, found["settings", "prices"]["value"]) == (0, f"{prices}, 2 of your own (VOIGHT_PRICES)")
    prices.write_text("[[price]]")
    code, found = findings(capsys)
    assert (code, found["settings", "prices"]["fatal"]) == (1, True)
    assert "voight prices check" in found["settings", "prices"]["advice"]


@pytest.mark.slow
def test_doctor_of_personal_data(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy, where the key is and its versions; never the key."""
    _, found = findings(capsys)
    assert found["settings", "pii"]["value"] == "pseudonym (default)"
    assert found["settings", "pseudonym key"]["value"] == f"none yet: {ledger}.key is created when personal data first occurs"
    Path(f"{ledger}.key").write_text(f"v0:{SECRET}")
    Path(f"{ledger}.key").chmod(0o644)
    _, found = findings(capsys)
    assert found["settings", "pseudonym key"]["value"] == f"v0, in {ledger}.key"
    assert found["settings", "pseudonym key"]["advice"] == f"chmod 600 {ledger}.key"
    monkeypatch.setenv("VOIGHT_PII", "user_id=allow")
    monkeypatch.setenv("VOIGHT_PSEUDONYM_KEY", f"v2:{SECRET[::-1]},v1:{SECRET}")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "user_id=allow, *=pseudonym (VOIGHT_PII)" in text
    assert "v2; accepted too: v1, v0 (VOIGHT_PSEUDONYM_KEY)" in text
    assert SECRET not in text
    assert SECRET[::-1] not in text
    monkeypatch.setenv("VOIGHT_PII", "redact")
    _, found = findings(capsys)
    assert ("settings", "pseudonym key") not in found


def test_doctor_of_a_key_that_is_missing(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger on a server without a key, and a key that cannot be read, are something to look at."""
    _, found = findings(capsys, "--ledger", "postgresql://h/d")
    assert "VOIGHT_PSEUDONYM_KEY on every host" in found["settings", "pseudonym key"]["advice"]
    Path(f"{ledger}.key").mkdir()
    code, found = findings(capsys)
    assert code == 0
    assert f"{ledger}.key cannot be read" in found["settings", "pseudonym key"]["value"]


def test_doctor_says_where_the_release_is_from(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the deployment's own variables, where you have named none."""
    monkeypatch.setenv("RENDER_GIT_COMMIT", "c0ffee")
    _, found = findings(capsys)
    assert found["settings", "release"]["value"] == "c0ffee (RENDER_GIT_COMMIT)"


def test_doctor_of_a_wrong_setting(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be used is one sentence and exit code 1."""
    monkeypatch.setenv("VOIGHT_ENABLED", "perhaps")
    assert main(["doctor"]) == 1
    assert "VOIGHT_ENABLED: enabled is 'perhaps'" in capsys.readouterr().err


def test_doctor_of_old_and_missing_packages(capsys: Captured, patch: Patch) -> None:
    """An SDK that is too old is a problem, a missing one is not while the other is there, and missing helpers say what to install."""
    versions = {"openai": "1.55.3", "starlette": "1.0"}
    patch("_version", versions.get, within="doctor_settings")
    code, found = findings(capsys)
    assert code == 1
    assert found["installed", "openai"]["fatal"]
    assert "pip install 'openai>=1.109'" in found["installed", "openai"]["advice"]
    assert found["installed", "anthropic"]["advice"] is None
    assert "voight-middleware[cli]" in found["installed", "rich"]["advice"]
    assert "genai-prices" in found["installed", "genai-prices"]["advice"]
    versions.clear()
    code, found = findings(capsys)
    assert code == 0
    assert "only voight.record()" in found["installed", "openai"]["advice"]


def test_a_ledger_without_a_home_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    """It is among the temporary files, which may not outlive the machine."""

    def nobody(*_: object) -> str:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "XDG_STATE_HOME", "VOIGHT_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, found = findings(capsys)
    assert str(tmp_path) in found["settings", "ledger"]["value"]
    assert "no home" in found["settings", "ledger"]["advice"]


def test_doctor_names_variables_that_nothing_reads(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the nearest name; VOIGHT_CONFIG and the receiver's token are known."""
    monkeypatch.setenv("VOIGHT_LEDGR", "x")
    monkeypatch.setenv("VOIGHT_CONFIG", "none")
    monkeypatch.setenv("VOIGHT_OTLP_TOKEN", "x" * 32)
    code, found = findings(capsys)
    assert code == 0
    assert found["settings", "VOIGHT_LEDGR"]["advice"] == "unset it: did you mean VOIGHT_LEDGER?"
    assert not {("settings", "VOIGHT_CONFIG"), ("settings", "VOIGHT_OTLP_TOKEN")} & found.keys()


def test_doctor_shows_the_settings_file(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """And which line a value is from."""
    file = tmp_path / "voight.toml"
    file.write_text('tags = { app = "shop" }\ntz = "Europe/Berlin"\n')
    monkeypatch.setenv("VOIGHT_CONFIG", str(file))
    _, found = findings(capsys)
    assert found["settings", "settings file"]["value"] == str(file)
    assert found["settings", "tags"]["value"] == f"app=shop ({file}:1)"
    assert found["settings", "time zone"]["value"] == f"Europe/Berlin ({file}:2)"
    file.write_text("ledgre = 1\n")
    assert main(["doctor"]) == 1
    assert f"voight: {file}:1: there is no setting 'ledgre': did you mean ledger?" in capsys.readouterr().err


def test_doctor_knows_the_frameworks(capsys: Captured, patch: Patch) -> None:
    """Whatever is installed is named with what covers it."""
    patch("_version", {"django": "5.2", "djangorestframework": "3.16", "celery": "5.5", "rq": "2.6"}.get, within="doctor_settings")
    _, found = findings(capsys)
    for name, line in (
        ("django", "voight_django"),
        ("djangorestframework", "voight_django"),
        ("celery", "instrument_celery()"),
        ("rq", "rq"),
    ):
        assert line in found["installed", name]["value"]


def late_call(folder: Path, seconds: float) -> Journal:
    """Leave a call in a journal that was made *seconds* ago."""
    journal = Journal(folder)
    journal.append(make_call(call_id=f"{int((time.time() - seconds) * 1000):012x}{new_call_id()[12:]}"))
    return journal


@pytest.mark.slow
def test_an_ingester_that_is_stopped_is_said(ledger: Path, capsys: Captured) -> None:
    """By the doctor and in every report, and not for a call that has just ended."""
    keep(ledger, make_call())
    folder = Path(f"{ledger}.journal")
    lock = IngestLock(folder)
    assert lock.acquire()
    fresh = late_call(folder, 0)
    _, found = findings(capsys)
    assert ("journal", "late") not in found
    assert main(["top", "--format", "json"]) == 0
    assert capsys.readouterr().err == ""
    old = late_call(folder, 600)
    code, found = findings(capsys)
    assert code == 0
    assert found["journal", "late"]["value"] == "calls wait for 10 minutes"
    assert f"fuser {folder}/ingest.lock" in found["journal", "late"]["advice"]
    assert main(["top", "--format", "json"]) == 0
    assert f"calls have waited in {folder} for 10 minutes, and are missing here" in capsys.readouterr().err
    for journal in (fresh, old):
        journal.rotate()
    lock.release()


@pytest.mark.server
def test_doctor_of_another_account(ledger: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The report names the unreadable path and its owner. There is no traceback."""
    keep(ledger, make_call())
    folder = Path(f"{ledger}.journal")
    Journal(folder).append(make_call())
    assert main(["doctor"]) == 0  # imports everything: another account may not read the library
    capfd.readouterr()
    folder.chmod(0)
    ledger.chmod(0)
    try:
        child = os.fork()
        if not child:
            if os.geteuid() == 0:
                os.setuid(65534)
            os._exit(100 + main(["doctor"]))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        folder.chmod(0o700)
        ledger.chmod(0o600)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    assert code in (100, 101)
    if os.geteuid() == 0:
        assert f"{folder} belongs to root; nobody cannot read it" in out
        assert "sudo -u root voight doctor" in out
