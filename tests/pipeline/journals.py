"""What tests of delivery do with journals and meters."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from voight_middleware.context.context import TagContext
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pipeline.meter import Meter
from voight_middleware.records.call import Call, Record
from voight_middleware.records.tags import NO_TAGS, Owner

NewCall = Callable[..., Call]
NOBODY, NOBODYS = TagContext(None, NO_TAGS), Owner(NO_TAGS, "none")


def write(folder: Path, *calls: Record) -> None:
    """Write *calls* as a process that is gone by now."""
    journal = Journal(folder)
    for call in calls:
        journal.append(call)
    journal.rotate()


def finish(meter: Meter, call: Call) -> str:
    """End *call*, and return its id."""
    meter.finish(call, NOBODY, NOBODYS)
    return call.call_id


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings and errors so far."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
