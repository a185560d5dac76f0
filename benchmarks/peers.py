"""
What metering adds to a call of the OpenAI SDK, ours beside others that record calls.

    python benchmarks/peers.py                 # batches back to back
    python benchmarks/peers.py --apart 20      # one call in 20 ms: caches are cold, as in a server
    python benchmarks/peers.py --stream

Each library has two processes in a virtual environment of its own: one that records, and one that
does not, its bare. All get the same version of the SDK and the same answers from memory. In a round
every process has one batch, in an order by chance; what is added is the difference to the own bare
in the same round. "Caller" is the CPU time of the calling thread, "in all" that of the process, and
of what the library writes or batches until a flush after the batch. Exporters discard: nothing is
encoded for the network, nothing is sent. Ours is complete: journal, prices and ledger.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import canned

OURS = "voight-middleware"
CONTROL = "bare, once more"
REQUIREMENTS = {
    "sentry": ("sentry-sdk==2.75.0",),
    "otel-genai": (
        "opentelemetry-instrumentation-genai-openai==1.3b0",
        "opentelemetry-sdk==1.45.2",
    ),
    "openinference": (
        "openinference-instrumentation-openai==0.1.66",
        "opentelemetry-sdk==1.45.2",
    ),
    "langfuse": ("langfuse==5.0.4",),
}
"""What is installed for each of the others, beside the version of ``openai`` that is here."""
VENVS = Path.home() / ".cache" / "voight-benchmarks"


# -- the libraries ---------------------------------------------------------------------------------


@dataclass
class Recorder:
    """A library that has been set up, as the calls use it."""

    make_client: Callable[..., Any]
    user: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    """Names the user of the calls inside."""
    batch: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    """What a request of a web framework would have open already."""
    flush: Callable[[], Any] = lambda: None
    recorded: Callable[[], int] = lambda: 0
    """How many calls it has recorded since the start."""


def bare() -> Recorder:
    """The SDK alone."""
    import openai

    return Recorder(openai.OpenAI)


def voight_middleware() -> Recorder:
    """Everything that it does in an application: the call is priced, and in the ledger."""
    import sqlite3

    import openai

    import voight_middleware as voight

    ledger = Path(tempfile.mkdtemp()) / "ledger.db"
    voight.configure(ledger=f"sqlite:///{ledger}")

    def make_client(**arguments: Any) -> Any:
        return voight.wrap(openai.OpenAI(**arguments))

    def recorded() -> int:
        with contextlib.closing(sqlite3.connect(ledger)) as connection:
            return int(connection.execute("SELECT count(*) FROM calls").fetchone()[0])

    user = lambda: voight.tag(user_id="u_1")  # noqa: E731
    return Recorder(make_client, user, flush=voight.flush, recorded=recorded)


def sentry() -> Recorder:
    """
    Sentry at its lightest: a call is one span of a transaction that is open already, without a
    span for its HTTP request, and without prompts.
    """
    import openai
    import sentry_sdk
    from sentry_sdk.integrations.httpx2 import Httpx2Integration
    from sentry_sdk.transport import Transport

    spans = 0

    class Discard(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            nonlocal spans
            for item in envelope.items:
                event = item.payload.json or {}
                for span in (*event.get("spans", ()), *event.get("items", ())):
                    spans += "gen_ai" in json.dumps(span, default=str)

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        traces_sample_rate=1.0,
        transport=Discard,
        auto_session_tracking=False,
        disabled_integrations=[Httpx2Integration()],
    )

    @contextlib.contextmanager
    def user() -> Iterator[None]:
        with sentry_sdk.isolation_scope() as scope:
            scope.set_user({"id": "u_1"})
            yield

    return Recorder(
        openai.OpenAI,
        user,
        batch=lambda: sentry_sdk.start_transaction(name="batch", op="task"),
        flush=lambda: sentry_sdk.flush(timeout=5),
        recorded=lambda: spans,
    )


def discarding(spans: list[int]) -> Any:
    """An exporter of OpenTelemetry that counts spans."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Discard(SpanExporter):
        def export(self, batch: Any) -> Any:
            spans[0] += len(batch)
            return SpanExportResult.SUCCESS

    return Discard()


def opentelemetry(spans: list[int]) -> Any:
    """A tracer provider as an application has it: spans are exported in batches."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(discarding(spans)))
    return provider


def otel_genai() -> Recorder:
    """OpenTelemetry's own instrumentation, without prompts. It has no way to name a user."""
    import openai
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    spans = [0]
    provider = opentelemetry(spans)
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    return Recorder(openai.OpenAI, flush=provider.force_flush, recorded=lambda: spans[0])


def openinference() -> Recorder:
    """Arize's instrumentation, with prompts, which is its default."""
    import openai
    from openinference.instrumentation import using_user
    from openinference.instrumentation.openai import OpenAIInstrumentor

    spans = [0]
    provider = opentelemetry(spans)
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    return Recorder(
        openai.OpenAI,
        lambda: using_user("u_1"),
        flush=provider.force_flush,
        recorded=lambda: spans[0],
    )


def langfuse() -> Recorder:
    """Langfuse's client, with prompts, which is its default."""
    from langfuse import Langfuse, propagate_attributes
    from langfuse.openai import OpenAI

    spans = [0]
    client = Langfuse(
        public_key="pk-lf-benchmark",
        secret_key="sk-lf-benchmark",
        base_url="http://127.0.0.1:9",
        span_exporter=discarding(spans),
    )
    return Recorder(
        OpenAI,
        lambda: propagate_attributes(user_id="u_1"),
        flush=client.flush,
        recorded=lambda: spans[0],
    )


LIBRARIES: dict[str, Callable[[], Recorder]] = {
    OURS: voight_middleware,
    "sentry": sentry,
    "otel-genai": otel_genai,
    "openinference": openinference,
    "langfuse": langfuse,
}


# -- a process -------------------------------------------------------------------------------------


def worker(library: str, stream: bool) -> None:
    """
    Answer each number on standard input with the microseconds per call that a batch of so many
    calls took: of this thread over the calls, and of the process over the calls and a flush.
    """
    recorder = LIBRARIES[library]() if library else bare()
    import openai

    client = recorder.make_client(api_key="k", http_client=canned.transport("openai"))
    arguments = canned.arguments("openai", stream=stream)

    def call() -> None:
        with recorder.user():
            answer = client.chat.completions.create(**arguments)
            if stream:
                for _ in answer:
                    pass

    def batch(count: int) -> tuple[float, float]:
        process = time.process_time_ns()
        with recorder.batch():
            thread = time.thread_time_ns()
            for _ in range(count):
                call()
            thread = time.thread_time_ns() - thread
        if count > 1:
            recorder.flush()
        return thread / count / 1e3, (time.process_time_ns() - process) / count / 1e3

    batch(5)
    before, made = recorder.recorded(), 0
    print(openai.__version__, flush=True)
    for line in sys.stdin:
        count = int(line)
        if not count:
            break
        if count > 1:
            gc.collect(1)
        print(*batch(count), flush=True)
        made += count
    recorder.flush()
    kept = recorder.recorded() - before
    print(json.dumps(kept / made if made and library else None), flush=True)


@dataclass
class Process:
    """The process of a library, or of its bare."""

    name: str
    library: str
    python: str
    stream: bool
    figures: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("VOIGHT_", "OTEL_", "LANGFUSE_", "SENTRY_", "OPENAI_"))
        }
        if self.python != sys.executable:
            environment = {
                name: value
                for name, value in environment.items()
                if name not in ("PYTHONPATH", "VIRTUAL_ENV")
            }
        self._process = subprocess.Popen(
            [self.python, "-W", "ignore", __file__, "--worker", self.library]
            + ["--stream"] * self.stream,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.version = self._read()

    def measure(self, count: int) -> None:
        """One batch."""
        self._write(count)
        caller, everything = self._read().split()
        self.figures.append((float(caller), float(everything)))

    def end(self) -> float | None:
        """End it; return how many calls it has recorded per call that was made."""
        self._write(0)
        recorded = json.loads(self._read())
        self._process.communicate(timeout=60)
        return recorded if recorded is None else float(recorded)

    def _write(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            complaint = self._process.communicate(timeout=60)[1].strip()
            raise SystemExit(f"{self.name} ended: {complaint}")
        return line.strip()


# -- all of them -----------------------------------------------------------------------------------


def python_of(library: str, venvs: Path) -> str:
    """The interpreter of *library*."""
    return sys.executable if library == OURS else str(venvs / library / "bin" / "python")


def installation(library: str, venvs: Path) -> str:
    """The command that makes the virtual environment of *library*."""
    import openai

    folder = venvs / library
    wanted = " ".join((*REQUIREMENTS[library], f"openai=={openai.__version__}"))
    return f"{sys.executable} -m venv {folder} && {folder}/bin/pip install -q {wanted}"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="What metering adds, ours beside others.")
    parser.add_argument("--libraries", default=",".join(LIBRARIES))
    parser.add_argument("--rounds", type=int, help="of one batch each: 30; 300 with --apart")
    parser.add_argument("--calls", type=int, default=80, help="in a batch; a tenth if streamed")
    parser.add_argument("--apart", type=float, help="milliseconds before each call: no batches")
    parser.add_argument("--stream", action="store_true", help="streams of 200 chunks")
    parser.add_argument("--venvs", type=Path, default=VENVS, help="where the others are installed")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return worker(options.worker, options.stream)
    libraries = options.libraries.split(",")
    missing = [one for one in libraries if not Path(python_of(one, options.venvs)).exists()]
    if missing:
        print("Not installed, and so not measured. To install:")
        print(" &&\n".join(installation(one, options.venvs) for one in missing), end="\n\n")
    libraries = [one for one in libraries if one not in missing]
    processes = {
        (library, records): Process(
            library,
            library if records else "",
            python_of(library, options.venvs),
            options.stream,
        )
        for library in libraries
        for records in (False, True)
    }
    control = Process(CONTROL, "", sys.executable, options.stream)
    everyone = [*processes.values(), control]
    load = os.getloadavg()[0]
    chance = random.Random(1)
    count = 1 if options.apart else max(2, options.calls // (10 if options.stream else 1))
    for _ in range(options.rounds or (300 if options.apart else 30)):
        chance.shuffle(everyone)
        for process in everyone:
            time.sleep((options.apart or 0) / 1000)
            process.measure(count)
    show(processes, control, libraries, options.stream, bool(options.apart))
    versions = {process.version for process in everyone}
    print(f"\nopenai {', '.join(sorted(versions))}; load {load:.1f} to {os.getloadavg()[0]:.1f}")
    return None


def show(
    processes: dict[tuple[str, bool], Process],
    control: Process,
    libraries: list[str],
    stream: bool,
    apart: bool,
) -> None:
    """Print the table: microseconds of CPU time per call."""
    print(f"{'µs of CPU per call':22}{'bare':>9}{'+ caller':>10}{'ratio':>8}", end="")
    print("" if apart else f"{'+ in all':>10}{'ratio':>8}", end="")
    print(f"{'/chunk' if stream else '':>9}{'recorded per call':>20}")

    def line(name: str, process: Process, base: Process) -> None:
        added = [
            statistics.median(
                mine[what] - its[what]
                for mine, its in zip(process.figures, base.figures, strict=True)
            )
            for what in (0, 1)
        ]
        plain = [statistics.median(one[what] for one in base.figures) for what in (0, 1)]
        text = f"{name:22}{plain[0]:9.1f}{added[0]:+10.1f}{added[0] / plain[0]:+8.1%}"
        if not apart:
            text += f"{added[1]:+10.1f}{added[1] / plain[1]:+8.1%}"
        text += f"{added[0] / canned.CHUNKS:+9.2f}" if stream else " " * 9
        recorded = process.end()
        print(text + ("" if recorded is None else f"{recorded:20.2f}"), flush=True)

    for library in libraries:
        line(library, processes[library, True], processes[library, False])
    first = libraries[0]
    line(CONTROL, control, processes[first, False])
    for library in libraries:
        processes[library, False].end()


if __name__ == "__main__":
    main()
