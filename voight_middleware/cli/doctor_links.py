"""Findings of ``voight doctor`` about events, signed tags and received spans, without secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator

from voight_middleware.cli import events
from voight_middleware.cli.events import Line
from voight_middleware.cli.otlp import MIN_TOKEN
from voight_middleware.config.settings import Settings
from voight_middleware.events.outbox import FOLDER, status


def of_events(settings: Settings) -> Iterator[Line]:
    """Report the sending of events to Voight, and the pending ones."""
    yield from events.target(settings)
    try:
        outbox = status(settings.journal)
    except OSError as error:
        yield Line(
            "waiting",
            str(error),
            f"make {settings.journal / FOLDER} readable and writable for this account",
        )
        return
    if outbox is not None or settings.events is not None:
        yield from events.state(settings, outbox)


def of_services(settings: Settings) -> Iterator[Line]:
    """Report the versions of the header key, and the token of ``voight otlp``."""
    source, keys = settings.sources.get("header_key", "default"), settings.header_keys
    older = f"; accepted too: {', '.join(key.version for key in keys[1:])}" if keys[1:] else ""
    yield Line(
        "header key",
        f"{keys[0].version}{older} ({source})"
        if keys
        else "not set: tags are neither signed for other services nor accepted from them",
    )
    token = os.environ.get("VOIGHT_OTLP_TOKEN")
    if token is None:
        yield Line("otlp token", "not set: voight otlp listens on this machine only")
    else:
        advice = (
            f"voight otlp needs at least {MIN_TOKEN} characters: openssl rand -hex 32"
            if len(token.strip()) < MIN_TOKEN
            else None
        )
        yield Line("otlp token", "set (VOIGHT_OTLP_TOKEN)", advice)
