"""
Metrics through OpenTelemetry::

    voight.configure(listeners=[OTelMetrics()])

=============================================== ========= =======
================================================================= instrument
kind      unit    attributes besides provider, operation, model and plan
=============================================== ========= =======
================================================================= ``gen_ai.client.token.usage``
histogram {token} ``gen_ai.token.type``: ``input`` (cached included), ``output``
``gen_ai.client.operation.duration``            histogram s       ``error.type``, ``voight.outcome``
``gen_ai.client.operation.time_to_first_chunk`` histogram s ``voight.client.calls``
counter   {call}  ``voight.outcome``, ``voight.cost_status`` ``voight.client.tokens``
counter   {token} ``voight.token.type``: disjoint, see ``conventions.tokens`` ``voight.client.cost``
counter   USD =============================================== ========= =======
=================================================================

The ``gen_ai.*`` names are those of OpenTelemetry's semantic conventions up to 1.44
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/), which current dashboards use.
A later version, in development, renames them
(https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/client-inference.md).

A metric is a floating-point number, and lacks data that OpenTelemetry drops. The ledger is exact.
Calls without a price are ``unpriced`` in ``voight.client.calls``, and not in the cost.
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
    raise ImportError(
        "metrics need OpenTelemetry: pip install 'voight-middleware[otel]'"
    ) from error


class OTelMetrics:
    """
    Counts every call, for ``configure(listeners=[…])``. Runs on the listeners' thread. No attribute
    is a user or a tenant.

    Args:
        meter_provider: The provider of the meter, by default the global one.
        plans: The known plans; all others become ``other``. By default the first *most_plans* that
            occur.
        most_models: How many models keep their name, in each process.
        most_plans: How many plans keep their name, in each process.
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
        self._usage = _histogram(
            meter,
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            TOKENS,
        )
        self._duration = _histogram(
            meter, "gen_ai.client.operation.duration", "s", "GenAI operation duration.", SECONDS
        )
        self._first = _histogram(
            meter,
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time from the request to the first chunk of a stream.",
            SECONDS,
        )
        self._calls = meter.create_counter("voight.client.calls", "{call}", "Billable calls.")
        self._tokens = meter.create_counter(
            "voight.client.tokens", "{token}", "Tokens by type; the types are disjoint."
        )
        self._cost = meter.create_counter(
            "voight.client.cost", "USD", "Cost of the calls that have a price; the ledger is exact."
        )
        # runs before the last export of the meter provider, which was registered earlier
        atexit.register(flush_before_exit)

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
            for kind, sum_of_kind in (
                ("input", call.usage.input_tokens),
                ("output", call.usage.output_tokens),
            ):
                if sum_of_kind is not None:
                    self._usage.record(sum_of_kind, {**common, "gen_ai.token.type": kind})
        for kind, count in tokens(call):
            self._tokens.add(count, {**common, "voight.token.type": kind})
        if call.cost_usd is not None:
            self._cost.add(float(call.cost_usd), common)


def _histogram(
    meter: metrics.Meter, name: str, unit: str, description: str, bounds: Sequence[float]
) -> Any:
    make: Any = meter.create_histogram
    try:
        return make(name, unit, description, explicit_bucket_boundaries_advisory=bounds)
    except TypeError:  # before opentelemetry-api 1.30; a View can set the bounds there
        return make(name, unit, description)
