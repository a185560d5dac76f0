"""
A made-up ledger: the calls of a web application with skewed users, tenants, plans and releases, over weeks around a month boundary.

Tests and benchmarks share it. The same number and seed give the same calls, with the costs that the price book gives them. What a
report should find is known: a release that makes one model's calls longer, heavy users on the free plan, calls without an owner.
"""

from __future__ import annotations

import math
import random
import sqlite3
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from statistics import NormalDist

from voight_middleware.ledger import Ledger, open_ledger
from voight_middleware.pricing import PriceBook, Rates
from voight_middleware.records.call import Call
from voight_middleware.records.tags import Tags
from voight_middleware.records.usage import Component, Usage
from voight_middleware.testing.fake_data import SNAPSHOTS

SINCE = 1_791_158_400_000_000
"""2026-10-05 00:00 UTC, a Monday, in microseconds since 1970. Seven weeks from here, clocks change in Europe and in America."""
DAYS = 49
HOUR = 3_600_000_000
DAY = 24 * HOUR

PLANS = ("free", "pro", "enterprise")
RELEASES = {"2026.10.1": 0, "2026.10.2": 9.6, "2026.10.3": 18.4, "2026.11.1": 29.6, "2026.11.2": 38.45, "2026.11.3": 46.6}
"""On which day of the ledger each release begins to be rolled out, which takes two hours."""
LONG_RELEASE, LONG_MODEL, LONG_FACTOR = "2026.11.2", "gpt-5-mini", 3
"""The release that sends that model this many times the input."""

_ROUTES: dict[str, tuple[int, bool, str | None, tuple[tuple[str, tuple[int, int, int]], ...]]] = {
    # its weight, whether it streams, its feature, and for each model: a weight on the plans of PLANS
    "POST /chat": (30, True, None, (("gpt-5-nano", (6, 1, 0)), ("gpt-5-mini", (3, 6, 3)), ("gpt-5", (0, 2, 5)))),
    "POST /chats/{chat_id}/messages": (22, True, None, (("gpt-5-mini", (7, 5, 2)), ("claude-sonnet-4-5", (0, 3, 6)))),
    "GET /search": (16, False, "search", (("text-embedding-3-small", (1, 1, 1)),)),
    "POST /summaries": (9, False, "summary", (("gpt-4o-mini", (8, 3, 1)), ("claude-haiku-4-5", (1, 5, 4)))),
    "POST /translations": (6, False, "translation", (("gpt-4.1-mini", (1, 1, 1)),)),
    "POST /documents/{document_id}/answers": (5, True, "answers", (("claude-haiku-4-5", (4, 2, 1)), ("claude-sonnet-4-5", (1, 4, 6)))),
    "POST /code/reviews": (3, True, "review", (("claude-sonnet-4-5", (5, 4, 3)), ("claude-opus-4-5", (0, 1, 4)))),
    "POST /titles": (4, False, "titles", (("gpt-5-nano", (1, 1, 1)),)),
    "POST /extractions": (3, False, "extraction", (("gpt-4.1", (1, 3, 3)), ("gpt-4.1-mini", (4, 2, 1)))),
    "jobs.nightly_digest": (2, False, "digest", (("gpt-4o-mini", (3, 2, 1)), ("local-llama-70b", (1, 1, 1)))),
}
_ENDPOINTS = {"gpt-4": "chat", "gpt-5": "responses", "claude": "messages", "text-embedding": "embeddings", "local": "chat"}
_LENGTHS = {  # median tokens of input and output, and the share of calls with a cached prompt
    "gpt-4o-mini": (900, 180, 0.3),
    "gpt-4.1": (2_600, 350, 0.4),
    "gpt-4.1-mini": (1_100, 260, 0.3),
    "gpt-5": (2_200, 900, 0.5),
    "gpt-5-mini": (1_400, 520, 0.45),
    "gpt-5-nano": (500, 160, 0.2),
    "text-embedding-3-small": (240, 0, 0.0),
    "claude-haiku-4-5": (1_800, 300, 0.55),
    "claude-sonnet-4-5": (3_200, 620, 0.65),
    "claude-opus-4-5": (4_800, 900, 0.7),
    "local-llama-70b": (1_500, 300, 0.0),
}
_OF_THE_DAY = (2, 1, 1, 1, 1, 2, 4, 7, 11, 14, 15, 15, 13, 14, 16, 16, 15, 13, 11, 9, 8, 7, 5, 3)
_OF_THE_WEEK = (10, 11, 11, 10, 9, 5, 4)
_HOSTS = {"openai": "api.openai.com", "anthropic": "api.anthropic.com", "local": "llm.internal"}
_ODD_USERS = ("zoë", "o'brien", "u 100%", 'say "hi"', "u_*")
_STEPS = 1024
_NORMAL = NormalDist()
# Rounded, so that a last binary digit that differs between machines changes nothing.
_SPREAD = [round(math.exp(0.75 * _NORMAL.inv_cdf((step + 0.5) / _STEPS)), 5) for step in range(_STEPS)]


@dataclass(frozen=True, slots=True)
class _Model:
    name: str
    served: str
    provider: str
    endpoint: str
    input: int
    output: int
    cached: float
    rates: Rates | None
    missing: tuple[str, ...] = ()
    """Why there is no price."""

    def unit(self, name: str) -> int:
        """Femto-dollars per token or request; list prices are whole numbers of them."""
        unit = 0 if self.rates is None else self.rates.femto.get(name, 0)
        assert isinstance(unit, int)
        return unit


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a call is made for, and by which model."""

    route: str
    streams: bool
    feature: str | None
    model: _Model


@dataclass(frozen=True, slots=True)
class _User:
    number: int
    tags: tuple[Tags, Tags]
    """Before and after the change of plan."""
    plans: tuple[int, int]
    changed: int
    joined: int


def made_up_calls(count: int, seed: int = 1, *, users: int | None = None) -> Iterator[Call]:
    """
    *count* finished and priced calls, the oldest first, as the ingester would have handed them to a ledger.

    Args:
        count: How many calls.
        seed: The same one gives the same calls.
        users: How many users there are; by default one for each 200 calls, between 40 and 50,000.
    """
    rng = random.Random(seed)
    people = _people(rng, users or min(50_000, max(40, count // 200)))
    settled = [user for user in people if user.joined == SINCE]
    popularity = list(accumulate(1 / (rank + 10) ** 1.05 for rank in range(len(people))))
    models = _models()
    tables = [_choices(models, plan) for plan in range(len(PLANS))]
    node = f"{8 + rng.getrandbits(2):x}{rng.getrandbits(36):09x}"
    number = 0
    for begin, calls in _rhythm(count):
        callers = rng.choices(people, cum_weights=popularity, k=calls)
        for user, offset in zip(callers, sorted(rng.random() for _ in range(calls)), strict=True):
            at = begin + int(offset * HOUR)
            caller = user if user.joined <= at else settled[user.number % len(settled)]
            later = at >= caller.changed
            weights, kinds = tables[caller.plans[later]]
            kind = kinds[bisect(weights, rng.random() * weights[-1])]
            call_id = f"{at // 1000:012x}7{number >> 24 & 0xFFF:03x}{node}{number & 0xFFFFFF:06x}"
            number += 1
            yield _call(rng, call_id, at, caller.tags[later], kind)


def fill(ledger: Ledger, calls: Iterable[Call], *, batch: int = 10_000, done: Callable[[int], None] | None = None) -> int:
    """
    Insert *calls* in batches, each in a transaction; answers how many were new.

    Args:
        done: Called with the number of calls of each batch, once they are in.
    """
    calls = iter(calls)
    new = 0
    while some := list(islice(calls, batch)):
        new += ledger.insert(some)
        if done is not None:
            done(len(some))
    return new


def fill_file(path: Path, calls: Iterable[Call], *, batch: int = 50_000, done: Callable[[int], None] | None = None) -> int:
    """
    As ``fill``, into a new SQLite ledger at *path*, which nobody else has open: millions of calls in half the time, with the same rows.

    Its indexes and what keeps its rollups are taken away for the time, and made again at the end.
    """
    with closing(open_ledger(str(path))) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as db:
        kept = db.execute("SELECT type, name, sql FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql IS NOT NULL").fetchall()
        for kind, name, _ in kept:
            db.execute(f"DROP {kind} {name}")
        new = fill(ledger, calls, batch=batch, done=done)
        for _, _, sql in sorted(kept):
            db.execute(sql)
        for _ in ledger.rebuild():
            pass
    return new


def _people(rng: random.Random, count: int) -> list[_User]:
    """Users by popularity, the heaviest first; their numbers say nothing about it."""
    numbers = list(range(count))
    rng.shuffle(numbers)
    tenants = max(4, count // 40)
    span = DAYS * DAY
    people = []
    for rank, number in enumerate(numbers):
        first = 0 if rng.random() < 0.72 else 1 if rng.random() < 0.8 else 2
        changed, second = SINCE + span, first
        if rng.random() < 0.06:
            changed, second = SINCE + int(rng.random() * span), 1 if first != 1 else 0 if rng.random() < 0.5 else 2
        tenant = f"t_{int(tenants * rng.random() ** 2):04d}" if first or rng.random() < 0.4 else None
        joined = SINCE if rank < 5 or rng.random() < 0.8 else SINCE + int(rng.random() * span)
        name = _ODD_USERS[number] if number < len(_ODD_USERS) else f"u_{number:05d}"
        tags = (
            Tags(user_id=name, plan=PLANS[first], tenant_id=tenant),
            Tags(user_id=name, plan=PLANS[second], tenant_id=tenant),
        )
        people.append(_User(number, tags, (first, second), changed, joined))
    return people


def _models() -> dict[str, _Model]:
    book = PriceBook()
    models = {}
    for name, (tokens_in, tokens_out, cached) in _LENGTHS.items():
        served = SNAPSHOTS.get(name, name)
        provider = "anthropic" if name.startswith("claude") else "local" if name.startswith("local") else "openai"
        endpoint = next(endpoint for prefix, endpoint in _ENDPOINTS.items() if name.startswith(prefix))
        sample = Call(call_id="", occurred_at=SINCE, provider=provider, endpoint=endpoint, model=served)
        table = book.rates(sample, None)
        missing = () if table is not None else (f"no price for model {served!r} of {provider}",)
        # The first row of a long-context model is the one below 200,000 tokens of input: nothing here is longer.
        rates = None if table is None else table.rows[0][1]
        models[name] = _Model(name, served, provider, endpoint, tokens_in, tokens_out, cached, rates, missing)
    return models


def _choices(models: dict[str, _Model], plan: int) -> tuple[list[float], list[_Kind]]:
    weights: list[float] = []
    kinds = list[_Kind]()
    for route, (weight, streams, feature, served) in _ROUTES.items():
        whole = sum(by_plan[plan] for _, by_plan in served)
        for name, by_plan in served:
            if by_plan[plan]:
                weights.append(weight * by_plan[plan] / whole)
                kinds.append(_Kind(route, streams, feature, models[name]))
    return list(accumulate(weights)), kinds


def _rhythm(count: int) -> Iterator[tuple[int, int]]:
    """How many calls begin in each hour: fewer at night and on weekends, and a little more every week."""
    hours = [_OF_THE_DAY[hour % 24] * _OF_THE_WEEK[hour // 24 % 7] * (100 + hour // 24) for hour in range(24 * DAYS)]
    whole, so_far, before = sum(hours), 0, 0
    for hour, weight in enumerate(hours):
        so_far += weight
        until = count * so_far // whole
        yield SINCE + hour * HOUR, until - before
        before = until


def _release(at: int, chance: float) -> str:
    """The release that serves at that time; in the two hours of a rollout, the one before it too."""
    day = (at - SINCE) / DAY
    current = "2026.10.1"
    for name, begin in RELEASES.items():
        if day >= begin and (name == "2026.10.1" or (day - begin) * 12 > chance):
            current = name
    return current


def _call(rng: random.Random, call_id: str, at: int, owner: Tags, kind: _Kind) -> Call:
    chance, model = rng.random, kind.model
    release = _release(at, chance())
    tags, attribution = _owner(rng, owner, kind, release, at)
    call = Call(
        call_id=call_id,
        occurred_at=at,
        provider=model.provider,
        endpoint=model.endpoint,
        requested_model=model.name,
        model=model.served,
        host=_HOSTS[model.provider],
        streamed=kind.streams,
        http_status=200,
        tags=tags,
        attribution=attribution,
        service_tier="default" if model.provider == "openai" and model.output else None,
    )
    what = chance()
    if what < 0.02:
        _fail(rng, call)
        return call
    tokens_in = int(model.input * _SPREAD[int(chance() * _STEPS)]) + 8
    if release == LONG_RELEASE and model.name == LONG_MODEL:
        tokens_in *= LONG_FACTOR
    tokens_out = int(model.output * _SPREAD[int(chance() * _STEPS)]) + 1 if model.output else 0
    call.duration = 180_000 + tokens_out * 9_000 + int(chance() * 400_000)
    if kind.streams:
        call.ttft = 140_000 + int(chance() * 300_000)
        if what < 0.035:  # left by its reader: nothing reported, the rest estimated
            call.outcome, call.model, call.service_tier = "aborted", model.served, None
            call.estimated_input, call.estimated_output = tokens_in, tokens_out // 3 + 1
            _price(call, model, Usage(input=call.estimated_input, output=call.estimated_output))
            return call
    call.response_id = f"{model.endpoint[:4]}_{rng.getrandbits(120):030x}"
    if what > 0.993:
        call.attempts, call.possibly_billed = 2, 1
    _bill(rng, call, model, tokens_in, tokens_out)
    return call


def _owner(rng: random.Random, owner: Tags, kind: _Kind, release: str, at: int) -> tuple[Tags, str]:
    who, route = rng.random(), kind.route
    extra = {} if kind.feature is None else {"feature": kind.feature}
    if who < 0.1:
        extra["experiment"] = "short-prompt" if who < 0.05 else "control"
    if who > 0.976:
        return Tags(route=route, release=release, extra=extra), "none" if who > 0.982 else "error"
    if who > 0.966:
        return Tags(user_id=owner.user_id, route=route, release=release, extra=extra), "request"
    attribution = "getter" if who < 0.62 else "dependency" if who < 0.8 else "settled" if who < 0.84 else "tag"
    session = f"s_{_hash(owner.user_id or '', at // (3 * HOUR)):08x}" if kind.feature is None else None
    tags = Tags(
        user_id=owner.user_id,
        plan=owner.plan,
        tenant_id=owner.tenant_id,
        route=route,
        release=release,
        session_id=session,
        extra=extra,
    )
    return tags, attribution


def _hash(text: str, number: int) -> int:
    """32 bits that follow from a text and a number, in every process alike."""
    return (sum(map(ord, text)) * 2_654_435_761 + len(text) * 40_503 + number * 97_654_321) & 0xFFFFFFFF


def _fail(rng: random.Random, call: Call) -> None:
    call.outcome, call.model, call.service_tier, call.streamed = "error", None, None, False
    call.duration = 60_000 + int(rng.random() * 9_000_000)
    what = rng.random()
    if what < 0.25:  # nobody knows what a call without an answer has cost
        call.error, call.http_status, call.attempts, call.possibly_billed = "APITimeoutError", None, 3, 3
        call.cost_reasons = ("3 attempts got no answer, and may have been billed", "the provider reported no usage")
        return
    call.error, call.http_status = ("RateLimitError", 429) if what < 0.8 else ("InternalServerError", 500)
    call.attempts = 3
    call.cost_femto, call.cost_status, call.cost_reasons = 0, "priced", (f"not billed: HTTP {call.http_status}",)


def _bill(rng: random.Random, call: Call, model: _Model, tokens_in: int, tokens_out: int) -> None:
    """What the provider reports, and what that costs."""
    chance = rng.random
    cached = int(tokens_in * (0.3 + 0.6 * chance())) if chance() < model.cached else 0
    full = tokens_in - cached
    if model.endpoint == "embeddings":
        call.raw_usage = f'{{"prompt_tokens":{tokens_in},"total_tokens":{tokens_in}}}'
        usage = Usage(input=tokens_in)
    elif model.endpoint == "responses":
        reasoning = int(tokens_out * chance() * 0.7)
        call.raw_usage = (
            f'{{"input_tokens":{tokens_in},"input_tokens_details":{{"cached_tokens":{cached}}},"output_tokens":{tokens_out},'
            f'"output_tokens_details":{{"reasoning_tokens":{reasoning}}},"total_tokens":{tokens_in + tokens_out}}}'
        )
        usage = Usage(input=full, cache_read=cached, output=tokens_out, reasoning=reasoning)
    elif model.endpoint == "messages":
        written = full // 2 if cached == 0 and chance() < model.cached else 0
        searches = 1 + int(chance() * 4) if chance() < 0.02 else 0
        call.raw_usage = (
            f'{{"input_tokens":{full - written},"cache_creation_input_tokens":{written},"cache_read_input_tokens":{cached},'
            f'"cache_creation":{{"ephemeral_5m_input_tokens":{written},"ephemeral_1h_input_tokens":0}},"output_tokens":{tokens_out},'
            + (f'"server_tool_use":{{"web_search_requests":{searches}}},' if searches else "")
            + '"service_tier":"standard"}'
        )
        call.service_tier = "standard"
        usage = Usage(
            input=full - written,
            cache_read=cached,
            cache_write_5m=written,
            cache_write_1h=0,
            output=tokens_out,
            tools={"web_search": searches} if searches else None,
        )
    else:
        call.raw_usage = (
            f'{{"prompt_tokens":{tokens_in},"completion_tokens":{tokens_out},"total_tokens":{tokens_in + tokens_out},'
            f'"prompt_tokens_details":{{"cached_tokens":{cached},"audio_tokens":0}},'
            '"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}}'
        )
        usage = Usage(input=full, cache_read=cached, audio_in=0, output=tokens_out, reasoning=0, audio_out=0)
    _price(call, model, usage)


def _price(call: Call, model: _Model, usage: Usage) -> None:
    """The same as ``pricing.price`` for what is made up here, many times as fast."""
    call.usage, call.components = usage, (Component(usage=usage),)
    if call.possibly_billed:
        call.cost_reasons = ("an attempt got no answer, and may have been billed",)
    if model.rates is None:
        call.cost_reasons += model.missing
        return
    cost = (usage.input or 0) * model.unit("input") + (usage.output or 0) * model.unit("output")
    if usage.cache_read:
        cost += usage.cache_read * model.unit("cache_read")
    if usage.cache_write_5m:
        cost += usage.cache_write_5m * model.unit("cache_write_5m")
    if usage.tools:
        cost += usage.tools["web_search"] * model.unit("web_search")
    call.cost_femto, call.price = cost, model.rates.provenance
    call.cost_status = "partial" if call.cost_reasons else "priced"
