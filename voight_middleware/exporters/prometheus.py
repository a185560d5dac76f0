"""
Metrics for Prometheus, through ``prometheus_client``::

    voight.configure(listeners=[PrometheusMetrics()])
    app.mount("/metrics", prometheus_client.make_asgi_app())

With several worker processes, set ``PROMETHEUS_MULTIPROC_DIR``
(https://prometheus.github.io/client_python/multiprocess/). Then each worker counts its own calls in
files of that folder, and ``prometheus_text()`` returns the sums in any worker. Without it, a scrape
shows only the calls of the worker that responds.

===================================== ========= ====================================================
metric                                kind      labels besides provider, operation, model and plan
===================================== ========= ====================================================
``voight_calls_total``                counter   ``outcome``, ``cost_status``
``voight_tokens_total``               counter   ``type``: disjoint, see ``conventions.tokens``
``voight_cost_usd_total``             counter
``voight_duration_seconds``           histogram ``outcome``
``voight_time_to_first_token_seconds`` histogram
===================================== ========= ====================================================

A metric is a floating-point number, and is lost with its process. The ledger is exact.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from voight_middleware.exporters.otel.conventions import tokens
from voight_middleware.exporters.otel.measures import SECONDS, Measures
from voight_middleware.records.call import Call

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector
except ImportError as error:
    raise ImportError(
        "metrics for Prometheus need its client: pip install 'voight-middleware[prometheus]'"
    ) from error

_COMMON = ("provider", "operation", "model", "plan")


class PrometheusMetrics:
    """
    Counts every call, for ``configure(listeners=[…])``. Runs on the listeners' thread. No label is
    a user or a tenant.

    Args:
        registry: The registry of the metrics, by default that of ``prometheus_client``. A registry
            takes them only once.
        plans: The known plans; all others become ``other``. By default the first *most_plans* that
            occur.
        most_models: How many models keep their name, in each process.
        most_plans: How many plans keep their name, in each process.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        *,
        plans: Collection[str] | None = None,
        most_models: int = 100,
        most_plans: int = 20,
    ) -> None:
        self._measures = Measures(plans, most_models, most_plans)
        self._calls = Counter(
            "voight_calls",
            "Billable calls.",
            (*_COMMON, "outcome", "cost_status"),
            registry=registry,
        )
        self._tokens = Counter(
            "voight_tokens",
            "Tokens by type; the types are disjoint.",
            (*_COMMON, "type"),
            registry=registry,
        )
        self._cost = Counter(
            "voight_cost_usd",
            "Cost of the calls that have a price, in US dollars.",
            _COMMON,
            registry=registry,
        )
        self._duration = Histogram(
            "voight_duration_seconds",
            "From the request to the last byte.",
            (*_COMMON, "outcome"),
            buckets=SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "voight_time_to_first_token_seconds",
            "To the first event of a stream.",
            _COMMON,
            buckets=SECONDS,
            registry=registry,
        )

    def __call__(self, call: Call) -> None:
        """Count one call."""
        labels = self._measures.labels(call)
        common = (labels.provider, labels.operation, labels.model, labels.plan)
        self._calls.labels(*common, labels.outcome, labels.cost_status).inc()
        for kind, count in tokens(call):
            self._tokens.labels(*common, kind).inc(count)
        if call.cost_usd is not None:
            self._cost.labels(*common).inc(float(call.cost_usd))
        if call.duration is not None:
            self._duration.labels(*common, labels.outcome).observe(call.duration / 1_000_000)
        if call.ttft is not None:
            self._first.labels(*common).observe(call.ttft / 1_000_000)


def prometheus_text(registry: CollectorRegistry = REGISTRY) -> bytes:
    """
    Return the metrics in the text format of Prometheus.

    If ``PROMETHEUS_MULTIPROC_DIR`` is set, they are the sums over all workers; else those of
    *registry*.

    Raises:
        ValueError: ``PROMETHEUS_MULTIPROC_DIR`` is not a folder.
    """
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
