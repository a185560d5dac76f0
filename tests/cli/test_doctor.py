"""`voight doctor`, as a user sees it."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.cli import main
from voight_middleware.journal import Journal

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
    assert "calls are kept; 0 to put right, 2 to look at" in text


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
    assert sorted(value.partition("waiting, ")[2][:15] for value in values) == ["of a living pro", "of a process th"]
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
    assert "calls are lost or not stored; 2 to put right" in capsys.readouterr().out


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


def test_doctor_of_personal_data(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy, where the key is and its versions; never the key."""
    _, found = findings(capsys)
    assert found["settings", "pii"]["value"] == "pseudonym (default)"
    assert found["settings", "pseudonym key"]["value"] == f"none yet: {ledger}.key is made when personal data first occurs"
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
    assert "v2; found by too: v1, v0 (VOIGHT_PSEUDONYM_KEY)" in text
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
    patch("_version", versions.get, within="doctor")
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
    assert "voight.record() only" in found["installed", "openai"]["advice"]


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
