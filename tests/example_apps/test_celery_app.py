"""The Celery example, run as its README says, with its SDK answered by the loopback provider."""

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

ROOT = Path(__file__).parents[2]
README = ROOT / "example_apps" / "celery_app" / "README.md"


pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("broker", ["a folder", pytest.param("Redis", marks=pytest.mark.deep)])
def test_one_command(broker: str, request: Any, workers: Any, voight_provider: Any) -> None:
    """The command works off all tasks, prints what each user has cost, and every call has its owner."""
    (command,) = re.findall(r"&& OPENAI_API_KEY=… python (.*)$", README.read_text(), re.MULTILINE)
    environ = {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": voight_provider.openai_base_url, "VOIGHT_LEDGER": workers.ledger}
    environ["EXAMPLE_FOLDER"] = str(workers.folder / "messages")
    if broker == "Redis":
        environ["CELERY_BROKER_URL"] = request.getfixturevalue("redis_url")
    script = ROOT / shlex.split(command)[0]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=workers.folder,
        env={**os.environ, "PYTHONSAFEPATH": "", **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr + (workers.folder / "worker.log").read_text()
    assert all(f"u_{number}" in done.stdout for number in (1, 2, 3)), done.stdout
    calls = workers.calls()
    owners = Counter((call.tags.user_id, call.tags.plan, call.tags.extra["task"]) for call in calls)
    expected = {("u_1", "free"), ("u_2", "pro"), ("u_3", "team")}
    assert owners == {
        **{(*user, "app.summarise"): 2 for user in expected},
        **{(*user, f"app.{task}"): 1 for user in expected for task in ("classify", "translate")},
        **{(user, "pro", "app.nightly_digest"): 1 for user in ("u_1", "u_2")},
        ("u_1", "pro", "app.summarise"): 1,
        ("u_2", "pro", "app.summarise"): 3,
    }
    digests = [call for call in calls if call.tags.extra.get("feature") == "digest"]
    assert {call.tags.route for call in digests} == {"task app.nightly_digest"}
    assert {call.tags.route for call in calls if call not in digests} == {"POST /documents"}
