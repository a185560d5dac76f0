"""Causes: the difference between two costs, split into what has changed, exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import factorial, floor

FACTORS = ("users", "calls", "tokens", "mix", "price")
"""
What the cost of a day is made of: how many users there are, calls of a user in a day, and, for each model, its part of the calls, the
tokens of a call (input, read from the cache, written to it, output), and what a token of each kind costs.
"""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """The priced calls of one model."""

    calls: int
    tokens: tuple[int, ...]
    """Of each kind: input at the full rate, read from the cache, written to it, output."""
    cost_femto: int
    rates: tuple[Fraction, ...] | None = None
    """
    What a token of each kind costs: unit prices under terms that both periods have used, and the same on both sides unless they have
    changed. None where they are not known.
    """
    reported: bool = False
    """Whether the provider has said what the calls cost: unit prices only tell how the kinds of tokens stand to each other then."""

    def at(self, rates: Sequence[Fraction]) -> Fraction:
        """What the tokens come to at some rates."""
        return sum((count * rate for count, rate in zip(self.tokens, rates, strict=True)), Fraction(0))


@dataclass(frozen=True, slots=True)
class Period:
    """The priced calls of some time, by model."""

    days: Fraction
    users: int
    models: Mapping[str | None, ModelUse]

    @property
    def calls(self) -> int:
        """All priced calls."""
        return sum(use.calls for use in self.models.values())

    @property
    def cost_per_day(self) -> Fraction:
        """Femto-dollars per day."""
        return Fraction(sum(use.cost_femto for use in self.models.values())) / self.days


@dataclass(frozen=True, slots=True)
class Causes:
    """What each factor adds to the cost of a day, in femto-dollars; together exactly the difference."""

    users: int
    calls: int
    tokens: int
    mix: int
    price: int


def causes(before: Period, after: Period) -> Causes:
    """
    The difference of the cost per day, split by Shapley values: each factor adds what it changes on average over all orders in which the
    factors could have changed, so that none is favoured, and the parts add up to the difference without a rest.

    A model that only one of the periods used is taken to have had the same tokens and price in the other: its coming is ``mix``. Users
    without priced calls in one of the periods are taken to have called alike: their coming is ``users``.

    ``price`` is what the unit prices themselves have changed, and 0 where they are the same. Another mix of tokens (more input, which is
    cheap; a cache that is kept for an hour; a batch) is ``tokens``. Where no unit prices are known, it is the calls that have a price.
    """
    if not before.calls and not after.calls:
        return Causes(0, 0, 0, 0, 0)
    parts = _shapley(_cost(before if before.calls else _without_users(after), after if after.calls else _without_users(before)))
    difference = round(after.cost_per_day) - round(before.cost_per_day)
    return Causes(**dict(zip(FACTORS, _rounded(parts, difference), strict=True)))


def _without_users(period: Period) -> Period:
    return Period(period.days, 0, period.models)


def _cost(before: Period, after: Period) -> Callable[[frozenset[int]], Fraction]:
    """The cost per day where the factors of a set are those of *after*, and the others those of *before*."""
    sides = (before, after)
    users = [Fraction(side.users) for side in sides]
    per_user = [side.calls / (_users(side, sides) * side.days) for side in sides]
    models = [
        (_shares(name, before, after), _cost_of_a_call(before.models.get(name), after.models.get(name)))
        for name in {**before.models, **after.models}
    ]

    def cost(changed: frozenset[int]) -> Fraction:
        now = [int(factor in changed) for factor in range(len(FACTORS))]
        per_call = sum((shares[now[3]] * costs[now[2]][now[4]] for shares, costs in models), Fraction(0))
        return users[now[0]] * per_user[now[1]] * per_call

    return cost


def _users(side: Period, sides: Sequence[Period]) -> int:
    """The users that its calls are divided by: where it has none, it has the calls, and so the users, of the other one."""
    return side.users or max(one.users for one in sides) or 1


def _shares(name: str | None, before: Period, after: Period) -> tuple[Fraction, Fraction]:
    first, second = (Fraction(side.models[name].calls, side.calls) if name in side.models else Fraction(0) for side in (before, after))
    return first, second


def _cost_of_a_call(before: ModelUse | None, after: ModelUse | None) -> list[list[Fraction]]:
    """Of one model: what a call costs with the tokens of before or after, at the prices of before or after."""
    first, second = before or after, after or before
    assert first is not None
    assert second is not None
    uses = first, second
    rates = [use.rates or first.rates or second.rates for use in uses]
    per_call = [Fraction(use.cost_femto, use.calls) for use in uses]
    scale = [Fraction(0) if rate is None else use.at(rate) for use, rate in zip(uses, rates, strict=True)]
    if all(scale) and (first.reported or second.reported):
        return [
            [use.at(rate or ()) / use.calls * other.cost_femto / total for other, rate, total in zip(uses, rates, scale, strict=True)]
            for use in uses
        ]
    if rates[0] is not None and rates[0] == rates[1]:
        return [[cost, cost] for cost in per_call]
    if all(scale):
        return [[cost * use.at(rate or ()) / own for rate in rates] for use, cost, own in zip(uses, per_call, scale, strict=True)]
    return [[Fraction(use.cost_femto, use.calls) for use in uses] for _ in uses]


def _shapley(value: Callable[[frozenset[int]], Fraction]) -> list[Fraction]:
    count = len(FACTORS)
    everything = range(count)
    values = {frozenset(some): value(frozenset(some)) for size in range(count + 1) for some in combinations(everything, size)}
    return [
        sum(
            (
                Fraction(factorial(len(some)) * factorial(count - len(some) - 1), factorial(count)) * (values[some | {factor}] - cost)
                for some, cost in values.items()
                if factor not in some
            ),
            Fraction(0),
        )
        for factor in everything
    ]


def _rounded(parts: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers that add up to *total*: those with the largest rests are rounded up."""
    whole = [floor(part) for part in parts]
    order = sorted(range(len(parts)), key=lambda position: whole[position] - parts[position])
    missing = total - sum(whole)
    for number in range(abs(missing)):
        whole[order[number % len(order)]] += 1 if missing > 0 else -1
    return whole
