"""Tags: the owner of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from voight_middleware.records.tag_values import first_extra, keep_extra, keep_value


class Tags(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """The owner of a call. None means unknown."""

    user_id: str | None = None
    plan: str | None = None
    tenant_id: str | None = None
    route: str | None = None
    """The method and route template: ``POST /chats/{chat_id}``."""
    release: str | None = None
    session_id: str | None = None
    extra: Mapping[str, str] = {}
    """Your own keys, such as ``feature``."""

    def merge(self, inner: Tags) -> Tags:
        """Return these tags, overridden by the values of *inner*."""
        if self is NO_TAGS:
            return inner
        if inner is NO_TAGS:
            return self
        return Tags(
            user_id=self.user_id if inner.user_id is None else inner.user_id,
            plan=self.plan if inner.plan is None else inner.plan,
            tenant_id=self.tenant_id if inner.tenant_id is None else inner.tenant_id,
            route=self.route if inner.route is None else inner.route,
            release=self.release if inner.release is None else inner.release,
            session_id=self.session_id if inner.session_id is None else inner.session_id,
            extra=first_extra({**inner.extra, **self.extra, **inner.extra})
            if inner.extra
            else self.extra,
        )


NO_TAGS = Tags()
_NAMED = frozenset(Tags.__struct_fields__) - {"extra"}


def make_tags(values: Mapping[str, object]) -> Tags:
    """
    Return tags from keyword values: the named ones, and the rest as extra keys. None omits a key.

    Invalid values and keys are dropped and logged once. This never raises, because it runs inside
    the application's requests.
    """
    named: dict[str, str | None] = {}
    extra: dict[str, str] = {}
    for key, value in values.items():
        if key in _NAMED:
            named[key] = keep_value(key, value)
        elif key == "extra" and isinstance(value, Mapping):
            extra.update(keep_extra(value))
        else:
            extra.update(keep_extra({key: value}))
    return Tags(extra=extra, **named)


class Owner(NamedTuple):
    """The tags of a call and their source (one of ``call.ATTRIBUTIONS``)."""

    tags: Tags
    attribution: str
