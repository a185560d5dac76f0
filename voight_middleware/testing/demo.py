"""``voight demo``: the whole line at work. A provider, the FastAPI example under uvicorn, signed-in users, and the answer."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from voight_middleware.cli import render
from voight_middleware.cli.render import UserError
from voight_middleware.ingest import drain
from voight_middleware.ledger import Ledger, Window, open_ledger
from voight_middleware.reports.spend import spend
from voight_middleware.reports.unowned import unowned
from voight_middleware.settings import default_journal, ledger_url

if TYPE_CHECKING:
    from rich.console import Console

    from voight_middleware.testing.provider import LoopbackProvider

LIVE_REQUESTS = 10
"""How many requests at most are sent where a real provider bills them."""
_AT_ONCE = 16
_START_SECONDS = 30.0

_OPENAI_PATHS = {"/chat": 6, "/chat/stream": 5, "/answer": 3, "/search": 2, "/remember": 1}
_ANTHROPIC_PATHS = {"/summarise": 3, "/summarise/stream": 3}
_HEAVY = {1: 14, 6: 9, 4: 5}
"""How much more than the others these users ask for: two of them on the free plan."""
_RELEASES = ("2026.11.1", "2026.11.2")
"""The second one sends the whole conversation with each question to ``/answer``."""
_CONVERSATION = "What was said before: nothing that matters, and at length. "
_REVENUE = {"t_1": "0.20", "t_2": "0.02", "t_3": "0.10", "t_4": "0.04"}
"""What the tenants pay for the time of the demo, in US dollars."""
_QUESTIONS = (
    "Why is the sky blue?",
    "What did we decide about the outage last Thursday?",
    "Write a polite answer to this customer, who waits for a refund since three weeks.",
    "Which of our contracts end this year, and which of them renew by themselves?",
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of one user; of a visitor without an account where the number is None."""

    path: str
    user: int | None
    text: str
    leaves: bool = False
    """Whether the client goes away in the middle of the answer."""


def main(args: argparse.Namespace) -> int:
    """
    Run the demo; 0 where the ledger agrees with the provider's own count.

    Raises:
        UserError: Something is not installed, or the example app did not start; the message says what to do.
    """
    render.need_rich()
    from rich.console import Console

    if missing := [name for name in ("anthropic", "fastapi", "openai", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"the demo needs {', '.join(missing)}: pip install 'voight-middleware[demo]'")
    from voight_middleware.testing.provider import LoopbackProvider

    console = Console(highlight=False, soft_wrap=True)
    folder = Path("voight-demo").absolute() if args.keep else Path(tempfile.mkdtemp(prefix="voight-demo-"))
    folder.mkdir(exist_ok=True)
    window = Window(time.time_ns() // 1000) if args.keep else Window()  # what is kept may be from an earlier demo
    if os.environ.get("OPENAI_API_KEY"):
        count = min(args.requests, LIVE_REQUESTS)
        console.print(f"OPENAI_API_KEY is set: {count} requests go to the real API, and are billed to your account.")
        paths = _OPENAI_PATHS | (_ANTHROPIC_PATHS if os.environ.get("ANTHROPIC_API_KEY") else {})
        key = {"ANTHROPIC_API_KEY": os.environ.get("ANTHROPIC_API_KEY") or "none"}
        _tell(_drive(_plan(count, paths, live=True), folder, {**key, "VOIGHT_RELEASE": _RELEASES[0]}, console), console)
        return _answer(folder, window, None, console)
    with LoopbackProvider() as provider:
        environment = {
            "OPENAI_API_KEY": "loopback",
            "OPENAI_BASE_URL": provider.openai_base_url,
            "ANTHROPIC_API_KEY": "loopback",
            "ANTHROPIC_BASE_URL": provider.anthropic_base_url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        console.print("A provider on loopback speaks the wire formats of OpenAI and Anthropic (no API key is set, nothing is billed).")
        plan = _plan(args.requests, _OPENAI_PATHS | _ANTHROPIC_PATHS)
        half = len(plan) // 2
        longer = [replace(ask, text=ask.text + _CONVERSATION * 300) if ask.path == "/answer" else ask for ask in plan[half:]]
        outcomes: Counter[str] = Counter()
        for release, asks in zip(_RELEASES, (plan[:half], longer), strict=True):
            if asks:
                outcomes += _drive(asks, folder, {**environment, "VOIGHT_RELEASE": release}, console)
        _tell(outcomes, console)
        return _answer(folder, window, provider, console)


# -- requests in ---------------------------------------------------------------------------------------------------------------


def _plan(count: int, paths: Mapping[str, int], *, live: bool = False) -> list[Ask]:
    """What happens: some users ask much more than others; a few visitors, errors of the provider, and clients that go away."""
    chance = random.Random(20)
    users = range(1, 21)
    weights = [_HEAVY.get(user, 1) for user in users]
    plan: list[Ask] = []
    for number in range(count):
        (user,) = chance.choices(users, weights)
        (path,) = chance.choices([*paths], [*paths.values()])
        question = chance.choice(_QUESTIONS)
        if live:
            visits = path == "/search" and number % 5 == 0
            plan.append(Ask(path, None if visits else user, f"{question} Answer in one sentence."))
            continue
        if number % 15 == 7:
            plan.append(Ask(chance.choice(("/chat", "/search")), None, question))
            continue
        text = f"[user:u_{user}] {question} {'Take all of it into account. ' * chance.randrange(120)}"
        if number % 40 == 5:
            plan.append(Ask("/chat", user, f"{text} [x-loopback-status: 429]"))
        elif number % 40 == 9:
            plan.append(Ask("/summarise", user, f"{text} [x-loopback-status: 500]"))
        elif number % 25 == 11:
            stream = chance.choice(("/chat/stream", "/summarise/stream"))
            plan.append(Ask(stream, user, f"{text} [x-loopback-chunks: 60] [x-loopback-chunk-delay-ms: 50]", leaves=True))
        else:
            plan.append(Ask(path, user, text))
    return plan


def _drive(plan: list[Ask], folder: Path, environment: Mapping[str, str], console: Console) -> Counter[str]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"starting the FastAPI example under uvicorn, release {environment['VOIGHT_RELEASE']}", total=None)
        with _app(folder, environment) as port, ThreadPoolExecutor(_AT_ONCE) as pool:
            progress.update(task, description="requests of signed-in users", total=len(plan))
            outcomes: Counter[str] = Counter()
            for sent in as_completed([pool.submit(_send, port, ask) for ask in plan]):
                outcomes[sent.result()] += 1
                progress.advance(task)
    return outcomes


def _tell(outcomes: Counter[str], console: Console) -> None:
    failed, left = outcomes["failed"], outcomes["left"]
    console.print(
        f"{outcomes['answered']} were answered, {failed} failed at the provider, {left} clients left in the middle of an answer.\n"
    )


def _send(port: int, ask: Ask) -> str:
    headers = {"content-type": "application/json"}
    if ask.user is not None:
        headers["authorization"] = f"Bearer token-{ask.user}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", ask.path, json.dumps({"text": ask.text}), headers)
        response = connection.getresponse()
        if ask.leaves:
            response.read(12)
            response.close()
            return "left"
        response.read()
        return "answered" if response.status < 400 else "failed"
    except (OSError, http.client.HTTPException):
        return "failed"
    finally:
        connection.close()


@contextmanager
def _app(folder: Path, environment: Mapping[str, str]) -> Generator[int]:
    """The example app in a process of its own, as a deployment starts it; the port that it listens on."""
    module = _example()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
    own = {"VOIGHT_LEDGER": _ledger(folder)}
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(module.parent), f"{module.stem}:app"]
    options = ["--port", str(port), "--log-level", "warning"]
    log = folder / "app.log"
    with log.open("ab") as output:
        process = subprocess.Popen([*command, *options], env={**inherited, **own, **environment}, stdout=output, stderr=output)
    try:
        _wait(process, port, log)
        yield port
    finally:
        process.terminate()  # graceful: what was metered is in the ledger when the process has ended
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            return
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        finally:
            connection.close()
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise UserError(f"the example app did not start: {last[0]} (all of it: {log})")


def _example() -> Path:
    """The example app: in the wheel beside this module, in a checkout at its own place."""
    installed = Path(__file__).with_name("example_fastapi.py")
    return installed if installed.exists() else Path(__file__).parents[2] / "example_apps" / "fastapi_app" / "app.py"


def _ledger(folder: Path) -> str:
    return ledger_url(str(folder / "ledger.db"))


# -- the answer out ------------------------------------------------------------------------------------------------------------


def _answer(folder: Path, window: Window, provider: LoopbackProvider | None, console: Console) -> int:
    url = _ledger(folder)
    drain(url, default_journal(url))
    ledger = open_ledger(url, create=False)
    try:
        render.print_table(spend(ledger, ["user_id"], None, window, 10), {}, unowned(ledger, None, window))
        console.print()
        render.print_table(spend(ledger, ["plan"], None, window), {}, None)
        agrees = provider is None or _agrees(ledger, window, provider, console)
    finally:
        ledger.close()
    place = shlex.quote(str(folder / "ledger.db"))
    questions = ["plans", "unattributed", "user u_1", "spend --by plan,model"]
    if provider is not None:
        revenue = folder / "revenue.csv"
        revenue.write_text("id,revenue\n" + "".join(f"{tenant},{paid}\n" for tenant, paid in _REVENUE.items()))
        questions[1:1] = [f"release {_RELEASES[1]}", f"margin --on tenant --revenue {shlex.quote(str(revenue))}"]
    console.print("\nAsk on:")
    for question in questions:
        console.print(f"  voight {question} --ledger {place}", markup=False)
    return 0 if agrees else 1


def _agrees(ledger: Ledger, window: Window, provider: LoopbackProvider, console: Console) -> bool:
    """Compare the calls whose usage the provider has reported to the end with its own count of them."""
    ours = spend(ledger, (), {"outcome": "ok"}, window).total
    theirs = provider.counts().total
    console.print(
        f"\nprovider's own count: {theirs.input_tokens:,} tokens in, {theirs.output_tokens:,} out; "
        f"ledger: {ours.input_tokens or 0:,} in, {ours.output_tokens or 0:,} out"
    )
    if (ours.calls, ours.input_tokens, ours.output_tokens) == (theirs.completed, theirs.input_tokens, theirs.output_tokens):
        return True
    console.print(
        f"These differ ({theirs.completed:,} answers, {ours.calls:,} calls), which is a defect: please report it.", style="bold red"
    )
    return False
