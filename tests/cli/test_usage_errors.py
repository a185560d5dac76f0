"""Mistakes, wrong usage, help, and a machine where something is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from voight_middleware import __version__
from voight_middleware.cli import main

from .commands import as_typed, for_mistakes
from .kept_calls import Captured, keep, make_call


@pytest.mark.slow
@for_mistakes(
    [
        (["spend", "--by", "color"], "there is no dimension 'color'; choose from user_id, plan"),
        (["spend", "--by", "user_id; DROP TABLE calls"], "there is no dimension"),
        (["top", "--where", "x'); DROP TABLE calls; --=1"], "there is no dimension"),
        (["top", "--where", "plan"], "cannot read the filter 'plan'; write --where key=value"),
        (["top", "--where", "=x"], "cannot read the filter"),
        (["top", "--where", "=a"], "cannot read the filter '=a'"),
        (["top", "--where", "user=\udcff"], "not text in the encoding"),
        (["top", "--since", "soon"], "cannot read 'soon' as a time; write it like one of: today, yesterday"),
        (["top", "--since", "today", "--until", "yesterday"], "ends before it begins"),
        (["spend", "--ledger", "mysql://db"], "postgresql://"),
        (["spend", "--ledger", ":memory:"], "the ledger needs a file"),
        (["export", "-o", "/nowhere/calls.jsonl"], "/nowhere/calls.jsonl cannot be written: No such file"),
        (["explain", "01234567"], "there is no call '01234567' in this ledger; voight export shows their ids"),
        (["reprice", "--since", "soon"], "cannot read 'soon' as a time"),
        (["reprice", "--since", "today", "--where", "color=red"], "there is no dimension 'color'"),
        (["reprice", "--since", "today", "--prices", "/nowhere.toml"], "your prices cannot be used: /nowhere.toml: cannot be read"),
        (["prices", "show", "x", "--provider", "\x1b[31mred"], r"there is no price for 'x' of \x1b[31mred"),
        (["prices", "show", "x", "--at", "soon"], "cannot read 'soon' as a time"),
        (["spend", "--by", "\x1b[31mred"], r"there is no dimension '\x1b[31mred'"),
    ],
)
def test_errors_are_for_people(ledger: Path, capsys: Captured, arguments: list[str], message: str) -> None:
    """A mistake is one sentence on standard error and exit code 1, and harms nothing."""
    keep(ledger, make_call())
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("voight: ")
    assert message in err
    assert "\x1b" not in err
    assert main(["spend", "--format", "json"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["top", "--limit", "0"], ["top", "--limit", "many"], ["spend", "--format", "xml"], ["reprice"], ["prices"], ["explain"]],
    ids=as_typed,
)
def test_wrong_usage_exits_with_2(capsys: Captured, arguments: list[str]) -> None:
    """What argparse cannot read exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: voight" in capsys.readouterr().err


@pytest.mark.slow
def test_no_command_shows_the_help(capsys: Captured) -> None:
    """`voight` alone shows the help, and exits with 2."""
    assert main([]) == 2
    assert "voight demo" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["top"],
        ["spend"],
        ["export"],
        ["reprice"],
        ["explain"],
        ["prices", "show"],
        ["prices", "check"],
        ["events"],
        ["ingest"],
        ["doctor"],
        ["demo"],
    ],
    ids=as_typed,
)
def test_help_teaches(capsys: Captured, arguments: list[str]) -> None:
    """The help of every command says what it does, by examples that its own parser reads."""
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert arguments == ["demo"] or f"\n  voight {' '.join(arguments)}".rstrip() in text


def test_the_version_is_shown(capsys: Captured) -> None:
    """`--version` names the distribution and its version."""
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"voight-middleware {__version__}\n"


def test_a_report_without_a_ledger_makes_none(ledger: Path, capsys: Captured) -> None:
    """Without a ledger, a report says that there is none yet, and makes none."""
    assert main(["top"]) == 1
    assert f"there is no ledger at {ledger} yet" in capsys.readouterr().err
    assert list(ledger.parent.iterdir()) == []


@pytest.mark.parametrize("command", ["top", "spend", "export"])
def test_a_foreign_file_is_refused(ledger: Path, capsys: Captured, command: str) -> None:
    """A file that is no ledger is refused by every report."""
    ledger.write_text("Dear diary, " * 100)
    assert main([command]) == 1
    assert "not an SQLite file" in capsys.readouterr().err


@pytest.mark.slow
def test_what_works_without_rich(ledger: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rich a table is refused with what to install; JSON, CSV, the export and the doctor work."""
    keep(ledger, make_call())
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["top"]) == 1
    assert "pip install 'voight-middleware[cli]'" in capsys.readouterr().err
    for arguments in (["top", "--format", "json"], ["top", "--format", "csv"], ["export"], ["doctor"]):
        assert main(arguments) == 0


@pytest.mark.server
def test_a_reader_that_stops_reading(ledger: Path) -> None:
    """`voight export | head` ends quietly."""
    keep(ledger, *(make_call() for _ in range(2000)))
    script = "import sys; from voight_middleware.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", script, "export"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.server
def test_a_terminal_without_unicode(ledger: Path) -> None:
    """A terminal that cannot show a name gets it escaped, not a traceback."""
    keep(ledger, make_call(user="zoë"))
    script = "import sys; from voight_middleware.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "top"], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert b"zo\\xeb" in done.stdout


@pytest.mark.server
@pytest.mark.parametrize(
    "arguments", [["top"], ["spend", "--by", "user"], ["spend", "--format", "json"], ["export"], ["doctor"]], ids=as_typed
)
def test_a_reader_that_has_gone_is_no_failure(ledger: Path, arguments: list[str]) -> None:
    """`voight top | head` under pipefail: nothing on standard error, and no exit code of a failure."""
    keep(ledger, make_call())
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "import sys; from voight_middleware.cli import main; sys.exit(main(sys.argv[1:]))", *arguments]
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
