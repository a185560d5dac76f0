"""Spans of processes that end or fork, and of those without OpenTelemetry."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.server


def test_the_end_of_the_process_waits_for_the_last_spans(tmp_path: Path) -> None:
    """A script that ends right after its call: its span is exported, with its cost."""
    script = f"""
        import voight_middleware as voight
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
        from voight_middleware.exporters.otel.spans import OTelSpans
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
        trace.set_tracer_provider(provider)
        voight.configure(ledger={str(tmp_path / "ledger.db")!r}, listeners=[OTelSpans()])
        with voight.metered_call(provider="openai", model="gpt-4o-mini", endpoint="chat") as call:
            call.report({{"prompt_tokens": 10, "completion_tokens": 5}})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True)

    assert '"name": "chat gpt-4o-mini"' in done.stdout
    assert '"voight.cost_usd": "0.' in done.stdout
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_makes_spans_of_its_own(tmp_path: Path) -> None:
    """The parent has made calls before the fork, as a preloading server does: each process exports its own spans, once."""
    script = f"""
        import os, sys, voight_middleware as voight
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, ConsoleSpanExporter
        from voight_middleware.exporters.otel.spans import OTelSpans
        provider = TracerProvider()
        line = lambda span: f"{{os.getpid()}} {{span.name}} {{span.attributes['voight.cost_usd']}} {{span.attributes['user.id']}}\\n"
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=line)))
        trace.set_tracer_provider(provider)
        voight.configure(ledger={str(tmp_path / "ledger.db")!r}, listeners=[OTelSpans()])
        def call(user):
            with voight.tag(user_id=user), voight.metered_call(provider="openai", model="gpt-4o-mini", endpoint="chat") as one:
                one.report({{"prompt_tokens": 10, "completion_tokens": 5}})
        call("parent")
        if os.fork() == 0:
            call("child")
            sys.exit()
        os.wait()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True)

    lines = [line.split() for line in done.stdout.splitlines()]
    assert sorted(line[-1] for line in lines) == ["child", "parent"], done.stdout + done.stderr
    assert len({line[0] for line in lines}) == 2


def test_importing_the_library_does_not_import_opentelemetry() -> None:
    """It is optional."""
    script = "import sys, voight_middleware; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_bundle_without_metadata_of_packages() -> None:
    """PyInstaller and a copied folder have none: there are spans and metrics all the same."""
    script = """
        import importlib.metadata
        def version(name): raise importlib.metadata.PackageNotFoundError(name)
        from opentelemetry.sdk.trace import TracerProvider
        importlib.metadata.version = version
        from voight_middleware.exporters.otel.metrics import OTelMetrics
        from voight_middleware.exporters.otel.spans import OTelSpans
        OTelMetrics()
        assert OTelSpans(TracerProvider())._find_tracer() is not None
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_without_opentelemetry_the_error_says_what_to_install() -> None:
    """One sentence, with the extra."""
    script = "import sys; sys.modules['opentelemetry'] = None\nimport voight_middleware.exporters.otel.spans"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().splitlines()[-1].endswith("pip install 'voight-middleware[otel]'")
