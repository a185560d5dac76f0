"""
A bounded cache of recent spans, used to detect spans that describe the same call.

An instrumentor may make a span around another instrumentor's span, around the SDK's own span, or
beside one of them. These matches are exact:

* The same span is sent again (it has the same key).
* Spans of several libraries have the provider's response id in common, and one lies within the
  other in time. Spans of one library never match by their response id: a server may give all its
  responses the same id.
* The calls counted inside a span, with no agent, tool or chain in between, have tokens that add up
  to the span's own.

Without ids to compare, two rules apply. A span directly around a counted span of another library is
the same call if the model may be the same. A span with the same parent, or in one process under the
same tags, is the same call if the tokens are equal and one span lies within the other in time.

Two spans beside each other are never the same call if they are from one library or of two users,
or if the library has already reported that call. A span without tokens around a counted span of
its own library is the same call too. If the outer one comes first, it is a call without usage, and
the inner one is counted as another call.

A call is counted twice if the first span has left the cache (``SPANS`` spans) when the second one
comes, or if the spans go to two processes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from voight_middleware.otlp.kinds import Role
from voight_middleware.otlp.spans import Key

K = TypeVar("K")

SPANS = 50_000
"""The maximum number of cached spans: about 15 MB."""
RESPONSES = 20_000
"""The maximum number of cached response ids."""
MAX_DEPTH = 32
"""How many levels of nesting are followed. The sender chooses the nesting."""
MAX_INNER = 64
"""How many of the calls inside one span are cached."""
MAX_REPORTED_BY = 8
"""How many of the spans that repeat one call are cached."""
INSTRUMENTATION = "voight"
"""The scope of calls that our instrumentation has metered."""
_SLACK = 5_000_000
"""Nanoseconds by which two clocks of one machine may differ."""


class CountedCall(msgspec.Struct, kw_only=True, eq=False):
    """The data of a counted call that identifies other spans of the same call."""

    scope: str
    started: int
    """Nanoseconds since 1970."""
    ended: int | None = None
    """None while the call runs."""
    models: frozenset[str] = frozenset()
    response_id: str | None = None
    input: int | None = None
    output: int | None = None
    failed: bool = False
    call_id: str | None = None
    """The call's id in the ledger, if known."""
    user: str | None = None
    """The call's user, if known."""
    ours: bool = False
    """
    Whether another process's instrumentation metered the call. Then a span must not set its owner.
    """
    reported_by: list[str] = []
    """The scopes of the spans that repeated the call."""
    context: int | None = None
    """
    The id of the ``TagContext`` in which the call started, in this process only. A framework may
    run its instrumentation in a copy of the context without the caller's open span. Two
    simultaneous calls may share a ``TagContext``.
    """
    beside: bool = False
    """Whether the call only ran at the same time and place as a span, and may not be inside it."""


class _Node(msgspec.Struct, eq=False):
    parent: Key | None
    role: Role
    counted: CountedCall | None = None
    inner: list[CountedCall] | None = None
    is_repeat: bool = False
    """Whether the span repeated a call that was counted before."""


class SpanDeduplicator:
    """
    Finds the counted call that a span repeats. Not thread-safe: its user must hold a lock.

    Args:
        spans: The maximum number of cached spans.
        responses: The maximum number of cached response ids, parents and contexts, each.
    """

    def __init__(self, spans: int = SPANS, responses: int = RESPONSES) -> None:
        self._max_spans, self._max_responses = spans, responses
        self._siblings: OrderedDict[Key, list[CountedCall]] = OrderedDict()
        self._contexts: OrderedDict[tuple[int, int | None, int | None], list[CountedCall]] = (
            OrderedDict()
        )
        self._nodes: OrderedDict[Key, _Node] = OrderedDict()
        self._responses: OrderedDict[str, list[CountedCall]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, key: Key, parent: Key | None, role: Role) -> None:
        """Add a span at its place in the trace."""
        node = self._node(key)
        if node.parent is None:
            node.parent = parent
            if node.inner and role != "step" and parent is not None:
                for call in node.inner:
                    if not call.beside:
                        self.note_inside(parent, call)
        if role != "other":
            node.role = role

    def is_resent(self, key: Key) -> bool:
        """Return whether this span was counted before, or repeated a counted call before."""
        node = self._nodes.get(key)
        return node is not None and (node.is_repeat or node.counted is not None)

    def same_as(
        self, key: Key, call: CountedCall, beside: Iterable[Key] = ()
    ) -> CountedCall | None:
        """
        Return the counted call that this span repeats. None if the call is new.

        Args:
            key: The span.
            call: The call that it describes.
            beside: Spans that were open in the same place when this one started. An instrumentor
                may not make its span the current one.
        """
        same = (
            self._by_response(call)
            or self._around(key, call)
            or self._inside_of(key, call)
            or self._open_at(beside, call)
            or self._by_tokens(key, call)
        )
        if (
            same is not None
            and same.scope != INSTRUMENTATION
            and same.input is None
            and call.input is not None
        ):
            # the counted call lacks the tokens: one call too many is better than a missing cost
            return None
        if same is not None:
            self._node(key).is_repeat = True
            same.reported_by.append(call.scope)
            del same.reported_by[:-MAX_REPORTED_BY]
        return same

    def count(self, key: Key, call: CountedCall, beside: Iterable[Key] = ()) -> None:
        """
        Record that this span was counted as a call. The spans *beside* it may repeat the call.
        """
        node = self._node(key)
        node.counted = call
        self.note_response(call)
        self.note_context(call)
        if node.parent is not None:
            _remember(self._siblings, node.parent, call, self._max_responses)
            self.note_inside(node.parent, call)
        self.note_beside(beside, msgspec.structs.replace(call, beside=True))

    def note_response(self, call: CountedCall) -> None:
        """Record the response id of a call, which another span may have too."""
        if call.response_id is None:
            return
        _remember(self._responses, call.response_id, call, self._max_responses)

    def note_context(self, call: CountedCall) -> None:
        """
        Record a call that ended, under its tag context. Spans elsewhere in this process that
        started in the same context may repeat it.
        """
        if call.context is not None:
            for tokens in {(call.input, call.output), (None, None)}:
                _remember(
                    self._contexts, (call.context, tokens[0], tokens[1]), call, self._max_responses
                )

    def note_inside(self, key: Key, call: CountedCall) -> None:
        """
        Record a call inside this span, and inside all spans around it up to the first step. The
        outermost span may not have arrived yet.
        """
        current: Key | None = key
        for _ in range(MAX_DEPTH):
            if current is None:
                return
            node = self._node(current)
            if node.role == "step" or (node.inner is not None and call in node.inner):
                return
            self._add_inner(node, call)
            current = node.parent

    def note_beside(self, keys: Iterable[Key], call: CountedCall) -> None:
        """
        Record a call that runs while these spans are open in the same place, inside them or not.
        """
        for key in keys:
            self._add_inner(self._node(key), call)

    def _node(self, key: Key) -> _Node:
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = _Node(None, "other")
            if len(self._nodes) > self._max_spans:
                self._nodes.popitem(last=False)
        return node

    def around(self, key: Key | None) -> Iterator[Key]:
        """Yield *key* and the cached spans around it, up to the first step."""
        for _ in range(MAX_DEPTH):
            node = self._nodes.get(key) if key is not None else None
            if key is None or node is None or node.role == "step":
                return
            yield key
            key = node.parent

    def _add_inner(self, node: _Node, call: CountedCall) -> None:
        node.inner = node.inner or []
        node.inner.append(call)
        del node.inner[:-MAX_INNER]

    def _by_response(self, call: CountedCall) -> CountedCall | None:
        for other in (
            self._responses.get(call.response_id, ()) if call.response_id is not None else ()
        ):
            if (
                other.scope != call.scope
                and may_be_same(call.models, other.models)
                and _is_nested(call, other)
            ):
                return other
        return None

    def _around(self, key: Key, call: CountedCall) -> CountedCall | None:
        """Return the span around this one that was counted earlier as the same call."""
        node = self._nodes.get(key)
        for around in self.around(node.parent if node is not None else None):
            counted = self._nodes[around].counted
            if counted is not None:
                return counted if _repeated(counted, [call]) is not None else None
        return None

    def _by_tokens(self, key: Key, call: CountedCall) -> CountedCall | None:
        node = self._nodes.get(key)
        near = (
            self._siblings.get(node.parent, [])
            if node is not None and node.parent is not None
            else []
        )
        here = (
            self._contexts.get((call.context, call.input, call.output), [])
            if call.context is not None
            else []
        )
        for other in near + here:
            if (
                (call.response_id is None or other.response_id is None)
                and not _are_two(call, other)
                and _is_nested(call, other)
            ):
                if _adds_up(call, [other]):
                    return other
                if call.context is not None and call.input is None and _is_around(call, other):
                    return other
        return None

    def _open_at(self, beside: Iterable[Key], call: CountedCall) -> CountedCall | None:
        """
        Return the span that was open here when this one started, and was counted as the same call.
        """
        for key in beside:
            node = self._nodes.get(key)
            if node is not None and node.counted is not None:
                inner = msgspec.structs.replace(call, beside=True)
                if _repeated(node.counted, [inner]) is not None:
                    return node.counted
        return None

    def _inside_of(self, key: Key, call: CountedCall) -> CountedCall | None:
        """Return a call inside this span, if the span only repeats the calls inside it."""
        node = self._nodes.get(key)
        return None if node is None or not node.inner else _repeated(call, node.inner)


def _remember(
    index: OrderedDict[K, list[CountedCall]], key: K, call: CountedCall, limit: int
) -> None:
    same = index.setdefault(key, [])
    index.move_to_end(key)
    if call not in same:
        same.append(call)
        del same[:-MAX_INNER]
    while len(index) > limit:
        index.popitem(last=False)


def models(*names: str | None) -> frozenset[str]:
    """Return the names of a model, without a router's prefix for the provider."""
    return frozenset(name.lower().rpartition("/")[2] for name in names if name)


def may_be_same(names: frozenset[str], others: frozenset[str]) -> bool:
    """
    Return whether two calls may be of one model. The model ``claude-sonnet-4-5`` responds as
    ``claude-sonnet-4-5-20250929``.
    """
    return (
        not names
        or not others
        or any(a.startswith(b) or b.startswith(a) for a in names for b in others)
    )


def _is_nested(call: CountedCall, other: CountedCall) -> bool:
    """
    Return whether one of two calls lies within the other in time. A running call may contain the
    other.
    """
    if call.ended is None or other.ended is None:
        return True
    first, second = (call, other) if call.started <= other.started else (other, call)
    assert first.ended is not None
    assert second.ended is not None
    # a quick next call is not within
    within = second.started <= first.ended and second.ended <= first.ended + _SLACK
    return within or (
        second.started - first.started <= _SLACK and first.ended <= second.ended + _SLACK
    )


def _are_two(call: CountedCall, other: CountedCall) -> bool:
    """
    Return whether two spans beside each other cannot be of the same call, even if they are equal.
    """
    if (
        call.scope == other.scope
        or call.scope in other.reported_by
        or other.scope in call.reported_by
    ):
        return True
    return call.user is not None and other.user is not None and call.user != other.user


def _is_around(outer: CountedCall, inner: CountedCall) -> bool:
    """
    Return whether *outer*, which has no tokens, ran all the time of *inner* and had the same
    outcome.
    """
    if (
        outer.ended is None
        or inner.ended is None
        or outer.failed != inner.failed
        or not may_be_same(outer.models, inner.models)
    ):
        return False
    return outer.started <= inner.started and inner.ended <= outer.ended + _SLACK


# Complex: one branch for each way in which two spans report one call.
def _repeated(outer: CountedCall, inner: list[CountedCall]) -> CountedCall | None:
    """
    Return the one of the counted *inner* calls that the span *outer* repeats; the last if it
    repeats several.
    """
    inner = [call for call in inner if not (call.beside and _are_two(outer, call))]
    for call in inner:
        if (
            outer.response_id is not None
            and call.response_id == outer.response_id
            and call.scope != outer.scope
        ):
            return call
    inside = [call for call in inner if not call.beside]
    if _adds_up(outer, inside):
        return inside[-1]
    for call in inner:
        if _adds_up(outer, [call]) and _is_nested(outer, call):
            return call
        if (call.scope == outer.scope and outer.input is not None) or (
            outer.response_id is not None and call.response_id is not None
        ):
            continue
        if may_be_same(outer.models, call.models) and (
            not call.beside or (outer.failed and call.failed)
        ):
            return call
    return None


def _adds_up(outer: CountedCall, inner: list[CountedCall]) -> bool:
    """
    Return whether the tokens of *inner* add up to those of *outer*, and the models may be the same.
    """
    if not inner or not outer.input or any(call.input is None for call in inner):
        return False
    if not all(may_be_same(outer.models, call.models) for call in inner):
        return False
    return outer.input == sum(call.input or 0 for call in inner) and (outer.output or 0) == sum(
        call.output or 0 for call in inner
    )
