"""Prometheus: metrics of calls. Needs the extra ``prometheus``."""

from voight_middleware.exporters.prometheus import PrometheusMetrics, prometheus_text

__all__ = ("PrometheusMetrics", "prometheus_text")
