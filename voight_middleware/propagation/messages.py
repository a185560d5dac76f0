"""Jobs: the tags of whoever has caused a job, into a queue's message and out of it."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import msgspec

from voight_middleware.context.context import current_context, overlay, use_scope
from voight_middleware.diagnostics import counters, report_internal_error, warn_once
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.records.call import ATTRIBUTIONS
from voight_middleware.records.tag_values import clean_value
from voight_middleware.records.tags import NO_TAGS, Owner, Tags, make_tags

KEY = "voight"
"""The header, label or option of a message that the tags travel in."""
NOBODY = "{}"
"""The text of a message that belongs to nobody, where leaving it out would mean "whoever sends it"."""
MAX_CHARACTERS = 8192
"""How long the text is at most. Extra keys are left out of a longer one."""
TASK = "task"
"""The extra key that names the task which a call was made in."""


class _Message(msgspec.Struct, omit_defaults=True):
    """What is carried. Keys that a newer version may add are passed over."""

    tags: Tags = NO_TAGS
    attribution: str = "none"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Message).decode


class JobScope:
    """
    The identity of one job, as ``tags.OwnerSource``: what its message carried, and what the job says itself with ``set_tags()``.

    What has been carried is resolved, so nobody is asked. Calls that a job makes before it names its user are given to him when the job
    ends, if it has named one and no other.
    """

    def __init__(self, carried: Tags = NO_TAGS, attribution: str = "none", task: str | None = None) -> None:
        self.task = task
        self.several: Callable[[], object] | None = None
        """Called when the job names a second user: from here on, what follows after the job is no longer his whom it names."""
        self._carried = carried
        self._identity = carried if task is None else Tags(route=f"task {task}", extra={TASK: task}).merge(carried)
        self._how = attribution
        self._explicit = NO_TAGS
        self._users: set[str] = set()
        self._pending: list[str] = []
        self._settled = False

    def known(self) -> Owner:
        """The owner of a call made now."""
        how = self._how if self._identity.user_id is not None or self._how == "error" else "none"
        return overlay(Owner(self._identity, how), self._explicit)

    def resolve(self) -> Owner:
        """As ``known``: a job has no getters."""
        return self.known()

    async def aresolve(self) -> Owner:
        """As ``known``."""
        return self.known()

    def set_identity(self, tags: Tags, attribution: str) -> None:
        """Name the user, plan and tenant, instead of the message."""
        self._named(tags)
        known = self._identity
        if known.user_id is not None and tags.user_id not in (None, known.user_id):
            known = Tags(route=known.route, release=known.release)
        self._identity = known.merge(tags)
        self._how = attribution

    def set_tags(self, tags: Tags) -> None:
        """Lay explicit tags over what is known, for the rest of the job."""
        self._named(tags)
        self._explicit = self._explicit.merge(tags)

    def _named(self, tags: Tags) -> None:
        if tags.user_id is not None:
            self._users.add(tags.user_id)
            if len(self._users) > 1 and self.several is not None:
                self.several()

    def defer(self, call_id: str) -> None:
        """Note a call that was written without an owner."""
        if not self._settled:
            self._pending.append(call_id)

    def attribute_late(self) -> None:
        """At the end of the job: write the owner of the calls that have none. Never raises."""
        self._settled = True
        self.several = None  # it knows the message, which a thread that outlives the job must not keep
        pending, self._pending = self._pending, []
        # A job that goes through many users has made them for all of these, and not for the last one.
        if pending and len(self._users) == 1 and (owner := self.known()).tags.user_id is not None:
            current_meter().attribute_late(pending, Owner(owner.tags, "settled"))

    def without_task(self, tags: Tags) -> Tags:
        """*tags* as the jobs that this one starts carry them: without the name of this one."""
        if self.task is None or tags.extra.get(TASK) != self.task or TASK in self._carried.extra or TASK in self._explicit.extra:
            return tags
        return msgspec.structs.replace(tags, extra={key: value for key, value in tags.extra.items() if key != TASK})


def tags_for_message() -> str | None:
    """
    The tags of here and now as the JSON text that a message carries, or None where there are none. Never raises.

    They are resolved, as the worker cannot ask the request's getters, and guarded: what the broker sees is what the ledger would. It is
    trusted: who can write into it can start any job in any user's name, with or without these tags.
    """
    try:
        return _text(current_context().resolve())
    except Exception as error:
        report_internal_error(error)
        return None


async def atags_for_message() -> str | None:
    """As ``tags_for_message``, awaiting asynchronous getters."""
    try:
        return _text(await current_context().aresolve())
    except Exception as error:
        report_internal_error(error)
        return None


def stamp(headers: MutableMapping[str, Any]) -> None:
    """Put the tags of here and now into the headers of a message, unless they are there: a retry keeps its owner. Never raises."""
    if KEY not in headers and (text := tags_for_message()) is not None:
        headers[KEY] = text


async def astamp(headers: MutableMapping[str, Any]) -> None:
    """As ``stamp``, awaiting asynchronous getters."""
    if KEY not in headers and (text := await atags_for_message()) is not None:
        headers[KEY] = text


class bound_to_message:
    """
    Bind the tags of a message for the length of a ``with`` block, around a job, and nothing of what was bound before. Never raises.

    A message without tags is bound too: the job is nobody's, and not that of the job before it on the same thread. The request that has
    caused a job stays its route, as it answers which route costs; a job without one has the route ``task <name>``. Its name is the extra
    key ``task``, unless the application has one of its own.

    Args:
        text: What ``tags_for_message`` answered; None for a message without tags. What cannot be read is nobody's, and counted as
            ``unreadable_messages``.
        task: The name of the task.
    """

    __slots__ = ("_bind", "scope")

    def __init__(self, text: object, task: str | None = None) -> None:
        self.scope = _scope(text, task)
        self._bind = use_scope(self.scope)

    def __enter__(self) -> JobScope:
        self._bind.__enter__()
        return self.scope

    def __exit__(self, *exc_info: object) -> None:
        self._bind.__exit__()
        try:
            self.scope.attribute_late()
        except Exception as error:
            report_internal_error(error)


def _text(owner: Owner) -> str | None:
    tags = owner.tags
    scope = current_context().scope
    if isinstance(scope, JobScope):
        tags = scope.without_task(tags)
    meter = current_meter()
    tags = meter.pseudonymized(tags)
    if tags == NO_TAGS or not meter.settings.enabled:
        return None
    text = _encode(_Message(tags, owner.attribution)).decode()
    if len(text) > MAX_CHARACTERS:
        warn_once(f"the extra tags of a job are left out of its message: together they have more than {MAX_CHARACTERS} characters")
        text = _encode(_Message(msgspec.structs.replace(tags, extra={}), owner.attribution)).decode()
    return text


def _scope(text: object, task: str | None) -> JobScope:
    name = None
    try:
        name = clean_value(task) if task is not None else None
        if text is None:
            return JobScope(task=name)
        message = _decode(text if isinstance(text, bytes) else str(text))
        # Another version, or another language, may have written it.
        carried = make_tags({name: value for name, value in msgspec.structs.asdict(message.tags).items() if value})
        how = message.attribution
        if how not in ATTRIBUTIONS or (carried.user_id is not None and how in ("none", "error")):
            how = "none" if carried.user_id is None else "tag"
        return JobScope(carried, how, name)
    except Exception:  # its text may name a user
        _count_unreadable()
        return JobScope(task=name)


def _count_unreadable() -> None:
    try:
        counters["unreadable_messages"] += 1
        warn_once("the tags of a message cannot be read: its job has no owner")
    except Exception as error:
        report_internal_error(error)
