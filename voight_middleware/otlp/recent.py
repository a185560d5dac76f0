"""
Recent: a bounded memory of spans, from which is found out that two of them tell of one call.

An instrumentor may make a span around that of another one, around the SDK's own, or beside it. Exact are:

* the same span sent again (its key),
* spans of several libraries with the provider's response id in common, one of which lies within the other in time. Spans of one library
  never are one call by their response id: a server that gives every response the same id must not make one call of all,
* a span inside of which, with no agent, tool or chain in between, calls were counted whose tokens add up to its own.

Where no ids are there to compare, a span of another library directly around a counted one is the same call if the model may be the same,
and one with the same parent, or in one process under the same tags, if the tokens are the same and one of the two lies within the other
in time. Beside each other two spans never are one call if they are of one library or of two users, or if the library has told of that
call before. A span without tokens around a counted one of its own library is the same call too; where it comes first, it is a call
without usage, and the inner one is counted beside it.
What is forgotten by the time the second span comes (``SPANS`` spans), or what two processes hear of, is counted twice.
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
"""How many spans are remembered, some 15 MB."""
RESPONSES = 20_000
MAX_DEPTH = 32
"""How many spans up or down are looked at: nesting is made by whoever sends it."""
MAX_INNER = 64
"""How many calls are remembered of those inside one span."""
MAX_TOLD = 8
"""How many spans are remembered to have told of one call."""
GATE = "voight"
"""The scope of what the gate has metered."""
_SLACK = 5_000_000
"""Nanoseconds by which two clocks of one machine may differ."""


class CountedCall(msgspec.Struct, kw_only=True, eq=False):
    """A call that is in the ledger, as far as another span may tell of it too."""

    scope: str
    started: int
    """Nanoseconds since 1970."""
    ended: int | None = None
    """None for one that goes on."""
    models: frozenset[str] = frozenset()
    response_id: str | None = None
    input: int | None = None
    output: int | None = None
    failed: bool = False
    call_id: str | None = None
    """Its id in the ledger, where that is known."""
    user: str | None = None
    """Whose it is, where that is known."""
    ours: bool = False
    """Whether it is of another process's gate: its owner is not a span's to say."""
    reported_by: list[str] = []
    """The scopes of the spans that have told of it once more."""
    context: int | None = None
    """
    What names the ``Frame`` of tags that it began in, where both are of this process: a framework may run its instrumentation in a copy of
    the context, in which no span of the caller's is open. Two that go on at once have two contexts, or one.
    """
    beside: bool = False
    """Whether it was only going on at the same time and place as the span that it is noted for, and is not known to be inside."""


class _Node(msgspec.Struct, eq=False):
    parent: Key | None
    role: Role
    counted: CountedCall | None = None
    inner: list[CountedCall] | None = None
    told: bool = False
    """Whether it has told of a call that was counted before."""


class SpanDeduplicator:
    """Not safe for threads: its owner holds a lock."""

    def __init__(self, spans: int = SPANS, responses: int = RESPONSES) -> None:
        self._most_spans, self._most_responses = spans, responses
        self._siblings: OrderedDict[Key, list[CountedCall]] = OrderedDict()
        self._contexts: OrderedDict[tuple[int, int | None, int | None], list[CountedCall]] = OrderedDict()
        self._nodes: OrderedDict[Key, _Node] = OrderedDict()
        self._responses: OrderedDict[str, list[CountedCall]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def heard(self, key: Key, parent: Key | None, role: Role) -> None:
        """There is this span, at this place."""
        node = self._node(key)
        if node.parent is None:
            node.parent = parent
            if node.inner and role != "step" and parent is not None:
                for one in node.inner:
                    if not one.beside:
                        self.note_inside(parent, one)
        if role != "other":
            node.role = role

    def is_resent(self, key: Key) -> bool:
        """Whether this very span is counted already, or told of a call that is."""
        node = self._nodes.get(key)
        return node is not None and (node.told or node.counted is not None)

    def same_as(self, key: Key, call: CountedCall, beside: Iterable[Key] = ()) -> CountedCall | None:
        """
        The call that another span has told of, or the gate has metered, where it is this one too. *beside* are spans that were open in the
        same place when this one began: an instrumentor need not make its span the current one.
        """
        same = (
            self._by_response(call)
            or self._around(key, call)
            or self._inside_of(key, call)
            or self._open_at(beside, call)
            or self._by_tokens(key, call)
        )
        if same is not None and same.scope != GATE and same.input is None and call.input is not None:
            return None  # what is in the ledger lacks the tokens: better a call without them too many than their cost too little
        if same is not None:
            self._node(key).told = True
            same.reported_by.append(call.scope)
            del same.reported_by[:-MAX_TOLD]
        return same

    def count(self, key: Key, call: CountedCall, beside: Iterable[Key] = ()) -> None:
        """This span is a call of the ledger, which the spans *beside* it may tell of too."""
        node = self._node(key)
        node.counted = call
        self.note_response(call)
        self.note_context(call)
        if node.parent is not None:
            _remember(self._siblings, node.parent, call, self._most_responses)
            self.note_inside(node.parent, call)
        self.note_beside(beside, msgspec.structs.replace(call, beside=True))

    def note_response(self, call: CountedCall) -> None:
        """This call has an id that another span may have too."""
        if call.response_id is None:
            return
        _remember(self._responses, call.response_id, call, self._most_responses)

    def note_context(self, call: CountedCall) -> None:
        """This call has ended, and spans elsewhere in this process that began under the same tags may tell of it too."""
        if call.context is not None:
            for tokens in {(call.input, call.output), (None, None)}:
                _remember(self._contexts, (call.context, tokens[0], tokens[1]), call, self._most_responses)

    def note_inside(self, key: Key, call: CountedCall) -> None:
        """A call is made inside of this span and of all around it, up to the first step; the last may not have been heard of yet."""
        at: Key | None = key
        for _ in range(MAX_DEPTH):
            if at is None:
                return
            node = self._node(at)
            if node.role == "step" or (node.inner is not None and call in node.inner):
                return
            self._add_inner(node, call)
            at = node.parent

    def note_beside(self, keys: Iterable[Key], call: CountedCall) -> None:
        """A call is made while these spans are open in the same place, whether or not inside of them."""
        for key in keys:
            self._add_inner(self._node(key), call)

    def _node(self, key: Key) -> _Node:
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = _Node(None, "other")
            if len(self._nodes) > self._most_spans:
                self._nodes.popitem(last=False)
        return node

    def around(self, key: Key | None) -> Iterator[Key]:
        """*key* and the spans around it that are known, up to the first step."""
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
        for other in self._responses.get(call.response_id, ()) if call.response_id is not None else ():
            if other.scope != call.scope and may_be_same(call.models, other.models) and _is_nested(call, other):
                return other
        return None

    def _around(self, key: Key, call: CountedCall) -> CountedCall | None:
        """The span around this one that was counted as the same call, before this one came."""
        node = self._nodes.get(key)
        for around in self.around(node.parent if node is not None else None):
            counted = self._nodes[around].counted
            if counted is not None:
                return counted if _repeated(counted, [call]) is not None else None
        return None

    def _by_tokens(self, key: Key, call: CountedCall) -> CountedCall | None:
        node = self._nodes.get(key)
        near = self._siblings.get(node.parent, []) if node is not None and node.parent is not None else []
        here = self._contexts.get((call.context, call.input, call.output), []) if call.context is not None else []
        for other in near + here:
            if (call.response_id is None or other.response_id is None) and not _are_two(call, other) and _is_nested(call, other):
                if _adds_up(call, [other]):
                    return other
                if call.context is not None and call.input is None and _is_around(call, other):
                    return other
        return None

    def _open_at(self, beside: Iterable[Key], call: CountedCall) -> CountedCall | None:
        """The span that was counted as the same call, and was open here when this one began."""
        for key in beside:
            node = self._nodes.get(key)
            if node is not None and node.counted is not None:
                inner = msgspec.structs.replace(call, beside=True)
                if _repeated(node.counted, [inner]) is not None:
                    return node.counted
        return None

    def _inside_of(self, key: Key, call: CountedCall) -> CountedCall | None:
        """A call inside of this span, where the span only repeats what is inside of it."""
        node = self._nodes.get(key)
        return None if node is None or not node.inner else _repeated(call, node.inner)


def _remember(index: OrderedDict[K, list[CountedCall]], key: K, call: CountedCall, most: int) -> None:
    same = index.setdefault(key, [])
    index.move_to_end(key)
    if call not in same:
        same.append(call)
        del same[:-MAX_INNER]
    while len(index) > most:
        index.popitem(last=False)


def models(*names: str | None) -> frozenset[str]:
    """Names of one model, without the provider that a router puts before them."""
    return frozenset(name.lower().rpartition("/")[2] for name in names if name)


def may_be_same(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two calls may be of one model. ``claude-sonnet-4-5`` is answered by ``claude-sonnet-4-5-20250929``."""
    return not one or not other or any(a.startswith(b) or b.startswith(a) for a in one for b in other)


def _is_nested(one: CountedCall, other: CountedCall) -> bool:
    """Whether one of two calls lies within the other in time; the one that goes on has not ended before."""
    if one.ended is None or other.ended is None:
        return True
    first, second = (one, other) if one.started <= other.started else (other, one)
    assert first.ended is not None
    assert second.ended is not None
    within = second.started <= first.ended and second.ended <= first.ended + _SLACK  # the next one, if it is quick, is not within
    return within or (second.started - first.started <= _SLACK and first.ended <= second.ended + _SLACK)


def _are_two(one: CountedCall, other: CountedCall) -> bool:
    """Whether two spans, neither of which is inside of the other, cannot be of one call, however alike they are."""
    if one.scope == other.scope or one.scope in other.reported_by or other.scope in one.reported_by:
        return True
    return one.user is not None and other.user is not None and one.user != other.user


def _is_around(outer: CountedCall, inner: CountedCall) -> bool:
    """Whether *outer*, which has no tokens to compare, was going on all the while and ended as *inner* did."""
    if outer.ended is None or inner.ended is None or outer.failed != inner.failed or not may_be_same(outer.models, inner.models):
        return False
    return outer.started <= inner.started and inner.ended <= outer.ended + _SLACK


def _repeated(outer: CountedCall, inner: list[CountedCall]) -> CountedCall | None:
    """The one of the counted *inner* calls, or the last of several, that the span *outer* tells of once more."""
    inner = [one for one in inner if not (one.beside and _are_two(outer, one))]
    for one in inner:
        if outer.response_id is not None and one.response_id == outer.response_id and one.scope != outer.scope:
            return one
    inside = [one for one in inner if not one.beside]
    if _adds_up(outer, inside):
        return inside[-1]
    for one in inner:
        if _adds_up(outer, [one]) and _is_nested(outer, one):
            return one
        if (one.scope == outer.scope and outer.input is not None) or (outer.response_id is not None and one.response_id is not None):
            continue
        if may_be_same(outer.models, one.models) and (not one.beside or (outer.failed and one.failed)):
            return one
    return None


def _adds_up(outer: CountedCall, inner: list[CountedCall]) -> bool:
    """Whether the tokens of *inner* are those of *outer*: all of them, and of a model that may be the same."""
    if not inner or not outer.input or any(one.input is None for one in inner):
        return False
    if not all(may_be_same(outer.models, one.models) for one in inner):
        return False
    return outer.input == sum(one.input or 0 for one in inner) and (outer.output or 0) == sum(one.output or 0 for one in inner)
