"""``voight export``: the formats on the command line, files that are whole or not there, and everything about one person."""

import csv
import io
import json
import os
import pty
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from voight_middleware.cli import main
from voight_middleware.cli.export import output
from voight_middleware.cli.render import UserError
from voight_middleware.exporters.files import csv_file as csvfile
from voight_middleware.exporters.files import focus, jsonl
from voight_middleware.ledger import LedgerError, open_ledger
from voight_middleware.records.call import Call, Submission
from voight_middleware.records.tags import Tags

from ..support.factories import NOON, make_call
from ..support.made_up_ledger import fill, made_up_calls

Captured = pytest.CaptureFixture[str]
SCRIPT = "import sys; from voight_middleware.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return list(made_up_calls(1_500))


@pytest.fixture(scope="module")
def filled(calls: list[Call], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "ledger.db"
    with closing(open_ledger(str(path))) as opened:
        fill(opened, calls)
    return path


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filled: Path) -> Path:
    """A ledger of its own, with the same calls for each test."""
    path = tmp_path / "home" / "ledger.db"
    shutil.copytree(filled.parent, path.parent)
    monkeypatch.setenv("VOIGHT_LEDGER", str(path))
    monkeypatch.setenv("VOIGHT_JOURNAL", str(tmp_path / "journal"))
    return path


def keep(path: Path, *records: Call | Submission) -> None:
    with closing(open_ledger(str(path))) as opened:
        opened.insert(records)


def call_of(user: str, call_id: str, **fields: Any) -> Call:
    return make_call(None, NOON + 1, call_id=call_id, usage=None, **{"tags": Tags(user_id=user), **fields})


# -- formats -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lines"), [("jsonl", jsonl.lines), ("csv", csvfile.lines), ("focus", focus.lines)])
def test_text_formats(
    ledger: Path,
    tmp_path: Path,
    calls: list[Call],
    capsysbinary: pytest.CaptureFixture[bytes],
    name: str,
    lines: Callable[..., Iterator[bytes]],
) -> None:
    """Standard output and a file hold the same bytes: those of the format, over the calls that the filters leave."""
    expected = b"".join(lines([call for call in calls if call.tags.plan == "pro"]))
    assert main(["export", "--format", name, "--where", "plan=pro"]) == 0
    assert capsysbinary.readouterr().out == expected
    assert main(["export", "--format", name, "--where", "plan=pro", "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes() == expected


@pytest.mark.slow
def test_parquet(ledger: Path, tmp_path: Path, calls: list[Call], capsys: Captured) -> None:
    """Parquet needs a file, and holds every call in the order of time."""
    assert main(["export", "--format", "parquet"]) == 1
    assert "give it a file" in capsys.readouterr().err
    assert main(["export", "--format", "parquet", "-o", str(tmp_path / "out")]) == 0
    assert pq.read_table(tmp_path / "out")["call_id"].to_pylist() == [call.call_id for call in calls]


@pytest.mark.slow
def test_parquet_without_pyarrow(ledger: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow it is said what to install, and no file is left."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", "--format", "parquet", "-o", str(tmp_path / "out")]) == 1
    assert "pip install 'voight-middleware[parquet]'" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


@pytest.mark.parametrize("lines", [jsonl.lines, csvfile.lines, focus.lines])
def test_text_formats_stream(calls: list[Call], lines: Callable[[Iterable[Call]], Iterator[bytes]]) -> None:
    """A line comes out before the second next call is taken: no more than one call is held."""
    taken = 0

    def watched() -> Iterator[Call]:
        nonlocal taken
        for call in calls:
            taken += 1
            yield call

    seen = 0
    for line in lines(watched()):
        seen += any(call.call_id.encode() in line for call in calls[max(0, taken - 3) : taken])
        if taken > 100:
            break
        assert taken <= seen + 2
    assert seen >= 98


@pytest.mark.server
@pytest.mark.parametrize("name", ["csv", "focus", "jsonl"])
def test_nothing_drives_a_terminal(ledger: Path, name: str) -> None:
    """On a terminal no byte of a tag is an escape sequence, in any format."""
    keep(ledger, call_of("\x1b]0;owned\x07\x9b31m", "z", tags=Tags(user_id="\x1b[31m\x9b", tenant_id="\x1b[5m", extra={"k": "\x1b]"})))
    out = on_a_terminal(
        ledger, "export", "--format", name, "--since", "2026-11-01T12:00:00.000001", "--until", "2026-11-01T12:00:00.000002"
    )
    assert b"31m" in out
    assert b"\x1b" not in out
    assert "\x9b" not in out.decode()


# -- files ---------------------------------------------------------------------------------------------------------------------


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    """Where writing ends in an error or by Ctrl-C, the file that was there is still there, whole, and nothing else is."""
    path = tmp_path / "out"
    path.write_text("old")

    def interrupted(error: type[BaseException]) -> None:
        with output(path) as file:
            file.write(b"half")
            raise error

    for error, seen in ((KeyboardInterrupt, KeyboardInterrupt), (LedgerError, LedgerError), (BrokenPipeError, UserError)):
        with pytest.raises(seen):
            interrupted(error)
        assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    """Under its name there is nothing until all is written; a new file is for its owner only, a replaced one keeps its mode."""
    path = tmp_path / "out"
    with output(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)
    path.chmod(0o644)
    with output(path) as file:
        file.write(b"newer")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"newer", 0o644)


def test_a_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """Whatever the umask. One that is there keeps what its owner has chosen."""
    before = os.umask(0)
    try:
        with output(tmp_path / "new") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    (tmp_path / "new").chmod(0o640)
    with output(tmp_path / "new") as file:
        file.write(b"newer")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_link_of_another_account_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that all may write to, it would have any file of this account overwritten."""
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    if os.getuid() == 0:
        os.chown(tmp_path / "link", 12_345, 12_345, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12_345)
    with pytest.raises(UserError, match="another account"), output(tmp_path / "link"):
        pass
    assert (tmp_path / "real").read_bytes() == b"old"


def test_links_and_pipes(tmp_path: Path) -> None:
    """A link is followed and stays one; a pipe is written to and not replaced by a file."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with output(tmp_path / "link") as file:
        file.write(b"new")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "real").read_bytes()) == (True, b"new")
    with output(Path(os.devnull)) as file:
        file.write(b"gone")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet", "focus"])
def test_a_file_that_cannot_be_written(ledger: Path, tmp_path: Path, capsys: Captured, name: str) -> None:
    """A folder as a file, or a file in no folder, is a message and no traceback."""
    assert main(["export", "--format", name, "-o", str(tmp_path)]) == 1
    assert main(["export", "--format", name, "-o", str(tmp_path / "no" / "out")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all("cannot be written" in line for line in errors)


def on_a_terminal(ledger: Path, *arguments: str, read: str = "stdout") -> bytes:
    """What a command prints on a terminal."""
    main_end, other_end = pty.openpty()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, read: other_end}
    with subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], env={**os.environ, "TERM": "xterm"}, **streams) as process:
        os.close(other_end)
        shown = b""
        while True:
            try:
                piece = os.read(main_end, 65_536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        os.close(main_end)
        process.communicate()
        assert process.returncode == 0
    return shown


@pytest.mark.server
def test_a_progress_bar_on_a_terminal(ledger: Path, tmp_path: Path) -> None:
    """While a file is written, a terminal shows how many of how many calls; a pipe gets nothing of it."""
    shown = on_a_terminal(ledger, "export", "-o", str(tmp_path / "out"), read="stderr")
    assert b"1500/1500" in shown
    done = subprocess.run([sys.executable, "-c", SCRIPT, "export", "-o", str(tmp_path / "out")], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.server
def test_text_is_utf8_whatever_the_terminal(ledger: Path) -> None:
    """Where Python's standard output is ASCII, an export is UTF-8 all the same, and valid JSON."""
    keep(ledger, call_of("zoë", "z"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "export", "--where", "user=zoë"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
        capture_output=True,
        check=True,
    )
    assert {json.loads(line)["user_id"] for line in done.stdout.splitlines()} == {"zoë"}


# -- one person ----------------------------------------------------------------------------------------------------------------


def test_everything_about_one_person(ledger: Path, calls: list[Call], tmp_path: Path) -> None:
    """The document has every call of the person with the provider's own usage and every price it ever had, and nobody else's."""
    user = next(call.tags.user_id for call in calls if call.cost_femto and call.tags.user_id)
    theirs = [call for call in calls if call.tags.user_id == user]
    with closing(open_ledger(str(ledger))) as opened:
        assert opened.reprice([(call, replace(call, cost_femto=1)) for call in theirs if call.cost_femto])
    assert main(["export", "--user", str(user), "-o", str(tmp_path / "out")]) == 0
    document = json.loads((tmp_path / "out").read_text())
    assert document["user_ids"] == [user]
    assert [row["call_id"] for row in document["calls"]] == [call.call_id for call in theirs]
    for row, call in zip(document["calls"], theirs, strict=True):
        assert (row["response_id"], row["host"]) == (call.response_id, call.host)
        assert row["usage"] == (None if call.raw_usage is None else json.loads(call.raw_usage))
        former = [one["cost_usd"] for one in row["former_costs"]]
        assert former == ([format(call.cost_usd, "f")] if call.cost_femto and call.cost_usd else [])


@pytest.mark.slow
def test_a_star_in_an_id_is_no_pattern(ledger: Path, capsys: Captured) -> None:
    """Who is called `u_*` gets nobody else's calls, and an id is never SQL, nor the word for no user."""
    keep(ledger, call_of("u_*", "z1"), call_of("-", "z2"), call_of("none", "z3"), call_of("' OR 1=1 --", "z4"), call_of("*", "z5"))
    for user, call_id in (("u_*", "z1"), ("-", "z2"), ("none", "z3"), ("' OR 1=1 --", "z4"), ("*", "z5")):
        assert main(["export", f"--user={user}"]) == 0
        mine = [row for row in json.loads(capsys.readouterr().out)["calls"] if row["call_id"].startswith("z")]
        assert [row["call_id"] for row in mine] == [call_id]


def test_jobs_and_unreadable_usage(ledger: Path, capsys: Captured) -> None:
    """A job that the person has submitted is in the document, and so is a usage that was no JSON."""
    owner = Tags(user_id="u_job")
    keep(
        ledger,
        Submission(job="openai/batch_1", submitted_at=1, tags=owner, attribution="tag"),
        Submission(job="openai/batch_2", submitted_at=1, tags=owner, attribution="tag"),
        call_of("u_job", "z1", job="openai/batch_1", raw_usage="{torn"),
    )
    assert main(["export", "--user", "u_job"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["call_id"], row["usage"]) for row in document["calls"]] == [("z1", "{torn")]
    assert [job["job"] for job in document["jobs"]] == ["openai/batch_1"]
    assert document["other_jobs"] == 1


def test_named_in_the_calls_of_others(ledger: Path, capsys: Captured) -> None:
    """Where another's call names the person in a tag, the document says which call and which tag, and not whose."""
    keep(
        ledger,
        call_of("boss", "z1", tags=Tags(user_id="boss", tenant_id="acme", extra={"on_behalf_of": "u_me"})),
        call_of("u_me", "z2"),
    )
    assert main(["export", "--user", "u_me"]) == 0
    out = capsys.readouterr().out
    document = json.loads(out)
    assert [row["call_id"] for row in document["calls"]] == ["z2"]
    assert document["elsewhere"] == [{"call_id": "z1", "occurred_at": "2026-11-01T12:00:00.000001Z", "in": ["on_behalf_of"]}]
    assert "boss" not in out
    assert "acme" not in out


def test_nobody(ledger: Path, capsys: Captured) -> None:
    """A person of whom nothing is kept gets a document that says so."""
    assert main(["export", "--user", "nobody"]) == 0
    assert json.loads(capsys.readouterr().out) == {"user_ids": ["nobody"], "calls": [], "jobs": [], "other_jobs": 0, "elsewhere": []}


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--format", "csv"], ["--where", "plan=pro"], ["--since", "today"], ["--original-prices"]])
def test_one_person_is_not_filtered(ledger: Path, capsys: Captured, more: list[str]) -> None:
    """What would leave something out of the document is refused."""
    assert main(["export", "--user", "u_1", *more]) == 1
    assert "exports everything about one person" in capsys.readouterr().err


def test_csv_of_a_hostile_tenant(ledger: Path, capsys: Captured) -> None:
    """A formula in a tag leaves the command as a text."""
    keep(ledger, call_of("=cmd|' /C calc'!A0", "z"))
    assert main(["export", "--format", "csv", "--where", "user==cmd*"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["user_id"] == "'=cmd|' /C calc'!A0"
