"""record() and metered_call(): calls that no instrumentation sees."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import msgspec

from voight_middleware.context.context import NOBODY, TagContext, current_context
from voight_middleware.diagnostics import report_internal_error, warn_once
from voight_middleware.instrumentation.request import (
    ManualBlock,
    RequestSlot,
    aresolve_owner,
    current_request,
    resolve_owner,
)
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.pipeline.observers import CallStart, Observed
from voight_middleware.pipeline.pseudonyms import kept_call_id
from voight_middleware.providers.base import usage_json, usage_text
from voight_middleware.providers.hosts import host_name
from voight_middleware.providers.usage_formats import read_usage, recognise
from voight_middleware.records.call import OUTCOMES, Call, new_call_id
from voight_middleware.records.tags import Tags, make_tags
from voight_middleware.records.usage import Usage, UsageError


def record(
    *,
    provider: str,
    model: str,
    usage: Mapping[str, Any] | Usage | object,
    tags: Mapping[str, str] | Tags | None = None,
    occurred_at: datetime | None = None,
    duration: float | None = None,
    outcome: str = "ok",
    endpoint: str | None = None,
    base_url: str | None = None,
    service_tier: str | None = None,
    batch: bool = False,
    call_id: str | None = None,
) -> str:
    """
    Record a call that was not made through a metered client. Return its ``call_id``.

    Args:
        provider: The provider that bills: ``openai``, ``anthropic``, ``azure``, ``openrouter``, …
        model: The model as the provider names it.
        usage: The provider's own usage object or JSON, or a ``Usage``. A call that costs more than
            9,223 USD is unpriced: record it in parts.
        tags: The owner of the call; merged onto the tags of the current context.
        occurred_at: When it was made, with a time zone; by default now.
        duration: Its duration in seconds.
        outcome: ``ok``, ``error``, ``aborted``, ``cancelled`` or ``truncated``.
        endpoint: The dialect of *usage*, by default recognized from its keys: ``chat``,
            ``completions``, ``responses``, ``compact``, ``decisions``, ``embeddings``, ``images``,
            ``transcriptions``, ``translations``, ``speech``, ``videos``, ``realtime``, ``runs``,
            ``messages`` or ``generate_content``.
        base_url: The URL it was sent to. Only its host name is kept.
        service_tier: The tier that served it, if *usage* does not contain it.
        batch: Whether it is billed at the batch rate.
        call_id: Your own id of this call: recording it again changes nothing. An id with personal
            data is kept as a digest.

    Raises:
        ValueError: An argument is invalid; the message names it.
    """
    _check(
        tags,
        provider=provider,
        model=model,
        outcome=outcome,
        occurred_at=occurred_at,
        duration=duration,
        base_url=base_url,
        service_tier=service_tier,
        batch=batch,
        call_id=call_id,
    )
    _check_endpoint(endpoint)
    raw, dialect = _raw_usage(usage, endpoint)
    call = Call(
        call_id=_kept_id(call_id),
        occurred_at=_microseconds(occurred_at or datetime.now(UTC)),
        provider=provider.strip().lower(),
        endpoint=dialect,
        requested_model=model,
        model=model,
        host=host_name(base_url),
        outcome=outcome,
        duration=None if duration is None else round(duration * 1_000_000),
        service_tier=service_tier,
        batch=batch,
        raw_usage=raw,
    )
    context = _context_with(tags)
    meter = current_meter()
    if meter.settings.enabled:
        meter.finish(call, context, context.resolve())
    return call.call_id


class metered_call:
    """
    Meter one call that is not made through a metered client, such as one of a router or another
    SDK::

        tags = {"user_id": job.user_id}
        with voight.metered_call(provider="openai", model="gpt-4o-mini", tags=tags) as call:
            response = router.complete(...)
            call.report(response.usage, model=response.model, response_id=response.id)

    Use it with ``with`` or ``async with``, once per instance. Its owner is the user who is signed
    in when the block starts. Requests of metered clients inside the block are not metered a second
    time. A block inside the block is a call of its own.

    An exception that leaves the block makes the call an ``error``, or ``cancelled`` if it is not an
    ``Exception``, and is passed on. A block that ends without ``report()`` is kept as a call with
    unknown usage, and logged once.

    Args:
        provider: The provider that bills: ``openai``, ``anthropic``, ``azure``, ``openrouter``, …
        model: The requested model, as the provider names it.
        tags: The owner of the call; merged onto the tags of the current context.
        endpoint: The dialect of the usage, as for ``record()``; by default recognized from its
            keys.
        base_url: The URL it is sent to. Only its host name is kept.
        service_tier: The tier that serves it, if the usage does not contain it.
        batch: Whether it is billed at the batch rate.
        call_id: Your own id of this call: metering it again changes nothing.
        streamed: Whether the response is streamed.

    Raises:
        ValueError: An argument is invalid; the message names it.
    """

    __slots__ = (
        "_block",
        "_call",
        "_context",
        "_dialect",
        "_observed",
        "_outer",
        "_owner",
        "_process",
        "_reported",
        "_started",
        "_tags",
    )

    def __init__(
        self,
        *,
        provider: str,
        model: str,
        tags: Mapping[str, str] | Tags | None = None,
        endpoint: str | None = None,
        base_url: str | None = None,
        service_tier: str | None = None,
        batch: bool = False,
        call_id: str | None = None,
        streamed: bool = False,
    ) -> None:
        _check(
            tags,
            provider=provider,
            model=model,
            base_url=base_url,
            service_tier=service_tier,
            batch=batch,
            call_id=call_id,
            streamed=streamed,
        )
        _check_endpoint(endpoint)
        self._call = Call(
            call_id=_kept_id(call_id),
            occurred_at=0,
            provider=provider.strip().lower(),
            endpoint=endpoint or "usage",
            requested_model=model,
            model=model,
            host=host_name(base_url),
            service_tier=service_tier,
            batch=batch,
            streamed=streamed,
        )
        self._dialect = endpoint
        self._tags = tags
        self._context: TagContext | None = None
        self._owner = NOBODY
        self._block = ManualBlock()
        self._outer: RequestSlot | ManualBlock | None = None
        self._started: int | None = None
        self._process = 0
        self._reported = False
        self._observed: Observed | None = None

    @property
    def call_id(self) -> str:
        """The id of this call in the ledger."""
        return self._call.call_id

    def report(
        self,
        usage: Mapping[str, Any] | Usage | object = None,
        *,
        model: str | None = None,
        response_id: str | None = None,
        service_tier: str | None = None,
        outcome: str | None = None,
        endpoint: str | None = None,
        **counts: int | None,
    ) -> None:
        """
        Report the provider's response. Later reports win, and values that they omit stay.

        Args:
            usage: The provider's own usage object or JSON, or a ``Usage``; None if the provider
                reported none.
            model: The model that served the call.
            response_id: The provider's id of the response.
            service_tier: The tier that served it.
            outcome: ``ok``, ``error``, ``aborted``, ``cancelled`` or ``truncated``. An exception
                that leaves the block wins over it.
            endpoint: The dialect of *usage*, if it differs from the block's.
            counts: Instead of *usage*, the counts of a ``Usage``: ``input=1200, cache_read=0,
                output=80``.

        Raises:
            ValueError: An argument is invalid. The message names it, and the whole report is
                dropped.
        """
        fields = {
            "model": model,
            "response_id": response_id,
            "service_tier": service_tier,
            "outcome": outcome,
        }
        _check(**{name: value for name, value in fields.items() if value is not None})
        _check_endpoint(endpoint)
        usage = _from_counts(usage, counts)
        raw = None if usage is None else _raw_usage(usage, endpoint or self._dialect)
        if not self._block.open:
            warn_once(
                "report() was called after its metered_call() block had ended and is not counted: "
                "call it inside the block"
            )
            return
        call = self._call
        if raw is not None:
            call.raw_usage, call.endpoint = raw
        call.model = model or call.model
        call.response_id = response_id or call.response_id
        call.service_tier = service_tier or call.service_tier
        call.outcome = outcome or call.outcome
        self._reported = True

    def first_token(self) -> None:
        """Note the time to first token: call it with the first part of the response."""
        if self._started is not None and self._call.ttft is None:
            self._call.ttft = (time.perf_counter_ns() - self._started) // 1000

    def __enter__(self) -> Self:
        self._owner = resolve_owner(self._make_context())
        self._open()
        return self

    async def __aenter__(self) -> Self:
        self._owner = await aresolve_owner(self._make_context())
        self._open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._block.open:
            return
        self._block.open = False
        if current_request.get() is self._block:
            # by value: a generator may leave its block in another copy of the context
            current_request.set(self._outer)
        try:
            if self._observed is not None:
                current_meter().observers.respond(self._observed)
            self._end(exc)
        except Exception as error:
            report_internal_error(error)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, trace)

    def _make_context(self) -> TagContext:
        if self._context is not None:
            raise RuntimeError("metered_call() can be entered once: make a new one for each block")
        self._context = _context_with(self._tags)
        return self._context

    def _open(self) -> None:
        self._outer = current_request.get()
        current_request.set(self._block)
        self._call.occurred_at = time.time_ns() // 1000
        self._started = time.perf_counter_ns()
        self._process = os.getpid()
        try:
            self._observe()
        except Exception as error:
            report_internal_error(error)

    def _observe(self) -> None:
        call, meter = self._call, current_meter()
        if not meter.observers.present or not meter.settings.enabled or self._context is None:
            return
        self._observed = meter.observers.start(
            CallStart(
                provider=call.provider,
                endpoint=call.endpoint,
                requested_model=meter.pseudonymized_text("requested_model", call.requested_model),
                host=call.host,
                streamed=call.streamed,
                started_at=call.occurred_at * 1000,
                owner=self._owner,
                context=self._context,
            )
        )

    def _end(self, error: BaseException | None) -> None:
        call, meter = self._call, current_meter()
        if self._started is None or self._context is None or not meter.settings.enabled:
            return
        if self._process != os.getpid():
            return  # a forked child leaves its parent's block too, but the call is the parent's
        call.duration = (time.perf_counter_ns() - self._started) // 1000
        if error is not None:
            call.outcome = "error" if isinstance(error, Exception) else "cancelled"
            call.error = type(error).__name__
        elif not self._reported:
            warn_once("a metered_call() block ended without report(): its cost is not known")
        meter.finish(call, self._context, self._owner, observed=self._observed)


def _context_with(tags: Mapping[str, str] | Tags | None) -> TagContext:
    """Return the current context, with *tags* merged onto it."""
    context = current_context()
    if tags is None:
        return context
    return TagContext(
        context.scope, context.tags.merge(tags if isinstance(tags, Tags) else make_tags(tags))
    )


def _from_counts(usage: object, counts: Mapping[str, object]) -> object:
    """Return the reported usage: *usage*, or a ``Usage`` made from plain *counts*."""
    known = [name for name in Usage.__struct_fields__ if name != "tools"]
    for name in counts:
        if name not in known:
            raise ValueError(f"{name} is not a count of a Usage: use one of {', '.join(known)}")
        if usage is not None:
            raise ValueError(
                f"{name} cannot be combined with usage: pass the provider's usage or plain counts"
            )
    return Usage(**counts) if counts else usage  # type: ignore[arg-type]


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "provider": (
        lambda value: isinstance(value, str) and bool(value.strip()),
        "a string that is not empty",
    ),
    "model": (
        lambda value: isinstance(value, str) and bool(value.strip()),
        "a string that is not empty",
    ),
    "outcome": (lambda value: value in OUTCOMES, f"one of {', '.join(OUTCOMES)}"),
    "occurred_at": (
        lambda value: (
            value is None or (isinstance(value, datetime) and value.utcoffset() is not None)
        ),
        "a datetime with a time zone",
    ),
    "duration": (
        lambda value: (
            value is None
            or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9)
        ),
        "seconds, 0 or more",
    ),
    "call_id": (
        lambda value: value is None or (isinstance(value, str) and 0 < len(value) <= 200),
        "a string of 1 to 200 characters",
    ),
    "base_url": (lambda value: value is None or isinstance(value, str), "a string"),
    "service_tier": (lambda value: value is None or isinstance(value, str), "a string"),
    "response_id": (lambda value: value is None or isinstance(value, str), "a string"),
    "batch": (lambda value: isinstance(value, bool), "True or False"),
    "streamed": (lambda value: isinstance(value, bool), "True or False"),
}


def _kept_id(call_id: str | None) -> str:
    return new_call_id() if call_id is None else kept_call_id(call_id, current_meter().settings.pii)


def _check(tags: object = None, **arguments: object) -> None:
    for name, value in arguments.items():
        is_valid, expected = _CHECKS[name]
        if not is_valid(value):
            # a URL can contain a password
            given = type(value).__name__ if name == "base_url" else repr(value)
            raise ValueError(f"{name} must be {expected}, not {given}")
    if tags is not None and not isinstance(tags, Tags | Mapping):
        raise ValueError(f"tags must be a mapping or Tags, not {type(tags).__name__}")


def _check_endpoint(endpoint: object) -> None:
    if endpoint is not None:
        try:
            read_usage(endpoint if isinstance(endpoint, str) else repr(endpoint), {})
        except UsageError as error:
            raise ValueError(str(error)) from error


def _microseconds(moment: datetime) -> int:
    since_epoch = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since_epoch.days * 86_400 + since_epoch.seconds) * 1_000_000 + since_epoch.microseconds


def _raw_usage(usage: object, endpoint: str | None) -> tuple[str, str]:
    """Return the usage as JSON, and its dialect. Parse it once, so that mistakes raise here."""
    if isinstance(usage, Usage):
        if usage.tools is not None and not isinstance(usage.tools, Mapping):
            raise ValueError(f"usage.tools must be a mapping of counts, not {usage.tools!r}")
        for name in usage.__struct_fields__:
            counts = usage.tools or {} if name == "tools" else {name: getattr(usage, name)}
            for key, count in counts.items():
                if count is not None and (type(count) is not int or count < 0):
                    raise ValueError(f"usage.{key} must be a count of 0 or more, not {count!r}")
        return msgspec.json.encode(usage).decode(), "usage"
    raw: str | None = None
    plain: Any = None
    try:
        raw = usage_text(usage_json(usage))
        plain = msgspec.json.decode(raw) if raw is not None else None
    except (AttributeError, TypeError, RecursionError, msgspec.DecodeError):
        pass
    if raw is None or not isinstance(plain, dict):
        raise ValueError(
            "usage must be the provider's usage object, its JSON as a mapping, or a Usage, not "
            f"{type(usage).__name__}"
        )
    dialect = endpoint or recognise(plain)
    if dialect is None:
        raise ValueError(
            f"usage has no known keys ({', '.join(sorted(plain)[:6])}): pass its endpoint, such "
            "as endpoint='chat'"
        )
    try:
        read_usage(dialect, plain)
    except UsageError as error:
        raise ValueError(f"usage: {error}") from error
    return raw, dialect
