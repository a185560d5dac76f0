"""What ``voight doctor`` says of ways to elsewhere: events, tags between services, spans that are received. No secret is shown."""

from __future__ import annotations

import os
from collections.abc import Iterator

from voight_middleware.cli import events
from voight_middleware.cli.events import Line
from voight_middleware.cli.otlp import MIN_TOKEN
from voight_middleware.config.settings import Settings
from voight_middleware.events.outbox import FOLDER, status


def of_events(settings: Settings) -> Iterator[Line]:
    """Whether calls are sent to Voight, and what waits."""
    yield from events.target(settings)
    try:
        found = status(settings.journal)
    except OSError as error:
        yield Line("waiting", str(error), f"make {settings.journal / FOLDER} readable and writable for this account")
        return
    if found is not None or settings.events is not None:
        yield from events.state(settings, found)


def of_services(settings: Settings) -> Iterator[Line]:
    """Which versions of the header key there are, and whether the receiver of spans has a token."""
    source, keys = settings.sources.get("header_key", "default"), settings.header_keys
    older = f"; accepted too: {', '.join(key.version for key in keys[1:])}" if keys[1:] else ""
    yield Line(
        "header key", f"{keys[0].version}{older} ({source})" if keys else "not set: no tags are signed for, or taken from, other services"
    )
    token = os.environ.get("VOIGHT_OTLP_TOKEN")
    if token is None:
        yield Line("otlp token", "not set: voight otlp listens on this machine only")
    else:
        advice = f"voight otlp needs {MIN_TOKEN} characters or more: openssl rand -hex 32" if len(token.strip()) < MIN_TOKEN else None
        yield Line("otlp token", "set (VOIGHT_OTLP_TOKEN)", advice)
