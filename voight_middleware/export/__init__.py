"""Files that leave the house, and what is sent on to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voight_middleware import delivery

if TYPE_CHECKING:
    from voight_middleware.outbox import Outbox
    from voight_middleware.settings import EventsTarget


def _make_sender(target: EventsTarget, outbox: Outbox) -> delivery.Sender:
    from voight_middleware.export.voight import EventSender  # brings an HTTP client: only where a key is set

    return EventSender(target, outbox)


delivery.make_sender = _make_sender
