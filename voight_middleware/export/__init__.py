"""Files that leave the house, and what is sent on to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voight_middleware import background

if TYPE_CHECKING:
    from voight_middleware.outbox import Outbox
    from voight_middleware.settings import Settings


def _make_sender(settings: Settings, outbox: Outbox) -> background.Sender:
    from voight_middleware.export.voight import EventSender  # brings an HTTP client: only where a key is set

    assert settings.events is not None
    return EventSender(settings.events, outbox)


background.make_sender = _make_sender
