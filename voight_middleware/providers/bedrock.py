"""
Parsers of Amazon Bedrock's runtime: ``invoke`` with the bodies of the models' makers, and
``converse``.

Source of the shapes: Amazon Bedrock API reference (InvokeModel, Converse, and the streams of both),
and recorded responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from voight_middleware.diagnostics import report_internal_error
from voight_middleware.providers.anthropic import MessagesParser
from voight_middleware.providers.base import (
    NULL,
    Endpoint,
    ResponseSummary,
    StreamParser,
    is_null,
    parse_response,
    text_or_none,
    usage_json,
    with_usage,
)
from voight_middleware.providers.finish_reasons import only_reason

# -- invoke ----------------------------------------------------------------------------------------

_METRICS = "amazon-bedrock-invocationMetrics"
_COUNTS = {
    "input_tokens": "inputTokenCount",
    "output_tokens": "outputTokenCount",
    "cache_read_input_tokens": "cacheReadInputTokenCount",
    "cache_creation_input_tokens": "cacheWriteInputTokenCount",
}
"""Bedrock's own counts, by Anthropic's names for them."""


def parse_invoked(body: bytes) -> ResponseSummary:
    """Read a whole response. Only an Anthropic model's has usage; headers have the others'."""
    summary = parse_response(body)
    if b'"input_tokens"' not in bytes(summary.usage):
        summary.usage = NULL
    return summary


def counted(endpoint: Endpoint, headers: Mapping[str, str]) -> Endpoint:
    """
    Return *endpoint* with the facts in the headers of one response.

    These are counts for a body that has none, the tier, and the latency.

    Source: Amazon Bedrock API reference, "InvokeModel", response syntax:
    ``X-Amzn-Bedrock-Service-Tier``, ``X-Amzn-Bedrock-PerformanceConfig-Latency``.
    """
    counts = {
        name: headers.get(f"x-amzn-bedrock-{side}-token-count", "")
        for name, side in (("input_tokens", "input"), ("output_tokens", "output"))
    }
    tier = headers.get("x-amzn-bedrock-service-tier")
    latency = headers.get("x-amzn-bedrock-performanceconfig-latency")
    inner = endpoint.enrich

    def enrich(summary: ResponseSummary, request: Mapping[str, Any]) -> ResponseSummary:
        if inner is not None:
            summary = inner(summary, request)
        if is_null(summary.usage) and any(counts.values()):
            summary.usage = with_usage(
                NULL, **{name: int(count) for name, count in counts.items() if count}
            )
        return _with_terms(summary, tier, latency)

    return msgspec.structs.replace(endpoint, enrich=enrich)


def _with_terms(summary: ResponseSummary, tier: str | None, latency: str | None) -> ResponseSummary:
    """Return *summary* with its tier, and with a latency other than standard as its speed."""
    if tier:
        summary.service_tier = tier
    if latency and latency != "standard" and not is_null(summary.usage):
        summary.usage = with_usage(summary.usage, speed=latency)
    return summary


class InvokedParser(MessagesParser):
    """A stream of any model's events. The last one has Bedrock's own counts."""

    def __init__(self) -> None:
        super().__init__()
        self._metrics: Any = None

    def feed(self, event: Any) -> None:
        metrics = event.get(_METRICS)
        if metrics:
            self._metrics = metrics
            self.done = True
        if event.type:
            super().feed(event)
        else:
            self._stop = (
                event.stop_reason or getattr(event.messageStop, "stopReason", None) or self._stop
            )

    def summary(self) -> ResponseSummary:
        summary = super().summary()
        summary.finish_reasons = only_reason(self._stop)  # other models have no message_start
        if is_null(summary.usage) and self._metrics:
            summary.usage = with_usage(
                NULL,
                **{
                    name: self._metrics[key]
                    for name, key in _COUNTS.items()
                    if key in self._metrics
                },
            )
        return summary


# -- converse --------------------------------------------------------------------------------------


class _Type(msgspec.Struct):
    type: Any = None


class _Performance(msgspec.Struct):
    latency: Any = None


class _Terms(msgspec.Struct, rename="camel"):
    service_tier: _Type | None = None
    performance_config: _Performance | None = None


_decode_terms = msgspec.json.Decoder(_Terms).decode


def parse_conversation(body: bytes) -> ResponseSummary:
    """
    Read a whole response, with the tier and the latency that served it.

    Source: Amazon Bedrock API reference, "Converse", response syntax: ``serviceTier.type``,
    ``performanceConfig.latency``.
    """
    summary = parse_response(body)
    if b'"serviceTier"' not in body and b'"performanceConfig"' not in body:
        return summary
    terms = _decode_terms(body)
    tier = None if terms.service_tier is None else text_or_none(terms.service_tier.type)
    latency = (
        None if terms.performance_config is None else text_or_none(terms.performance_config.latency)
    )
    return _with_terms(summary, tier, latency)


class ConverseParser(StreamParser):
    """A stream of a conversation's events. The last one, after the stop, has the usage."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: Any = None
        self._tier: Any = None
        self._latency: Any = None
        self._stop: Any = None

    def feed(self, event: Any) -> None:
        try:
            delta = event.delta
            if delta is not None:
                texts = (
                    delta.text,
                    delta.toolUse and delta.toolUse.input,
                    delta.reasoningContent and delta.reasoningContent.text,
                )
                self._characters += sum(len(text) for text in texts if text)
            elif event.usage is not None:
                self.done = True
                self._usage = event.usage
                self._tier = event.serviceTier and event.serviceTier.type
                self._latency = event.performanceConfig and event.performanceConfig.latency
            elif event.stopReason is not None:
                self.done = True
                self._stop = event.stopReason
        except Exception as error:
            report_internal_error(error)

    def summary(self) -> ResponseSummary:
        summary = ResponseSummary(
            usage=NULL if self._usage is None else usage_json(self._usage),
            finish_reasons=only_reason(self._stop),
        )
        return _with_terms(summary, text_or_none(self._tier), text_or_none(self._latency))

    def estimated_output(self) -> int | None:
        return None if self._usage is not None else self._tokens_of_text()


_INVOKE = Endpoint(name="messages", parse=parse_invoked, stream_parser=InvokedParser)
_CONVERSE = Endpoint(name="converse", parse=parse_conversation, stream_parser=ConverseParser)

ACTIONS = {
    "invoke": _INVOKE,
    "invoke-with-response-stream": _INVOKE,
    "converse": _CONVERSE,
    "converse-stream": _CONVERSE,
}
