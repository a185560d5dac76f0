"""Causes: the difference between two costs, split exactly into the factors that changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import factorial, floor

FACTORS = ("users", "calls", "tokens", "mix", "price")
"""
The factors of the cost of a day: the number of users, and the calls of a user per day. Then for
each model its share of the calls (``mix``), the tokens of a call (input, cache read, cache write,
output), and the price of a token of each kind.
"""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """The priced calls of one model."""

    calls: int
    tokens: tuple[int, ...]
    """The tokens of each kind: input at the full rate, cache read, cache write, output."""
    cost_femto: int
    rates: tuple[Fraction, ...] | None = None
    """
    The price of a token of each kind, under terms that both periods have used. The prices of both
    periods are equal unless they have changed. None if they are unknown.
    """
    reported: bool = False
    """Whether the provider reported the cost. Unit prices only weigh the kinds of tokens then."""

    def at(self, rates: Sequence[Fraction]) -> Fraction:
        """Return the cost of the tokens at some rates."""
        return sum(
            (count * rate for count, rate in zip(self.tokens, rates, strict=True)), Fraction(0)
        )


@dataclass(frozen=True, slots=True)
class Period:
    """The priced calls of a period, by model."""

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
    """The part of each factor in the difference per day, in femto-dollars; the parts add up."""

    users: int
    calls: int
    tokens: int
    mix: int
    price: int


def causes(before: Period, after: Period) -> Causes:
    """
    Split the difference of the cost per day by Shapley values.

    The part of a factor is its mean effect over all orders in which the factors could have changed.
    So no factor is favored, and the parts add up to the difference exactly.

    A model that only one period used counts with the same tokens and price in the other: its
    appearance is ``mix``. Users without priced calls in one period count with the same calls: their
    appearance is ``users``.

    ``price`` is the effect of changed unit prices, and 0 if they are the same. A different mix of
    tokens (more of the cheap input; a cache of one hour; a batch) is ``tokens``. If no unit prices
    are known, ``price`` is the change of the cost per call.
    """
    if not before.calls and not after.calls:
        return Causes(0, 0, 0, 0, 0)
    parts = _shapley(
        _cost(
            before if before.calls else _without_users(after),
            after if after.calls else _without_users(before),
        )
    )
    difference = round(after.cost_per_day) - round(before.cost_per_day)
    return Causes(**dict(zip(FACTORS, _rounded(parts, difference), strict=True)))


def _without_users(period: Period) -> Period:
    return Period(period.days, 0, period.models)


def _cost(before: Period, after: Period) -> Callable[[frozenset[int]], Fraction]:
    """Return the cost per day with some factors of *after*, and the others of *before*."""
    sides = (before, after)
    users = [Fraction(side.users) for side in sides]
    per_user = [side.calls / (_users(side, sides) * side.days) for side in sides]
    models = [
        (
            _shares(name, before, after),
            _cost_of_a_call(before.models.get(name), after.models.get(name)),
        )
        for name in {**before.models, **after.models}
    ]

    def cost(changed: frozenset[int]) -> Fraction:
        now = [int(factor in changed) for factor in range(len(FACTORS))]
        per_call = sum(
            (shares[now[3]] * costs[now[2]][now[4]] for shares, costs in models), Fraction(0)
        )
        return users[now[0]] * per_user[now[1]] * per_call

    return cost


def _users(side: Period, sides: Sequence[Period]) -> int:
    """Return the users of a period; without any, those of the other one, whose calls it has."""
    return side.users or max(period.users for period in sides) or 1


def _shares(name: str | None, before: Period, after: Period) -> tuple[Fraction, Fraction]:
    first, second = (
        Fraction(side.models[name].calls, side.calls) if name in side.models else Fraction(0)
        for side in (before, after)
    )
    return first, second


# Complex: five factors, written out as the formula has them.
def _cost_of_a_call(before: ModelUse | None, after: ModelUse | None) -> list[list[Fraction]]:
    """Return the cost of a call by its tokens (before, after) and by its prices (before, after)."""
    first, second = before or after, after or before
    assert first is not None
    assert second is not None
    uses = first, second
    rates = [use.rates or first.rates or second.rates for use in uses]
    per_call = [Fraction(use.cost_femto, use.calls) for use in uses]
    scale = [
        Fraction(0) if rate is None else use.at(rate) for use, rate in zip(uses, rates, strict=True)
    ]
    if all(scale) and (first.reported or second.reported):
        return [
            [
                use.at(rate or ()) / use.calls * other.cost_femto / total
                for other, rate, total in zip(uses, rates, scale, strict=True)
            ]
            for use in uses
        ]
    if rates[0] is not None and rates[0] == rates[1]:
        return [[cost, cost] for cost in per_call]
    if all(scale):
        return [
            [cost * use.at(rate or ()) / usual for rate in rates]
            for use, cost, usual in zip(uses, per_call, scale, strict=True)
        ]
    return [[Fraction(use.cost_femto, use.calls) for use in uses] for _ in uses]


def _shapley(value: Callable[[frozenset[int]], Fraction]) -> list[Fraction]:
    count = len(FACTORS)
    everything = range(count)
    sets = [
        frozenset(factors)
        for size in range(count + 1)
        for factors in combinations(everything, size)
    ]
    values = {factors: value(factors) for factors in sets}
    return [
        sum(
            (
                Fraction(
                    factorial(len(factors)) * factorial(count - len(factors) - 1), factorial(count)
                )
                * (values[factors | {factor}] - cost)
                for factors, cost in values.items()
                if factor not in factors
            ),
            Fraction(0),
        )
        for factor in everything
    ]


def _rounded(parts: Sequence[Fraction], total: int) -> list[int]:
    """Round to whole numbers that add up to *total*: the largest remainders are rounded up."""
    whole = [floor(part) for part in parts]
    order = sorted(range(len(parts)), key=lambda position: whole[position] - parts[position])
    missing = total - sum(whole)
    for number in range(abs(missing)):
        whole[order[number % len(order)]] += 1 if missing > 0 else -1
    return whole
