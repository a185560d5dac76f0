"""The owner of a span's call: its user, tenant and plan, by the names that tracing tools use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from voight_middleware.otlp.spans import Span, first_text, json_object, text
from voight_middleware.records.tags import NO_TAGS, Owner, Tags, make_tags

MAX_EXTRA = 32
"""How many extra keys of a span are stored. More are dropped."""

_NAMED = {
    **dict.fromkeys(("userid", "user", "enduserid"), "user_id"),
    **dict.fromkeys(("tenantid", "tenant"), "tenant_id"),
    **dict.fromkeys(("sessionid", "session"), "session_id"),
    **{name: name for name in ("plan", "route", "release")},
}
"""The tags of metadata keys. Keys are compared without case, ``_`` and ``-``."""

_PREFIXES = (
    "traceloop.association.properties.",  # OpenLLMetry, "Associating entities with traces"
    "langfuse.trace.metadata.",  # Langfuse, "OpenTelemetry", "Property mapping"
    "langfuse.observation.metadata.",
    "ai.settings.context.",  # Vercel AI SDK 7, package @ai-sdk/otel, `runtimeContext`
    "ai.telemetry.metadata.",  # Vercel AI SDK, "Telemetry", `experimental_telemetry.metadata`
)
# JSON; the last is OpenInference's
_OBJECTS = ("langfuse.trace.metadata", "langfuse.observation.metadata", "metadata")
# OpenTelemetry, "User" and the former "End user"
_USERS = ("enduser.id", "langfuse.user.id", "user.id")
_SESSIONS = ("gen_ai.conversation.id", "langfuse.session.id", "session.id")
_OWN = frozenset(Tags.__struct_fields__) - {"extra"}


def owner_of(span: Span) -> Owner:
    """
    Return the tags of *span*, and the attribution of its owner.

    If a tag has several sources, the most deliberate one wins: our own names, then metadata, then a
    tracing tool's user. The user that the request named to its provider comes last.
    """
    attributes = span.attributes
    values: dict[str, object] = {}
    values.update(_of_resource(span.resource))
    if (function := text(attributes.get("ai.telemetry.functionId"))) is not None:
        values["function"] = function
    for name, sources in (("user_id", _USERS), ("session_id", _SESSIONS)):
        for source in sources:
            if (plain := _plain(attributes.get(source))) is not None:
                values[name] = plain
    if (release := text(attributes.get("langfuse.release"))) is not None:
        values["release"] = release
    for name in _OBJECTS:
        values.update(_metadata(json_object(attributes.get(name))))
    for prefix in _PREFIXES:
        values.update(
            _metadata(
                {
                    key[len(prefix) :]: _unquoted(value)
                    for key, value in attributes.items()
                    if key.startswith(prefix)
                }
            )
        )
    values.update(_own(attributes))
    tags = make_tags(dict(_bounded(values))) if values else NO_TAGS
    if tags.user_id is not None:
        return Owner(tags, "tag")
    # OpenLLMetry, litellm: the `user` of the request
    named = first_text(attributes, "gen_ai.user", "llm.user")
    if named is not None:
        return Owner(tags.merge(make_tags({"user_id": named})), "request")
    return Owner(tags, "none")


def _of_resource(resource: Mapping[str, Any]) -> dict[str, object]:
    """Source: OpenTelemetry, "Resource semantic conventions", "Service"."""
    values: dict[str, object] = {}
    name, version = text(resource.get("service.name")), text(resource.get("service.version"))
    if name is not None and not name.startswith("unknown_service"):
        values["service"] = name
    if version is not None:
        values["release"] = version
    return values


def _metadata(metadata: Mapping[str, Any]) -> dict[str, object]:
    """Return the tags and extra keys in an application's metadata. Only plain values are read."""
    values: dict[str, object] = {}
    for key, value in metadata.items():
        plain = _plain(value)
        if plain is not None and isinstance(key, str):
            values[_NAMED.get(key.lower().replace("_", "").replace("-", ""), key)] = plain
    return values


def _unquoted(value: object) -> object:
    """
    Remove JSON quotation marks: Langfuse's SDK for Python (3 to 5) writes metadata texts as JSON.
    """
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        with contextlib.suppress(msgspec.DecodeError, UnicodeError):
            return msgspec.json.decode(value, type=str)
    return value


def _own(attributes: Mapping[str, Any]) -> dict[str, object]:
    """
    Return the tags under our own names, such as ``voight.user_id`` and ``voight.plan``.
    ``voight.tag.feature`` and ``voight.extra.feature`` are extra keys.
    """
    values: dict[str, object] = {}
    for key, value in attributes.items():
        if not key.startswith("voight.") or (plain := _plain(value)) is None:
            continue
        name = key.removeprefix("voight.")
        if name in _OWN:
            values[name] = plain
        elif name.startswith(("tag.", "extra.")):
            values[name.partition(".")[2]] = plain
    return values


def _plain(value: object) -> str | int | None:
    """Return a value that a tag can store. Metadata may have numbers and booleans."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return value if isinstance(value, int) else text(value)


def _bounded(values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    extra = 0
    for key, value in values.items():
        if key in _OWN:
            yield key, value
        elif key != "extra" and extra < MAX_EXTRA:
            extra += 1
            yield key, value
