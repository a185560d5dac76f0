"""
Metrics out through OpenTelemetry::

    voight.configure(listeners=[OTelMetrics()])

=============================================== ========= ======= =================================================================
instrument                                      kind      unit    attributes besides provider, operation, model and plan
=============================================== ========= ======= =================================================================
``gen_ai.client.token.usage``                   histogram {token} ``gen_ai.token.type``: ``input`` (cached included), ``output``
``gen_ai.client.operation.duration``            histogram s       ``error.type``, ``voight.outcome``
``gen_ai.client.operation.time_to_first_chunk`` histogram s
``voight.client.calls``                         counter   {call}  ``voight.outcome``, ``voight.cost_status``
``voight.client.tokens``                        counter   {token} ``voight.token.type``: disjoint, see ``conventions.tokens``
``voight.client.cost``                          counter   USD
=============================================== ========= ======= =================================================================

The names of ``gen_ai.*`` are those of OpenTelemetry's semantic conventions up to 1.44
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/), which today's dashboards know; a later state of them, in development,
renames them (https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/client-inference.md).

A metric is a floating-point number, and loses what OpenTelemetry drops; the ledger is the truth. Calls without a price are in
``voight.client.calls`` as ``unpriced``, and in no cost.
"""

from __future__ import annotations

import atexit
from collections.abc import Collection, Sequence
from typing import Any

from voight_middleware.config.version import VERSION
from voight_middleware.exporters.otel.conventions import tokens
from voight_middleware.exporters.otel.measures import SECONDS, TOKENS, Measures
from voight_middleware.pipeline.meter import flush_before_exit
from voight_middleware.records.call import Call

try:
    from opentelemetry import metrics
except ImportError as error:
    raise ImportError("metrics need OpenTelemetry: pip install 'voight-middleware[otel]'") from error


class OTelMetrics:
    """
    Counts every call, for ``configure(listeners=[…])``. Runs on a background thread; no attribute is a user or a tenant.

    Args:
        meter_provider: Where the metrics go; by default the global provider.
        plans: The plans that there are, all others being ``other``; by default the first *most_plans* that are seen.
        most_models: How many models have a name of their own, in each process.
        most_plans: How many plans have.
    """

    def __init__(
        self,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        plans: Collection[str] | None = None,
        most_models: int = 100,
        most_plans: int = 20,
    ) -> None:
        self._measures = Measures(plans, most_models, most_plans)
        meter = metrics.get_meter("voight_middleware", VERSION, meter_provider)
        self._usage = _histogram(meter, "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", TOKENS)
        self._duration = _histogram(meter, "gen_ai.client.operation.duration", "s", "GenAI operation duration.", SECONDS)
        self._first = _histogram(
            meter, "gen_ai.client.operation.time_to_first_chunk", "s", "Time from the request to the first chunk of a stream.", SECONDS
        )
        self._calls = meter.create_counter("voight.client.calls", "{call}", "Billable calls.")
        self._tokens = meter.create_counter("voight.client.tokens", "{token}", "Tokens by type; the types are disjoint.")
        self._cost = meter.create_counter("voight.client.cost", "USD", "Cost of the calls that have a price; the ledger is exact.")
        atexit.register(flush_before_exit)  # before the meter provider, which was registered earlier, exports for the last time

    def __call__(self, call: Call) -> None:
        """Count one call."""
        labels = self._measures.labels(call)
        common = {
            "gen_ai.provider.name": labels.provider,
            "gen_ai.operation.name": labels.operation,
            "gen_ai.response.model": labels.model,
            "voight.plan": labels.plan,
        }
        outcome = {**common, "voight.outcome": labels.outcome}
        self._calls.add(1, {**outcome, "voight.cost_status": labels.cost_status})
        if labels.error is not None:
            outcome["error.type"] = labels.error
        if call.duration is not None:
            self._duration.record(call.duration / 1_000_000, outcome)
        if call.ttft is not None:
            self._first.record(call.ttft / 1_000_000, common)
        if call.usage is not None:
            for kind, sum_of_kind in (("input", call.usage.input_tokens), ("output", call.usage.output_tokens)):
                if sum_of_kind is not None:
                    self._usage.record(sum_of_kind, {**common, "gen_ai.token.type": kind})
        for kind, count in tokens(call):
            self._tokens.add(count, {**common, "voight.token.type": kind})
        if call.cost_usd is not None:
            self._cost.add(float(call.cost_usd), common)


def _histogram(meter: metrics.Meter, name: str, unit: str, description: str, bounds: Sequence[float]) -> Any:
    make: Any = meter.create_histogram
    try:
        return make(name, unit, description, explicit_bucket_boundaries_advisory=bounds)
    except TypeError:  # before opentelemetry-api 1.30; a View can set them there
        return make(name, unit, description)
