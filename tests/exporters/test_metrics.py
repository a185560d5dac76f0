"""Tests of voight_middleware/exporters/otel/metrics.py, prometheus.py and measures.py."""

import inspect
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import voight_middleware as voight
from voight_middleware.exporters.otel.conventions import tokens
from voight_middleware.exporters.otel.measures import Measures, Names
from voight_middleware.exporters.otel.metrics import OTelMetrics
from voight_middleware.exporters.prometheus import PrometheusMetrics, prometheus_text
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

HELLO: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


class Measured:
    """A meter provider that is read by hand."""

    def __init__(self, **more: Any) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self.metrics = OTelMetrics(self.provider, **more)

    def points(self, name: str) -> list[Any]:
        """The points of one metric."""
        data: Any = self._reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data is not None else []
        return [point for scope in scopes for metric in scope.metrics if metric.name == name for point in metric.data.data_points]


# -- OpenTelemetry -------------------------------------------------------------------------------------------------------------


def test_calls_tokens_cost_duration_and_first_token(listening: Any, openai_client: openai.OpenAI) -> None:
    """What the metrics say is what the ledger says; nothing names the user or the tenant."""
    measured = Measured()
    listened = listening(measured.metrics)
    with voight.tag(user_id="u_secret", tenant_id="t_secret", session_id="s_secret", plan="pro"):
        openai_client.chat.completions.create(**HELLO)
        list(openai_client.chat.completions.create(**HELLO, stream=True))
        with pytest.raises(openai.APIStatusError):
            openai_client.chat.completions.create(**HELLO, extra_headers={"x-loopback-status": "500"})
    calls = listened.flush()

    sums: Counter[str] = Counter()
    for point in measured.points("voight.client.tokens"):
        sums[point.attributes["voight.token.type"]] += point.value
    answered = [call.usage for call in calls if call.usage is not None and call.outcome == "ok"]
    assert sum(sums.values()) == sum((one.input_tokens or 0) + (one.output_tokens or 0) for one in answered) > 0
    cost = sum(point.value for point in measured.points("voight.client.cost"))
    assert cost == pytest.approx(float(sum(call.cost_usd or 0 for call in calls)), rel=1e-12)
    assert {point.attributes["voight.outcome"]: point.value for point in measured.points("voight.client.calls")} == {"ok": 2, "error": 1}
    durations = measured.points("gen_ai.client.operation.duration")
    assert sum(point.count for point in durations) == 3
    assert [point.attributes["error.type"] for point in durations if "error.type" in point.attributes] == ["InternalServerError"]
    (first,) = measured.points("gen_ai.client.operation.time_to_first_chunk")
    assert first.count == 1
    assert first.sum < 5
    kinds = {point.attributes["gen_ai.token.type"]: point.sum for point in measured.points("gen_ai.client.token.usage")}
    assert kinds["input"] == sum(one.input_tokens or 0 for one in answered)
    everything = str(
        [measured.points(name) for name in ("voight.client.tokens", "voight.client.calls", "gen_ai.client.operation.duration")]
    )
    assert "secret" not in everything
    assert "'voight.plan': 'pro'" in everything


def test_bounds_of_the_convention(listening: Any) -> None:
    """Durations in seconds fall into its buckets, and not into OpenTelemetry's own, which are for milliseconds."""
    if "explicit_bucket_boundaries_advisory" not in inspect.signature(Meter.create_histogram).parameters:
        pytest.skip("this OpenTelemetry takes no bounds from an instrument; a View can set them")
    measured = Measured()
    measured.metrics(_call(duration=1_500_000))

    (point,) = measured.points("gen_ai.client.operation.duration")
    assert tuple(point.explicit_bounds)[:3] == (0.01, 0.02, 0.04)


def test_a_call_without_a_price_is_counted_and_costs_nothing(listening: Any) -> None:
    """An unknown cost is no cost of 0: it is in no sum, and the number of such calls is."""
    measured = Measured()
    measured.metrics(_call(cost_status="unpriced", cost_femto=None))

    assert measured.points("voight.client.cost") == []
    (point,) = measured.points("voight.client.calls")
    assert point.attributes["voight.cost_status"] == "unpriced"


# -- what is bounded -----------------------------------------------------------------------------------------------------------


def _call(**more: Any) -> Call:
    made: dict[str, Any] = {
        "call_id": "c",
        "occurred_at": 1,
        "provider": "openai",
        "endpoint": "chat",
        "model": "gpt-4o-mini",
        "cost_femto": 10**12,
        "cost_status": "priced",
    }
    return Call(**(made | more))


VARYING: dict[str, Callable[[int], Call]] = {
    "model": lambda n: _call(model=f"model-{n}"),
    "plan": lambda n: _call(tags=Tags(plan=f"plan-{n}")),
    "provider": lambda n: _call(provider=f"provider-{n}"),
    "endpoint": lambda n: _call(endpoint=f"endpoint-{n}"),
    "error": lambda n: _call(outcome="error", error=f"Error{n}"),
    "other tags": lambda n: _call(tags=Tags(user_id=f"u_{n}", tenant_id=f"t_{n}", session_id=f"s_{n}", route=f"/{n}", extra={"k": f"{n}"})),
    "requested model": lambda n: _call(model=None, requested_model=f"made-up-{n}"),
    "host, response and tier": lambda n: _call(host=f"host-{n}", response_id=f"r-{n}", service_tier=f"t-{n}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", VARYING.values(), ids=VARYING)
def test_cardinality_is_bounded_by_construction(make: Callable[[int], Call]) -> None:
    """A thousand different values of anything that a client could choose make a hundred and one series at most."""
    measured = Measured(most_models=100, most_plans=20)
    for number in range(1000):
        measured.metrics(make(number))

    points = measured.points("voight.client.calls")
    assert len(points) <= 101
    assert sum(point.value for point in points) == 1000


def test_what_nobody_answered_with_gets_no_name() -> None:
    """A model that a client asks for, and no provider knows, does not take the place of one that answers later."""
    measures = Measures(most_models=1)
    assert measures.labels(_call(model=None, requested_model="made-up")).model == "other"
    assert measures.labels(_call(model="gpt-4o-mini")).model == "gpt-4o-mini"
    assert measures.labels(_call(model=None, requested_model="gpt-4o-mini")).model == "gpt-4o-mini"
    assert measures.labels(_call(model="gpt-5")).model == "other"


def test_the_plans_that_there_are() -> None:
    """A list of plans is the only source of their names; no plan is a plan of its own."""
    measures = Measures(plans=("free", "pro"))
    names = [measures.labels(_call(tags=Tags(plan=plan))).plan for plan in ("free", "pro", "platinum", None)]
    assert names == ["free", "pro", "other", "none"]
    with pytest.raises(TypeError):
        Measures(plans="pro")
    assert Names(5)("x" * 201) == "other"


def test_types_of_tokens_are_disjoint() -> None:
    """They add up to input and output."""
    usage = Usage(input=500, cache_read=400, cache_write_5m=80, cache_write_1h=20, audio_in=7, output=200, reasoning=150)
    found = dict(tokens(_call(usage=usage)))
    assert found == {"input": 507, "cache_read": 400, "cache_write": 100, "output": 50, "reasoning": 150}
    assert sum(found.values()) == (usage.input_tokens or 0) + (usage.output_tokens or 0)
    assert dict(tokens(_call(usage=Usage(output=3)))) == {"output": 3}
    assert dict(tokens(_call(usage=Usage(output=3, reasoning=10)))) == {"output": 0, "reasoning": 3}, "no counter takes less than 0"
    assert dict(tokens(_call())) == {}


def test_half_a_character_fails_no_scrape() -> None:
    """What no text can hold gets no name, whoever has answered with it."""
    registry = CollectorRegistry()
    PrometheusMetrics(registry)(_call(model="gpt\ud800"))
    assert b'model="other"' in prometheus_text(registry)


# -- Prometheus ----------------------------------------------------------------------------------------------------------------


def _samples(text: str) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(text)
    return {(sample.name, str(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def test_prometheus_text(listening: Any, openai_client: openai.OpenAI) -> None:
    """The same sums in Prometheus' own format; no label is a user's."""
    registry = CollectorRegistry()
    listened = listening(PrometheusMetrics(registry))
    with voight.tag(user_id="u_secret", tenant_id="t_secret", plan="pro"):
        openai_client.chat.completions.create(**HELLO)
        list(openai_client.chat.completions.create(**HELLO, stream=True))
    calls = listened.flush()

    text = prometheus_text(registry).decode()
    samples = _samples(text)
    assert "secret" not in text
    assert sum(value for (name, _), value in samples.items() if name == "voight_calls_total") == 2
    cost = sum(value for (name, _), value in samples.items() if name == "voight_cost_usd_total")
    assert cost == pytest.approx(float(sum(call.cost_usd or 0 for call in calls)), rel=1e-12)
    assert sum(value for (name, _), value in samples.items() if name == "voight_duration_seconds_count") == 2
    assert sum(value for (name, _), value in samples.items() if name == "voight_time_to_first_token_seconds_count") == 1


@pytest.mark.server
def test_several_workers_are_summed_up(tmp_path: Path) -> None:
    """Three forked workers of one parent: any process answers with the calls of all, those of ended ones too."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    script = f"""
        import os, voight_middleware as voight
        from voight_middleware.exporters.prometheus import PrometheusMetrics, prometheus_text
        voight.configure(ledger={str(tmp_path / "ledger.db")!r}, listeners=[PrometheusMetrics()])
        for number in range(3):
            if os.fork() == 0:
                for _ in range(number + 1):
                    voight.record(provider="openai", model="gpt-4o-mini", usage={{"prompt_tokens": 10, "completion_tokens": 5}})
                voight.flush()
                os._exit(0)
        for _ in range(3):
            assert os.wait()[1] == 0
        print(prometheus_text().decode())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
    )
    samples = _samples(done.stdout)
    assert sum(value for (name, _), value in samples.items() if name == "voight_calls_total") == 6


@pytest.mark.server
@pytest.mark.parametrize(("module", "extra"), [("otel.metrics", "otel"), ("prometheus", "prometheus")])
def test_what_is_missing_is_said(module: str, extra: str) -> None:
    """One sentence, with the extra."""
    script = (
        f"import sys; sys.modules['opentelemetry'] = sys.modules['prometheus_client'] = None; import voight_middleware.exporters.{module}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().splitlines()[-1].endswith(f"pip install 'voight-middleware[{extra}]'")


def test_the_metrics_of_a_short_script_are_exported_at_its_end(tmp_path: Path, scripts: Any) -> None:
    """The calls come to the instruments before the meter provider exports for the last time."""
    source = """
    import sys
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
    import voight_middleware as voight
    from voight_middleware.exporters.otel.metrics import OTelMetrics
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter())]))
    voight.configure(ledger=sys.argv[1], listeners=[OTelMetrics()])
    voight.record(provider="openai", model="gpt-4o-mini", usage={"prompt_tokens": 10, "completion_tokens": 1})
    """
    said = scripts.run(source, str(tmp_path / "ledger.db"))
    assert "voight.client.cost" in said
    assert "gpt-4o-mini" in said
