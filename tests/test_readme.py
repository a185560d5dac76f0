"""What the README and the docs show is true: their Python runs, their commands work, their files can be read."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import voight_middleware as voight
from voight_middleware.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCKS = [block for text in DOCUMENTS for block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
PYTHON = [body for language, body in BLOCKS if language == "python"]
COMMANDS = [line[2:].split("#")[0].strip() for language, body in BLOCKS if language == "console" for line in body.splitlines()]
(PRICES,) = (body for language, body in BLOCKS if language == "toml")


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number: int, tmp_path: Path, voight_provider: Any, voight_calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python example runs as it stands, with the SDKs answered by the loopback provider."""
    body = PYTHON[number]
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("OPENAI_BASE_URL", voight_provider.openai_base_url)
    if "def test_" in body:
        (tmp_path / "test_example.py").write_text(body)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
        assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True).stdout.count("1 passed") == 1
        return
    exec(compile(body, f"Python example {number + 1}", "exec"), {"__name__": "readme"})
    if any(word in body for word in ("client.chat", "client.post", "voight.record", "metered_call")):
        assert [call.tags.user_id for call in voight_calls] == ["u_7"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voight_calls: Any) -> None:
    """Every command line works on a ledger that has calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prices.toml").write_text(PRICES)
    usage, call_id = {"prompt_tokens": 9, "completion_tokens": 1}, "01a1fd9613ba7090ac3519e4f920ba04"
    voight.record(provider="openai", model="gpt-4o-mini", usage=usage, tags={"user_id": "u_7"}, call_id=call_id)
    assert voight.flush()
    monkeypatch.setenv("VOIGHT_LEDGER", voight_calls.ledger)
    program, *arguments = shlex.split(command)
    assert program == "voight"
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(arguments))
    assert ended.value.code in (0, None)


def test_every_variable_is_in_the_table() -> None:
    """The table of the configuration names every variable that the library reads, and no other."""
    source = "".join(path.read_text() for path in Path(voight.__file__).parent.rglob("*.py"))
    assert set(re.findall(r"VOIGHT_[A-Z_]+", README)) == set(re.findall(r'"(VOIGHT_[A-Z_]+)"', source))
