"""Jobs: the tags of the caller, in the message of a job."""

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
"""The header, label or option of a message that has the tags."""
NOBODY = "{}"
"""The text of a message without an owner, if a missing text would mean the sender."""
MAX_CHARACTERS = 8192
"""The maximum length of the text. Extra keys are dropped from a longer one."""
TASK = "task"
"""The extra key with the name of the task that made a call."""


class _Message(msgspec.Struct, omit_defaults=True):
    """The content of a text. Unknown keys of a newer version are skipped."""

    tags: Tags = NO_TAGS
    attribution: str = "none"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Message).decode


class JobScope:
    """
    The identity of one job, as ``context.OwnerSource``: the message's tags, and those of
    ``set_tags()``.

    The tags of a message are resolved, so there are no getters. If a job makes calls before it
    names its user, they get that user when the job ends, but only if it has named one user.
    """

    def __init__(
        self, carried: Tags = NO_TAGS, attribution: str = "none", task: str | None = None
    ) -> None:
        self.task = task
        self.on_second_user: Callable[[], object] | None = None
        """Called when the job names a second user. Later jobs then do not belong to the first."""
        self._carried = carried
        self._identity = (
            carried
            if task is None
            else Tags(route=f"task {task}", extra={TASK: task}).merge(carried)
        )
        self._attribution = attribution
        self._explicit = NO_TAGS
        self._users: set[str] = set()
        self._pending: list[str] = []
        self._ended = False

    def known(self) -> Owner:
        """Return the owner of a call made now."""
        attribution = (
            self._attribution
            if self._identity.user_id is not None or self._attribution == "error"
            else "none"
        )
        return overlay(Owner(self._identity, attribution), self._explicit)

    def resolve(self) -> Owner:
        """As ``known``: a job has no getters."""
        return self.known()

    async def aresolve(self) -> Owner:
        """As ``known``."""
        return self.known()

    def set_identity(self, tags: Tags, attribution: str) -> None:
        """Set the user, plan and tenant, instead of the message."""
        self._note_user(tags)
        known = self._identity
        if known.user_id is not None and tags.user_id not in (None, known.user_id):
            known = Tags(route=known.route, release=known.release)
        self._identity = known.merge(tags)
        self._attribution = attribution

    def set_tags(self, tags: Tags) -> None:
        """Merge explicit tags onto the identity, for the rest of the job."""
        self._note_user(tags)
        self._explicit = self._explicit.merge(tags)

    def _note_user(self, tags: Tags) -> None:
        if tags.user_id is not None:
            self._users.add(tags.user_id)
            if len(self._users) > 1 and self.on_second_user is not None:
                self.on_second_user()

    def defer(self, call_id: str) -> None:
        """Note a call that was written without an owner."""
        if not self._ended:
            self._pending.append(call_id)

    def attribute_late(self) -> None:
        """End the job: write the owner of the calls that have none. Never raises."""
        self._ended = True
        # it refers to the message, which a thread that outlives the job must not keep
        self.on_second_user = None
        pending, self._pending = self._pending, []
        # A job that names many users made the calls for all of them, not for the last one.
        if pending and len(self._users) == 1 and (owner := self.known()).tags.user_id is not None:
            current_meter().attribute_late(pending, Owner(owner.tags, "settled"))

    def without_task(self, tags: Tags) -> Tags:
        """Return *tags* for the jobs that this one starts: without this one's task name."""
        if (
            self.task is None
            or tags.extra.get(TASK) != self.task
            or TASK in self._carried.extra
            or TASK in self._explicit.extra
        ):
            return tags
        return msgspec.structs.replace(
            tags, extra={key: value for key, value in tags.extra.items() if key != TASK}
        )


def tags_for_message() -> str | None:
    """
    Return the current tags as the JSON text of a message, or None if there are none. Never raises.

    They are resolved, as the worker cannot call the request's getters. They are pseudonymized as in
    the ledger. A worker trusts the text: anyone who can write to the broker can start jobs in any
    user's name.
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
    """
    Put the current tags into the headers of a message. Never raises.

    Tags that are there stay, so a retry keeps its owner.
    """
    if KEY not in headers and (text := tags_for_message()) is not None:
        headers[KEY] = text


async def astamp(headers: MutableMapping[str, Any]) -> None:
    """As ``stamp``, awaiting asynchronous getters."""
    if KEY not in headers and (text := await atags_for_message()) is not None:
        headers[KEY] = text


class bound_to_message:
    """
    Bind the tags of a message to a job, for the length of a ``with`` block. Never raises.

    Nothing that was bound before is kept. A message without tags is bound too: its job has no
    owner, not that of the previous job on the same thread.

    The request that caused a job stays its route, so that reports show the whole cost of a route. A
    job without a request has the route ``task <name>``. The task's name is the extra key ``task``,
    unless the application has set one of its own.

    Args:
        text: The result of ``tags_for_message``; None for a message without tags. A text that
            cannot be read gives no owner, and is counted as ``unreadable_messages``.
        task: The name of the task.
    """

    __slots__ = ("_use_scope", "scope")

    def __init__(self, text: object, task: str | None = None) -> None:
        self.scope = _scope(text, task)
        self._use_scope = use_scope(self.scope)

    def __enter__(self) -> JobScope:
        self._use_scope.__enter__()
        return self.scope

    def __exit__(self, *exc_info: object) -> None:
        self._use_scope.__exit__()
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
        warn_once(
            "the extra tags of a job are dropped from its message: its text has more than "
            f"{MAX_CHARACTERS} characters"
        )
        text = _encode(
            _Message(msgspec.structs.replace(tags, extra={}), owner.attribution)
        ).decode()
    return text


def _scope(text: object, task: str | None) -> JobScope:
    name = None
    try:
        name = clean_value(task) if task is not None else None
        if text is None:
            return JobScope(task=name)
        message = _decode(text if isinstance(text, bytes) else str(text))
        # Another version, or another language, may have written it.
        carried = make_tags(
            {name: value for name, value in msgspec.structs.asdict(message.tags).items() if value}
        )
        attribution = message.attribution
        if attribution not in ATTRIBUTIONS or (
            carried.user_id is not None and attribution in ("none", "error")
        ):
            attribution = "none" if carried.user_id is None else "tag"
        return JobScope(carried, attribution, name)
    except Exception:  # not logged: its text may name a user
        _count_unreadable()
        return JobScope(task=name)


def _count_unreadable() -> None:
    try:
        counters["unreadable_messages"] += 1
        warn_once("the tags of a message cannot be read: its job has no owner")
    except Exception as error:
        report_internal_error(error)
