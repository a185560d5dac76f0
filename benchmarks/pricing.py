"""
How many finished calls one core reads, prices and keeps in a second, beside the peers' own cost
functions in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import genai_prices
import msgspec
from genai_prices.data_snapshot import get_snapshot

from voight_middleware.ledger import open_ledger
from voight_middleware.pipeline.ingest import Ingester
from voight_middleware.pipeline.journal import Journal
from voight_middleware.pricing import PriceBook
from voight_middleware.pricing.price_call import price_call
from voight_middleware.providers.usage_formats import read_usage
from voight_middleware.records.call import Call, new_call_id

OPENAI_USAGE = {
    "prompt_tokens": 1873,
    "completion_tokens": 241,
    "total_tokens": 2114,
    "prompt_tokens_details": {"cached_tokens": 1408, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0},
}
ANTHROPIC_USAGE = {
    "input_tokens": 421,
    "cache_creation_input_tokens": 44,
    "cache_read_input_tokens": 1408,
    "cache_creation": {"ephemeral_5m_input_tokens": 44, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 241,
    "service_tier": "standard",
}
ROUNDS = 5


def calls(number: int) -> list[Call]:
    """Half of OpenAI, half of Anthropic, an hour of them."""
    raw = {"openai": json.dumps(OPENAI_USAGE), "anthropic": json.dumps(ANTHROPIC_USAGE)}
    models = {
        "openai": ("chat", "gpt-4o-mini-2024-07-18"),
        "anthropic": ("messages", "claude-haiku-4-5-20251001"),
    }
    made = []
    begin = 1_795_003_200_000_000
    for index in range(number):
        provider = ("openai", "anthropic")[index % 2]
        endpoint, model = models[provider]
        made.append(
            Call(
                call_id=new_call_id(),
                occurred_at=begin + index * 3_000_000_000 // number,
                provider=provider,
                endpoint=endpoint,
                requested_model=model,
                model=model,
                host=f"api.{provider}.com",
                raw_usage=raw[provider],
                response_id=f"r{index}",
            )
        )
    return made


def rate(work: Callable[[], int]) -> float:
    """Calls a second of CPU time, the median of some rounds."""
    rates = []
    for _ in range(ROUNDS):
        gc.collect()
        begin = time.process_time()
        number = work()
        rates.append(number / (time.process_time() - begin))
    return statistics.median(rates)


def unpriced(number: int) -> int:
    decode = msgspec.json.decode
    for call in calls(number):
        assert call.raw_usage is not None
        read_usage(call.endpoint, decode(call.raw_usage))
    return number


def priced(number: int, book: PriceBook) -> int:
    for call in calls(number):
        price_call(call, book)
    return number


def kept(number: int, folder: Path) -> int:
    """The whole way from the journal into the ledger."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        journal = Journal(Path(place) / "journal")
        ledger = open_ledger(f"sqlite:///{place}/ledger.db")
        ingester = Ingester(ledger, Path(place) / "journal", gentle=False)
        warm, *rest = calls(number + 1)
        journal.append(warm)
        ingester.run()  # loads the price book
        for call in rest:
            journal.append(call)
        journal.rotate()
        begin = time.process_time()
        ingester.run()
        spent = time.process_time() - begin
        ledger.close()
    return int(number / spent)


def by_genai_prices(number: int) -> int:
    bodies = {
        "openai": {"model": "gpt-4o-mini-2024-07-18", "usage": OPENAI_USAGE},
        "anthropic": {"model": "claude-haiku-4-5-20251001", "usage": ANTHROPIC_USAGE},
    }
    for index in range(number):
        provider = ("openai", "anthropic")[index % 2]
        flavor = "chat" if provider == "openai" else "default"
        genai_prices.extract_usage(
            bodies[provider], provider_id=provider, api_flavor=flavor
        ).calc_price()
    return number


def by_litellm(number: int) -> int:
    from litellm import cost_per_token
    from litellm.types.utils import Usage

    usage = {
        "openai": Usage(**OPENAI_USAGE),
        "anthropic": Usage(
            prompt_tokens=1873,
            completion_tokens=241,
            cache_read_input_tokens=1408,
            cache_creation_input_tokens=44,
        ),
    }
    models = {"openai": "gpt-4o-mini-2024-07-18", "anthropic": "claude-haiku-4-5-20251001"}
    for index in range(number):
        provider = ("openai", "anthropic")[index % 2]
        cost_per_token(
            model=models[provider], custom_llm_provider=provider, usage_object=usage[provider]
        )
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=40_000)
    number = parser.parse_args().calls
    get_snapshot()
    book = PriceBook()
    making = rate(lambda: len(calls(number)))

    def net(work: Callable[[], int]) -> float:
        """Without the making of the calls themselves."""
        return 1 / (1 / rate(work) - 1 / making)

    def show(name: str, calls_a_second: float) -> None:
        print(f"{name:<44} {calls_a_second:>10,.0f} calls/s  {1e6 / calls_a_second:6.1f} µs")

    show("usage read, not priced", net(lambda: unpriced(number)))
    show("usage read and priced", net(lambda: priced(number, book)))
    with tempfile.TemporaryDirectory() as folder:
        show(
            "journal read, priced, kept in SQLite",
            statistics.median(kept(number, Path(folder)) for _ in range(ROUNDS)),
        )
    show("genai-prices: extract_usage + calc_price", rate(lambda: by_genai_prices(number // 20)))
    litellm: Any = None
    try:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm
    except ImportError:
        print("litellm is not installed")
    if litellm is not None:
        show("litellm: cost_per_token", rate(lambda: by_litellm(number // 20)))


if __name__ == "__main__":
    main()
