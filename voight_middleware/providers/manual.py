"""record(): a call that no gate sees, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from voight_middleware.call import OUTCOMES, Call, new_call_id
from voight_middleware.meter import current_meter
from voight_middleware.providers.answers import kept, usage_json
from voight_middleware.tags import Frame, Tags, current_frame, make_tags
from voight_middleware.usage import Usage, UsageError, read_usage, recognise


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
    Record a call that went another way than through a metered client; answers its ``call_id``.

    Args:
        provider: Who bills: ``openai``, ``anthropic``, ``azure``, ``openrouter``, …
        model: The model as the provider names it.
        usage: The provider's own usage object or JSON, or a ``Usage``.
        tags: Whose call it is; laid over the tags of here and now.
        occurred_at: When it was made, with a time zone; by default now.
        duration: Seconds that it took.
        outcome: ``ok``, ``error``, ``aborted``, ``cancelled`` or ``truncated``.
        endpoint: The dialect of *usage* (``chat``, ``responses``, ``embeddings``, ``messages``); by default recognised from its keys.
        base_url: Where it was sent.
        service_tier: The tier that served it, where *usage* does not say.
        batch: Whether it is billed at the batch rate.
        call_id: Your own id of this call: recording it again changes nothing.

    Raises:
        ValueError: An argument cannot be used; the message names it.
    """
    _check(
        provider=provider,
        model=model,
        outcome=outcome,
        occurred_at=occurred_at,
        duration=duration,
        base_url=base_url,
        service_tier=service_tier,
        batch=batch,
        call_id=call_id,
        tags=tags,
    )
    raw, dialect = _raw_usage(usage, endpoint)
    call = Call(
        call_id=call_id or new_call_id(),
        occurred_at=_microseconds(occurred_at or datetime.now(UTC)),
        provider=provider.strip().lower(),
        endpoint=dialect,
        requested_model=model,
        model=model,
        host=base_url,
        outcome=outcome,
        duration=None if duration is None else round(duration * 1_000_000),
        service_tier=service_tier,
        batch=batch,
        raw_usage=raw,
    )
    frame = current_frame()
    if tags is not None:
        frame = Frame(frame.scope, frame.tags.merge(tags if isinstance(tags, Tags) else make_tags(tags)))
    meter = current_meter()
    if meter.settings.enabled:
        meter.finish(call, frame, frame.resolve())
    return call.call_id


def _check(
    *,
    provider: object,
    model: object,
    outcome: object,
    occurred_at: object,
    duration: object,
    base_url: object,
    service_tier: object,
    batch: object,
    call_id: object,
    tags: object,
) -> None:
    for name, value in (("provider", provider), ("model", model)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} must be a text that is not empty, not {value!r}")
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}, not {outcome!r}")
    if occurred_at is not None and (not isinstance(occurred_at, datetime) or occurred_at.utcoffset() is None):
        raise ValueError(f"occurred_at must be a datetime with a time zone, not {occurred_at!r}")
    if duration is not None and (isinstance(duration, bool) or not isinstance(duration, int | float) or not 0 <= duration < 1e9):
        raise ValueError(f"duration must be seconds, 0 or more, not {duration!r}")
    if call_id is not None and (not isinstance(call_id, str) or not 0 < len(call_id) <= 200):
        raise ValueError(f"call_id must be a text of 1 to 200 characters, not {call_id!r}")
    for name, value in (("base_url", base_url), ("service_tier", service_tier)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} must be a text, not {value!r}")
    if not isinstance(batch, bool):
        raise ValueError(f"batch must be True or False, not {batch!r}")
    if tags is not None and not isinstance(tags, Tags | Mapping):
        raise ValueError(f"tags must be a mapping or Tags, not {type(tags).__name__}")


def _microseconds(moment: datetime) -> int:
    span = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds


def _raw_usage(usage: object, endpoint: str | None) -> tuple[str, str]:
    """The usage as JSON, and its dialect. It is read once here, so that a mistake is heard of by whoever made it."""
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
        raw = kept(usage_json(usage))
        plain = msgspec.json.decode(raw) if raw is not None else None
    except (AttributeError, TypeError, msgspec.DecodeError):
        pass
    if raw is None or not isinstance(plain, dict):
        raise ValueError(f"usage must be the provider's usage object, its JSON as a mapping, or a Usage, not {type(usage).__name__}")
    dialect = endpoint or recognise(plain)
    if dialect is None:
        raise ValueError(f"usage has no keys that are known ({', '.join(sorted(plain)[:6])}): name its endpoint, such as endpoint='chat'")
    try:
        read_usage(dialect, plain)
    except UsageError as error:
        raise ValueError(f"usage: {error}") from error
    return raw, dialect
