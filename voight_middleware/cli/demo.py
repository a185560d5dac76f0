"""``voight demo``: run the FastAPI example against a loopback provider, and print its costs."""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import ROUND_UP, Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from voight_middleware.cli.arguments import positive
from voight_middleware.cli.context import Context
from voight_middleware.cli.render import UserError, console_for_tables, need_rich
from voight_middleware.cli.spend import print_spend
from voight_middleware.config.ledger_url import ledger_url
from voight_middleware.config.paths import default_journal
from voight_middleware.ledger import Ledger, Window, open_ledger
from voight_middleware.pipeline.ingest import drain
from voight_middleware.pricing.price_call import price_call
from voight_middleware.providers.hosts import host_name
from voight_middleware.records.call import Call
from voight_middleware.reports.spend import spend
from voight_middleware.reports.unattributed_share import unattributed_share

if TYPE_CHECKING:
    import subprocess

    from rich.console import Console

    from voight_middleware.testing.provider import LoopbackProvider

LIVE_REQUESTS = 10
"""The most requests to a real provider, which bills them."""
_AT_ONCE = 16
_START_SECONDS = 30.0

_OPENAI_PATHS = {"/chat": 6, "/chat/stream": 5, "/answer": 3, "/search": 2, "/remember": 1}
_ANTHROPIC_PATHS = {"/summarise": 3, "/summarise/stream": 3}
_REAL = {
    "/chat": ("openai", "chat", "gpt-4o-mini", 100),
    "/chat/stream": ("openai", "chat", "gpt-4o-mini", 100),
    "/answer": ("openai", "responses", "gpt-5-mini", 1_000),
    "/search": ("openai", "embeddings", "text-embedding-3-small", 0),
    "/remember": ("openai", "embeddings", "text-embedding-3-small", 0),
    "/summarise": ("anthropic", "messages", "claude-haiku-4-5", 500),
    "/summarise/stream": ("anthropic", "messages", "claude-haiku-4-5", 500),
}
"""Provider, endpoint and model of each path, and the output tokens of one sentence."""
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_HEAVY = {1: 14, 6: 9, 4: 5}
"""Users with more requests than the others, and the factor: two of them are on the free plan."""
_RELEASES = ("2026.11.1", "2026.11.2")
"""The second release sends the whole conversation with each question to ``/answer``."""
_CONVERSATION = "What was said before: nothing that matters, and at length. "
_REVENUE = {"t_1": "0.20", "t_2": "0.02", "t_3": "0.10", "t_4": "0.04"}
"""The revenue of each tenant in the time of the demo, in US dollars."""
_QUESTIONS = (
    "Why is the sky blue?",
    "What did we decide about the outage last Thursday?",
    "Write a polite answer to this customer, who waits for a refund since three weeks.",
    "Which of our contracts end this year, and which of them renew by themselves?",
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of a user, or of an anonymous visitor if *user* is None."""

    path: str
    user: int | None
    text: str
    leaves: bool = False
    """Whether the client disconnects in the middle of the response."""


EXAMPLES = """\
Starts a FastAPI app, sends 200 requests of several users, and prints the costs.
The loopback provider needs no API key, and nothing is billed.

examples:
  voight demo
  voight demo --keep                              keep the ledger for more reports
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--requests",
        metavar="N",
        type=positive,
        default=200,
        help="how many requests (default: 200)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the demo's ledger in ./voight-demo, for more reports",
    )
    parser.add_argument(
        "--real",
        action="store_true",
        help="use OpenAI (and Anthropic, with a key), which bills you; asks first",
    )
    parser.add_argument("--yes", action="store_true", help="with --real: do not ask")


def run(context: Context) -> int:
    """
    Run the demo; return 0 if the ledger agrees with the provider's own count.

    Raises:
        UserError: A package is missing, or the example app did not start.
    """
    args = context.args
    need_rich()
    from rich.console import Console

    if missing := [
        name for name in ("anthropic", "fastapi", "openai", "uvicorn") if find_spec(name) is None
    ]:
        raise UserError(
            f"the demo needs {', '.join(missing)}: pip install 'voight-middleware[demo]'"
        )
    from voight_middleware.testing.provider import LoopbackProvider

    console = Console(highlight=False, soft_wrap=True)
    if not args.real:
        with _kept(args.keep) as folder, LoopbackProvider() as provider:
            console.print(
                "A provider on loopback speaks the wire formats of OpenAI and Anthropic: no API "
                "key is used, nothing is billed."
            )
            return _run(
                _plan(args.requests, _OPENAI_PATHS | _ANTHROPIC_PATHS),
                folder,
                provider,
                args.keep,
                console,
            )
    if not os.environ.get("OPENAI_API_KEY"):
        raise UserError(
            "--real needs OPENAI_API_KEY; without --real the demo uses a loopback provider, and "
            "nothing is billed"
        )
    plan = _plan(min(args.requests, LIVE_REQUESTS), _OPENAI_PATHS | _anthropic_paths(), live=True)
    _confirm(plan, args.yes)
    with _kept(args.keep) as folder:
        return _run(plan, folder, None, args.keep, console)


def _run(
    plan: list[Ask], folder: Path, provider: LoopbackProvider | None, keep: bool, console: Console
) -> int:
    # Skip the calls of an earlier demo.
    window = Window(time.time_ns() // 1000) if keep else Window()
    half = (len(plan) + 1) // 2
    more = _CONVERSATION * (300 if provider is not None else 10)
    longer = [
        replace(ask, text=ask.text + more) if ask.path == "/answer" else ask for ask in plan[half:]
    ]
    outcomes: Counter[str] = Counter()
    for release, asks in zip(_RELEASES, (plan[:half], longer), strict=True):
        if asks:
            outcomes += _drive(
                asks, folder, {**_environment(provider), "VOIGHT_RELEASE": release}, console
            )
    _print_outcomes(outcomes, console)
    return _print_costs(folder, window, provider, keep, console)


@contextmanager
def _kept(keep: bool) -> Generator[Path]:
    """Create the folder of the demo's ledger, and delete it afterwards unless *keep* is set."""
    if not keep:
        with tempfile.TemporaryDirectory(prefix="voight-demo-") as name:
            yield Path(name)
        return
    folder = Path("voight-demo").absolute()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be created ({error.strerror}): run the demo in a folder that you "
            "can write"
        ) from error
    yield folder


def _anthropic_paths() -> dict[str, int]:
    return _ANTHROPIC_PATHS if os.environ.get("ANTHROPIC_API_KEY") else {}


def _confirm(plan: list[Ask], yes: bool) -> None:
    """
    Print the cost of a run against the real providers, and ask for confirmation.

    Raises:
        UserError: The user declines, or standard input is not a terminal.
    """
    variables = {
        "OpenAI": "OPENAI_BASE_URL",
        **({"Anthropic": "ANTHROPIC_BASE_URL"} if _anthropic_paths() else {}),
    }
    names = [
        f"{name} at {host_name(url)}" if (url := os.environ.get(variable)) else name
        for name, variable in variables.items()
    ]
    cost = f"about ${_estimate(plan)} by list prices"
    question = (
        f"{len(plan)} requests go to {' and '.join(names)}, and are billed to your account: {cost}."
    )
    if yes:
        console_for_tables().print(question, markup=False, soft_wrap=True)
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question} Add --yes to send them without a terminal")
    try:
        answer = input(f"{question} Send them? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("nothing was sent")


def _estimate(plan: list[Ask]) -> Decimal:
    """Return the approximate maximum cost of the requests, in US dollars, rounded up to cents."""
    from voight_middleware.pricing import PriceBook

    book, total = PriceBook(), Decimal(0)
    for ask in plan:
        provider, endpoint, model, out = _REAL[ask.path]
        tokens = len(ask.text + _CONVERSATION * 10) // 3
        call = Call(
            call_id="",
            occurred_at=time.time_ns() // 1000,
            provider=provider,
            endpoint=endpoint,
            model=model,
        )
        call.estimated_input, call.estimated_output = tokens, out
        price_call(call, book)
        if call.cost_usd is None:
            raise UserError(
                f"there is no list price for {model}, so the cost is unknown: update genai-prices"
            )
        total += call.cost_usd
    return total.quantize(Decimal("0.01"), ROUND_UP)


def _environment(provider: LoopbackProvider | None) -> dict[str, str]:
    """Return the environment of the example; for loopback without the user's keys and proxies."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VOIGHT_")}
    if provider is None:
        return {**kept, "ANTHROPIC_API_KEY": os.environ.get("ANTHROPIC_API_KEY") or "none"}
    unwanted = ("OPENAI_", "ANTHROPIC_")
    kept = {
        name: value
        for name, value in kept.items()
        if not name.startswith(unwanted) and name.lower() not in _PROXIES
    }
    return {
        **kept,
        "OPENAI_API_KEY": "loopback",
        "OPENAI_BASE_URL": provider.openai_base_url,
        "ANTHROPIC_API_KEY": "loopback",
        "ANTHROPIC_BASE_URL": provider.anthropic_base_url,
    }


# -- requests in --


def _plan(count: int, paths: Mapping[str, int], *, live: bool = False) -> list[Ask]:
    """Return the requests: heavy and light users, visitors, errors, clients that disconnect."""
    chance = random.Random(20)
    users = range(1, 21)
    weights = [_HEAVY.get(user, 1) for user in users]
    plan: list[Ask] = []
    for number in range(count):
        (user,) = chance.choices(users, weights)
        (path,) = chance.choices([*paths], [*paths.values()])
        question = chance.choice(_QUESTIONS)
        if live:
            visits = number % 5 == 2
            plan.append(
                Ask(
                    "/search" if visits else path,
                    None if visits else user,
                    f"{question} Answer in one sentence.",
                )
            )
            continue
        if number % 15 == 7:
            plan.append(Ask(chance.choice(("/chat", "/search")), None, question))
            continue
        text = (
            f"[user:u_{user}] {question} {'Take all of it into account. ' * chance.randrange(120)}"
        )
        if number % 40 == 5:
            plan.append(Ask("/chat", user, f"{text} [x-loopback-status: 429]"))
        elif number % 40 == 9:
            plan.append(Ask("/summarise", user, f"{text} [x-loopback-status: 500]"))
        elif number % 25 == 11:
            stream = chance.choice(("/chat/stream", "/summarise/stream"))
            plan.append(
                Ask(
                    stream,
                    user,
                    f"{text} [x-loopback-chunks: 60] [x-loopback-chunk-delay-ms: 50]",
                    leaves=True,
                )
            )
        else:
            plan.append(Ask(path, user, text))
    return plan


def _drive(
    plan: list[Ask], folder: Path, environment: Mapping[str, str], console: Console
) -> Counter[str]:
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            f"starting the FastAPI example under uvicorn, release {environment['VOIGHT_RELEASE']}",
            total=None,
        )
        with _app(folder, environment) as port, ThreadPoolExecutor(_AT_ONCE) as pool:
            progress.update(task, description="requests of signed-in users", total=len(plan))
            outcomes: Counter[str] = Counter()
            for sent in as_completed([pool.submit(_send, port, ask) for ask in plan]):
                outcomes[sent.result()] += 1
                progress.advance(task)
    return outcomes


def _print_outcomes(outcomes: Counter[str], console: Console) -> None:
    failed, left = outcomes["failed"], outcomes["left"]
    console.print(
        f"{outcomes['answered']} succeeded, {failed} failed at the provider, {left} clients "
        "disconnected in the middle of a response.\n"
    )


def _send(port: int, ask: Ask) -> str:
    import http.client

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
    """Run the example app in its own process, as a deployment does; yield its port."""
    import subprocess

    module = _example()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--app-dir",
        str(module.parent),
        f"{module.stem}:app",
    ]
    options = ["--port", str(port), "--log-level", "warning"]
    log = folder / "app.log"
    with log.open("ab") as output:
        variables = {**environment, "VOIGHT_LEDGER": _ledger(folder), "VOIGHT_CONFIG": "none"}
        process = subprocess.Popen(
            [*command, *options], env=variables, stdout=output, stderr=output
        )
    try:
        _wait(process, port, log)
        yield port
    finally:
        process.terminate()  # graceful: the process flushes its calls into the ledger
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import http.client

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
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
    raise UserError(
        f"the example app did not start: {last[0]} (with --keep, its whole output is in "
        f"voight-demo/{log.name})"
    )


def _example() -> Path:
    """Return the example app: beside this module in the wheel, in example_apps in a checkout."""
    installed = Path(__file__).with_name("example_fastapi.py")
    return (
        installed
        if installed.exists()
        else Path(__file__).parents[2] / "example_apps" / "fastapi_app" / "app.py"
    )


def _ledger(folder: Path) -> str:
    return ledger_url(str(folder / "ledger.db"))


# -- costs out --


def _print_costs(
    folder: Path, window: Window, provider: LoopbackProvider | None, keep: bool, console: Console
) -> int:
    url = _ledger(folder)
    drain(url, default_journal(url))
    ledger = open_ledger(url, create=False)
    try:
        users = spend(ledger, ["user_id"], None, window, 10)
        print_spend(users, {}, unattributed_share(ledger, None, window))
        console.print()
        print_spend(spend(ledger, ["plan"], None, window), {}, None)
        agrees = provider is None or _agrees(ledger, window, provider, console)
        released = {
            row.dimensions["release"] for row in spend(ledger, ["release"], None, window).rows
        }
    finally:
        ledger.close()
    if not keep:
        console.print(
            "\nFor more reports: voight demo --keep, which leaves this ledger in voight-demo/.",
            markup=False,
        )
        return 0 if agrees else 1
    place, revenue = shlex.quote(str(folder / "ledger.db")), folder / "revenue.csv"
    revenue.write_text(
        "id,revenue\n" + "".join(f"{tenant},{paid}\n" for tenant, paid in _REVENUE.items())
    )
    questions = [
        "top",
        "plans",
        f"margin --on tenant --revenue {shlex.quote(str(revenue))}",
        "unattributed",
        "spend --by plan,model",
    ]
    questions[2:2] = [f"release {_RELEASES[1]}"] if released.issuperset(_RELEASES) else []
    questions += [
        f"user {user}" for row in users.rows[:1] if (user := row.dimensions["user_id"]) is not None
    ]
    console.print("\nMore reports:")
    for question in questions:
        console.print(f"  voight {question} --ledger {place}", markup=False)
    return 0 if agrees else 1


def _agrees(ledger: Ledger, window: Window, provider: LoopbackProvider, console: Console) -> bool:
    """Compare the completed calls with the provider's own count."""
    ours = spend(ledger, (), {"outcome": "ok"}, window).total
    theirs = provider.counts().total
    console.print(
        f"\nprovider's own count: {theirs.input_tokens:,} tokens in, {theirs.output_tokens:,} out; "
        f"ledger: {ours.input_tokens or 0:,} in, {ours.output_tokens or 0:,} out"
    )
    # Embeddings have no output: None equals 0 tokens.
    if (ours.calls, ours.input_tokens or 0, ours.output_tokens or 0) == (
        theirs.completed,
        theirs.input_tokens,
        theirs.output_tokens,
    ):
        return True
    console.print(
        f"These differ ({theirs.completed:,} responses, {ours.calls:,} calls), which is a defect: "
        "please report it.",
        style="bold red",
    )
    return False
