"""The real Vercel AI SDK, on Node: its telemetry becomes calls of the right users, beside those of Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import openai
import pytest

import voight_middleware as voight
from voight_middleware.cli import main
from voight_middleware.instrumentation import wrap as gate
from voight_middleware.pipeline.meter import swap_meter
from voight_middleware.testing.provider import LoopbackProvider

from ..apps.otlp_spans import Receiving

APP = Path(__file__).parents[1] / "apps" / "vercel_app.mjs"
PACKAGES = ("ai@6", "@ai-sdk/openai@3", "@opentelemetry/sdk-trace-node@2", "@opentelemetry/api@1")
EXPORTERS = ("@opentelemetry/exporter-trace-otlp-http@0", "@opentelemetry/exporter-trace-otlp-proto@0")


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of npm's registry. Without Node there is nothing to test; with it, on CI, they have to be there."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    cache = f"--cache={folder / 'npm'}"  # nothing is left in a home, and none is needed
    command = ["npm", "install", cache, "--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", *PACKAGES, *EXPORTERS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    if done.returncode != 0:
        assert not os.environ.get("CI"), done.stderr
        pytest.skip(f"npm cannot install the Vercel AI SDK here: {done.stderr.strip().splitlines()[-1:]}")
    shutil.copy(APP, folder)
    return folder


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(400)
@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_calls_of_node_and_python_are_in_one_report(
    node: Path, receiving: Callable[..., Receiving], encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain, streamed, Responses, an embedding, a failure, two steps with a tool: for each user exactly what the provider has counted."""
    one = receiving()
    with LoopbackProvider() as provider:
        command = ["node", APP.name, f"{one.url}/v1/traces", provider.openai_base_url, encoding]
        done = subprocess.run(command, cwd=node, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == {"steps": 2}

        outer = swap_meter(one.meter)
        try:
            with openai.OpenAI(base_url=provider.openai_base_url, api_key="any") as client, voight.tag(user_id="u_python", plan="pro"):
                gate.wrap(client).chat.completions.create(
                    model="gpt-5-nano", messages=[{"role": "user", "content": "[user:u_python] hello"}]
                )
        finally:
            gate.uninstrument()
            swap_meter(outer)
        counted = provider.counts().by_user

    calls = one.calls()
    by_user = {call.tags.user_id: call for call in calls}
    assert sorted(call.tags.user_id or "" for call in calls) == sorted(
        ["u_plain", "u_stream", "u_resp", "u_embed", "u_error", "u_tools", "u_tools", "u_python"]
    )
    streamed, failed, embedded = by_user["u_stream"], by_user["u_error"], by_user["u_embed"]
    assert (streamed.tags.plan, streamed.tags.tenant_id, streamed.provider) == ("pro", "t_1", "openai")
    assert streamed.tags.extra == {"feature": "chat", "function": "summary"}
    assert (streamed.requested_model, streamed.model) == ("gpt-5-nano", "gpt-5-nano-2025-08-07")
    assert streamed.streamed
    assert streamed.ttft is not None
    assert streamed.duration is not None
    assert 0 < streamed.ttft <= streamed.duration
    assert (failed.outcome, failed.usage, failed.cost_usd) == ("error", None, None)
    assert embedded.model == "text-embedding-3-small"
    assert embedded.usage is not None
    assert embedded.usage.output_tokens is None
    for call in calls:
        if call.usage is not None and call.model == "gpt-5-nano-2025-08-07":
            usage = call.usage
            parts = (usage.input or 0) * Decimal("0.05") + (usage.cache_read or 0) * Decimal("0.005") + (usage.output or 0) * Decimal("0.4")
            assert call.cost_usd == parts / 1_000_000

    assert main(["top", "--ledger", one.settings.ledger, "--format", "json"]) == 0
    rows = {row["user_id"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == set(counted) == set(by_user)
    for user, row in rows.items():
        said = [row["calls"], row["input_tokens"] or 0, row["cache_read_tokens"] or 0, row["output_tokens"] or 0]
        theirs = counted[user]
        assert said == [theirs.calls, theirs.input_tokens, theirs.cached_tokens, theirs.output_tokens]
        cost = sum(call.cost_usd or 0 for call in calls if call.tags.user_id == user)
        assert Decimal(row["cost_usd"] or 0) == cost
        assert (cost > 0) == (user != "u_error")
