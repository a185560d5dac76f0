"""Calls that stand in the ledger of a test before a command is run."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from voight_middleware.ledger import open_ledger
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.records.call import Call, new_call_id
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Usage

from ..support import factories

USD = 10**15
SECRET = "0123456789abcdef0123456789abcdef"
HALF = """\
[[price]]
provider = "openai"
model = "gpt-5-nano"
discount = "50%"

[[price]]
provider = "openai"
model = "house-model"
input = 2
output = 6
"""

Captured = pytest.CaptureFixture[str]


def make_call(cost: int | None = USD, user: str | None = "u_1", **values: Any) -> Call:
    """Return a call of now by *user* that costs so many femto-dollars; ``tags`` has the rest of its tags."""
    tags = Tags(user_id=user, **values.pop("tags", {}))
    usage = Usage(input=1_234_567, cache_read=5, output=7)
    at = values.pop("occurred_at", None) or time.time_ns() // 1000
    return factories.make_call(cost, at, tags=tags, usage=usage, components=(), **values)


def keep(ledger: Path, *calls: Call) -> None:
    """Put *calls* into the ledger."""
    with closing(open_ledger(str(ledger))) as opened:
        opened.insert(calls)


def keep_priced(ledger: Path, user: str | None = "u_1", **values: Any) -> Call:
    """Put a call into the ledger as the ingester does, priced by the list, and return it."""
    fixed: dict[str, Any] = {
        "call_id": new_call_id(),
        "occurred_at": factories.NOON,
        "provider": "openai",
        "endpoint": "chat",
        "model": "gpt-5-nano",
        "raw_usage": '{"prompt_tokens":1000000,"completion_tokens":0}',
        "tags": Tags(user_id=user),
    }
    call = Call(**{**fixed, **values})
    price_call(call, PriceBook())
    keep(ledger, call)
    return call
