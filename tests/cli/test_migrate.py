"""`voight migrate`, as a user sees it."""

import re
from pathlib import Path

import pytest

from voight_middleware.cli import main

from .kept_calls import SECRET, Captured, keep, make_call


@pytest.mark.server
def test_a_server_needs_a_key_for_pseudonyms(postgres_url: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the command says what becomes of e-mail addresses; with --new-key it makes one that can be used, once."""
    assert main(["migrate", "--ledger", postgres_url]) == 0
    assert "all users with e-mail addresses as ids are one row, redacted:email; --new-key makes one" in capsys.readouterr().err
    assert main(["migrate", "--ledger", postgres_url, "--new-key"]) == 0
    output = capsys.readouterr()
    found = re.search(r"VOIGHT_PSEUDONYM_KEY=(v1:[0-9a-f]{64})\n", output.out)
    assert found is not None
    assert output.err == ""
    monkeypatch.setenv("VOIGHT_PSEUDONYM_KEY", found[1])
    assert main(["migrate", "--ledger", postgres_url]) == 0
    assert capsys.readouterr().err == ""
    assert main(["migrate", "--ledger", postgres_url, "--new-key"]) == 1
    assert "there is a pseudonym key already" in capsys.readouterr().err


@pytest.mark.parametrize(("variable", "value"), [("VOIGHT_PSEUDONYM_KEY", SECRET), ("VOIGHT_PII", "allow"), ("", "")])
def test_a_local_ledger_makes_its_own(ledger: Path, variable: str, value: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to say."""
    if variable:
        monkeypatch.setenv(variable, value)
    assert main(["migrate"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_row_of_many_users_is_said(ledger: Path, capsys: Captured) -> None:
    """Reports name the row that stands for all addresses."""
    keep(ledger, make_call(user="redacted:email"), make_call(user="u_1"))
    for command in (["top"], ["spend", "--by", "user,model"]):
        assert main(command) == 0
        assert "redacted:email is every user whose id is personal data of that kind" in capsys.readouterr().out
    assert main(["top", "--where", "user=u_1"]) == 0
    assert "redacted" not in capsys.readouterr().out
