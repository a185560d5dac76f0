"""
Answer: the record of a call that ended as usual, as an array.

Most calls end so: the provider answered, reported its usage, and the owner is known. Their records
are written on the caller's thread. An array is written in a third of the time of a ``Call``. The
ingester makes a ``Call`` of it.
"""

from __future__ import annotations

import hashlib

import msgspec

from voight_middleware.records.call import Call
from voight_middleware.records.tags import NO_TAGS, Tags

_NULL = msgspec.Raw(b"null")
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


class Answer(msgspec.Struct, array_like=True, gc=False):
    """
    A call with a whole answer. The fields are those of ``Call``.

    New fields are added at the end, with a default: a journal may be older than its ingester.
    """

    occurred_at: int
    duration: int
    http_status: int
    attempts: int
    provider: str
    endpoint: str
    host: str
    requested_model: str | None
    model: str | None
    response_id: str | None
    service_tier: str | None
    usage: msgspec.Raw
    """The provider's usage JSON, without line ends; ``null`` if it reported none."""
    ttft: int | None = None
    streamed: bool = False
    tool_calls: dict[str, int] | None = None
    attribution: str = "none"
    tags: Tags = NO_TAGS
    call_id: str = ""
    """Empty if nobody needs it before the call is in the ledger: then it follows from the place."""
    finish_reasons: tuple[str, ...] | None = None
    """Only for listeners."""

    def call(self, source: str = "") -> Call:
        """
        Return the call.

        Args:
            source: The segment, and the position in it. The id of the call follows from them, if it
                has none, so it is the same at every reading.
        """
        usage = bytes(self.usage)
        return Call(
            call_id=self.call_id or self._id_of_place(source),
            occurred_at=self.occurred_at,
            provider=self.provider,
            endpoint=self.endpoint,
            requested_model=self.requested_model,
            model=self.model,
            host=self.host,
            streamed=self.streamed,
            http_status=self.http_status,
            attempts=self.attempts,
            duration=self.duration,
            ttft=self.ttft,
            response_id=self.response_id,
            finish_reasons=self.finish_reasons,
            service_tier=self.service_tier,
            raw_usage=None if usage == b"null" else usage.decode(),
            tool_calls=self.tool_calls,
            tags=self.tags,
            attribution=self.attribution,
        )

    def _id_of_place(self, source: str) -> str:
        """Return a UUID version 7, as ``new_call_id`` does, of the time when the call ended."""
        digest = hashlib.blake2b(source.encode(), digest_size=10).hexdigest()
        ended = (self.occurred_at + self.duration) // 1000
        variant = "89ab"[int(digest[3], 16) % 4]
        return f"{ended:012x}7{digest[:3]}{variant}{digest[4:19]}"


def usage_on_a_line(usage: msgspec.Raw, limit: int) -> msgspec.Raw | None:
    """
    Return *usage* as an ``Answer`` has it. None if it must be checked as text first.

    Args:
        limit: The maximum size in bytes. A larger usage counts as not reported.
    """
    data = bytes(usage)
    if len(data) > limit:
        return _NULL
    # in JSON, a line end is only between two tokens
    return msgspec.Raw(data.translate(_LINE_ENDS)) if data.isascii() else None
