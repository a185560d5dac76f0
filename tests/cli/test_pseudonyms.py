"""A user whom the ledger knows by a pseudonym is found by her address."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from voight_middleware.cli import main
from voight_middleware.config.settings import Settings
from voight_middleware.pipeline.pseudonyms import Pseudonymizer
from voight_middleware.records.tags import Tags

from .kept_calls import SECRET, USD, Captured, keep, make_call


@pytest.fixture
def alice(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of Alice's, kept by an old key, by the newest one, inside another value, and as she is; and what the ledger calls her."""
    settings = [Settings.from_environment(pseudonym_key=key) for key in (f"v1:{SECRET}", f"v2:{SECRET[::-1]}", None)]
    monkeypatch.setenv("VOIGHT_PSEUDONYM_KEY", f"v2:{SECRET[::-1]},v1:{SECRET}")
    guards = [Pseudonymizer(one) for one in settings]
    names = [str(guard(Tags(user_id="alice@example.com")).user_id) for guard in guards]
    within = str(guards[1](Tags(user_id="auth0|alice@example.com")).user_id)
    users = [*names, within, "alice@example.com", str(guards[1](Tags(user_id="bob@example.com")).user_id), "u_7"]
    keep(ledger, *(make_call(10**number, user) for number, user in enumerate(users)))
    return names


@pytest.mark.slow
@pytest.mark.usefixtures("alice")
def test_her_address_finds_what_is_kept_under_her_pseudonyms(capsys: Captured) -> None:
    """`--where` looks for all pseudonyms and the address itself; another user, another spelling and a pattern find what they say."""
    for where, cost in [
        ("user=alice@example.com", 11111),
        ("user_id=Alice <ALICE@example.com>", 1111),
        ("user=auth0|alice@example.com", 1000),
        ("user=bob@example.com", 100000),
        ("user=carol@example.com", None),
        ("user=alice@*", 10000),
        ("user=u_7", 1000000),
        ("user=alice@example.com,model=m", 11111),
        ("model=alice@example.com", None),
    ]:
        assert main(["spend", "--format", "json", "--where", where]) == 0
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert row["cost_usd"] == ("0" if cost is None else f"{Decimal(cost) / USD:f}"), where


@pytest.mark.slow
@pytest.mark.usefixtures("alice")
def test_every_report_finds_her(capsys: Captured) -> None:
    """`top`, `export` and `reprice` take the same filter, and a table's title shows what was asked for."""
    assert main(["top", "--where", "user=alice@example.com"]) == 0
    text = capsys.readouterr().out
    assert "user_id=alice@example.com" in text.splitlines()[0]
    assert text.count("email:v") == 4
    assert main(["export", "--where", "user=alice@example.com"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["reprice", "--since", "today", "--dry-run", "--format", "json", "--where", "user=alice@example.com"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["calls"] == 5


def test_what_the_ledger_calls_her(alice: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """`voight pseudonym` says it, by the newest key first; an id has no other name, and the policy is heeded."""
    assert main(["pseudonym", "Alice@example.com"]) == 0
    assert capsys.readouterr().out.split() == [alice[1], alice[0], alice[2]]
    for policy, value, name in [
        ("pseudonym", "u_7", "u_7"),
        ("allow", "a@example.com", "a@example.com"),
        ("redact", "a@b.cd", "redacted:email"),
    ]:
        monkeypatch.setenv("VOIGHT_PII", policy)
        assert main(["pseudonym", value]) == 0
        assert capsys.readouterr().out == f"{name}\n"


def test_without_a_key_she_is_not_found_in_silence(ledger: Path, capsys: Captured) -> None:
    """The command line of another account may lack the application's key: it says so, and makes none."""
    keep(ledger, make_call())
    assert main(["spend", "--format", "json", "--where", "user=alice@example.com"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["rows"][0]["calls"] == 0
    assert "VOIGHT_PSEUDONYM_KEY is not set here" in output.err
    assert main(["pseudonym", "alice@example.com"]) == 1
    assert "VOIGHT_PSEUDONYM_KEY is not set here" in capsys.readouterr().err
    assert not Path(f"{ledger}.key").exists()
    Path(f"{ledger}.key").write_text("spoiled")
    assert main(["spend", "--where", "user=alice@example.com"]) == 1
    assert f"{ledger}.key" in capsys.readouterr().err
