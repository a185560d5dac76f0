"""The script, run as its README says, with its SDK answered by the loopback provider."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
README = ROOT / "example_apps" / "script" / "README.md"


def test_one_command(workers: Any, voight_provider: Any) -> None:
    """The command writes the digests, prints what each user has cost, and every call has its owner."""
    (command,) = re.findall(r"&& OPENAI_API_KEY=… python (.*)$", README.read_text(), re.MULTILINE)
    environ = {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": voight_provider.openai_base_url, "VOIGHT_LEDGER": workers.ledger}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / shlex.split(command)[0])],
        cwd=workers.folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(f"u_{number}" in done.stdout for number in range(1, 6)), done.stdout
    calls = workers.calls()
    # A digest for each user, out of as many notes as his number says; and one call for all of them.
    owners = Counter((call.tags.user_id, call.tags.plan) for call in calls)
    assert owners == {**{(f"u_{number}", ("free", "pro")[number % 2]): number + 1 for number in range(1, 6)}, (None, None): 1}
    assert {call.tags.route for call in calls} == {"script nightly.py"}
    assert {call.tags.extra.get("feature") for call in calls if call.tags.user_id} == {"digest"}
