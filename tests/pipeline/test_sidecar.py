"""`voight ingest`: begin, wait, stop, and say so."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.cli import main
from voight_middleware.ledger import LedgerError
from voight_middleware.pipeline.lock import IngestLock
from voight_middleware.records.call import Call

from ..support.patching import Patch
from ..support.scripts import Scripts
from .journals import NewCall, write
from .sidecar import APPLICATION, HURRIED, SIDECAR, ids_of, lines_until


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_sidecar_drains_when_it_is_stopped(scripts: Scripts, how: signal.Signals) -> None:
    """It brings in what an application writes that is stopped at the same time, exits with 0, and says so line by line."""
    sidecar = scripts.start(SIDECAR)
    lines_until(sidecar, "ingesting")
    application = scripts.start(APPLICATION, "20", "0.02")
    assert application.stdout is not None
    first = application.stdout.readline()
    sidecar.send_signal(how)
    ids = [first.strip(), *application.stdout.read().split()]
    output, errors = sidecar.communicate(timeout=30)
    assert (sidecar.returncode, errors) == (0, "")
    assert output.splitlines() == [
        "voight: stopping: 5 seconds for the last calls of the applications",
        "voight: 20 records ingested; nothing is left",
    ]
    assert ids_of(scripts) == sorted(ids)


def test_a_sidecar_keeps_trying(scripts: Scripts) -> None:
    """A ledger that cannot be used yet: one line when that begins and one when it is over, and then everything is there."""
    scripts.ledger.mkdir(parents=True)
    sidecar = scripts.start(HURRIED)
    ids = scripts.run(APPLICATION, "30", "0").split()
    lines = lines_until(sidecar, "calls stay")
    time.sleep(0.5)  # it is tried again and again
    scripts.ledger.rmdir()
    lines += lines_until(sidecar, "can be used again")
    assert [re.sub(r":.*", "", line.removeprefix("voight: ").strip()) for line in lines] == [
        f"ingesting {scripts.journal} into sqlite",
        "calls stay in the journal for now",
        "the ledger can be used again; it now has the 30 records that waited",
    ]
    assert ids_of(scripts) == sorted(ids)


def test_a_sidecar_waits_for_its_turn(scripts: Scripts) -> None:
    """While another process ingests it waits and says so; it takes over when that one ends."""
    first = IngestLock(scripts.journal)
    assert first.acquire()
    waiting = scripts.start(HURRIED)
    assert lines_until(waiting, "voight:") == [f"voight: waiting: another process ingests {scripts.journal}\n"]
    first.release()
    lines_until(waiting, "the other process has exited")
    ids = scripts.run(APPLICATION, "5", "0").split()
    waiting.terminate()
    waiting.communicate(timeout=30)
    assert ids_of(scripts) == sorted(ids)


@pytest.fixture
def once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[int, str]]:
    """Runs `voight ingest --once` in this process; answers the exit code, and what was printed."""

    def once() -> tuple[int, str]:
        code = main(["ingest", "--once", "--ledger", str(tmp_path / "ledger.db"), "--journal", str(tmp_path / "journal")])
        return code, capsys.readouterr().out

    return once


def test_once_leaves_it_to_another_process(once: Callable[[], tuple[int, str]], tmp_path: Path, new_call: NewCall) -> None:
    """While another process ingests, exit code 0 says that nothing waits, and 1 that something does."""
    other = IngestLock(tmp_path / "journal")
    assert other.acquire()
    said = f"voight: another process ingests {tmp_path / 'journal'}: nothing to do here\n"
    assert once() == (0, said)
    write(tmp_path / "journal", new_call())
    assert once() == (1, said)
    other.release()


def test_once_says_what_stays_behind(once: Callable[[], tuple[int, str]], tmp_path: Path, new_call: NewCall) -> None:
    """With `--once` a ledger that cannot be used is exit code 1, and the calls stay."""
    write(tmp_path / "journal", *(new_call() for _ in range(3)))
    (tmp_path / "ledger.db").mkdir()
    code, output = once()
    assert code == 1
    assert f"the rest stays in {tmp_path / 'journal'}" in output
    (tmp_path / "ledger.db").rmdir()
    assert once() == (0, "voight: 3 records ingested; nothing is left\n")


@pytest.mark.parametrize(
    ("arguments", "environ", "named"),
    [
        (["--ledger", "mysql://u:hunter2@h/d"], {}, "mysql://u:***@h/d"),
        ([], {"VOIGHT_EXIT_TIMEOUT": "soon"}, "VOIGHT_EXIT_TIMEOUT"),
        (["--journal", "FILE/journal"], {}, "cannot be written"),
        (["--prices", "nowhere.toml"], {}, "nowhere.toml"),
    ],
    ids=["ledger", "exit timeout", "journal", "prices"],
)
def test_a_sidecar_that_can_never_work_ends_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environ: dict[str, str],
    named: str,
) -> None:
    """A setting that cannot be used is one sentence and exit code 1; no password is in it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VOIGHT_LEDGER", str(tmp_path / "ledger.db"))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(["ingest", *(argument.replace("FILE", str(tmp_path / "file")) for argument in arguments)]) == 1
    output = capsys.readouterr()
    assert named in output.err
    assert output.out == ""
    assert "hunter2" not in output.err


def test_a_missing_driver_is_said_at_once(tmp_path: Path, patch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is tried again that only an installation can mend."""

    def missing(url: str, *, create: bool = True) -> Any:
        raise LedgerError("pip install 'voight-middleware[postgres]'") from ImportError("psycopg")

    patch("open_ledger", missing)
    write(tmp_path / "journal", Call(call_id="c", occurred_at=1, provider="p", endpoint="chat"))
    assert main(["ingest", "--ledger", "postgresql://u:hunter2@h/d", "--journal", str(tmp_path / "journal")]) == 1
    output = capsys.readouterr()
    assert "pip install" in output.err
    assert "into postgresql://u:***@h/d" in output.out
    assert "hunter2" not in output.out + output.err
