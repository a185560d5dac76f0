"""Significance: whether two series of figures differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma, log, log1p, sqrt

FALSE_DISCOVERIES = 0.05
"""The accepted share of false changes among the reported ones."""


def welch(before: Sequence[float], after: Sequence[float]) -> float | None:
    """
    Return the two-sided p-value of Welch's t-test for two means; None below two values.

    Source: B. L. Welch, "The generalization of 'Student's' problem when several different
    population variances are involved", 1947.
    """
    if min(len(before), len(after)) < 2:
        return None
    (first, spread_first), (second, spread_second) = map(_mean_and_error, (before, after))
    spread = spread_first + spread_second
    if spread == 0:
        return 1.0 if first == second else 0.0
    t = (second - first) / sqrt(spread)
    freedom = spread**2 / (
        spread_first**2 / (len(before) - 1) + spread_second**2 / (len(after) - 1)
    )
    return student(t, freedom)


def student(t: float, freedom: float) -> float:
    """Return the share of Student's distribution that is further from 0 than *t*, on both sides."""
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def discoveries(p_values: Sequence[float], rate: float = FALSE_DISCOVERIES) -> list[bool]:
    """
    Return which of several tests are significant, at a false discovery rate of *rate*.

    Source: Y. Benjamini, Y. Hochberg, "Controlling the false discovery rate", 1995.
    """
    count = len(p_values)
    in_order = sorted(p_values)
    limit = max((p for rank, p in enumerate(in_order, 1) if p <= rate * rank / count), default=-1.0)
    return [p <= limit for p in p_values]


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the square of its standard error."""
    mean = sum(values) / len(values)
    return mean, sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """
    Return the regularized incomplete beta function.

    Source: NIST, DLMF 8.17, the continued fraction 8.17.22.
    """
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for step in range(1, 500):
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        change = 1.0
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            change = c * d
            fraction *= change
        if abs(change - 1) < 1e-15:
            break
    return front * fraction
